"""A second estimate of `log Z`, by draws around the walkers, to find missed mass."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from effgen.core.weights import Estimate, effective_sample_size, log_mean_exp
from effgen.ebm.contract.energy import Energy, energies_at
from effgen.ebm.walkers.weighted_walkers import Walkers

from .diagnostics import on_lattice, pareto_k


# Draws, their degrees of freedom, and the dimension past which they tell nothing.
_NUM_DRAWS = 8192
_FREEDOM = 5.0
_MOST_COORDINATES = 32
# What they must be worth: the share that counts, and the shape of their tail.
_LEAST_ESS = 0.05
_LARGEST_K = 0.5


class Opinion(NamedTuple):
    """`log Z` by importance sampling, and how far it can be relied on."""

    estimate: Estimate
    ess: Float[Array, ""]
    pareto_k: Float[Array, ""]

    @property
    def counts(self) -> bool:
        """Whether enough draws count, of a tail that is light enough."""
        return bool((self.ess > _LEAST_ESS) & (self.pareto_k < _LARGEST_K))


def second_opinion(energy: Energy, walkers: Walkers) -> Opinion | None:
    """Return `log Z` by draws of a Student's law with the walkers' mean and covariance.

        log_weights = -energy(x) - log t(x; mean, covariance, 5)

    The draws reach places without walkers, and so may find mass that all walkers have
    missed. It works in a few dimensions only, for an energy of the whole space.

    Returns:
        The opinion; `None` in boxes, of labels and zeros and ones, and past 32
            coordinates.

    Source:
        Kloek and van Dijk (1978).
    """
    size = walkers.positions[0].size
    if not 0 < size <= min(_MOST_COORDINATES, walkers.num // 4):
        return None
    return _opinion(energy, walkers, jax.random.key(0)) if everywhere(walkers) else None


def everywhere(walkers: Walkers) -> bool:
    """Return whether walkers may be anywhere, and not only in a box or on a lattice."""
    x = walkers.positions.reshape(walkers.num, -1)
    return walkers.walls is None and not bool(jnp.any(on_lattice(x)))


@eqx.filter_jit
def _opinion(energy: Energy, walkers: Walkers, key: PRNGKeyArray) -> Opinion:
    weights = walkers.weights
    x = walkers.positions.reshape(walkers.num, -1)
    mean = weights @ x
    off = x - mean[None]
    factor = jnp.linalg.cholesky((weights[:, None] * off).T @ off)
    keys = jax.random.split(key)
    size = mean.shape[0]
    noise = jax.random.normal(keys[0], (_NUM_DRAWS, size), x.dtype)
    chi = 2 * jax.random.gamma(keys[1], _FREEDOM / 2, (_NUM_DRAWS,), x.dtype)
    z = noise * jnp.sqrt(_FREEDOM / chi)[:, None]
    drawn = mean[None] + z @ factor.T
    shape = (_NUM_DRAWS, *walkers.positions.shape[1:])
    energies = energies_at(energy, drawn.reshape(shape))
    log_weights = -energies - _log_density(z, factor)
    log_weights = jnp.where(jnp.isfinite(log_weights), log_weights, -jnp.inf)
    return Opinion(
        log_mean_exp(log_weights),
        effective_sample_size(log_weights) / _NUM_DRAWS,
        pareto_k(log_weights),
    )


def _log_density(
    z: Float[Array, "draws size"], factor: Float[Array, "size size"]
) -> Float[Array, " draws"]:
    """Return the log-density of Student's law at `mean + factor @ z`."""
    size, nu = z.shape[1], _FREEDOM
    constant = jax.lax.lgamma((nu + size) / 2) - jax.lax.lgamma(nu / 2)
    constant = constant - 0.5 * size * jnp.log(nu * jnp.pi)
    constant = constant - jnp.sum(jnp.log(jnp.diag(factor)))
    squares = jnp.sum(z**2, axis=1)
    return constant - 0.5 * (nu + size) * jnp.log1p(squares / nu)
