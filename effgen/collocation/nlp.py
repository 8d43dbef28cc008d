"""The nonlinear program of one mesh: objective, constraints, and exact derivatives.

Variables are the scaled states at all nodes, `x / nominal`, and the raveled model. Each
derivative is a handful of dense blocks, one program each: per node over the states, per
node over states and model (the border), and one over the model, which is a sum over
nodes and is accumulated as one.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .mesh import Mesh, Samples
from .problem import BoundaryConstraint, Model, ModelConstraint, PathConstraint, Problem
from .radau import radau


class NLP(eqx.Module):
    """The program's functions, over arrays on a device.

        minimize   misfit(z) + costs(z)
        subject to D (x_inner - x_left) - h f(x_inner) = 0     defects
                   lower <= constraint functions <= upper

    **Attributes:** `problem`, without its data; `template`, a model of the shapes;
    `points`, the nodes of each interval, its start first; `counted`, by how many
    entries the misfit is divided.
    """

    problem: Problem
    template: Model
    samples: Samples
    points: Int[Array, "intervals points"]
    lengths: Float[Array, " intervals"]
    starts: Int[Array, " trajectories"]
    ends: Int[Array, " trajectories"]
    ts: Float[Array, " nodes"]
    inputs: Float[Array, "nodes inputs"]
    counted: Float[Array, ""]
    stages: int = eqx.field(static=True)

    @classmethod
    def of(cls, problem: Problem, mesh: Mesh, samples: Samples, model: Model) -> "NLP":
        """Return the program of a mesh; arrays go to the device in float64."""
        bare = eqx.tree_at(lambda p: p.data, problem, ())
        points = np.concatenate([mesh.left[:, None], mesh.inner], axis=1)
        place = on_device(
            (points, mesh.lengths, mesh.starts, mesh.ends, mesh.ts, mesh.inputs)
        )
        counted = jnp.asarray(float(max(samples.mask.sum(), 1)))
        given = on_device((bare, model, samples))
        return cls(*given, *place, counted=counted, stages=mesh.stages)

    @property
    def inner(self) -> Int[Array, " collocated"]:
        """The nodes at which the equations hold, in order."""
        return self.points[:, 1:].reshape(-1)

    def flat(self) -> Float[Array, " model"]:
        """Return the raveled inexact arrays of the template."""
        return ravel(self.template)

    def model(self, flat: Float[Array, " model"]) -> Model:
        """Return a model of these numbers."""
        arrays, rest = eqx.partition(self.template, eqx.is_inexact_array)
        return eqx.combine(jax.flatten_util.ravel_pytree(arrays)[1](flat), rest)

    def split(
        self, z: Float[Array, " variables"]
    ) -> tuple[Float[Array, "nodes state"], Float[Array, " model"]]:
        """Return the scaled states and the raveled model."""
        num = self.ts.shape[0] * self.problem.num_states
        return z[:num].reshape(-1, self.problem.num_states), z[num:]


def on_device(tree: Any) -> Any:
    """Return `tree` with numpy's arrays as JAX's."""
    return jax.tree.map(
        lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, tree
    )


def ravel(model: Model) -> Float[Array, " model"]:
    """Return the inexact arrays of a model as one vector, parameters first."""
    return jax.flatten_util.ravel_pytree(eqx.filter(model, eqx.is_inexact_array))[0]


def node_terms(
    nlp: NLP, t: Array, x: Float[Array, " state"], u: Array, flat: Array
) -> Float[Array, " terms"]:
    """Return what is needed of one node: the field, path constraints, and the cost.

    `x` is scaled. The field of differential components is scaled alike; residuals of
    algebraic ones are as they are.
    """
    problem, model = nlp.problem, nlp.model(flat)
    given = (t, x * problem.nominal, u, model.parameters, model.networks)
    field = jnp.asarray(problem.vector_field(*given))
    differential = problem.num_states - problem.num_algebraic
    divisor = jnp.asarray(problem.nominal).at[differential:].set(1.0)
    parts = [field / divisor]
    for constraint in problem.constraints:
        if isinstance(constraint, PathConstraint):
            parts.append(jnp.atleast_1d(constraint.function(*given)))
    cost = jnp.zeros(1) if problem.lagrange is None else problem.lagrange(*given)
    return jnp.concatenate([*parts, jnp.reshape(cost, 1)])


def sample_loss(
    nlp: NLP, sample: Samples, x: Float[Array, " state"], flat: Array
) -> Float[Array, ""]:
    """Return half the squared residuals of one sample, `x` scaled."""
    return 0.5 * jnp.sum(sample_residual(nlp, sample, x, flat) ** 2)


def sample_residual(
    nlp: NLP, sample: Samples, x: Float[Array, " state"], flat: Array
) -> Float[Array, " outputs"]:
    """Return a sample's residuals, divided by `scale` and the root of the count."""
    problem, model = nlp.problem, nlp.model(flat)
    found = problem.outputs(
        sample.ts, x * problem.nominal, sample.inputs, model.parameters, model.networks
    )
    error = (found - sample.ys) / problem.scale
    return jnp.where(sample.mask, error, 0) / jnp.sqrt(nlp.counted)


