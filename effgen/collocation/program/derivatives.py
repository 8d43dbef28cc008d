"""Exact derivatives of the program, in dense blocks that a pattern picks from.

Per node over the states, per node over states and model (the border), and one over the
model, which is a sum over nodes and is accumulated as one.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from effgen.collocation.states.mesh import Samples

from .nlp import (
    NLP,
    boundary_terms,
    constraint_shapes,
    constraints,
    costs,
    differentiation,
    ends_of,
    field_factor,
    initial_loss,
    link_terms,
    model_terms,
    node_terms,
    objective,
    over_samples,
    quadrature,
    residual_loss,
    sample_loss,
    sample_residual,
    states_at_samples,
)


class JacobianBlocks(NamedTuple):
    """Blocks of the constraints' Jacobian, in the order of `constraints`."""

    differentiation: Float[Array, "intervals stages points state"]
    field_states: Float[Array, "intervals stages state state"]
    field_model: Float[Array, "intervals stages state model"]
    start_states: Float[Array, "trajectories algebraic state"]
    start_model: Float[Array, "trajectories algebraic model"]
    path_states: Float[Array, "nodes path state"]
    path_model: Float[Array, "nodes path model"]
    boundary_states: Float[Array, "trajectories boundary 2 state"]
    boundary_model: Float[Array, "trajectories boundary model"]
    model: Float[Array, "rows model"]
    link_states: Float[Array, "links link 2 state"]
    link_model: Float[Array, "links link model"]


def jacobian_blocks(nlp: NLP, z: Float[Array, " variables"]) -> JacobianBlocks:
    """Return the blocks at `z`; the slopes of an inner node and itself are in one."""
    problem = nlp.problem
    size, algebraic = problem.num_states, problem.num_algebraic
    x, flat = nlp.split(z)
    terms = lambda t, x, u, p: node_terms(problem, nlp.model(p), t, x, u)
    by_states, by_model = (
        jax.vmap(lambda t, x, u, d=d: d(lambda x, p: terms(t, x, u, p))(x, flat))(
            nlp.ts, x, nlp.inputs
        )
        for d in (
            lambda f: jax.jacfwd(f, argnums=0),
            lambda f: jax.jacrev(f, argnums=1),
        )
    )
    factor = field_factor(nlp)[:, None, :, None]
    inner, start = nlp.points[:, 1:], slice(size - algebraic, size)
    field_states = factor * by_states[inner, :size]
    table = differentiation(nlp)
    stage = jnp.arange(nlp.stages)
    # The slope of a node's own value joins the field's block on the diagonal.
    own = table[stage, stage + 1]
    state = jnp.arange(size)
    field_states = field_states.at[:, :, state, state].add(own[None])
    ends = ends_of(nlp, x)
    of_ends = lambda e, p: boundary_terms(nlp, e, p)
    at_ends = lambda d: jax.vmap(lambda e: d(of_ends)(e, flat))(ends)
    linked = lambda e, p: link_terms(nlp, e, p)
    at_links = lambda d: jax.vmap(lambda e: d(linked)(e, flat))(x[nlp.links])
    return JacobianBlocks(
        jnp.broadcast_to(table[None], (len(nlp.lengths), *table.shape)),
        field_states,
        factor * by_model[inner, :size],
        by_states[nlp.starts, start],
        by_model[nlp.starts, start],
        by_states[:, size:-1],
        by_model[:, size:-1],
        at_ends(lambda f: jax.jacfwd(f, argnums=0))[:, :-1],
        at_ends(lambda f: jax.jacrev(f, argnums=1))[:, :-1],
        jax.jacrev(lambda p: model_terms(nlp, p))(flat)[:-1],
        at_links(lambda f: jax.jacfwd(f, argnums=0)),
        at_links(lambda f: jax.jacrev(f, argnums=1)),
    )


@eqx.filter_jit
def first_derivatives(
    nlp: NLP, z: Array, keep: Int[Array, " entries"]
) -> tuple[Float[Array, " variables"], Float[Array, " entries"]]:
    """Return the objective's gradient, and the Jacobian's entries of the pattern."""
    gradient = jax.grad(lambda z: objective(nlp, z))(z)
    return gradient, _flattened(jacobian_blocks(nlp, z))[keep]


def _flattened(blocks: Any) -> Array:
    return jnp.concatenate([block.reshape(-1) for block in blocks])


