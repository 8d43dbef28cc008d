"""A trained energy as a normalized density, with an error bar, and its samples."""

import warnings
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from effgen.core.results import RunWarning
from effgen.core.state import TrainState
from effgen.core.weights import Estimate, resample

from .diagnostics import pareto_k
from .evaluation import Energy, energies_at
from .populations import (
    Memory,
    Population,
    caught_up,
    flattened,
    honest_population,
    knows_partition,
    training_population,
)
from .walkers import Walkers


# Where importance weights stop telling their own error: Vehtari et al. (2024).
_LARGEST_K = 0.7
_LEAST_ESS = 0.1
# With fewer walkers the tail's shape cannot be told.
_FEWEST = 256


class NormalizedEnergy(eqx.Module):
    """A normalized density: `log_prob(x) = -energy(x) - log_partition`.

    **Attributes:**

    - `energy`.
    - `log_partition`, the walkers' estimate of `log Z`, and `standard_error`, its error
      bar, in nats.
    - `shape`, of one example.
    - `ess`, the share of the walkers that count, and `pareto_k`, the shape of their
      weights' tail: past 0.7 the error bar itself is not to be believed.
    """

    energy: Energy
    log_partition: Float[Array, ""]
    standard_error: Float[Array, ""]
    shape: tuple[int, ...] = eqx.field(static=True)
    ess: Float[Array, ""] | float = 1.0
    pareto_k: Float[Array, ""] | float = -jnp.inf

    @classmethod
    def from_state(cls, state: TrainState[Energy, Memory]) -> "NormalizedEnergy":
        """Return the density of a trained state.

        `log Z` is the audit walkers' where there are any, and then unbiased; else the
        training walkers', which is too small, the more so the fewer they are. A
        reservoir's waiting blocks catch up first, at one evaluation of each walker.

        **Raises:** `ValueError` if the state has no walkers that know `log Z`.
        """
        if state.memory is None:
            raise ValueError(
                "`state.memory` holds no walkers: give `trainer.init` walkers that "
                "watch, or pass fresh ones to `ebm.replay` and its outcome to "
                "`NormalizedEnergy.from_walkers`."
            )
        walkers = _evaluated(honest_population(state.memory), state)
        return cls.from_walkers(state.evaluated, walkers)

    @classmethod
    def from_walkers(cls, energy: Energy, walkers: Walkers) -> "NormalizedEnergy":
        """Return the density of `energy`, by walkers that are weighted for it.

        **Raises:** `ValueError` if the walkers do not know `log Z`. Warns with a
        `RunWarning` if their weights cannot be relied on.
        """
        (value, error), share, shape = _told(walkers)
        if not bool(jnp.isfinite(value)):
            raise ValueError(
                "`state.memory` does not know `log Z`: its walkers carry no weights. "
                "Train with `JarzynskiTrainer`, or give the trainer `Audited` walkers."
            )
        if walkers.num >= _FEWEST and (shape > _LARGEST_K or share < _LEAST_ESS):
            warnings.warn(
                f"unreliable: of the walkers' weights a share of {float(share):.2f} "
                f"counts, with a tail of Pareto shape {float(shape):.2f}; `log Z` may "
                "be off by more than its error bar. Use more walkers, or "
                "`ebm.replay` with more steps.",
                RunWarning,
                stacklevel=2,
            )
        return cls(energy, value, error, walkers.positions.shape[1:], share, shape)

    def log_prob(self, x: Float[Array, "*batch_and_shape"]) -> Float[Array, "*batch"]:
        """Return the log-density in nats of each example of `x`, `(*batch, *shape)`.

        The error of all of them together is `standard_error`: that of `log Z`.

        **Raises:** `ValueError` if `x` does not end in the shape of an example.
        """
        x = jnp.asarray(x)
        batch = x.shape[: x.ndim - len(self.shape)]
        if x.shape[len(batch) :] != self.shape:
            raise ValueError(
                f"`x` has shape {x.shape}, which does not end in that of an example, "
                f"{self.shape}."
            )
        energies = _energies_at(self.energy, x.reshape(-1, *self.shape))
        return -energies.reshape(batch) - self.log_partition

    def log_likelihood(self, x: Float[Array, "examples *shape"]) -> Estimate:
        """Return the mean log-density of `x` in nats, with its standard error.

        The error is `log Z`'s and the sample mean's, added in quadrature.
        """
        values = self.log_prob(x)
        sampling = jnp.std(values, ddof=1) / jnp.sqrt(values.shape[0])
        return Estimate(jnp.mean(values), jnp.hypot(sampling, self.standard_error))


def weighted_samples(
    state: TrainState[Energy, Memory],
) -> tuple[Float[Array, "walkers *shape"], Float[Array, " walkers"]]:
    """Return all training walkers and their weights, which sum to one.

    `sum(weights * phi(positions))` estimates the model's expectation of `phi`, with
    less noise than `sample`'s equally weighted draws.

    **Raises:** `ValueError` if the state holds no walkers.
    """
    walkers = _training_walkers(state)
    return walkers.positions, walkers.weights


def sample(
    state: TrainState[Energy, Memory], num: int, *, key: PRNGKeyArray
) -> Float[Array, "num *shape"]:
    """Return `num` samples of the model: walkers drawn in proportion to their weights.

    Drawn with replacement, from the population that trains; more samples than the
    effective sample size repeat some of them.

    **Raises:** `ValueError` if `num` is not positive, or the state holds no walkers.
    """
    if num < 1:
        raise ValueError(f"`num` is {num}: pass a positive integer.")
    walkers = _training_walkers(state)
    return _drawn(walkers, num, key)


@partial(jax.jit, static_argnames="num")
def _drawn(walkers: Walkers, num: int, key: PRNGKeyArray) -> Float[Array, "num *shape"]:
    drawn = resample(walkers.joint_log_weights, num, key=key)
    # Systematic resampling returns relatives side by side: mix them.
    return jax.random.permutation(key, walkers.positions[drawn])


@jax.jit
def _told(walkers: Walkers) -> tuple[Estimate, Array, Array]:
    """Return `log Z`, the share of the walkers that count, and their weights' tail."""
    share = walkers.ess / walkers.num
    return walkers.estimate(), share, pareto_k(walkers.joint_log_weights)


_energies_at = eqx.filter_jit(energies_at)


def _training_walkers(state: TrainState[Energy, Memory]) -> Walkers:
    if state.memory is None:
        raise ValueError(
            "`state.memory` holds no walkers to sample from: give `trainer.init` "
            "walkers that watch, or move your own by `ebm.long_run`."
        )
    return _evaluated(training_population(state.memory), state)


def _evaluated(population: Population, state: TrainState[Energy, Memory]) -> Walkers:
    """Return the walkers weighted for the model to evaluate, maybe an average."""
    walkers = _settled(population, state.model)
    average = getattr(state, "average", None)  # a state may be any with these fields
    if average is None or not knows_partition(population):
        return walkers
    return _reweighted(walkers, average)


@eqx.filter_jit
def _reweighted(walkers: Walkers, energy: Energy) -> Walkers:
    return walkers.reweighted(energy)


def _settled(population: Population, energy: Energy) -> Walkers:
    """Return the walkers weighted for `energy`, if they have weights at all."""
    if knows_partition(population):
        return _caught_up(population, energy)
    return flattened(population)


@eqx.filter_jit
def _caught_up(population: Population, energy: Energy) -> Walkers:
    return caught_up(population, energy)