def boundary_terms(
    nlp: NLP, ends: Float[Array, "2 state"], flat: Array
) -> Float[Array, " terms"]:
    """Return boundary constraints of one trajectory, and its cost."""
    problem, model = nlp.problem, nlp.model(flat)
    given = (*(ends * problem.nominal[None]), model.parameters, model.networks)
    parts = [
        jnp.atleast_1d(constraint.function(*given))
        for constraint in problem.constraints
        if isinstance(constraint, BoundaryConstraint)
    ]
    cost = jnp.zeros(1) if problem.mayer is None else problem.mayer(*given)
    return jnp.concatenate([*parts, jnp.reshape(cost, 1)])


def model_terms(nlp: NLP, flat: Array) -> Float[Array, " terms"]:
    """Return model constraints, and penalties as the last term."""
    problem, model = nlp.problem, nlp.model(flat)
    given = (model.parameters, model.networks)
    parts = [
        jnp.atleast_1d(constraint.function(*given))
        for constraint in problem.constraints
        if isinstance(constraint, ModelConstraint)
    ]
    cost = jnp.zeros(()) if problem.penalty is None else problem.penalty(*given)
    weights = jax.tree.leaves(eqx.filter(model.networks, eqx.is_inexact_array))
    for weight in weights:
        cost = cost + 0.5 * problem.weight_decay * jnp.sum(weight**2)
    return jnp.concatenate([*parts, jnp.reshape(cost, 1)])


class NumTerms(NamedTuple):
    """How many numbers the constraints of each kind are."""

    path: int
    boundary: int
    model: int


def num_terms(nlp: NLP) -> NumTerms:
    """Return how many numbers constraints are, at a node, a trajectory, and in all."""
    size = nlp.problem.num_states
    x, u, flat = jnp.ones(size), nlp.inputs[0], nlp.flat()
    found = (
        jax.eval_shape(lambda: node_terms(nlp, nlp.ts[0], x, u, flat)),
        jax.eval_shape(lambda: boundary_terms(nlp, jnp.ones((2, size)), flat)),
        jax.eval_shape(lambda: model_terms(nlp, flat)),
    )
    path, boundary, model = (x.shape[0] - 1 for x in found)
    return NumTerms(path - size, boundary, model)


def initial_loss(nlp: NLP, x: Float[Array, "trajectories state"]) -> Float[Array, ""]:
    """Return the penalty of starts away from where they are thought to be."""
    initial = nlp.problem.initial
    if initial is None or initial.scale is None:
        return jnp.zeros(())
    values = jnp.broadcast_to(jnp.asarray(initial.values, x.dtype), x.shape)
    scale = jnp.broadcast_to(jnp.asarray(initial.scale, x.dtype), x.shape)
    known = ~jnp.isnan(values)
    error = (x * nlp.problem.nominal[None] - jnp.where(known, values, 0)) / scale
    return 0.5 * jnp.sum(jnp.where(known, error, 0) ** 2)


def states_at_samples(nlp: NLP, x: Array) -> Float[Array, "samples state"]:
    """Return the scaled states at the samples, by their intervals' polynomials."""
    there = x[nlp.points[nlp.samples.interval]]
    return jnp.einsum("sk,skn->sn", nlp.samples.basis, there)


