"""Denoising score matching, the baseline without any walkers in its gradient."""

import dataclasses
import math
import warnings
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from effgen.core.contract.counts import check_count
from effgen.core.contract.state import Metrics, TrainState
from effgen.core.contract.trainer import AbstractTrainer
from effgen.core.contract.update import apply_gradients
from effgen.core.outcome.results import RunWarning
from effgen.ebm.contract.arguments import as_rows, check_positive, check_share
from effgen.ebm.contract.data_checks import values_at_hand
from effgen.ebm.contract.energy import Energy, energies_at, evaluate
from effgen.ebm.energies.coordinates import AbstractCoordinates, check_coordinates
from effgen.ebm.moves.kernels import AbstractKernel, check_admitted, check_kernel
from effgen.ebm.walkers.particles import KernelState
from effgen.ebm.walkers.populations import Audited, Population
from effgen.ebm.walkers.weighted_walkers import Walkers

from .audit import (
    check_watched_data,
    kept_in,
    watch_after_data,
    watched_start,
)
from .soundness import soundness
from .trust_region import bounded, check_radius


# About so many rows are looked at, to see whether there may be values between them.
_NUM_TRIED = 64


class ScoreMatchingTrainer(AbstractTrainer):
    """Denoising score matching at one level of noise.

        noisy = z + noise_scale * noise,  z = coordinates(batch)
        loss = mean(|noise_scale * gradient(noisy) - noise|^2) / 2

    This baseline needs no samples of the model. Its optimum is the density of the noisy
    data. Where data are rare nothing is learned, and the masses of distant modes have
    little effect on the loss. Gradients are those in `z`.

    The walkers given, if any, are an audit, as `CDTrainer`'s. They are moved by
    `kernel`, and estimate this trainer's likelihood. The memory is `Audited`, with the
    kernel's state in place of walkers that train.

    The metrics are `loss`, `grad_norm`; with a `radius`, `update_share` and
    `update_radius`; with watching walkers `cross_entropy`, `log_partition`,
    `log_partition_error`, `audit_ess` and `audit_roots`.

    Arguments:
        optim: Any optax transformation.
        kernel: How the watching walkers move.
        noise_scale: The noise's standard deviation, in `coordinates`, if there are any,
            else in units of the data; the model is at least as wide, in every column.
        coordinates: In which noise is added, such as `Standardized.of(data)`, or
            `None` for `z = x`.
        num_moves: The number of moves of the audit walkers in each step.
        resample_below: The share of the watching walkers, in (0, 1), below which they
            are resampled.
        radius: An update may cost at most `radius^2` of the noisy data, which count
            alike, to second order; by default all updates pass.

    Raises:
        TypeError: If `kernel`, `radius` or `coordinates` is of the wrong kind.
        ValueError: For settings out of range.

    Source:
        Vincent (2011).
    """

    watched: ClassVar[tuple[str, ...]] = ("loss", "cross_entropy")

    optim: optax.GradientTransformation
    kernel: AbstractKernel
    noise_scale: float = eqx.field(default=0.1, kw_only=True)
    coordinates: AbstractCoordinates | None = eqx.field(default=None, kw_only=True)
    num_moves: int = eqx.field(default=1, kw_only=True)
    resample_below: float = eqx.field(default=0.5, kw_only=True)
    radius: float = eqx.field(default=math.inf, kw_only=True)

    def __check_init__(self) -> None:
        """Raise `TypeError` or `ValueError` for settings out of range."""
        check_kernel(self.kernel)
        check_count("num_moves", self.num_moves)
        check_share("resample_below", self.resample_below)
        check_radius(self.radius)
        check_positive("noise_scale", self.noise_scale)
        check_coordinates(self.coordinates)

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
            TypeError: If the audit walkers are no walkers.
            ValueError: For watching walkers that do not fit the model, or whose density
                is unknown.
        """
        own = KernelState.unknown()
        return watched_start(self.optim, self.kernel, model, memory, own)

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
        batch = as_rows("batch", batch)
        noise_key, watch_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, batch.shape, batch.dtype)
        to = self.coordinates
        z = batch if to is None else jax.vmap(to)(batch)
        back = (lambda z: z) if to is None else jax.vmap(to.inverse)
        noisy, pullback = jax.vjp(back, z + self.noise_scale * noise)

        def mean_square(model: Energy) -> Float[Array, ""]:
            (gradients,) = pullback(evaluate(model, noisy)[1])
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
        leader = kept_in(state, KernelState)
        leader, audit, more = watch_after_data(
            self.kernel,
            state,
            model,
            self.num_moves,
            self.resample_below,
            leader=leader,
            batch=batch,
            data_energy=jnp.mean(energies_at(state.model, batch)),
            key=watch_key,
        )
        return state.advance(model, opt_state, Audited(leader, audit)), metrics | more

    def check(self, state: TrainState, batch: PyTree, source: Any) -> None:
        """Raise on data that have no density, or do not fit the watching walkers.

        Arguments:
            state: The run's first state.
            batch: The first batch, or its shape and dtype.
            source: The data of the run.

        Raises:
            TypeError: For batches that are no array, or as `kernel.check_data`.
            ValueError: For rows of another shape or scale than the watching walkers,
                or as `kernel.check_data`; for data that noise takes to where the
                kernel's walkers can never be, such as zeros and ones; for a state of
                another trainer.

        Warns:
            RunWarning: If the noise is wider than a column of the data.
        """
        check_watched_data(self.kernel, state, batch, source, KernelState)
        check_coordinates(self.coordinates, tuple(batch.shape[1:]))
        values = values_at_hand(batch, source)
        if values is None:
            return
        some = as_rows("data", values[:: max(1, len(values) // _NUM_TRIED)])
        said = "`data` are denoised, but between them are"
        between = 0.5 * (some + some[::-1])
        check_admitted(said, self.kernel, state.model, between)
        to = self.coordinates
        self._check_noise(some if to is None else jax.vmap(to)(some))

    def _check_noise(self, z: Float[Array, "rows *shape"]) -> None:
        """Warn if the noise is wider than a column, which it hides."""
        widths = np.asarray(jnp.std(z, axis=0)).reshape(-1)
        narrow = np.flatnonzero((widths > 0) & (widths < self.noise_scale))
        if z.ndim == 2 and len(narrow):  # of an image's pixels, many hardly vary
            warnings.warn(
                f"`noise_scale` is {self.noise_scale}, wider than column {narrow[0]} "
                f"({widths[narrow[0]]:.3g}), which the model will be as wide in: pass "
                "a smaller one, or `coordinates=ebm.Standardized.of(data)`.",
                RunWarning,
                stacklevel=2,
            )
