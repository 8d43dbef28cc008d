"""Sites: Gaussian factors that stand for observations that are not linear Gaussian.

Any sites give a bound; the nearer they are to the likelihood, the tighter it is.
"""

import abc
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from effgen.core.contract.counts import check_count
from effgen.neural_sde.data.series import Series
from effgen.neural_sde.linear_sdes.messages import Site

from .likelihoods import AbstractLikelihood, site_precision


Network = Callable[[Float[Array, " state"]], Float[Array, "*shape"]]
Smoother = Callable[[Site | None], tuple[Array, Array]]


class AbstractSites(eqx.Module):
    """A rule that makes one Gaussian factor for each observation.

    Any factors give a bound on `log p(y)`. The nearer they are to the likelihood, the
    tighter is the bound.
    """

    @abc.abstractmethod
    def __call__(
        self,
        network: Network,
        likelihood: AbstractLikelihood,
        series: Series,
        smoother: Smoother,
    ) -> Site:
        """Return the sites.

        Arguments:
            network: From a state to parameters of the shape of one observation.
            likelihood: The law of each entry given its parameter.
            series: One series, with `ys` of shape `(obs, *shape)`.
            smoother: From sites to the linear model's means, `(obs, state)`, and
                covariances, `(obs, state, state)`, at the observations. `None` in
                place of sites gives the prior's.

        Returns:
            The factors, stacked along `obs`.
        """


class NoSites(AbstractSites):
    """Factors of one: what is proposed does not see the observations."""

    def __call__(
        self,
        network: Network,
        likelihood: AbstractLikelihood,
        series: Series,
        smoother: Smoother,
    ) -> Site:
        """Return factors of one: see the base."""
        means, covariances = smoother(None)
        zero = jnp.zeros(len(means), means.dtype)
        return Site(jnp.zeros_like(covariances), jnp.zeros_like(means), zero)


class LinearizedSites(AbstractSites):
    """The decoder linearized about the mode of the whole path.

        precision = J^T W J,    shift = J^T score + precision m

    `m` is a state, `J` the network's Jacobian, `W` the Fisher information (of Student's
    law, the weights of iterated least squares). Each sweep is a Gauss-Newton
    step to the mode, shortened until the path's log-density rises. Sweeps end where no
    state moves by more than 1e-3 of its posterior standard deviation (4e-8 in float64).
    They begin at each observation, linearized at the prior's mean. The derivatives of
    the mode are exact: one further Newton sweep carries them.

    Arguments:
        num_sweeps: The most sweeps.

    Raises:
        ValueError: For fewer than one sweep.

    Source:
        Bell (1994); with all paths at once, Särkkä and Svensson (2020); of the
        derivatives, the implicit function theorem.
    """

    num_sweeps: int = 50

    def __check_init__(self) -> None:
        """Check the number."""
        check_count("num_sweeps", self.num_sweeps)

    def __call__(
        self,
        network: Network,
        likelihood: AbstractLikelihood,
        series: Series,
        smoother: Smoother,
    ) -> Site:
        """Return the sites at the mode.

        Arguments:
            network: From a state to parameters of the shape of one observation.
            likelihood: The law of each entry given its parameter.
            series: One series, with `ys` of shape `(obs, *shape)`.
            smoother: From sites to the linear model's means and covariances.

        Returns:
            The factors, stacked along `obs`.
        """
        fixed = jax.lax.stop_gradient
        arrays, static = eqx.partition((network, likelihood), eqx.is_array)
        held_network, held_likelihood = eqx.combine(fixed(arrays), static)
        path = _Path(
            held_network, held_likelihood, series, lambda sites: fixed(smoother(sites))
        )
        mode = fixed(path.mode(self.num_sweeps))
        newton = jax.vmap(lambda m, y, mask: _newton(network, likelihood, m, y, mask))
        means, _ = smoother(newton(mode, series.ys, series.mask))
        # Where the sweeps ended early Newton's sweep is no improvement: keep the mode.
        means = jnp.where(jnp.isfinite(means), means, mode)
        about = jax.vmap(
            lambda m, y, mask: _linearized(network, likelihood, m, y, mask)
        )
        return about(mode + (means - fixed(means)), series.ys, series.mask)


