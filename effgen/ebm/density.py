"""A trained energy as a normalized density, with an error bar, and its samples."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from effgen.core.state import TrainState
from effgen.core.weights import Estimate, resample

from .walkers import Audited, Energy, Walkers, honest_walkers, training_walkers


class NormalizedEnergy(eqx.Module):
    """A normalized density: `log_prob(x) = -energy(x) - log_partition`.

    **Attributes:** `energy`; `log_partition`, the walkers' estimate of `log Z`, and
    `standard_error`, its error bar, in nats; `shape`, of one example.
    """

    energy: Energy
    log_partition: Float[Array, ""]
    standard_error: Float[Array, ""]
    shape: tuple[int, ...] = eqx.field(static=True)

    @classmethod
    def from_state(
        cls, state: TrainState[Energy, Walkers | Audited]
    ) -> "NormalizedEnergy":
        """Return the density of a `JarzynskiTrainer` or audited `PCDTrainer` state.

        `log Z` is the audit walkers' where there are any, and then unbiased; else the
        training walkers', which is too small, the more so the fewer they are.

        **Raises:** `ValueError` if the state's walkers do not know `log Z`.
        """
        walkers = honest_walkers(state.memory)
        estimate = walkers.estimate()
        if not bool(jnp.isfinite(estimate.value)):
            raise ValueError(
                "`state.memory` does not know `log Z`: its walkers carry no weights. "
                "Train with `JarzynskiTrainer`, or give `PCDTrainer` `Audited` walkers."
            )
        return cls(state.model, *estimate, walkers.positions.shape[1:])

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
        energies = jax.vmap(self.energy)(x.reshape(-1, *self.shape))
        return -energies.reshape(batch) - self.log_partition

    def log_likelihood(self, x: Float[Array, "examples *shape"]) -> Estimate:
        """Return the mean log-density of `x` in nats, with its standard error.

        The error is `log Z`'s and the sample mean's, added in quadrature.
        """
        values = self.log_prob(x)
        sampling = jnp.std(values, ddof=1) / jnp.sqrt(values.shape[0])
        return Estimate(jnp.mean(values), jnp.hypot(sampling, self.standard_error))


def sample(
    state: TrainState[Energy, Walkers | Audited], num: int, *, key: PRNGKeyArray
) -> Float[Array, "num *shape"]:
    """Return `num` samples of the model: walkers drawn in proportion to their weights.

    Drawn with replacement, from the population that trains; more samples than the
    effective sample size repeat some of them.

    **Raises:** `ValueError` if `num` is not positive.
    """
    if num < 1:
        raise ValueError(f"`num` is {num}: pass a positive integer.")
    walkers = training_walkers(state.memory)
    drawn = resample(walkers.log_weights, num, key=key)
    # Systematic resampling returns relatives side by side: mix them.
    return jax.random.permutation(key, walkers.positions[drawn])