def at_nodes(nlp: NLP, x: Array, flat: Array) -> Float[Array, "nodes terms"]:
    """Return `node_terms` at all nodes."""
    return jax.vmap(lambda t, x, u: node_terms(nlp, t, x, u, flat))(
        nlp.ts, x, nlp.inputs
    )


def over_samples(nlp: NLP, function: Any, x: Array, flat: Array) -> Any:
    """Return `function(nlp, sample, x, flat)` of every sample."""
    at = states_at_samples(nlp, x)
    return jax.vmap(lambda s, x: function(nlp, s, x, flat))(nlp.samples, at)


def quadrature(nlp: NLP) -> Float[Array, " nodes"]:
    """Return what an integral of time weighs each node with."""
    weights = nlp.lengths[:, None] * jnp.asarray(radau(nlp.stages).weights)[None]
    return jnp.zeros_like(nlp.ts).at[nlp.inner].add(weights.reshape(-1))


@eqx.filter_jit
def objective(nlp: NLP, z: Float[Array, " variables"]) -> Float[Array, ""]:
    """Return the misfit and all costs."""
    return _objective(nlp, z)


@eqx.filter_jit
def gradient(nlp: NLP, z: Float[Array, " variables"]) -> Float[Array, " variables"]:
    """Return the objective's gradient."""
    return jax.grad(lambda z: _objective(nlp, z))(z)


def _objective(nlp: NLP, z: Array) -> Array:
    x, flat = nlp.split(z)
    value = jnp.sum(over_samples(nlp, sample_loss, x, flat))
    value += initial_loss(nlp, x[nlp.starts]) + model_terms(nlp, flat)[-1]
    if nlp.problem.lagrange is not None:
        value += quadrature(nlp) @ at_nodes(nlp, x, flat)[:, -1]
    if nlp.problem.mayer is not None:
        value += jnp.sum(_at_ends(nlp, x, flat)[:, -1])
    return value


def _at_ends(nlp: NLP, x: Array, flat: Array) -> Float[Array, "trajectories terms"]:
    return jax.vmap(lambda ends: boundary_terms(nlp, ends, flat))(_ends(nlp, x))


def _ends(nlp: NLP, x: Array) -> Float[Array, "trajectories 2 state"]:
    return jnp.stack([x[nlp.starts], x[nlp.ends]], axis=1)


def field_factor(nlp: NLP) -> Float[Array, "intervals state"]:
    """Return the field's factor in the defects: `-h`, or 1 if algebraic."""
    problem = nlp.problem
    algebraic = jnp.arange(problem.num_states) >= (
        problem.num_states - problem.num_algebraic
    )
    return jnp.where(algebraic[None], 1.0, -nlp.lengths[:, None])


def slopes(nlp: NLP) -> Float[Array, "stages points state"]:
    """Return `D` for each component, zero for algebraic ones."""
    problem = nlp.problem
    table = jnp.asarray(radau(nlp.stages).differentiation)
    differential = problem.num_states - problem.num_algebraic
    there = jnp.arange(problem.num_states) < differential
    return jnp.where(there[None, None], table[:, :, None], 0.0)


@eqx.filter_jit
def constraints(nlp: NLP, z: Float[Array, " variables"]) -> Float[Array, " rows"]:
    """Return defects, algebraic equations at starts, path, boundary, model terms."""
    problem = nlp.problem
    size = problem.num_states
    x, flat = nlp.split(z)
    terms = at_nodes(nlp, x, flat)
    field = terms[nlp.points[:, 1:], :size]
    defects = jnp.einsum("jkn,ikn->ijn", slopes(nlp), x[nlp.points])
    defects += field_factor(nlp)[:, None] * field
    parts = [
        defects,
        terms[nlp.starts, size - problem.num_algebraic : size],
        terms[:, size:-1],
        _at_ends(nlp, x, flat)[:, :-1],
        model_terms(nlp, flat)[:-1],
    ]
    return jnp.concatenate([part.reshape(-1) for part in parts])