class _Place(NamedTuple):
    """States of a path, and what the prior's covariance takes to them.

    `means = prior mean + K force`, so that the prior's log-density is
    `-force . (means - prior mean) / 2` up to a constant.
    """

    means: Float[Array, "obs state"]
    force: Float[Array, "obs state"]


class _Path(eqx.Module):
    """The log-density of a path at the observations, and sweeps to its mode."""

    network: Network
    likelihood: AbstractLikelihood
    series: Series
    smoother: Smoother

    def mode(self, num_sweeps: int) -> Float[Array, "obs state"]:
        """Return the mode, or what the last sweep ended at."""
        prior, _ = self.smoother(None)
        tolerance = 3 * jnp.sqrt(jnp.finfo(prior.dtype).eps)

        def sweep(carry: tuple[_Place, Array, Array]):
            place, count, _ = carry
            sites = jax.tree.map(
                lambda a, b: jnp.where(count == 0, a, b),
                self._at_data(place.means),
                self._about(place.means),
            )
            target, scales = self._towards(sites)
            after = self._searched(place, target, prior)
            moved = jnp.max(jnp.abs(after.means - place.means) / scales)
            return after, count + 1, jnp.where(count == 0, jnp.inf, moved)

        def going(carry: tuple[_Place, Array, Array]) -> Array:
            return (carry[1] <= num_sweeps) & (carry[2] > tolerance)

        first = _Place(prior, jnp.zeros_like(prior))
        begin = (first, jnp.zeros((), int), jnp.full((), jnp.inf, prior.dtype))
        return jax.lax.while_loop(going, sweep, begin)[0].means

    def _about(self, means: Array) -> Site:
        one = lambda m, y, mask: _linearized(self.network, self.likelihood, m, y, mask)
        return jax.vmap(one)(means, self.series.ys, self.series.mask)

    def _at_data(self, means: Array) -> Site:
        """Return sites whose residuals are those of the parameters that fit alone."""

        def one(m: Array, y: Array, mask: Array) -> Site:
            here = self.network(m)
            best = _fitting(self.likelihood, here, y)
            jacobian = jax.jacfwd(self.network)(m).reshape(-1, m.shape[0])
            information = site_precision(self.likelihood, best, y)
            information = jnp.where(mask, information, 0)
            pressed = information.reshape(-1)[:, None] * jacobian
            precision = jacobian.T @ pressed
            shift = pressed.T @ jnp.where(mask, best - here, 0).reshape(-1)
            return Site(precision, shift + precision @ m, jnp.zeros((), m.dtype))

        return jax.vmap(one)(means, self.series.ys, self.series.mask)

    def _towards(self, sites: Site) -> tuple[_Place, Array]:
        means, covariances = self.smoother(sites)
        force = sites.shift - jnp.einsum("oij,oj->oi", sites.precision, means)
        variances = jnp.diagonal(covariances, axis1=1, axis2=2)
        least = jnp.finfo(means.dtype).tiny
        return _Place(means, force), jnp.sqrt(jnp.maximum(variances, least))

    def _value(self, place: _Place, prior: Array) -> Float[Array, ""]:
        logs = jax.vmap(
            lambda m, y, mask: jnp.sum(
                jnp.where(mask, self.likelihood.log_prob(self.network(m), y), 0)
            )
        )(place.means, self.series.ys, self.series.mask)
        return jnp.sum(logs) - 0.5 * jnp.sum(place.force * (place.means - prior))

    def _searched(self, place: _Place, target: _Place, prior: Array) -> _Place:
        """Go the longest of the way, of whole, half, ..., that raises the density."""
        between = lambda share: jax.tree.map(
            lambda a, b: a + share * (b - a), place, target
        )
        shares = 0.5 ** jnp.arange(_NUM_HALVINGS, dtype=prior.dtype)
        values = jax.lax.map(lambda share: self._value(between(share), prior), shares)
        # Near the mode a rise is below rounding: then the whole way is as good.
        now = self._value(place, prior)
        least = now - 4 * jnp.finfo(prior.dtype).eps * jnp.abs(now)
        rises = values >= least
        share = jnp.where(jnp.any(rises), shares[jnp.argmax(rises)], 0)
        return jax.tree.map(
            lambda a, b: jnp.where(share > 0, a + share * (b - a), a), place, target
        )


