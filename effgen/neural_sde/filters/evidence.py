"""How far a bound is from the truth: `log p(y)` by importance weights."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from effgen.core.weights import (
    Estimate,
    effective_sample_size,
    log_mean_exp,
    normalized,
)
from effgen.neural_sde.bounds.paths import Step, observed, steps_of
from effgen.neural_sde.data.grid import Grid
from effgen.neural_sde.data.series import Series
from effgen.neural_sde.linear_sdes.messages import Site
from effgen.neural_sde.linear_sdes.noise import standard_normal
from effgen.neural_sde.modeling.anchors import Anchored
from effgen.neural_sde.modeling.dynamics import AbstractLatentSDE

from .innovations import Innovation, innovation


class Evidence(NamedTuple):
    """What is known of one series' `log p(y)`, in nats, with standard errors.

    Attributes:
        elbo: The bound; minus infinity where a path was not finite.
        evidence: `log p(y)` itself by importance weights. On average it is a bound too,
            which rises to `log p(y)` with the number of paths.
        gap: `evidence - elbo`, how far training is from the exact posterior.
        ess: The effective number of paths. The estimate is good where it is large;
            where it is small use `Posterior.smoother`.
        linear: The exact `log p(y)` of the anchored linear model.
        num_lost: How many paths were not finite; they have no weight.
    """

    elbo: Estimate
    evidence: Estimate
    gap: Estimate
    ess: Float[Array, ""]
    linear: Float[Array, ""]
    num_lost: Float[Array, ""]

    def weighed_by(self, log_weights: Float[Array, " paths"]) -> "Evidence":
        """Return the bound beside the evidence that other paths' weights give.

        Arguments:
            log_weights: `log p(y, path) / q(path)` of these, shape `(paths,)`.

        Returns:
            The same bound, with their evidence, gap and effective number.
        """
        found = log_mean_exp(log_weights)
        error = jnp.hypot(self.elbo.standard_error, found.standard_error)
        return self._replace(
            evidence=found,
            gap=Estimate(found.value - self.elbo.value, error),
            ess=effective_sample_size(log_weights),
        )


def weighted_evidence(
    elbo: Float[Array, " paths"],
    log_weights: Float[Array, " paths"],
    linear: Float[Array, ""],
) -> Evidence:
    """Return the evidence by importance weights, `log mean exp(log_weights)`.

    Source:
        Burda, Grosse and Salakhutdinov (2016), equation 8.
    """
    num = elbo.shape[0]
    log_weights = without_lost(log_weights)
    lost = jnp.sum(log_weights == -jnp.inf).astype(elbo.dtype)
    whole = jnp.where(lost > 0, -jnp.inf, elbo.mean())
    spread = jnp.where(lost > 0, jnp.inf, elbo.std())
    mean = Estimate(whole, spread / jnp.sqrt(max(num - 1, 1)))
    found = log_mean_exp(log_weights)
    # Each path's share in the gap, to first order: the two errors go together.
    shares = num * normalized(log_weights) - 1 - (elbo - mean.value)
    error = jnp.where(lost > 0, jnp.inf, shares.std()) / jnp.sqrt(max(num - 1, 1))
    ess = effective_sample_size(log_weights)
    gap = Estimate(found.value - mean.value, error)
    return Evidence(mean, found, gap, ess, linear, lost)


def without_lost(log_weights: Float[Array, " paths"]) -> Float[Array, " paths"]:
    """Return the log-weights, minus infinity where a path is not finite.

    Such a path has left for infinity: no observation can have been seen from there.
    """
    return jnp.where(jnp.isfinite(log_weights), log_weights, -jnp.inf)


def mixture_weights(
    model: AbstractLatentSDE,
    guides: tuple[tuple[AbstractLatentSDE, Anchored], ...],
    series: Series,
    grid: Grid,
    *,
    num_paths: int,
    key: PRNGKeyArray,
) -> Float[Array, " paths"]:
    """Draw paths from each guide, and weigh all by the mean of the guides' densities.

    `log_weights = log p(y, path) - log mean_g q_g(path)`: at most `guides` times what
    any one of them would give, so that a guide which misses a part of the posterior
    does no harm. Densities are of the steps' normal variables, which all share. Each of
    `guides` is a model with its anchor and residual, and its `Anchored`.

    Source:
        Veach and Guibas (1995); Owen and Zhou (2000).
    """
    keys = jax.random.split(key, len(guides))
    each = -(-num_paths // len(guides))
    drawn = [
        _drawn(model, guides, i, series, grid, each, keys[i])
        for i in range(len(guides))
    ]
    return jnp.concatenate(drawn)


def _drawn(
    model: AbstractLatentSDE,
    guides: tuple[tuple[AbstractLatentSDE, Anchored], ...],
    own: int,
    series: Series,
    grid: Grid,
    num_paths: int,
    key: PRNGKeyArray,
) -> Float[Array, " paths"]:
    """Draw paths from one guide, and weigh them by all."""
    dtype = series.ys.dtype
    keys = jax.random.split(key)
    law = model.linear.initial
    starts = [_initial(model, anchored, dtype) for _, anchored in guides]
    noise = standard_normal(keys[0], (num_paths, law.root.shape[1]), dtype)
    z = starts[own].sample(noise)
    first = law.mean.astype(dtype)[None] + z @ law.root.astype(dtype).T
    prior = -0.5 * jnp.sum(z**2, axis=1)
    logs = jnp.stack([start.log_prob(z) for start in starts])
    steps = [steps_of(anchored, series, grid) for _, anchored in guides]
    shape = (grid.starts.shape[0], num_paths, guides[own][1].chain.root.shape[-1])
    noise = standard_normal(keys[1], shape, dtype)

    def body(carry: tuple[Array, Array, Array], xs: tuple[list[Step], Array]):
        x, prior, logs = carry
        laws = [
            innovation(guide, step, x)
            for (guide, _), step in zip(guides, xs[0], strict=True)
        ]
        z = laws[own].sample(xs[1])
        there = laws[own].mean + laws[own].shift(z)
        prior = prior - 0.5 * jnp.sum(z**2, axis=1)
        logs = logs + jnp.stack([law.log_prob(z) for law in laws])
        return (there, prior, logs), there

    (_, prior, logs), later = jax.lax.scan(body, (first, prior, logs), (steps, noise))
    positions = jnp.concatenate([first[None], later])[grid.nodes]
    known = _likelihood(model, guides[0][1], series, positions)
    mixed = jax.nn.logsumexp(logs, axis=0) - jnp.log(len(guides))
    return without_lost(known + prior - mixed)


def _initial(
    model: AbstractLatentSDE, anchored: Anchored, dtype: jnp.dtype
) -> Innovation:
    """Return the guided law of the normal variables of the first state."""
    law = model.linear.initial
    mean, root = law.mean.astype(dtype), law.root.astype(dtype)
    message: Site = jax.tree.map(lambda x: x[0].astype(dtype), anchored.guided.messages)
    pressed = root.T @ message.precision
    factor = jnp.linalg.cholesky(jnp.eye(root.shape[1], dtype=dtype) + pressed @ root)
    shift = root.T @ message.shift - pressed @ mean
    center = jax.scipy.linalg.solve_triangular(factor, shift, lower=True)
    return Innovation(mean, factor, center[None], None, root)


def _likelihood(
    model: AbstractLatentSDE, anchored: Anchored, series: Series, x: Array
) -> Float[Array, " paths"]:
    """Return `sum log p(y | x)` over the observations."""
    at = lambda site, x: jax.vmap(site.log_value)(x)
    known = jnp.sum(jax.vmap(at)(anchored.sites, x), axis=0)
    if model.decoder.exact:
        return known
    return known + observed(model, anchored, series, x)
