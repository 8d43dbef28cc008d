"""The nonlinear program of one mesh: its variables, objective and constraints.

Variables are the scaled states at all nodes, `x / nominal`, and the raveled model.
"""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from effgen.collocation.modeling.priors import prior_loss
from effgen.collocation.modeling.problem import (
    BoundaryConstraint,
    LinkConstraint,
    Model,
    ModelConstraint,
    PathConstraint,
    Problem,
)
from effgen.collocation.states.mesh import Mesh, Samples
from effgen.collocation.states.radau_points import radau


class ConstraintCounts(NamedTuple):
    """How many numbers the constraints of each kind are, at a node or trajectory."""

    path: int
    boundary: int
    model: int
    link: int


class NLP(eqx.Module):
    """The program's functions, over arrays on a device.

        minimize   misfit(z) + costs(z)
        subject to D (x_inner - x_left) - h f(x_inner) = 0     defects
                   lower <= constraint functions <= upper

    `problem` is without its data, `template` a model of the shapes. `points` are the
    nodes of each interval, its start first. `shifts`, of scaled states, is what doses
    add where an interval starts. The misfit is divided by `counted` entries. `num` is
    how many numbers constraints are.
    """

    problem: Problem
    template: Model
    samples: Samples
    points: Int[Array, "intervals points"]
    lengths: Float[Array, " intervals"]
    starts: Int[Array, " trajectories"]
    ends: Int[Array, " trajectories"]
    links: Int[Array, "links 2"]
    ts: Float[Array, " nodes"]
    inputs: Float[Array, "nodes inputs"]
    shifts: Float[Array, "intervals state"]
    counted: Float[Array, ""]
    stages: int = eqx.field(static=True)
    num: ConstraintCounts = eqx.field(static=True, default=ConstraintCounts(0, 0, 0, 0))

    @classmethod
    def of(cls, problem: Problem, mesh: Mesh, samples: Samples, model: Model) -> "NLP":
        """Return the program of a mesh; arrays go to the device in float64."""
        bare = problem.without_data()
        points = np.concatenate([mesh.left[:, None], mesh.inner], axis=1)
        shifts = mesh.shifts / problem.nominal
        place = on_device(
            (
                *(points, mesh.lengths, mesh.starts, mesh.ends, mesh.links),
                *(mesh.ts, mesh.inputs, shifts),
            )
        )
        counted = jnp.asarray(float(max(samples.mask.sum(), 1)))
        given = on_device((bare, model, samples))
        bare_nlp = cls(*given, *place, counted=counted, stages=mesh.stages)
        return dataclasses.replace(bare_nlp, num=constraint_counts(bare_nlp))

    @property
    def inner(self) -> Int[Array, " collocated"]:
        """The nodes at which the equations hold, in order."""
        return self.points[:, 1:].reshape(-1)

    def flat(self) -> Float[Array, " model"]:
        """Return the raveled inexact arrays of the template."""
        return ravel(self.template)

    def model(self, flat: Float[Array, " model"]) -> Model:
        """Return a model of these numbers."""
        return unravel(self.template, flat)

    def joined(
        self, positions: Float[ArrayLike, "nodes state"]
    ) -> Float[np.ndarray, " variables"]:
        """Return the variables of states in their own units and of the template."""
        scaled = np.asarray(positions) / np.asarray(self.problem.nominal)
        return np.concatenate([scaled.ravel(), np.asarray(self.flat())])

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


def unravel(template: Model, flat: Float[Array, " model"]) -> Model:
    """Return a model like `template` of the numbers that `ravel` would give."""
    arrays, rest = eqx.partition(template, eqx.is_inexact_array)
    return eqx.combine(jax.flatten_util.ravel_pytree(arrays)[1](flat), rest)


def node_terms(
    problem: Problem, model: Model, t: Array, x: Float[Array, " state"], u: Array
) -> Float[Array, " terms"]:
    """Return what is needed of one node: the field, path constraints, and the cost.

    `x` is scaled. The field of differential components is scaled alike; residuals of
    algebraic ones are as they are.
    """
    given = (t, x * problem.nominal, u, model.parameters, model.networks)
    field = jnp.asarray(problem.mesh_field(*given))
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
    """Return the cost of the residuals of one sample, `x` scaled."""
    return residual_loss(nlp, sample_residual(nlp, sample, x, flat))


