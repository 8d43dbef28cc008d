"""Likelihoods of one entry given one parameter: normal, Poisson, Bernoulli."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from .gaussian import all_positive, as_float


Entries = Float[Array, "*shape"]


class AbstractLikelihood(eqx.Module):
    """`p(y | parameter)`, for each entry alone, of any shape."""

    @abc.abstractmethod
    def log_prob(self, parameter: Entries, y: Entries) -> Entries:
        """Return `log p(y | parameter)` of each entry."""

    @abc.abstractmethod
    def mean(self, parameter: Entries) -> Entries:
        """Return the mean of each entry."""

    @abc.abstractmethod
    def sample(self, parameter: Entries, *, key: PRNGKeyArray) -> Entries:
        """Draw each entry."""

    @abc.abstractmethod
    def information(self, parameter: Entries) -> Entries:
        """Return the Fisher information of each parameter."""


class Normal(AbstractLikelihood):
    """`y ~ N(parameter, scale^2)`; `scale` is learned by its logarithm."""

    log_scale: Float[Array, ""]

    def __init__(self, scale: ArrayLike) -> None:
        """Raise `ValueError` unless `scale` is positive."""
        scale = as_float(scale)
        if not all_positive(scale):
            raise ValueError(f"`scale` is {scale}: pass a positive number.")
        self.log_scale = jnp.log(scale)

    def log_prob(self, parameter: Entries, y: Entries) -> Entries:
        """Return the normal log-density."""
        error = (y - parameter) * jnp.exp(-self.log_scale)
        return -0.5 * error**2 - self.log_scale - 0.5 * jnp.log(2 * jnp.pi)

    def mean(self, parameter: Entries) -> Entries:
        """Return the parameter."""
        return parameter

    def sample(self, parameter: Entries, *, key: PRNGKeyArray) -> Entries:
        """Draw each entry."""
        noise = jax.random.normal(key, parameter.shape, parameter.dtype)
        return parameter + jnp.exp(self.log_scale) * noise

    def information(self, parameter: Entries) -> Entries:
        """Return `1 / scale^2`."""
        return jnp.broadcast_to(jnp.exp(-2 * self.log_scale), parameter.shape)


class Poisson(AbstractLikelihood):
    """Counts of mean `exp(parameter)`."""

    def log_prob(self, parameter: Entries, y: Entries) -> Entries:
        """Return `y parameter - exp(parameter) - log y!`."""
        return y * parameter - jnp.exp(parameter) - gammaln(y + 1)

    def mean(self, parameter: Entries) -> Entries:
        """Return `exp(parameter)`."""
        return jnp.exp(parameter)

    def sample(self, parameter: Entries, *, key: PRNGKeyArray) -> Entries:
        """Draw each count."""
        counts = jax.random.poisson(key, jnp.exp(parameter))
        return counts.astype(parameter.dtype)

    def information(self, parameter: Entries) -> Entries:
        """Return `exp(parameter)`."""
        return jnp.exp(parameter)


class Bernoulli(AbstractLikelihood):
    """`y` in [0, 1], one with probability `sigmoid(parameter)`."""

    def log_prob(self, parameter: Entries, y: Entries) -> Entries:
        """Return `y parameter - log(1 + exp(parameter))`."""
        return y * parameter - jax.nn.softplus(parameter)

    def mean(self, parameter: Entries) -> Entries:
        """Return `sigmoid(parameter)`."""
        return jax.nn.sigmoid(parameter)

    def sample(self, parameter: Entries, *, key: PRNGKeyArray) -> Entries:
        """Draw zeros and ones."""
        ones = jax.random.bernoulli(key, jax.nn.sigmoid(parameter))
        return ones.astype(parameter.dtype)

    def information(self, parameter: Entries) -> Entries:
        """Return `p (1 - p)`."""
        p = jax.nn.sigmoid(parameter)
        return p * (1 - p)