class JacobianBlocks(NamedTuple):
    """Blocks of the constraints' Jacobian, in the order of `constraints`."""

    slopes: Float[Array, "intervals stages points state"]
    field_states: Float[Array, "intervals stages state state"]
    field_model: Float[Array, "intervals stages state model"]
    start_states: Float[Array, "trajectories algebraic state"]
    start_model: Float[Array, "trajectories algebraic model"]
    path_states: Float[Array, "nodes path state"]
    path_model: Float[Array, "nodes path model"]
    boundary_states: Float[Array, "trajectories boundary 2 state"]
    boundary_model: Float[Array, "trajectories boundary model"]
    model: Float[Array, "rows model"]


def jacobian_blocks(nlp: NLP, z: Float[Array, " variables"]) -> JacobianBlocks:
    """Return the blocks at `z`; the slopes of an inner node and itself are in one."""
    problem = nlp.problem
    size, algebraic = problem.num_states, problem.num_algebraic
    x, flat = nlp.split(z)
    by_states, by_model = (
        jax.vmap(
            lambda t, x, u, d=d: d(lambda x, p: node_terms(nlp, t, x, u, p))(x, flat)
        )(nlp.ts, x, nlp.inputs)
        for d in (
            lambda f: jax.jacfwd(f, argnums=0),
            lambda f: jax.jacrev(f, argnums=1),
        )
    )
    factor = field_factor(nlp)[:, None, :, None]
    inner, start = nlp.points[:, 1:], slice(size - algebraic, size)
    field_states = factor * by_states[inner, :size]
    table = slopes(nlp)
    stage = jnp.arange(nlp.stages)
    # The slope of a node's own value joins the field's block on the diagonal.
    own = table[stage, stage + 1]
    state = jnp.arange(size)
    field_states = field_states.at[:, :, state, state].add(own[None])
    ends = _ends(nlp, x)
    terms = lambda e, p: boundary_terms(nlp, e, p)
    at_ends = lambda d: jax.vmap(lambda e: d(terms)(e, flat))(ends)
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
    )


@eqx.filter_jit
def jacobian(
    nlp: NLP, z: Array, keep: Int[Array, " entries"]
) -> Float[Array, " entries"]:
    """Return the entries of the Jacobian that the pattern keeps, in its order."""
    return _flattened(jacobian_blocks(nlp, z))[keep]


def _flattened(blocks: Any) -> Array:
    return jnp.concatenate([block.reshape(-1) for block in blocks])


class HessianBlocks(NamedTuple):
    """Blocks of the Lagrangian's Hessian: lower triangles of the whole."""

    nodes: Float[Array, "nodes state state"]
    pairs: Float[Array, "intervals pairs state state"]
    ends: Float[Array, "trajectories state state"]
    border: Float[Array, "nodes state model"]
    model: Float[Array, "model model"]


class Weights(NamedTuple):
    """What each term weighs in the Lagrangian."""

    nodes: Float[Array, "nodes terms"]
    samples: Float[Array, ""]
    boundary: Float[Array, "trajectories terms"]
    model: Float[Array, " terms"]


