"""Likelihoods of one entry given one parameter: normal, Student's, Bernoulli."""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from effgen.neural_sde.linear_sdes.gaussian import all_positive, as_float
from effgen.neural_sde.linear_sdes.noise import standard_normal

from .stirling import log_gamma_half


Entries = Float[Array, "*shape"]


class AbstractLikelihood(eqx.Module):
    """`p(y | parameter)`, for each entry alone.

    Arrays may have any shape; `parameter` and `y` have the same.

    Attributes:
        heavy_tailed: Whether the log-density falls off slower than any parabola: no
            normal factor covers it, so that answers also draw without factors.
    """

    heavy_tailed: ClassVar[bool] = False

    @abc.abstractmethod
    def log_prob(self, parameter: Entries, y: Entries) -> Entries:
        """Return `log p(y | parameter)` of each entry.

        Arguments:
            parameter: The parameter of each entry, any shape.
            y: The values, of the same shape.

        Returns:
            The log-density or log-probability of each entry, in nats.
        """

    @abc.abstractmethod
    def mean(self, parameter: Entries) -> Entries:
        """Return the mean of each entry.

        Arguments:
            parameter: The parameter of each entry, any shape.

        Returns:
            `E[y | parameter]`, of the same shape, in units of `y`.
        """

    @abc.abstractmethod
    def sample(self, parameter: Entries, *, key: PRNGKeyArray) -> Entries:
        """Draw each entry.

        Arguments:
            parameter: The parameter of each entry, any shape.
            key: A random key.

        Returns:
            Values of the same shape, in units of `y`.
        """

    @abc.abstractmethod
    def information(self, parameter: Entries) -> Entries:
        """Return the Fisher information of each parameter.

        Arguments:
            parameter: The parameter of each entry, any shape.

        Returns:
            `E[(d log p(y | parameter) / d parameter)^2]`, of the same shape.
        """


class Normal(AbstractLikelihood):
    """A normal law, `y ~ N(parameter, scale^2)`.

    `scale` is learned by its logarithm.

    Arguments:
        scale: The standard deviation, one number for all entries, in units of `y`.

    Raises:
        ValueError: For a `scale` that is not positive.
    """

    log_scale: Float[Array, ""]

    def __init__(self, scale: ArrayLike) -> None:
        """Check it."""
        scale = as_float(scale)
        if not all_positive(scale):
            raise ValueError(f"`scale` is {scale}: pass a positive number.")
        self.log_scale = jnp.log(scale)

    def log_prob(self, parameter: Entries, y: Entries) -> Entries:
        """Return the normal log-density.

        Arguments:
            parameter: The parameter of each entry, any shape.
            y: The values, of the same shape.

        Returns:
            The log-density or log-probability of each entry, in nats.
        """
        error = (y - parameter) * jnp.exp(-self.log_scale)
        return -0.5 * error**2 - self.log_scale - 0.5 * jnp.log(2 * jnp.pi)

    def mean(self, parameter: Entries) -> Entries:
        """Return the parameter.

        Arguments:
            parameter: The parameter of each entry, any shape.

        Returns:
            The mean of each entry, of the same shape, in units of `y`.
        """
        return parameter

    def sample(self, parameter: Entries, *, key: PRNGKeyArray) -> Entries:
        """Draw each entry.

        Arguments:
            parameter: The parameter of each entry, any shape.
            key: A random key.

        Returns:
            Values of the same shape, in units of `y`.
        """
        noise = standard_normal(key, parameter.shape, parameter.dtype)
        return parameter + jnp.exp(self.log_scale) * noise

    def information(self, parameter: Entries) -> Entries:
        """Return `1 / scale^2`.

        Arguments:
            parameter: The parameter of each entry, any shape.

        Returns:
            The Fisher information of each parameter, of the same shape.
        """
        return jnp.broadcast_to(jnp.exp(-2 * self.log_scale), parameter.shape)


