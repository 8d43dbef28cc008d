"""Bounds by Girsanov's theorem on Euler's steps, and the paper's own."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from effgen.neural_sde.data.grid import Grid
from effgen.neural_sde.data.series import Series
from effgen.neural_sde.linear_sdes.gaussian import Gaussian
from effgen.neural_sde.linear_sdes.linear import num_brownian
from effgen.neural_sde.linear_sdes.messages import Guided
from effgen.neural_sde.linear_sdes.noise import standard_normal
from effgen.neural_sde.linear_sdes.transitions import safe_sqrt
from effgen.neural_sde.modeling.anchors import step_inputs
from effgen.neural_sde.modeling.dynamics import AbstractLatentSDE
from effgen.neural_sde.modeling.networks import num_features
from effgen.neural_sde.observing.decoders import LinearDecoder

from .objectives import AbstractObjective, Bound, anchored_on_grid, require_step
from .paths import features


class PathELBO(AbstractObjective):
    """The paper's bound: the linear control at each step's start, and the residual.

        elbo = E [sum log p(y | X) - sum |u|^2 dt / 2] - KL(q(x0) | p(x0)),  u = u_L + v
        X' = X + (prior drift + sigma u) dt + sigma sqrt(dt) noise

    It is a bound for the chain of Euler and Maruyama's steps. For linear models it is
    exact in the limit of small steps alone, and its estimate has variance. It is meant
    for noise that does not depend on the state. A `residual` must give one number for
    each column of the linear part's diffusion: that of `residual_network` does where
    the diffusion is square.

    Source:
        Daems, Opper, Crevecoeur and Birdal (2025).
    """

    def __call__(
        self,
        model: AbstractLatentSDE,
        series: Series,
        *,
        num_steps: int,
        num_paths: int,
        parallel: bool,
        key: PRNGKeyArray,
    ) -> Bound:
        """Return the bound of one series; see `AbstractObjective`.

        Raises:
            ValueError: For a model that has no `dt` yet, or a `residual` of another
                size than the noise.
        """
        require_step(model)
        _check_residual(model, series)
        anchored, grid = anchored_on_grid(
            model, series, num_steps=num_steps, parallel=parallel
        )
        guided = anchored.guided
        paths = simulated(
            model,
            series,
            grid,
            _linear_control(model),
            (guided.before, grid.until_next),
            guided.initial,
            num_paths,
            key,
        )
        first = jax.tree.map(lambda x: x[0], guided.messages)
        logs = jax.vmap(first.log_value)(paths.first) - guided.log_evidence
        values = paths.values - _initial_divergence(guided)
        weights = paths.values - paths.integral - logs
        return Bound(values, weights, guided.log_evidence, grid.fits)


def _check_residual(model: AbstractLatentSDE, series: Series) -> None:
    """Raise `ValueError` for a residual that is not of the Brownian motions' size."""
    if model.residual is None:
        return
    inputs = 0 if series.inputs is None else series.inputs.shape[-1]
    seen = jnp.zeros(num_features(model.num_states, inputs))
    found = eqx.filter_eval_shape(model.residual, seen).shape
    wanted = num_brownian(model.linear)
    if found != (wanted,):
        raise ValueError(
            f"`residual` returns shape {found} and the linear part's diffusion has "
            f"{wanted} columns: `PathELBO` needs one number for each. Use "
            "`AnchoredELBO`, or another `residual`."
        )


def _linear_control(model: AbstractLatentSDE) -> Callable:
    def control(extra, t, since, u, x, sigma):
        before, until_next = extra
        linear = sigma.T @ (before.shift - before.precision @ x)
        if model.residual is None:
            return linear
        z = features(since, until_next, x, sigma @ linear, u)
        return linear + jnp.where(until_next > 0, model.residual(z), 0)

    return control


def _initial_divergence(guided: Guided) -> Float[Array, ""]:
    """Return `KL(q(x0) | p(x0)) = E log h(x0) - log p(y)`: nothing is inverted."""
    first = jax.tree.map(lambda x: x[0], guided.messages)
    law = guided.initial
    spread = 0.5 * jnp.sum(first.precision * law.covariance)
    return first.log_value(law.mean) - spread - guided.log_evidence


class Simulated(NamedTuple):
    """Paths: where they begin and are seen, what they are worth, `sum u . dW`."""

    first: Float[Array, "paths state"]
    positions: Float[Array, "obs paths state"]
    values: Float[Array, " paths"]
    integral: Float[Array, " paths"]


def simulated(
    model: AbstractLatentSDE,
    series: Series,
    grid: Grid,
    control: Callable,
    extras: Any,
    initial: Gaussian,
    num_paths: int,
    key: PRNGKeyArray,
) -> Simulated:
    """Draw paths by Euler's steps."""
    keys = jax.random.split(key)
    brownian = num_brownian(model.linear)
    shape = (grid.starts.shape[0], num_paths, brownian)
    noise = standard_normal(keys[1], shape, series.ys.dtype)
    x = initial.sample(num_paths, key=keys[0])
    since = grid.starts - series.ts[0]
    xs = (extras, grid.starts, since, grid.lengths, step_inputs(series, grid), noise)

    def body(carry: tuple[Array, Array, Array], xs: Any):
        extra, t, since, dt, u, noise = xs

        def one(x: Array, noise: Array) -> tuple[Array, Array, Array]:
            sigma = model.prior_diffusion(t, x)
            by = control(extra, t, since, u, x, sigma)
            drift = model.prior_drift(t, x, u) + sigma @ by
            later = x + drift * dt + safe_sqrt(dt) * sigma @ noise
            return later, 0.5 * jnp.sum(by**2) * dt, safe_sqrt(dt) * by @ noise

        later, cost, integral = jax.vmap(one)(carry[0], noise)
        return (later, carry[1] + cost, carry[2] + integral), later

    zero = jnp.zeros(num_paths, x.dtype)
    (_, cost, integral), later = jax.lax.scan(body, (x, zero, zero), xs)
    positions = jnp.concatenate([x[None], later])[grid.nodes]
    values = likelihood(model, series, positions) - cost
    return Simulated(x, positions, values, integral)


def likelihood(
    model: AbstractLatentSDE, series: Series, positions: Float[Array, "obs paths state"]
) -> Float[Array, " paths"]:
    """Return `sum log p(y | X)` over the observations."""
    decoder = model.decoder

    def at(x: Array, y: Array, mask: Array, errors: Array | None) -> Array:
        if errors is None:
            return jax.vmap(decoder.log_prob, (0, None, None))(x, y, mask)
        assert isinstance(decoder, LinearDecoder)
        return jax.vmap(decoder.site(y, mask, errors).log_value)(x)

    logs = jax.vmap(at)(positions, series.ys, series.mask, series.errors)
    return jnp.sum(jnp.where(series.seen[:, None], logs, 0), axis=0)