_NUM_HALVINGS = 20
_NUM_FITTING = 6


def _fitting(likelihood: AbstractLikelihood, parameter: Array, y: Array) -> Array:
    """Return each entry's parameter after a few of Newton's steps to its mode.

    A step is halved until the entry's log-density rises, whatever the unit.
    """
    logs = lambda p: likelihood.log_prob(p, y)
    shares = 0.5 ** jnp.arange(40, dtype=parameter.dtype)
    shares = shares.reshape((-1,) + (1,) * parameter.ndim)

    def step(p: Array, _: None) -> tuple[Array, None]:
        score = jax.grad(lambda p: jnp.sum(logs(p)))(p)
        information = jnp.maximum(site_precision(likelihood, p, y), 1e-30)
        tried = p[None] + shares * (score / information)[None]
        rises = jax.vmap(logs)(tried) > logs(p)[None]
        first = jnp.argmax(rises, axis=0)
        found = jnp.take_along_axis(tried, first[None], axis=0)[0]
        return jnp.where(jnp.any(rises, axis=0) & jnp.isfinite(found), found, p), None

    return jax.lax.scan(step, parameter, None, length=_NUM_FITTING)[0]


def _linearized(
    network: Network, likelihood: AbstractLikelihood, m: Array, y: Array, mask: Array
) -> Site:
    parameter = network(m)
    jacobian = jax.jacfwd(network)(m).reshape(-1, m.shape[0])
    logs = lambda p: jnp.sum(jnp.where(mask, likelihood.log_prob(p, y), 0))
    value, score = jax.value_and_grad(logs)(parameter)
    information = site_precision(likelihood, parameter, y)
    information = jnp.where(mask, information, 0).reshape(-1)
    precision = jacobian.T @ (information[:, None] * jacobian)
    slope = jacobian.T @ score.reshape(-1)
    constant = value - slope @ m - 0.5 * m @ precision @ m
    return Site(precision, slope + precision @ m, constant)


def _newton(
    network: Network, likelihood: AbstractLikelihood, m: Array, y: Array, mask: Array
) -> Site:
    """Return the log-likelihood's own second order about `m`."""
    logs = lambda x: jnp.sum(jnp.where(mask, likelihood.log_prob(network(x), y), 0))
    slope, curvature = jax.grad(logs)(m), -jax.hessian(logs)(m)
    return Site(curvature, slope + curvature @ m, jnp.zeros((), m.dtype))


class EncodedSites(AbstractSites):
    """Sites from a network that sees one observation: `N(x; mean, 1 / precision)`.

    Arguments:
        encoder: From `y`, zero where missing, to `2 * state` numbers: the mean, and
            what softplus takes to the precision. It is trained.
        most: The largest precision.

    Raises:
        ValueError: For a `most` that is not positive.
    """

    encoder: Callable[[Float[Array, "*shape"]], Float[Array, " two_states"]]
    most: float = 1e4

    def __check_init__(self) -> None:
        """Check the number."""
        if not self.most > 0:
            raise ValueError(f"`most` is {self.most}: pass a positive number.")

    def __call__(
        self,
        network: Network,
        likelihood: AbstractLikelihood,
        series: Series,
        smoother: Smoother,
    ) -> Site:
        """Return the encoder's sites.

        Arguments:
            network: Not used.
            likelihood: Not used.
            series: One series, with `ys` of shape `(obs, *shape)`.
            smoother: Not used.

        Returns:
            The factors, stacked along `obs`.
        """
        return jax.vmap(self._site)(series.ys)

    def _site(self, y: Array) -> Site:
        mean, raw = jnp.split(self.encoder(y), 2)
        precision = jnp.minimum(jax.nn.softplus(raw), self.most)
        logs = 0.5 * jnp.sum(jnp.log(precision / (2 * jnp.pi)))
        constant = logs - 0.5 * jnp.sum(precision * mean**2)
        return Site(jnp.diag(precision), precision * mean, constant)
