"""Likelihoods of one entry given one parameter: normal, Student's, Bernoulli."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from .gaussian import all_positive, as_float
from .stirling import log_gamma_half


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


class Student(AbstractLikelihood):
    """`y = parameter + scale e`, `e` of Student's law: outliers move little.

    `p(e) ~ (1 + e^2 / degrees)^-((degrees + 1) / 2)`, of mean zero, and of variance
    `degrees / (degrees - 2)` where `degrees > 2`. Both parameters are learned: `scale`
    by its logarithm, `degrees` by that of `degrees - 1`.

    **Raises:** `ValueError` for a `scale` that is not positive, or `degrees` of 1 or
    less: there is no mean then.

    **Source:** Lange, Little and Taylor (1989).
    """

    log_scale: Float[Array, ""]
    log_more: Float[Array, ""]

    def __init__(self, scale: ArrayLike, degrees: ArrayLike = 4.0) -> None:
        """Check both."""
        scale, degrees = as_float(scale), as_float(degrees)
        if not all_positive(scale):
            raise ValueError(f"`scale` is {scale}: pass a positive number.")
        if not all_positive(degrees - 1):
            raise ValueError(f"`degrees` are {degrees}: pass a number above 1.")
        self.log_scale, self.log_more = jnp.log(scale), jnp.log(degrees - 1)

    @property
    def degrees(self) -> Float[Array, ""]:
        """The degrees of freedom."""
        return 1 + jnp.exp(self.log_more)

    def log_prob(self, parameter: Entries, y: Entries) -> Entries:
        """Return Student's log-density."""
        error, degrees = (y - parameter) * jnp.exp(-self.log_scale), self.degrees
        tail = (degrees + 1) / 2 * jnp.log1p(error**2 / degrees)
        norm = log_gamma_half(degrees / 2) - 0.5 * jnp.log(jnp.pi * degrees)
        return norm - self.log_scale - tail

    def mean(self, parameter: Entries) -> Entries:
        """Return the parameter."""
        return parameter

    def sample(self, parameter: Entries, *, key: PRNGKeyArray) -> Entries:
        """Draw each entry."""
        noise = jax.random.t(key, self.degrees, parameter.shape, parameter.dtype)
        return parameter + jnp.exp(self.log_scale) * noise

    def information(self, parameter: Entries) -> Entries:
        """Return `(degrees + 1) / (degrees + 3) / scale^2`."""
        share = (self.degrees + 1) / (self.degrees + 3)
        found = share * jnp.exp(-2 * self.log_scale)
        return jnp.broadcast_to(found, parameter.shape).astype(parameter.dtype)

    def weight(self, parameter: Entries, y: Entries) -> Entries:
        """Return the expected precision of a normal law whose mixture this one is.

        `(degrees + 1) / (degrees + e^2) / scale^2`: small for an outlier.
        """
        error = (y - parameter) * jnp.exp(-self.log_scale)
        share = (self.degrees + 1) / (self.degrees + error**2)
        return (share * jnp.exp(-2 * self.log_scale)).astype(parameter.dtype)


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


def site_precision(
    likelihood: AbstractLikelihood, parameter: Entries, y: Entries
) -> Entries:
    """Return the precision of a Gaussian that stands for each entry, not negative.

    The Fisher information; of Student's law, which is not log-concave, the weight by
    which iterated least squares counts the entry: what is far away says little.
    """
    if isinstance(likelihood, Student):
        return likelihood.weight(parameter, y)
    return likelihood.information(parameter)
