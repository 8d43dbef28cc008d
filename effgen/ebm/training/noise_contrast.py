"""Noise-contrastive estimation, the baseline that learns `log Z` as a parameter."""

import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from effgen.core.contract.counts import check_count
from effgen.core.contract.state import Metrics, TrainState
from effgen.core.contract.trainer import AbstractTrainer
from effgen.core.contract.update import apply_gradients
from effgen.core.weights import log_mean_exp
from effgen.ebm.contract.arguments import check_positive, check_share
from effgen.ebm.contract.energy import Energy, energies_at
from effgen.ebm.energies.coordinates import AbstractCoordinates, check_coordinates
from effgen.ebm.moves.kernels import AbstractKernel, check_admitted, check_kernel
from effgen.ebm.walkers.particles import KernelState
from effgen.ebm.walkers.populations import Audited, LearnedPartition, Population
from effgen.ebm.walkers.weighted_walkers import Walkers

from .audit import (
    check_watched_data,
    kept_in,
    watch_after_data,
    watched_start,
)
from .soundness import soundness
from .trust_region import bounded, check_radius


# The share of a Newton step, and the most nats, that the learned `log Z` moves.
_RATE = 0.1
_MOST = 5.0


class NCETrainer(AbstractTrainer):
    """Noise-contrastive estimation: the model learns to tell data from Gaussian noise.

        odds(x) = -energy(x) - log_partition - log_noise(x)
        loss = mean(softplus(-odds(batch))) + mean(softplus(odds(noise)))

    This baseline needs no samples of the model. It learns `log Z` with the model, by a
    tenth of a Newton step at each step. If data and noise are easily told apart, as in
    many dimensions, the loss is small for any model, and little is learned.

    The walkers given, if any, are an audit, as `CDTrainer`'s. They are moved by
    `kernel`, and estimate this trainer's likelihood and the error of the learned `log
    Z`. The memory is `Audited`, with the `LearnedPartition` in place of walkers that
    train.

    The metrics are `loss`, `learned_log_partition`, `grad_norm`; with a `radius`,
    `update_share` and `update_radius`; with watching walkers `cross_entropy`,
    `log_partition`, `log_partition_error`, `audit_ess` and `audit_roots`.

    Arguments:
        optim: Any optax transformation.
        kernel: How the watching walkers move.
        noise_scale: The noise's standard deviation, in `coordinates`, if there are any,
            else in units of the data.
        coordinates: In which the noise is drawn, such as `Standardized.of(data)`, or
            `None`.
        num_moves: The number of moves of the audit walkers in each step.
        resample_below: The share of the watching walkers, in (0, 1), below which they
            are resampled.
        radius: An update may cost at most `radius^2` of the data, which count alike, to
            second order; by default all updates pass.

    Raises:
        TypeError: If `kernel`, `radius` or `coordinates` is of the wrong kind.
        ValueError: For settings out of range.

    Source:
        Gutmann and Hyvärinen (2010).
    """

    watched: ClassVar[tuple[str, ...]] = ("loss", "cross_entropy")

    optim: optax.GradientTransformation
    kernel: AbstractKernel
    noise_scale: float = eqx.field(default=1.0, kw_only=True)
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

        The first step begins the learned `log Z` with its noise's estimate.

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
        own = LearnedPartition(jnp.full((), jnp.inf), KernelState.unknown())
        return watched_start(self.optim, self.kernel, model, memory, own)

    def step(
        self,
        state: TrainState[Energy, Audited],
        batch: Float[Array, "batch *shape"],
        *,
        key: PRNGKeyArray,
    ) -> tuple[TrainState[Energy, Audited], Metrics]:
        """Update the model, and its `log Z`, by how they tell the batch from noise.

        Arguments:
            state: The state before the step.
            batch: Examples, shape `(batch, *shape)`; as many of noise are drawn.
            key: The randomness of the step.

        Returns:
            The state after the step, and the metrics.
        """
        noise_key, watch_key = jax.random.split(key)
        num = batch.shape[0]
        both = jnp.concatenate([batch, self._noise(noise_key, batch)])
        log_noise = self._log_noise(both)
        energies = energies_at(state.model, both)
        learned = self._begun(state, -energies[num:] - log_noise[num:])

        def loss_of(model: Energy) -> Float[Array, ""]:
            odds = -energies_at(model, both) - learned - log_noise
            real, false = odds[:num], odds[num:]
            return jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(false))

        loss, gradients = eqx.filter_value_and_grad(loss_of)(state.model)
        model, opt_state = apply_gradients(
            self.optim,
            gradients,
            state.opt_state,
            state.model,
            value=loss,
            value_fn=loss_of,
        )
        odds = -energies - learned - log_noise
        log_partition = learned - _RATE * _newton(odds[:num], odds[num:])
        looked = Walkers.from_samples(batch, -energies[:num])
        model, more = bounded(self.radius, state.model, model, looked, weighted=False)
        metrics: Metrics = {
            "loss": loss,
            "learned_log_partition": learned,
            "grad_norm": optax.tree.norm(gradients),
            **more,
        }
        metrics["result"] = soundness(
            self.kernel, model, looked, jnp.zeros(()), state.step, batch
        )
        leader = kept_in(state, LearnedPartition).kernel_state
        leader, audit, more = watch_after_data(
            self.kernel,
            state,
            model,
            self.num_moves,
            self.resample_below,
            leader=leader,
            batch=batch,
            data_energy=jnp.mean(looked.energies),
            key=watch_key,
        )
        memory = Audited(LearnedPartition(log_partition, leader), audit)
        return state.advance(model, opt_state, memory), metrics | more

    def _begun(
        self, state: TrainState, log_weights: Float[Array, " batch"]
    ) -> Float[Array, ""]:
        """Return the learned `log Z`; at first an estimate by the noise's weights.

        At first it is infinite: `effgen.continued` goes on at a later step than 0.
        """
        own = kept_in(state, LearnedPartition)
        estimated = log_mean_exp(log_weights).value.astype(own.log_partition.dtype)
        unknown = jnp.isposinf(own.log_partition)
        return jnp.where(unknown, estimated, own.log_partition)

    def _noise(self, key: PRNGKeyArray, batch: Array) -> Float[Array, "batch *shape"]:
        """Return as much noise as data."""
        return Walkers.from_gaussian(
            key,
            batch.shape[0],
            batch.shape[1:],
            scale=self.noise_scale,
            coordinates=self.coordinates,
        ).positions

    def _log_noise(self, x: Float[Array, "batch *shape"]) -> Float[Array, " batch"]:
        z = x if self.coordinates is None else jax.vmap(self.coordinates)(x)
        logs = jax.scipy.stats.norm.logpdf(z, scale=self.noise_scale)
        shift = 0.0 if self.coordinates is None else self.coordinates.log_determinant
        return jnp.sum(logs.reshape(x.shape[0], -1), axis=1) + shift

    def check(self, state: TrainState, batch: PyTree, source: Any) -> None:
        """Raise on data that have no density, or do not fit the watching walkers.

        Arguments:
            state: The run's first state.
            batch: The first batch, or its shape and dtype.
            source: The data of the run.

        Raises:
            TypeError: For batches that are no array, or as `kernel.check_data`.
            ValueError: For rows of another shape or scale than the watching walkers,
                or as `kernel.check_data`; for noise where the kernel's walkers can
                never be; for a state of another trainer.
        """
        check_watched_data(self.kernel, state, batch, source, LearnedPartition)
        noise = self._noise(jax.random.key(0), batch)
        said = "`data` are told from a Gaussian's noise, which has"
        check_admitted(said, self.kernel, state.model, noise)


def _newton(
    real: Float[Array, " batch"], false: Float[Array, " batch"]
) -> Float[Array, ""]:
    """Return the loss's slope over its curvature in `log_partition`."""
    told, missed = jax.nn.sigmoid(-real), jax.nn.sigmoid(false)
    slope = jnp.mean(told) - jnp.mean(missed)
    curvature = jnp.mean(told * (1 - told)) + jnp.mean(missed * (1 - missed))
    return jnp.clip(slope / jnp.maximum(curvature, 1e-6), -_MOST, _MOST)
