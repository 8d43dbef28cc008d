"""Denoising score matching, the baseline without any walkers in its gradient."""

import dataclasses
import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from effgen.core.state import Metrics, TrainState
from effgen.core.trainer import AbstractTrainer
from effgen.core.update import apply_gradients

from .arguments import check_positive, check_share
from .audit import check_watched_data, watch, watched_start
from .evaluation import Energy, energies_at, evaluate
from .kernels import AbstractKernel, check_kernel
from .learning import soundness
from .populations import Audited, Population
from .trust_region import bounded, check_radius
from .walkers import Walkers


class ScoreMatchingTrainer(AbstractTrainer):
    """Denoising score matching at one level of noise.

        noisy = batch + noise_scale * noise
        loss = mean(|noise_scale * gradient(noisy) - noise|^2) / 2

    This baseline needs no samples of the model. Its optimum is the density of the noisy
    data. Where data are rare nothing is learned, and the masses of distant modes have
    little effect on the loss.

    The walkers given, if any, are an audit, as `CDTrainer`'s. They are moved by
    `kernel`, and estimate this trainer's likelihood. The memory is `Audited`, with
    nothing that trains.

    The metrics are `loss`, `grad_norm`; with a `radius`, `update_share` and
    `update_radius`; with watching walkers `cross_entropy`, `log_partition`,
    `log_partition_error`, `audit_ess` and `audit_roots`.

    Arguments:
        optim: Any optax transformation.
        kernel: How the watching walkers move.
        noise_scale: The noise's standard deviation, in units of the data.
        resample_below: The share of the watching walkers, in (0, 1), below which they
            are resampled.
        radius: An update may cost at most `radius^2` of the noisy data, which count
            alike, to second order; by default all updates pass.

    Raises:
        TypeError: If `kernel` is no kernel, or `radius` no number.
        ValueError: For settings out of range.

    Source:
        Vincent (2011).
    """

    watched: ClassVar[tuple[str, ...]] = ("loss", "cross_entropy")

    optim: optax.GradientTransformation
    kernel: AbstractKernel
    noise_scale: float = eqx.field(default=0.1, kw_only=True)
    resample_below: float = eqx.field(default=0.5, kw_only=True)
    radius: float = eqx.field(default=math.inf, kw_only=True)

    def __check_init__(self) -> None:
        """Raise `TypeError` or `ValueError` for settings out of range."""
        check_kernel(self.kernel)
        check_share("resample_below", self.resample_below)
        check_radius(self.radius)
        check_positive("noise_scale", self.noise_scale)

    def init(
        self, model: Energy, memory: Population | Audited | None = None
    ) -> TrainState[Energy, Audited]:
        """Return the first state.

        Arguments:
            model: A callable pytree from one example to its energy, a scalar, or from a
                batch to energies.
            memory: Walkers that watch, if any: `Walkers`, a `Reservoir`, or `Audited`,
                of which the audit is taken.

        Returns:
            The state at step 0, the watching walkers reweighted to `model`.

        Raises:
            TypeError: For watching walkers that are none.
            ValueError: For watching walkers that do not fit the model, or whose density
                is unknown.
        """
        return watched_start(self.optim, self.kernel, model, memory, None)

    def step(
        self,
        state: TrainState[Energy, Audited],
        batch: Float[Array, "batch *shape"],
        *,
        key: PRNGKeyArray,
    ) -> tuple[TrainState[Energy, Audited], Metrics]:
        """Update the model by how it denoises the batch.

        Arguments:
            state: The state before the step.
            batch: Examples, shape `(batch, *shape)`.
            key: The randomness of the step.

        Returns:
            The state after the step, and the metrics.
        """
        noise_key, watch_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, batch.shape, batch.dtype)
        noisy = batch + self.noise_scale * noise

        def mean_square(model: Energy) -> Float[Array, ""]:
            _, gradients = evaluate(model, noisy)
            errors = (self.noise_scale * gradients - noise).reshape(len(batch), -1)
            return 0.5 * jnp.mean(jnp.sum(errors**2, axis=1))

        loss, gradients = eqx.filter_value_and_grad(mean_square)(state.model)
        model, opt_state = apply_gradients(
            self.optim,
            gradients,
            state.opt_state,
            state.model,
            value=loss,
            value_fn=mean_square,
        )
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(gradients)}
        looked = Walkers.from_samples(noisy)
        looked = dataclasses.replace(looked, energies=energies_at(state.model, noisy))
        model, more = bounded(self.radius, state.model, model, looked, weighted=False)
        metrics |= more
        metrics["result"] = soundness(
            self.kernel, model, looked, jnp.zeros(()), state.step, batch
        )
        audit, more = watch(
            self.kernel,
            state,
            model,
            1,
            self.resample_below,
            data_energy=jnp.mean(energies_at(state.model, batch)),
            key=watch_key,
        )
        memory = Audited(None, audit)
        return state.advance(model, opt_state, memory), metrics | more

    def check(self, state: TrainState, batch: PyTree, source: Any) -> None:
        """Raise on data that have no density, or do not fit the watching walkers.

        Arguments:
            state: The run's first state.
            batch: The first batch, or its shape and dtype.
            source: The data of the run.

        Raises:
            TypeError: For batches that are no array, or as `kernel.check_data`.
            ValueError: For rows of another shape or scale than the watching walkers,
                or as `kernel.check_data`.
        """
        check_watched_data(self.kernel, state, batch, source)
