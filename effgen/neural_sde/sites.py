"""Sites: Gaussian factors that stand for observations that are not linear Gaussian.

Any sites give a bound; the nearer they are to the likelihood, the tighter it is.
"""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .likelihoods import AbstractLikelihood
from .messages import Site
from .series import Series


Network = Callable[[Float[Array, " state"]], Float[Array, "*shape"]]
Smoother = Callable[[Site | None], tuple[Array, Array]]


class AbstractSites(eqx.Module):
    """A rule that makes one site for each observation."""

    @abc.abstractmethod
    def __call__(
        self,
        network: Network,
        likelihood: AbstractLikelihood,
        series: Series,
        smoother: Smoother,
    ) -> Site:
        """Return the sites, stacked."""


class LinearizedSites(AbstractSites):
    """The decoder linearized about the linear model's smoothed states.

    At a state `m`, with `J` the network's Jacobian and `W` the Fisher information,
    `precision = J^T W J` and `shift = J^T score + precision m`: Gauss and Newton's step
    to the mode of the whole path, `num_sweeps` times, from the prior's mean. No
    gradient flows through the choice of `m`.

    **Attributes:** `num_sweeps`; `damping`, the share of the way that each but the
    first sweep goes.

    **Source:** Bell (1994); with all paths at once, Särkkä and Svensson (2020).
    """

    num_sweeps: int = 4
    damping: float = 0.7

    def __check_init__(self) -> None:
        """Raise `ValueError` for settings out of range."""
        if self.num_sweeps < 1 or not 0 < self.damping <= 1:
            raise ValueError(
                f"`num_sweeps` is {self.num_sweeps} and `damping` {self.damping}: pass "
                "at least 1, and a share in (0, 1]."
            )

    def __call__(
        self,
        network: Network,
        likelihood: AbstractLikelihood,
        series: Series,
        smoother: Smoother,
    ) -> Site:
        """Return the sites at the means that the sweeps end at."""
        about = jax.vmap(
            lambda m, y, mask: _linearized(network, likelihood, m, y, mask)
        )
        means, _ = smoother(None)
        for sweep in range(self.num_sweeps - 1):
            found, _ = smoother(about(means, series.ys, series.mask))
            share = 1.0 if sweep == 0 else self.damping
            means = means + share * (found - means)
        return about(jax.lax.stop_gradient(means), series.ys, series.mask)


def _linearized(
    network: Network, likelihood: AbstractLikelihood, m: Array, y: Array, mask: Array
) -> Site:
    parameter = network(m)
    jacobian = jax.jacfwd(network)(m).reshape(-1, m.shape[0])
    logs = lambda p: jnp.sum(jnp.where(mask, likelihood.log_prob(p, y), 0))
    value, score = jax.value_and_grad(logs)(parameter)
    information = jnp.where(mask, likelihood.information(parameter), 0).reshape(-1)
    precision = jacobian.T @ (information[:, None] * jacobian)
    slope = jacobian.T @ score.reshape(-1)
    constant = value - slope @ m - 0.5 * m @ precision @ m
    return Site(precision, slope + precision @ m, constant)


class EncodedSites(AbstractSites):
    """Sites from a network that sees one observation, `N(x; mean, 1 / precision)`.

    **Attributes:** `encoder`, from `y` (zero where missing) to `2 * state` numbers: the
    mean, and what softplus takes to the precision; `most`, the largest precision, a
    trust region.
    """

    encoder: Callable[[Float[Array, "*shape"]], Float[Array, " two_states"]]
    most: float = 1e4

    def __call__(
        self,
        network: Network,
        likelihood: AbstractLikelihood,
        series: Series,
        smoother: Smoother,
    ) -> Site:
        """Return the encoder's sites."""
        return jax.vmap(self._site)(series.ys)

    def _site(self, y: Array) -> Site:
        mean, raw = jnp.split(self.encoder(y), 2)
        precision = jnp.minimum(jax.nn.softplus(raw), self.most)
        logs = 0.5 * jnp.sum(jnp.log(precision / (2 * jnp.pi)))
        constant = logs - 0.5 * jnp.sum(precision * mean**2)
        return Site(jnp.diag(precision), precision * mean, constant)