def residual_loss(nlp: NLP, residual: Float[Array, "..."]) -> Float[Array, ""]:
    """Return the cost of residuals that are divided by `scale` and the count's root."""
    costs = nlp.problem.misfit(residual * jnp.sqrt(nlp.counted))
    return jnp.sum(costs) / nlp.counted


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


def link_terms(
    nlp: NLP, ends: Float[Array, "2 state"], flat: Array
) -> Float[Array, " terms"]:
    """Return link constraints of one end and the start that follows it."""
    problem, model = nlp.problem, nlp.model(flat)
    given = (*(ends * problem.nominal[None]), model.parameters, model.networks)
    parts = [
        jnp.atleast_1d(constraint.function(*given))
        for constraint in problem.constraints
        if isinstance(constraint, LinkConstraint)
    ]
    return jnp.concatenate([*parts, jnp.zeros(0)])


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
    cost = cost + problem.decay(model.networks)
    cost = cost + prior_loss(problem.priors, *given) / nlp.counted
    return jnp.concatenate([*parts, jnp.reshape(cost, 1)])


def constraint_counts(nlp: NLP) -> ConstraintCounts:
    """Return how many numbers constraints are, at a node, a trajectory, and in all."""
    size = nlp.problem.num_states
    x, u, flat = jnp.ones(size), nlp.inputs[0], nlp.flat()
    found = (
        jax.eval_shape(lambda: node_terms(nlp.problem, nlp.template, nlp.ts[0], x, u)),
        jax.eval_shape(lambda: boundary_terms(nlp, jnp.ones((2, size)), flat)),
        jax.eval_shape(lambda: model_terms(nlp, flat)),
    )
    path, boundary, model = (x.shape[0] - 1 for x in found)
    link = jax.eval_shape(lambda: link_terms(nlp, jnp.ones((2, size)), flat))
    return ConstraintCounts(path - size, boundary, model, link.shape[0])


def constraint_shapes(nlp: NLP) -> list[tuple[int, ...]]:
    """Return the shapes of all constraints, in the order of `constraints`."""
    problem, num = nlp.problem, nlp.num
    intervals, trajectories = len(nlp.lengths), len(nlp.starts)
    return [
        (intervals, nlp.stages, problem.num_states),
        (trajectories, problem.num_algebraic),
        (len(nlp.ts), num.path),
        (trajectories, num.boundary),
        (num.model,),
        (len(nlp.links), num.link),
    ]


def initial_loss(nlp: NLP, x: Float[Array, "trajectories state"]) -> Float[Array, ""]:
    """Return the penalty of starts away from where they are thought to be.

    One counts as a measured value does, of which the misfit is the mean.
    """
    initial = nlp.problem.initial
    if initial is None or initial.scale is None:
        return jnp.zeros(())
    values = jnp.broadcast_to(jnp.asarray(initial.values, x.dtype), x.shape)
    scale = jnp.broadcast_to(jnp.asarray(initial.scale, x.dtype), x.shape)
    known = ~jnp.isnan(values)
    error = (x * nlp.problem.nominal[None] - jnp.where(known, values, 0)) / scale
    return 0.5 * jnp.sum(jnp.where(known, error, 0) ** 2) / nlp.counted


def states_at_samples(nlp: NLP, x: Array) -> Float[Array, "samples state"]:
    """Return the scaled states at the samples, by their intervals' polynomials."""
    basis, interval = nlp.samples.basis, nlp.samples.interval
    there = x[nlp.points[interval]]
    # A sample where a trajectory starts is of before a dose there.
    share = jnp.where(basis[:, :1] == 1, 0, basis[:, :1])
    return jnp.einsum("sk,skn->sn", basis, there) + share * nlp.shifts[interval]


def states_at_points(nlp: NLP, x: Array) -> Float[Array, "intervals points state"]:
    """Return the scaled states at each interval's points, its start after a dose."""
    return x[nlp.points].at[:, 0].add(nlp.shifts)


def all_node_terms(nlp: NLP, x: Array, flat: Array) -> Float[Array, "nodes terms"]:
    """Return `node_terms` at all nodes."""
    model = nlp.model(flat)
    one = lambda t, x, u: node_terms(nlp.problem, model, t, x, u)
    return jax.vmap(one)(nlp.ts, x, nlp.inputs)