class Student(AbstractLikelihood):
    """Student's law, `y = parameter + scale e`: outliers move the fit little.

        p(e) ~ (1 + e^2 / degrees)^-((degrees + 1) / 2)

    `e` has mean zero, and variance `degrees / (degrees - 2)` where `degrees > 2`. Both
    arguments are learned: `scale` by its logarithm, `degrees` by that of `degrees - 1`.

    Arguments:
        scale: The scale of `e`, one number for all entries, in units of `y`.
        degrees: The degrees of freedom, above 1.

    Raises:
        ValueError: For a `scale` that is not positive, or `degrees` of 1 or less, where
            there is no mean.

    Source:
        Lange, Little and Taylor (1989).
    """

    heavy_tailed: ClassVar[bool] = True

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
        """Return Student's log-density.

        Arguments:
            parameter: The parameter of each entry, any shape.
            y: The values, of the same shape.

        Returns:
            The log-density or log-probability of each entry, in nats.
        """
        error, degrees = (y - parameter) * jnp.exp(-self.log_scale), self.degrees
        tail = (degrees + 1) / 2 * jnp.log1p(error**2 / degrees)
        norm = log_gamma_half(degrees / 2) - 0.5 * jnp.log(jnp.pi * degrees)
        return norm - self.log_scale - tail

    def mean(self, parameter: Entries) -> Entries:
        """Return the parameter.

        Arguments:
            parameter: The parameter of each entry, any shape.

        Returns:
            The mean of each entry, of the same shape, in units of `y`.
        """
        return parameter

    def sample(self, parameter: Entries, *, key: PRNGKeyArray) -> Entries:
        """Draw each entry.

        Arguments:
            parameter: The parameter of each entry, any shape.
            key: A random key.

        Returns:
            Values of the same shape, in units of `y`.
        """
        noise = jax.random.t(key, self.degrees, parameter.shape, parameter.dtype)
        return parameter + jnp.exp(self.log_scale) * noise

    def information(self, parameter: Entries) -> Entries:
        """Return `(degrees + 1) / (degrees + 3) / scale^2`.

        Arguments:
            parameter: The parameter of each entry, any shape.

        Returns:
            The Fisher information of each parameter, of the same shape.
        """
        share = (self.degrees + 1) / (self.degrees + 3)
        found = share * jnp.exp(-2 * self.log_scale)
        return jnp.broadcast_to(found, parameter.shape).astype(parameter.dtype)

    def weight(self, parameter: Entries, y: Entries) -> Entries:
        """Return the expected precision of the normal law of each entry.

            (degrees + 1) / (degrees + e^2) / scale^2

        Student's law is a mixture of normal laws of random precision. An outlier's is
        small.

        Arguments:
            parameter: The parameter of each entry, any shape.
            y: The values, of the same shape.

        Returns:
            The mean precision given `y`, of the same shape.
        """
        error = (y - parameter) * jnp.exp(-self.log_scale)
        share = (self.degrees + 1) / (self.degrees + error**2)
        return (share * jnp.exp(-2 * self.log_scale)).astype(parameter.dtype)


class Bernoulli(AbstractLikelihood):
    """Zeros and ones, one with probability `sigmoid(parameter)`.

    The parameter is the log-odds. Values between 0 and 1 are accepted as well.
    """

    def log_prob(self, parameter: Entries, y: Entries) -> Entries:
        """Return `y parameter - log(1 + exp(parameter))`.

        Arguments:
            parameter: The parameter of each entry, any shape.
            y: The values, of the same shape.

        Returns:
            The log-density or log-probability of each entry, in nats.
        """
        return y * parameter - jax.nn.softplus(parameter)

    def mean(self, parameter: Entries) -> Entries:
        """Return `sigmoid(parameter)`.

        Arguments:
            parameter: The parameter of each entry, any shape.

        Returns:
            The mean of each entry, of the same shape, in units of `y`.
        """
        return jax.nn.sigmoid(parameter)

    def sample(self, parameter: Entries, *, key: PRNGKeyArray) -> Entries:
        """Draw zeros and ones.

        Arguments:
            parameter: The parameter of each entry, any shape.
            key: A random key.

        Returns:
            Values of the same shape, in units of `y`.
        """
        ones = jax.random.bernoulli(key, jax.nn.sigmoid(parameter))
        return ones.astype(parameter.dtype)

    def information(self, parameter: Entries) -> Entries:
        """Return `p (1 - p)`.

        Arguments:
            parameter: The parameter of each entry, any shape.

        Returns:
            The Fisher information of each parameter, of the same shape.
        """
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
