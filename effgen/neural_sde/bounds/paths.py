"""Paths of the posterior, and what each adds to the bound on `log p(y)`."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from effgen.neural_sde.data.grid import Grid
from effgen.neural_sde.data.series import Series
from effgen.neural_sde.linear_sdes.messages import Guide, Site
from effgen.neural_sde.linear_sdes.noise import standard_normal
from effgen.neural_sde.linear_sdes.transitions import safe_sqrt
from effgen.neural_sde.modeling.anchors import Anchored, step_inputs
from effgen.neural_sde.modeling.dynamics import AbstractLatentSDE


class Paths(NamedTuple):
    """Paths drawn from the posterior.

    Attributes:
        positions: At each node.
        elbo: Each path's `log_evidence` of the linear model, plus the sum over its
            steps of the expected log-weight given where the step starts. Its mean is
            the bound.
        log_weights: The same with the log-weights themselves, `log p(y, x) / q(x)`.
    """

    positions: Float[Array, "nodes paths state"]
    elbo: Float[Array, " paths"]
    log_weights: Float[Array, " paths"]


class Step(NamedTuple):
    """What one step of all paths needs beside their positions.

    `mismatch`, as in `Anchored`; `slope` and `bias`, the prior's linear drift less the
    guide's, where these are not the same.
    """

    guide: Guide
    start: Float[Array, ""]
    since_first: Float[Array, ""]
    length: Float[Array, ""]
    until_next: Float[Array, ""]
    inputs: Float[Array, " inputs"] | None
    mismatch: Site | None
    slope: Float[Array, "state state"] | None
    bias: Float[Array, " state"] | None


class Stepped(NamedTuple):
    """Where a step leads: positions, expected log-weights, and log-weights."""

    positions: Float[Array, "paths state"]
    expected: Float[Array, " paths"]
    log_weights: Float[Array, " paths"]


def steps_of(anchored: Anchored, series: Series, grid: Grid) -> Step:
    """Return the steps of the prior's chain, stacked."""
    return Step(
        anchored.chain,
        grid.starts,
        grid.starts - series.ts[0],
        grid.lengths,
        grid.until_next,
        step_inputs(series, grid),
        anchored.mismatch,
        None,
        None,
    )


def anchor_steps_of(anchored: Anchored, series: Series, grid: Grid) -> Step:
    """Return the steps of the anchor's chain, stacked."""
    return steps_of(anchored, series, grid)._replace(
        guide=anchored.guided.steps,
        mismatch=None,
        slope=anchored.slopes,
        bias=anchored.biases,
    )


def stepped(
    model: AbstractLatentSDE, step: Step, x: Float[Array, "paths state"], noise: Array
) -> Stepped:
    """Move paths by one step.

    The step is the optimal one given the linear messages, from the mean that the
    prior's whole drift leads to, shifted by the residual: `C^T (e - linear_control) = w
    + noise`, with `w = sqrt(dt) v` and `B = C C^T` the precision of `e`. Its expected
    log-weight is that of the drift's move, `move . (score - slope x - curvature move /
    2)`, and of the anchor's `mismatch`, less `|w|^2 / 2`; the log-weight itself has `-
    noise . w` more.
    """
    guide = step.guide
    linear_control = x @ guide.control.T + guide.control_offset[None]
    control = control_of(model, step, x, linear_control)
    mean = x @ guide.matrix.T + guide.offset[None]
    expected = jnp.zeros(x.shape[:1], x.dtype)
    if step.mismatch is not None:
        expected = jax.vmap(step.mismatch.log_value)(x)
    drift = drift_difference(model, step, x)
    if drift is not None:
        move = drift @ guide.push.T
        ascent = guide.score[None] - x @ guide.slope.T - 0.5 * move @ guide.curvature.T
        expected = expected + jnp.sum(move * ascent, axis=1)
        mean = mean + move @ guide.reduction.T
        linear_control = linear_control - move @ guide.feedback.T
    if model.diffusion is None:
        shift, spread = noise, lambda z: z @ guide.root.T
    else:
        log, shift, spread = _state_noise(model, step, x, linear_control, noise)
        expected = expected + log
        mean = mean - linear_control @ guide.prior_root.T
    weights = expected
    if control is not None:
        expected = expected - 0.5 * jnp.sum(control**2, axis=1)
        weights = expected - jnp.sum(control * noise, axis=1)
        shift = shift + control
    return Stepped(mean + spread(shift), expected, weights)


def drift_difference(
    model: AbstractLatentSDE, step: Step, x: Float[Array, "paths state"]
) -> Float[Array, "paths state"] | None:
    """Return the prior's drift less the guide's."""
    drift = None
    if model.drift is not None:
        drift = jax.vmap(lambda x: model.nonlinear_drift(step.start, x, step.inputs))(x)
    if step.slope is not None and step.bias is not None:
        more = x @ step.slope.T + step.bias[None]
        drift = more if drift is None else drift + more
    return drift


def control_of(
    model: AbstractLatentSDE, step: Step, x: Array, linear_control: Array
) -> Float[Array, "paths noise"] | None:
    """Return the residual's control of a step, `sqrt(dt) v`."""
    if model.residual is None:
        return None
    safe = jnp.where(step.length > 0, step.length, 1.0)
    guiding = (linear_control @ step.guide.prior_root.T) / safe
    seen = jax.vmap(
        lambda x, guiding: features(
            step.since_first, step.until_next, x, guiding, step.inputs
        )
    )(x, guiding)
    # After the last observation the posterior is the prior, whatever a network says.
    size = jnp.where(step.until_next > 0, safe_sqrt(step.length), 0)
    found = jax.vmap(model.residual)(seen)
    wanted = linear_control.shape[1:]
    if found.shape[1:] != wanted:
        raise ValueError(
            f"`residual` returns shape {found.shape[1:]} and a step has "
            f"{wanted[0]} normal variables: pass a function to {wanted}, such "
            "as `residual_network(linear)`."
        )
    return size * found


