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

    The baseline that needs no samples of the model. Its optimum is the density of the
    noisy data, but where data are rare nothing is learned, and how much distant modes
    weigh hardly enters the loss.

    The walkers given, if any, only watch, as `CDTrainer`'s: moved by `kernel`, they
    tell this trainer's likelihood. The memory is `Audited`, with nothing that trains.

    **Attributes:** `optim`; `kernel`, of the watching walkers; `noise_scale`, in units
    of the data; `resample_below`; `radius`, as `PCDTrainer`'s, by the noisy data.

    **Metrics:** `loss`, `grad_norm`; with watching walkers `cross_entropy`,
    `log_partition` and `log_partition_error`.

    **Source:** Vincent (2011).
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
        """Return the first state; `memory`, if given, are walkers that watch."""
        return watched_start(self.optim, self.kernel, model, memory, None)

    def step(
        self,
        state: TrainState[Energy, Audited],
        batch: Float[Array, "batch *shape"],
        *,
        key: PRNGKeyArray,
    ) -> tuple[TrainState[Energy, Audited], Metrics]:
        """Update the model by how it denoises the batch."""
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
            self.kernel, model, looked, jnp.zeros(()), state.step
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
        """Raise on data that have no density, or do not fit the watching walkers."""
        check_watched_data(self.kernel, state.memory, batch, source)