class HessianBlocks(NamedTuple):
    """Blocks of the Lagrangian's Hessian: lower triangles of the whole."""

    nodes: Float[Array, "nodes state state"]
    pairs: Float[Array, "intervals pairs state state"]
    ends: Float[Array, "trajectories state state"]
    links: Float[Array, "links state state"]
    border: Float[Array, "nodes state model"]
    model: Float[Array, "model model"]


class Weights(NamedTuple):
    """What each term weighs in the Lagrangian."""

    nodes: Float[Array, "nodes terms"]
    boundary: Float[Array, "trajectories terms"]
    model: Float[Array, " terms"]
    links: Float[Array, "links terms"]


def lagrangian_weights(nlp: NLP, multipliers: Array, factor: Array) -> Weights:
    """Return the weights of all terms from the constraints' multipliers."""
    problem = nlp.problem
    size, algebraic = problem.num_states, problem.num_algebraic
    shapes = constraint_shapes(nlp)
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
    defects, start, path, boundary, model, links = (
        part.reshape(shape)
        for part, shape in zip(jnp.split(multipliers, ends), shapes, strict=True)
    )
    field = jnp.zeros((len(nlp.ts), size))
    scaled = field_factor(nlp)[:, None] * defects
    field = field.at[nlp.inner].add(scaled.reshape(-1, size))
    field = field.at[nlp.starts, size - algebraic :].add(start)
    cost = factor * quadrature(nlp)[:, None]
    ones = jnp.ones((len(nlp.starts), 1))
    return Weights(
        jnp.concatenate([field, path, cost], axis=1),
        jnp.concatenate([boundary, factor * ones], axis=1),
        jnp.concatenate([model, factor[None]]),
        links,
    )


@eqx.filter_jit
def hessian(
    nlp: NLP,
    z: Array,
    multipliers: Array,
    factor: Array,
    pairs: tuple[tuple[int, int], ...],
    keep: Int[Array, " entries"],
    blocks: Any,
) -> Float[Array, " entries"]:
    """Return the entries of the Lagrangian's Hessian that the pattern keeps.

    `blocks`, such as `exact_blocks`, makes them; `pairs` are of points that samples
    between nodes couple.
    """
    return _flattened(blocks(nlp, z, multipliers, factor, pairs))[keep]


def exact_blocks(
    nlp: NLP, z: Array, multipliers: Array, factor: Array, pairs: Any
) -> HessianBlocks:
    """Return the blocks of the Lagrangian's own Hessian."""
    weights = lagrangian_weights(nlp, multipliers, factor)
    loss = lambda nlp, x, sample, flat: factor * sample_loss(nlp, sample, x, flat)
    return _blocks(nlp, z, weights, factor, pairs, loss)


def gauss_newton_blocks(
    nlp: NLP, z: Array, multipliers: Array, factor: Array, pairs: Any
) -> HessianBlocks:
    """Return those of the misfit with linearized residuals; constraints have none."""
    weights = lagrangian_weights(nlp, jnp.zeros_like(multipliers), factor)

    def loss(nlp: NLP, x: Array, sample: Samples, flat: Array) -> Array:
        residual = lambda x, p: sample_residual(nlp, sample, x, p)
        here = jax.lax.stop_gradient((x, flat))
        at, moved = jax.jvp(residual, here, (x - here[0], flat - here[1]))
        return factor * residual_loss(nlp, at + moved)

    return _blocks(nlp, z, weights, factor, pairs, loss)


def exact_lagrangian(nlp: NLP, z: Array, at: Array, multipliers: Array) -> Array:
    """Return the function whose Hessian at `at` is `exact_blocks`."""
    return objective(nlp, z) + multipliers @ constraints(nlp, z)


def gauss_newton_lagrangian(nlp: NLP, z: Array, at: Array, multipliers: Array) -> Array:
    """Return the function whose Hessian at `at` is `gauss_newton_blocks`."""
    residuals = lambda z: over_samples(nlp, sample_residual, *nlp.split(z))
    there, moved = jax.jvp(residuals, (at,), (z - at,))
    return residual_loss(nlp, there + moved) + costs(nlp, z)


_COLUMNS_AT_ONCE = 16


