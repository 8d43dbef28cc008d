"""Weighted walkers: samples of a model that moved while they were being drawn."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from effgen.core.weights import (
    Estimate,
    effective_sample_size,
    log_mean_exp,
    normalized,
    resample,
)


Energy = Callable[[Float[Array, "*shape"]], Float[Array, ""]]


class Walkers(eqx.Module):
    """Positions with log-weights, which follow a model as it trains.

    For any function `phi`, and the model `exp(-energy) / Z` that the walkers were last
    moved under,

        E[exp(log_partition) * mean(exp(log_weights) * phi(positions))]
            = Z * E_model[phi]

    so `log_partition + log_mean_exp(log_weights)` estimates `log Z`, and the weights
    normalized to one give expectations under the model.

    **Attributes:**

    - `positions`, `(walkers, *shape)`.
    - `log_weights`, `(walkers,)`: since they were last resampled.
    - `energies`, `(walkers,)`, and `gradients`, `(walkers, *shape)`: of the model that
      the walkers last saw, at their positions; carried to save an evaluation.
    - `log_partition`: `log Z` as booked when they were last resampled.
    - `variance`: of `log_partition`, summed over the resamplings.

    **Source:** Carbone et al. (2023), Proposition 1 and section 3.
    """

    positions: Float[Array, "walkers *shape"]
    log_weights: Float[Array, " walkers"]
    energies: Float[Array, " walkers"]
    gradients: Float[Array, "walkers *shape"]
    log_partition: Float[Array, ""]
    variance: Float[Array, ""]

    @classmethod
    def from_gaussian(
        cls,
        key: PRNGKeyArray,
        num: int,
        shape: tuple[int, ...],
        *,
        scale: float = 1.0,
    ) -> "Walkers":
        """Draw `num` walkers from a Gaussian, whose `log Z` is known.

        The energy is `|x|^2 / (2 scale^2)`, its `log Z = (d / 2) log(2 pi scale^2)`. A
        `ConfinedEnergy` of the same scale is exactly this before training; for any
        other, `trainer.init` gives the walkers importance weights, which are exact too
        and the better the closer the two are.

        **Raises:** `ValueError` for fewer than 2 walkers, or a scale not positive.
        """
        if num < 2:
            raise ValueError(f"`num` is {num}: weights need at least 2 walkers.")
        if not scale > 0:
            raise ValueError(f"`scale` is {scale}: pass a positive number.")
        positions = scale * jax.random.normal(key, (num, *shape))
        energies = 0.5 * jnp.sum(_flat(positions / scale) ** 2, axis=1)
        size = positions[0].size
        log_partition = 0.5 * size * jnp.log(2 * jnp.pi * scale**2)
        return cls(
            positions=positions,
            log_weights=jnp.zeros(num, positions.dtype),
            energies=energies,
            gradients=positions / scale**2,
            log_partition=jnp.asarray(log_partition, positions.dtype),
            variance=jnp.zeros((), positions.dtype),
        )

    @classmethod
    def from_samples(
        cls,
        positions: Float[Array, "walkers *shape"],
        log_density: Float[Array, " walkers"] | None = None,
    ) -> "Walkers":
        """Start at `positions`, samples of a normalized `log_density`.

        Without a density (walkers started at data), weights have no meaning: only
        trainers that use none, such as `PCDTrainer`, accept such walkers.

        **Raises:** `ValueError` if the two differ in their number, or are too few.
        """
        positions = jnp.asarray(positions)
        num = positions.shape[0]
        if num < 2:
            raise ValueError(f"`positions` has {num} row(s): pass at least 2 walkers.")
        known = log_density is not None
        density = jnp.asarray(log_density) if known else jnp.zeros(num)
        if density.shape != (num,):
            raise ValueError(
                f"`log_density` has shape {density.shape}: pass one number for each of "
                f"the {num} positions."
            )
        return cls(
            positions=positions,
            log_weights=jnp.zeros(num, positions.dtype),
            energies=-density.astype(positions.dtype),
            gradients=jnp.zeros_like(positions),
            log_partition=jnp.asarray(0.0 if known else jnp.nan, positions.dtype),
            variance=jnp.zeros((), positions.dtype),
        )

    @property
    def num(self) -> int:
        """The number of walkers."""
        return self.positions.shape[0]

    @property
    def weights(self) -> Float[Array, " walkers"]:
        """The weights, normalized to one."""
        return normalized(self.log_weights)

    @property
    def ess(self) -> Float[Array, ""]:
        """The effective sample size, between 0 and the number of walkers."""
        return effective_sample_size(self.log_weights)

    def estimate(self) -> Estimate:
        """Return `log Z` of the model last moved under, and its standard error.

        The error adds the variances of the segments between resamplings, as if these
        were independent; relatives among the walkers make the true error larger.
        """
        since, error = log_mean_exp(self.log_weights)
        total = jnp.sqrt(self.variance + error**2)
        return Estimate(self.log_partition + since, total)

    def reweighted(self, energy: Energy) -> "Walkers":
        """Return the walkers, where they are, as weighted samples of `energy`.

            log_weights += energies - energy(positions)

        exact for any change of energy: the move is the identity, which leaves every
        distribution invariant.
        """
        energies, gradients = evaluate(energy, self.positions)
        return Walkers(
            positions=self.positions,
            log_weights=self.log_weights + self.energies - energies,
            energies=energies,
            gradients=gradients,
            log_partition=self.log_partition,
            variance=self.variance,
        )

    def resampled(self, key: PRNGKeyArray) -> "Walkers":
        """Return equally weighted walkers, each kept in proportion to its weight.

        `log Z` since the last resampling is booked; every array that belongs to a
        walker moves with it.
        """
        index = resample(self.log_weights, self.num, key=key)
        since, error = log_mean_exp(self.log_weights)
        return Walkers(
            positions=self.positions[index],
            log_weights=jnp.zeros_like(self.log_weights),
            energies=self.energies[index],
            gradients=self.gradients[index],
            log_partition=self.log_partition + since,
            variance=self.variance + error**2,
        )


class Audited(eqx.Module):
    """Two populations: one that trains the model, and one that only watches.

    The walkers that enter the gradient steer the model toward what they happen to have
    sampled, and so their own `log Z` drifts below the truth. The audit walkers move and
    are weighted alike but never enter the gradient: for them the path of the model is
    as good as given, their `Z` is unbiased, and the likelihood they tell is honest.

    **Attributes:** `walkers` and `audit`, which may differ in number.
    """

    walkers: Walkers
    audit: Walkers


def training_walkers(memory: Walkers | Audited) -> Walkers:
    """Return the population that enters the gradient."""
    return memory.walkers if isinstance(memory, Audited) else memory


def honest_walkers(memory: Walkers | Audited) -> Walkers:
    """Return the population whose `log Z` is to be believed: the audit's, if any."""
    return memory.audit if isinstance(memory, Audited) else memory


def evaluate(
    energy: Energy, positions: Float[Array, "walkers *shape"]
) -> tuple[Float[Array, " walkers"], Float[Array, "walkers *shape"]]:
    """Return each walker's energy and its gradient, in one pass."""
    return jax.vmap(jax.value_and_grad(energy))(positions)


def _flat(array: Float[Array, "walkers *shape"]) -> Float[Array, "walkers size"]:
    return array.reshape(array.shape[0], -1)