def features(
    since_first: Float[Array, ""],
    until_next: Float[Array, ""],
    x: Float[Array, " state"],
    guiding: Float[Array, " state"],
    inputs: Float[Array, " inputs"] | None,
) -> Float[Array, " features"]:
    """Return what the residual network sees; `guiding` is the linear control's drift.

    It grows like one over the noise of the observations: hence its `arcsinh`.
    """
    parts = [since_first[None], until_next[None], x, jnp.arcsinh(guiding)]
    return jnp.concatenate(parts if inputs is None else [*parts, inputs])


def relative_noise(
    model: AbstractLatentSDE, t: Float[Array, ""], x: Float[Array, " state"]
) -> Float[Array, "state state"]:
    """Return `T = sigma_linear^-1 sigma(t, x)`."""
    sigma = model.prior_diffusion(t, x)
    root = model.linear.coefficients(t).diffusion
    return jax.scipy.linalg.solve_triangular(root, sigma, lower=True)


def relative_law(
    model: AbstractLatentSDE, step: Step, x: Array, linear_control: Array
) -> tuple[Array, Array, Array, Array]:
    """Return the law of noise that depends on the state: `e = T z`, `z ~ N(0, I)`.

    `T = sigma_linear^-1 sigma(t, x)`, which may be singular. Given the linear messages
    the step's optimum is Gaussian with precision `P = I + T^T (B - I) T` of `z`, whose
    normalizer is a log-weight more. Returns this, the optimum's mean times `P`'s root,
    the root and `T`, of each path.
    """
    guide = step.guide
    eye = jnp.eye(x.shape[1], dtype=x.dtype)
    square = guide.square

    def one(x: Array, linear_control: Array) -> tuple[Array, Array, Array, Array]:
        spread = relative_noise(model, step.start, x)
        precision = eye + spread.T @ (square - eye) @ spread
        factor = jnp.linalg.cholesky(precision)
        pressed = square @ linear_control
        half = jax.scipy.linalg.solve_triangular(factor, spread.T @ pressed, lower=True)
        log = 0.5 * (half @ half - linear_control @ pressed) + guide.half_log
        log -= jnp.sum(jnp.log(jnp.diagonal(factor)))
        return log, half, factor, spread

    return jax.vmap(one)(x, linear_control)


def _state_noise(
    model: AbstractLatentSDE, step: Step, x: Array, linear_control: Array, noise: Array
) -> tuple[Array, Array, Callable[[Array], Array]]:
    """Return its log-weight, `noise` about the optimum, and what takes it to `X`."""
    log, half, factor, spread = relative_law(model, step, x, linear_control)

    def to_state(z: Array) -> Array:
        back = lambda c, z: jax.scipy.linalg.solve_triangular(c, z, lower=True, trans=1)
        moved = jnp.einsum("pij,pj->pi", spread, jax.vmap(back)(factor, z))
        return moved @ step.guide.prior_root.T

    return log, half + noise, to_state


def simulate(
    model: AbstractLatentSDE,
    anchored: Anchored,
    series: Series,
    grid: Grid,
    *,
    num_paths: int,
    key: PRNGKeyArray,
) -> Paths:
    """Draw paths from the posterior, and weigh them."""
    keys = jax.random.split(key)
    steps = steps_of(anchored, series, grid)
    noise_size = anchored.chain.root.shape[-1]
    shape = (grid.starts.shape[0], num_paths, noise_size)
    noise = standard_normal(keys[1], shape, series.ys.dtype)
    first = anchored.guided.initial.sample(num_paths, key=keys[0])
    zero = jnp.zeros(num_paths, first.dtype)

    def body(carry: tuple[Array, Array, Array], xs: tuple[Step, Array]):
        x, elbo, log_weights = carry
        there = stepped(model, xs[0], x, xs[1])
        carry = (
            there.positions,
            elbo + there.expected,
            log_weights + there.log_weights,
        )
        return carry, there.positions

    (_, elbo, log_weights), later = jax.lax.scan(
        body, (first, zero, zero), (steps, noise)
    )
    positions = jnp.concatenate([first[None], later])
    known = anchored.guided.log_evidence
    if not model.decoder.exact:
        known = known + observed(model, anchored, series, positions[grid.nodes])
    return Paths(positions, elbo + known, log_weights + known)


def observed(
    model: AbstractLatentSDE,
    anchored: Anchored,
    series: Series,
    x: Float[Array, "obs paths s"],
) -> Float[Array, " paths"]:
    """Return `sum log p(y | x) - log s(x)` over the observations."""
    rows = (anchored.sites, series.ys, series.mask, series.seen)
    return jnp.sum(jax.vmap(lambda row, x: correction(model, row, x))(rows, x), axis=0)


def correction(
    model: AbstractLatentSDE,
    observation: tuple[Site, Array, Array, Array],
    x: Float[Array, "paths state"],
) -> Float[Array, " paths"]:
    """Return `log p(y | x) - log s(x)` of one observation, zero of none."""
    site, y, mask, seen = observation
    logs = jax.vmap(lambda x: model.decoder.log_prob(x, y, mask) - site.log_value(x))(x)
    return jnp.where(seen, logs, 0)