def lagrangian_weights(nlp: NLP, multipliers: Array, factor: Array) -> Weights:
    """Return the weights of all terms from the constraints' multipliers."""
    problem = nlp.problem
    size, algebraic = problem.num_states, problem.num_algebraic
    intervals, trajectories, nodes = len(nlp.lengths), len(nlp.starts), len(nlp.ts)
    num = num_terms(nlp)
    shapes = [
        (intervals, nlp.stages, size),
        (trajectories, algebraic),
        (nodes, num.path),
        (trajectories, num.boundary),
    ]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    parts = jnp.split(multipliers, ends)
    defects, start, path, boundary = (
        part.reshape(shape) for part, shape in zip(parts, shapes, strict=False)
    )
    field = jnp.zeros((nodes, size))
    scaled = field_factor(nlp)[:, None] * defects
    field = field.at[nlp.inner].add(scaled.reshape(-1, size))
    field = field.at[nlp.starts, size - algebraic :].add(start)
    cost = factor * quadrature(nlp)[:, None]
    ones = jnp.ones((trajectories, 1))
    return Weights(
        jnp.concatenate([field, path, cost], axis=1),
        factor,
        jnp.concatenate([boundary, factor * ones], axis=1),
        jnp.concatenate([parts[-1], factor[None]]),
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
        _, moved = jax.jvp(residual, here, (x - here[0], flat - here[1]))
        return 0.5 * factor * jnp.sum(moved**2)

    return _blocks(nlp, z, weights, factor, pairs, loss)


_COLUMNS_AT_ONCE = 16


def _blocks(
    nlp: NLP, z: Array, weights: Weights, factor: Array, pairs: Any, loss: Any
) -> HessianBlocks:
    x, flat = nlp.split(z)
    at, ends = states_at_samples(nlp, x), _ends(nlp, x)
    kinds: tuple[tuple[Any, tuple[Any, ...]], ...] = (
        (_weighed_node, (x, nlp.ts, nlp.inputs, weights.nodes)),
        (loss, (at, nlp.samples)),
        (_weighed_end, (ends, weights.boundary)),
    )
    by_kind = [_second(nlp, function, rows, flat) for function, rows in kinds]
    (nodes, border), (samples, sample_border), (both, end_border) = by_kind

    basis, points = nlp.samples.basis, nlp.points[nlp.samples.interval]
    for k in range(nlp.stages + 1):
        share = basis[:, k, None, None]
        nodes = nodes.at[points[:, k]].add(share**2 * samples)
        border = border.at[points[:, k]].add(share * sample_border)
    couplings = jnp.zeros((len(nlp.lengths), len(pairs), *samples.shape[1:]))
    for i, (later, earlier) in enumerate(pairs):
        value = (basis[:, later] * basis[:, earlier])[:, None, None] * samples
        couplings = couplings.at[nlp.samples.interval, i].add(value)
    for i, index in enumerate((nlp.starts, nlp.ends)):
        nodes = nodes.at[index].add(both[:, i, :, i])
        border = border.at[index].add(end_border[:, i])
    nodes = nodes.at[nlp.starts].add(_initial_curvature(nlp, x, factor))

    def whole(flat: Array) -> Array:
        value = weights.model @ model_terms(nlp, flat)
        return value + sum(_total(nlp, *kind, flat) for kind in kinds)

    model = _hessian_of_sum(whole, flat)
    return HessianBlocks(nodes, couplings, both[:, 1, :, 0], border, model)


def _total(nlp: NLP, function: Any, rows: tuple[Any, ...], flat: Array) -> Array:
    return jnp.sum(jax.vmap(lambda *row: function(nlp, *row, flat))(*rows))


def _weighed_node(
    nlp: NLP, x: Array, t: Array, u: Array, weights: Array, flat: Array
) -> Float[Array, ""]:
    return weights @ node_terms(nlp, t, x, u, flat)


def _weighed_end(nlp: NLP, ends: Array, weights: Array, flat: Array) -> Array:
    return weights @ boundary_terms(nlp, ends, flat)


def _second(
    nlp: NLP, function: Any, rows: tuple[Any, ...], flat: Array
) -> tuple[Array, Array]:
    """Return each row's second derivatives: by states, and by states and model."""

    def one(*row: Any) -> tuple[Array, Array]:
        value = lambda x, flat: function(nlp, x, *row[1:], flat)
        mixed = jax.jacfwd(jax.grad(value, 1))(row[0], flat)
        return jax.hessian(value)(row[0], flat), jnp.moveaxis(mixed, 0, -1)

    return jax.vmap(one)(*rows)


def _initial_curvature(nlp: NLP, x: Array, factor: Array) -> Array:
    """Return the Hessians at the starts: a sum over entries has a diagonal one."""
    first = x[nlp.starts]
    slope = jax.grad(lambda x: factor * initial_loss(nlp, x))
    _, second = jax.jvp(slope, (first,), (jnp.ones_like(first),))
    return jax.vmap(jnp.diag)(second)


def _hessian_of_sum(function: Any, flat: Array) -> Float[Array, "model model"]:
    """Return the Hessian of a sum, some columns at a time."""
    if flat.shape[0] == 0:
        return jnp.zeros((0, 0))
    _, column = jax.linearize(jax.grad(function), flat)
    eye = jnp.eye(flat.shape[0])
    return jax.lax.map(column, eye, batch_size=min(_COLUMNS_AT_ONCE, flat.shape[0]))