def _blocks(
    nlp: NLP, z: Array, weights: Weights, factor: Array, pairs: Any, loss: Any
) -> HessianBlocks:
    x, flat = nlp.split(z)
    at, ends = states_at_samples(nlp, x), ends_of(nlp, x)
    kinds: tuple[tuple[Any, tuple[Any, ...]], ...] = (
        (_weighed_node, (x, nlp.ts, nlp.inputs, weights.nodes)),
        (loss, (at, nlp.samples)),
        (_weighed_end, (ends, weights.boundary)),
        (_weighed_link, (x[nlp.links], weights.links)),
    )
    by_kind = [_second(nlp, function, rows, flat) for function, rows in kinds]
    (nodes, border), (samples, sample_border), *by_ends = by_kind

    basis, points = nlp.samples.basis, nlp.points[nlp.samples.interval]
    share = basis[:, :, None, None]
    nodes = nodes.at[points].add(share**2 * samples[:, None])
    if nlp.problem.observe is not None:  # else no sample depends on the model
        spread = lambda k, b: b.at[points[:, k]].add(share[:, k] * sample_border)
        border = jax.lax.fori_loop(0, nlp.stages + 1, spread, border)
    later, earlier = np.asarray(pairs, int).reshape(-1, 2).T
    shares = (basis[:, later] * basis[:, earlier])[:, :, None, None]
    couplings = jnp.zeros((len(nlp.lengths), len(pairs), *samples.shape[1:]))
    couplings = couplings.at[nlp.samples.interval].add(shares * samples[:, None])
    pairs_of_ends = (jnp.stack([nlp.starts, nlp.ends], axis=1), nlp.links)
    for index, (both, end_border) in zip(pairs_of_ends, by_ends, strict=True):
        for i in (0, 1):
            nodes = nodes.at[index[:, i]].add(both[:, i, :, i])
            border = border.at[index[:, i]].add(end_border[:, i])
    nodes = nodes.at[nlp.starts].add(_initial_curvature(nlp, x, factor))

    def whole(flat: Array) -> Array:
        value = weights.model @ model_terms(nlp, flat)
        return value + sum(_total(nlp, *kind, flat) for kind in kinds)

    model = _hessian_of_sum(whole, flat)
    first, second = (both[:, 1, :, 0] for both, _ in by_ends)
    return HessianBlocks(nodes, couplings, first, second, border, model)


def _total(nlp: NLP, function: Any, rows: tuple[Any, ...], flat: Array) -> Array:
    return jnp.sum(jax.vmap(lambda *row: function(nlp, *row, flat))(*rows))


def _weighed_node(
    nlp: NLP, x: Array, t: Array, u: Array, weights: Array, flat: Array
) -> Float[Array, ""]:
    return weights @ node_terms(nlp.problem, nlp.model(flat), t, x, u)


def _weighed_end(nlp: NLP, ends: Array, weights: Array, flat: Array) -> Array:
    return weights @ boundary_terms(nlp, ends, flat)


def _weighed_link(nlp: NLP, ends: Array, weights: Array, flat: Array) -> Array:
    return weights @ link_terms(nlp, ends, flat)


def _second(
    nlp: NLP, function: Any, rows: tuple[Any, ...], flat: Array
) -> tuple[Array, Array]:
    """Return each row's second derivatives: by states, and by states and model."""

    def one(*row: Any) -> tuple[Array, Array]:
        value = lambda x, flat: function(nlp, x, *row[1:], flat)
        both = jax.jacfwd(jax.grad(value, (0, 1)))(row[0], flat)
        return both[0], jnp.moveaxis(both[1], 0, -1)

    return jax.vmap(one)(*rows)


def _initial_curvature(nlp: NLP, x: Array, factor: Array) -> Array:
    """Return the Hessians at the starts: a sum over entries has a diagonal one."""
    first = x[nlp.starts]
    slope = jax.grad(lambda x: factor * initial_loss(nlp, x))
    _, second = jax.jvp(slope, (first,), (jnp.ones_like(first),))
    return jax.vmap(jnp.diag)(second)


def _hessian_of_sum(function: Any, flat: Array) -> Float[Array, "model model"]:
    """Return the Hessian of a sum, some columns at a time."""
    num = flat.shape[0]
    if num == 0:
        return jnp.zeros((0, 0))
    _, column = jax.linearize(jax.grad(function), flat)
    # Whole groups alone, or the rest would be a second program.
    groups = -(-num // _COLUMNS_AT_ONCE)
    eye = jnp.eye(groups * _COLUMNS_AT_ONCE, num).reshape(groups, -1, num)
    return jax.lax.map(jax.vmap(column), eye).reshape(-1, num)[:num]
