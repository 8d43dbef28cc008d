"""Simulation of algebraic models: Radau's steps, one interval after the other."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from effgen.collocation.modeling.model import Model
from effgen.collocation.modeling.problem import Problem

from .integration import Integration, sizes
from .radau_points import radau


_STAGES = 4
_MOST_NEWTON = 12
_SAFE, _SLOWEST, _FASTEST = 0.9, 0.2, 5.0
_SHORTEST = 1e-13
_ROUNDING = 1e-15


def stepped(
    problem: Problem,
    model: Model,
    start: Float[np.ndarray, " state"],
    ts: Float[np.ndarray, " ts"],
    inputs: Callable[[Any], Any],
    how: Integration,
) -> Float[np.ndarray, "ts state"]:
    """Return the states at `ts`; NaN from where no step succeeds.

    The error of a step is its difference from two halves; of algebraic states there is
    none to control, for they follow from the others. `how` has tolerances, the absolute
    one in units of `nominal`, and the most steps.
    """
    x, t, steps = np.asarray(start, float), float(ts[0]), 0
    nominal = np.asarray(sizes(problem, jnp.asarray(x)))
    bare = eqx.tree_at(lambda p: p.nominal, problem.without_data(), nominal)
    rows = [_consistent(bare, model, x, t, inputs)]
    length = float(ts[-1] - ts[0]) / 100
    for end in ts[1:]:
        while t < end and steps < how.max_steps:
            steps += 1
            # Equal parts of what is left: a rest that is tiny has no digits of slopes.
            h = (end - t) / np.ceil((end - t) / length * (1 - 1e-9))
            new, error = _doubled(
                bare, model, inputs, how, *map(jnp.asarray, (x, t, h))
            )
            error = float(error)
            good = np.isfinite(error) and error <= 1
            if good:
                x, t = np.asarray(new), (float(end) if h >= end - t else t + h)
            factor = _SAFE * max(error, 1e-10) ** (-1 / (_STAGES + 1))
            factor = factor if np.isfinite(error) else _SLOWEST
            length = h * float(np.clip(factor, _SLOWEST, _FASTEST))
            if length < _SHORTEST * max(abs(t), float(ts[-1] - ts[0])):
                steps = how.max_steps
        rows.append(x if t >= end else np.full_like(x, np.nan))
    return np.stack(rows)


@eqx.filter_jit
def _doubled(
    problem: Problem,
    model: Model,
    inputs: Any,
    how: Integration,
    x: Array,
    t: Array,
    h: Array,
) -> tuple[Array, Array]:
    """Return the end of two half steps, and how far a whole one is from it."""
    whole = _step(problem, model, inputs, x, t, h)
    half = _step(problem, model, inputs, x, t, h / 2)
    end = _step(problem, model, inputs, half, t + h / 2, h / 2)
    scale = how.atol * jnp.asarray(problem.nominal) + how.rtol * jnp.abs(end)
    num = problem.num_states - problem.num_algebraic
    return end, jnp.max(jnp.abs((whole - end) / scale)[:num], initial=0.0)


def _step(
    problem: Problem, model: Model, inputs: Any, x: Array, t: Array, h: Array
) -> Float[Array, " state"]:
    """Return the end of one interval; NaN where Newton's iterations do not converge."""
    scheme, size = radau(_STAGES), problem.num_states
    table = jnp.asarray(scheme.differentiation)
    differential = jnp.arange(size) < size - problem.num_algebraic
    nominal = jnp.asarray(problem.nominal)
    times = t + h * jnp.asarray(scheme.nodes)
    # At a jump a step ends with the limit from the left, however its end is rounded.
    before = times - _ROUNDING * (jnp.abs(t) + h)
    given = (model.parameters, model.networks)

    def defects(flat: Array) -> Array:
        nodes = flat.reshape(_STAGES, size) * nominal[None]
        points = jnp.concatenate([x[None], nodes])
        field = jax.vmap(
            lambda t, s, x: jnp.asarray(problem.mesh_field(t, x, inputs(s), *given))
        )(times, before, nodes)
        moved = (table @ points - h * field) / nominal[None]
        return jnp.where(differential[None], moved, field).ravel()

    def turn(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        flat, _, i = carry
        step = jnp.linalg.solve(jax.jacfwd(defects)(flat), defects(flat))
        return flat - step, jnp.max(jnp.abs(step)), i + 1

    goes_on = lambda carry: (carry[1] > 1e-11) & (carry[2] < _MOST_NEWTON)
    first = jnp.tile(x / nominal, _STAGES)
    flat, left, _ = jax.lax.while_loop(
        goes_on, turn, (first, jnp.asarray(jnp.inf), jnp.asarray(0))
    )
    end = flat.reshape(_STAGES, size)[-1] * nominal
    return jnp.where(left <= 1e-8 * (1 + jnp.max(jnp.abs(flat))), end, jnp.nan)


def _consistent(
    problem: Problem, model: Model, start: np.ndarray, t: float, inputs: Any
) -> Float[np.ndarray, " state"]:
    """Return the start with algebraic states solved for, if its equations tell them."""
    num = problem.num_states - problem.num_algebraic
    given = (model.parameters, model.networks)
    x, u = jnp.asarray(start, float), inputs(jnp.asarray(t, float))

    def residual(z: Array) -> Array:
        states = jnp.concatenate([x[:num], z])
        return jnp.asarray(problem.mesh_field(t, states, u, *given))[num:]

    z = x[num:]
    for _ in range(_MOST_NEWTON):
        z = z - jnp.linalg.solve(jax.jacfwd(residual)(z), residual(z))
    found = np.asarray(jnp.concatenate([x[:num], z]))
    return found if np.all(np.isfinite(found)) else np.asarray(start, float)
