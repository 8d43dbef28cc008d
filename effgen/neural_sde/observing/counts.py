"""Likelihoods of counts: Poisson's, and the negative binomial."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from effgen.neural_sde.linear_sdes.gaussian import all_positive, as_float
from effgen.neural_sde.linear_sdes.noise import standard_normal

from .likelihoods import AbstractLikelihood, Entries
from .stirling import deviance, stirling_error


_MANY = 1e6  # the skewness of larger means is below a thousandth


class Poisson(AbstractLikelihood):
    """Counts of mean `exp(parameter)`, with Poisson's law.

    The log-density is that of the mean at the count, less half the deviance: so digits
    are kept at counts of any size.

    Source:
        Loader (2000).
    """

    def log_prob(self, parameter: Entries, y: Entries) -> Entries:
        """Return `y parameter - exp(parameter) - log y!`.

        Arguments:
            parameter: The parameter of each entry, any shape.
            y: The values, of the same shape.

        Returns:
            The log-density or log-probability of each entry, in nats.
        """
        some = jnp.where(y > 0, y, 1)
        logs = -stirling_error(some) - 0.5 * jnp.log(2 * jnp.pi * some)
        logs = logs - deviance(some, parameter - jnp.log(some))
        return _of_counts(y, jnp.where(y > 0, logs, -jnp.exp(parameter)))

    def mean(self, parameter: Entries) -> Entries:
        """Return `exp(parameter)`.

        Arguments:
            parameter: The parameter of each entry, any shape.

        Returns:
            The mean of each entry, of the same shape, in units of `y`.
        """
        return jnp.exp(parameter)

    def sample(self, parameter: Entries, *, key: PRNGKeyArray) -> Entries:
        """Draw each count.

        Arguments:
            parameter: The parameter of each entry, any shape.
            key: A random key.

        Returns:
            Values of the same shape, in units of `y`.
        """
        return _drawn(jnp.exp(parameter), key)

    def information(self, parameter: Entries) -> Entries:
        """Return `exp(parameter)`.

        Arguments:
            parameter: The parameter of each entry, any shape.

        Returns:
            The Fisher information of each parameter, of the same shape.
        """
        return jnp.exp(parameter)


class NegativeBinomial(AbstractLikelihood):
    """Counts of mean `m = exp(parameter)` and variance `m + m^2 / concentration`.

    The law is Poisson's with a mean that is drawn from a gamma law. It goes to the
    former as `concentration` grows. `concentration` is learned by its logarithm.

    Arguments:
        concentration: What the squared mean is divided by in the variance, one number.

    Raises:
        ValueError: For a `concentration` that is not positive.

    Source:
        Hilbe (2011), NB2; digits are kept as in Loader (2000).
    """

    log_concentration: Float[Array, ""]

    def __init__(self, concentration: ArrayLike = 10.0) -> None:
        """Check it."""
        concentration = as_float(concentration)
        if not all_positive(concentration):
            raise ValueError(
                f"`concentration` is {concentration}: pass a positive number."
            )
        self.log_concentration = jnp.log(concentration)

    @property
    def concentration(self) -> Float[Array, ""]:
        """What the squared mean is divided by in the variance."""
        return jnp.exp(self.log_concentration)

    def log_prob(self, parameter: Entries, y: Entries) -> Entries:
        """Return `log p(y)`, of `y` failures before `concentration` successes.

        Arguments:
            parameter: The parameter of each entry, any shape.
            y: The values, of the same shape.

        Returns:
            The log-density or log-probability of each entry, in nats.
        """
        r = self.concentration
        away = parameter - self.log_concentration
        # Logarithms of `r / (r + m)` and `m / (r + m)`.
        success, failure = -jax.nn.softplus(away), -jax.nn.softplus(-away)
        some = jnp.where(y > 0, y, 1)
        whole = some + r
        logs = stirling_error(whole) - stirling_error(some) - stirling_error(r)
        logs = logs - 0.5 * jnp.log(2 * jnp.pi * some)
        logs = logs + 0.5 * (self.log_concentration - jnp.log(whole))
        logs = logs - deviance(some, jnp.log(whole) - jnp.log(some) + failure)
        spread = jnp.log1p(some / r) + success
        logs = logs - deviance(r, spread)
        return _of_counts(y, jnp.where(y > 0, logs, r * success))

    def mean(self, parameter: Entries) -> Entries:
        """Return `exp(parameter)`.

        Arguments:
            parameter: The parameter of each entry, any shape.

        Returns:
            The mean of each entry, of the same shape, in units of `y`.
        """
        return jnp.exp(parameter)

    def sample(self, parameter: Entries, *, key: PRNGKeyArray) -> Entries:
        """Draw each count.

        Arguments:
            parameter: The parameter of each entry, any shape.
            key: A random key.

        Returns:
            Values of the same shape, in units of `y`.
        """
        keys = jax.random.split(key)
        r = self.concentration.astype(parameter.dtype)
        ratio = jax.random.loggamma(keys[0], r, parameter.shape, parameter.dtype)
        means = jnp.exp(parameter + ratio - self.log_concentration)
        return _drawn(means, keys[1])

    def information(self, parameter: Entries) -> Entries:
        """Return `m / (1 + m / concentration)`.

        Arguments:
            parameter: The parameter of each entry, any shape.

        Returns:
            The Fisher information of each parameter, of the same shape.
        """
        away = parameter - self.log_concentration
        return self.concentration * jax.nn.sigmoid(away)


def _drawn(means: Entries, key: PRNGKeyArray) -> Entries:
    """Draw counts of Poisson's law, of large means by the normal law, rounded.

    JAX's sampler counts in 32 bits, and widens the law from means of 1e7 on.
    """
    few = jax.random.poisson(key, jnp.minimum(means, _MANY)).astype(means.dtype)
    noise = standard_normal(jax.random.fold_in(key, 1), means.shape, means.dtype)
    return jnp.where(means > _MANY, jnp.round(means + jnp.sqrt(means) * noise), few)


def _of_counts(y: Entries, logs: Entries) -> Entries:
    """Return the log-densities of whole numbers, minus infinity of any others."""
    whole = (y >= 0) & (y == jnp.floor(y))
    return jnp.where(whole, logs, -jnp.inf)