def over_samples(nlp: NLP, function: Any, x: Array, flat: Array) -> Any:
    """Return `function(nlp, sample, x, flat)` of every sample."""
    at = states_at_samples(nlp, x)
    return jax.vmap(lambda s, x: function(nlp, s, x, flat))(nlp.samples, at)


def quadrature(nlp: NLP) -> Float[Array, " nodes"]:
    """Return what an integral of time weighs each node with."""
    weights = nlp.lengths[:, None] * jnp.asarray(radau(nlp.stages).weights)[None]
    return jnp.zeros_like(nlp.ts).at[nlp.inner].add(weights.reshape(-1))


def objective(nlp: NLP, z: Float[Array, " variables"]) -> Float[Array, ""]:
    """Return the misfit and all costs."""
    return misfit(nlp, z) + costs(nlp, z)


def misfit(nlp: NLP, z: Float[Array, " variables"]) -> Float[Array, ""]:
    """Return the mean cost of the samples' scaled residuals."""
    return jnp.sum(over_samples(nlp, sample_loss, *nlp.split(z)))


def costs(nlp: NLP, z: Float[Array, " variables"]) -> Float[Array, ""]:
    """Return the objective but for the misfit."""
    x, flat = nlp.split(z)
    value = initial_loss(nlp, x[nlp.starts]) + model_terms(nlp, flat)[-1]
    if nlp.problem.lagrange is not None:
        value += quadrature(nlp) @ all_node_terms(nlp, x, flat)[:, -1]
    if nlp.problem.mayer is not None:
        value += jnp.sum(all_boundary_terms(nlp, x, flat)[:, -1])
    return value


def all_boundary_terms(
    nlp: NLP, x: Array, flat: Array
) -> Float[Array, "trajectories terms"]:
    """Return `boundary_terms` of all trajectories."""
    return jax.vmap(lambda ends: boundary_terms(nlp, ends, flat))(ends_of(nlp, x))


def all_link_terms(nlp: NLP, x: Array, flat: Array) -> Float[Array, "links terms"]:
    """Return `link_terms` of all phases that follow another."""
    return jax.vmap(lambda ends: link_terms(nlp, ends, flat))(x[nlp.links])


def ends_of(nlp: NLP, x: Array) -> Float[Array, "trajectories 2 state"]:
    """Return the first and last states of all trajectories."""
    return jnp.stack([x[nlp.starts], x[nlp.ends]], axis=1)


def field_factor(nlp: NLP) -> Float[Array, "intervals state"]:
    """Return the field's factor in the defects: `-h`, or 1 if algebraic."""
    problem = nlp.problem
    algebraic = jnp.arange(problem.num_states) >= (
        problem.num_states - problem.num_algebraic
    )
    return jnp.where(algebraic[None], 1.0, -nlp.lengths[:, None])


def differentiation(nlp: NLP) -> Float[Array, "stages points state"]:
    """Return `D` for each component, zero for algebraic ones."""
    problem = nlp.problem
    table = jnp.asarray(radau(nlp.stages).differentiation)
    differential = problem.num_states - problem.num_algebraic
    there = jnp.arange(problem.num_states) < differential
    return jnp.where(there[None, None], table[:, :, None], 0.0)


def constraints(nlp: NLP, z: Float[Array, " variables"]) -> Float[Array, " rows"]:
    """Return defects, algebraic equations at starts, path, boundary, model, links."""
    problem = nlp.problem
    size = problem.num_states
    x, flat = nlp.split(z)
    terms = all_node_terms(nlp, x, flat)
    field = terms[nlp.points[:, 1:], :size]
    defects = jnp.einsum("jkn,ikn->ijn", differentiation(nlp), states_at_points(nlp, x))
    defects += field_factor(nlp)[:, None] * field
    parts = [
        defects,
        terms[nlp.starts, size - problem.num_algebraic : size],
        terms[:, size:-1],
        all_boundary_terms(nlp, x, flat)[:, :-1],
        model_terms(nlp, flat)[:-1],
        all_link_terms(nlp, x, flat),
    ]
    return jnp.concatenate([part.reshape(-1) for part in parts])
