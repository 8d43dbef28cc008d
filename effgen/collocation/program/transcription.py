"""Transcriptions: a problem on a mesh, ready to be solved."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import diffrax
import equinox as eqx
import numpy as np
from jaxtyping import PyTree

from effgen.collocation.modeling.clocks import switches_of
from effgen.collocation.modeling.constraints import KINDS
from effgen.collocation.modeling.problem import (
    BoundaryConstraint,
    Constraint,
    LinkConstraint,
    Model,
    PathConstraint,
    Problem,
    as_model,
    flat_bounds,
)
from effgen.collocation.states.guesses import interpolated, simulated
from effgen.collocation.states.inference import inferred
from effgen.collocation.states.mesh import (
    Mesh,
    Samples,
    aligned_edges,
    check_edges,
    edges_at_jumps,
    make_mesh,
    make_samples,
    uniform_edges,
)
from effgen.collocation.states.solution import Multipliers, Solution, solution_on

from .nlp import NLP, constraint_shapes
from .points import Limits, Point


class Transcription(eqx.Module):
    """A problem on a mesh, as `transcribe` returns it.

    Attributes:
        problem: The problem.
        mesh: The intervals of all trajectories, and their nodes.
        samples: The data, and where they lie in the mesh.
        final: Whether no finer mesh is to follow. If so, a mesh that is too coarse is
            warned of.
    """

    problem: Problem
    mesh: Mesh
    samples: Samples
    final: bool = True

    def before_finer(self) -> "Transcription":
        """Return the transcription as one that is not the last.

        Returns:
            The same with `final` false.
        """
        return dataclasses.replace(self, final=False)

    def guess(self, model: PyTree | None = None) -> Solution:
        """Return the default guess: the data, smoothed, at the nodes.

        States that are not measured begin at their initial or nominal values. With a
        `model`, they begin at those that `observe` and the slopes of measured states
        ask for, where its law says so.

        Arguments:
            model: The untrained model, for states that are not measured.

        Returns:
            The states on the mesh, for `trainer.init(model, guess)`.
        """
        if model is None:
            return solution_on(self.mesh, interpolated(self.problem, self.mesh))
        return solution_on(self.mesh, inferred(self.problem, self.mesh, model)[0])

    def simulated(
        self, model: PyTree, solver: diffrax.AbstractSolver | None = None
    ) -> Solution:
        """Return the guess that an untrained model's own simulations are.

        They begin at the data's start. It is for states that are not measured. Measured
        states, and times that the simulation does not reach, are as in `guess`.

        Arguments:
            model: The untrained model.
            solver: Diffrax's solver, `Tsit5` by default; an implicit one for stiff
                problems.

        Returns:
            The states on the mesh, for `trainer.init(model, guess)`.
        """
        solver = diffrax.Tsit5() if solver is None else solver
        found = simulated(self.problem, self.mesh, model, solver)
        moved = switches_of(self.problem.brackets, as_model(model).parameters)
        return solution_on(self.mesh, found, switches=moved)

    def program(self, model: Model) -> NLP:
        """Return the nonlinear program for models of this shape.

        Arguments:
            model: A model of the shapes to be solved for.

        Returns:
            The program's functions.
        """
        return NLP.of(self.problem, self.mesh, self.samples, model)


def transcribe(
    problem: Problem,
    *,
    intervals: int | None = None,
    stages: int = 3,
    edges: Sequence[np.ndarray] | None = None,
) -> Transcription:
    """Put a problem on a mesh.

    By default an interval reaches from each sample to the next. Where inputs or the law
    jump an interval ends, whatever the mesh, so that the order is kept.

    Arguments:
        problem: The problem.
        intervals: How many equal intervals the longest trajectory has. Shorter ones
            have intervals that are as long.
        stages: The stages of Radau's scheme in each interval; its order is
            `2 stages - 1`.
        edges: Each trajectory's own edges, `(edges,)`, such as
            `aligned_edges(problem)`; in the place of `intervals`.

    Returns:
        The transcription.

    Raises:
        TypeError: For an object that is no `Problem`.
        ValueError: For both `intervals` and `edges`; for `intervals` or `stages` that
            are no positive integers; for edges that do not rise through the spans.
    """
    if not isinstance(problem, Problem):
        raise TypeError(
            f"`problem` is a {type(problem).__name__}: pass a "
            "`Problem(vector_field, data)`."
        )
    if intervals is not None and edges is not None:
        raise ValueError("pass either `intervals` or `edges`, not both.")
    if intervals is not None:
        edges = uniform_edges(problem, intervals)
    chosen = aligned_edges(problem) if edges is None else edges
    check_edges(problem, chosen)
    chosen = edges_at_jumps(problem, chosen)
    mesh = make_mesh(problem, chosen, stages)
    return Transcription(problem, mesh, make_samples(problem, mesh))


def weighed(transcription: Transcription, solution: Solution) -> Transcription:
    """Return the transcription with residuals divided by the solution's scale."""
    if solution.scale is None:
        return transcription
    scale = np.asarray(solution.scale)
    return eqx.tree_at(lambda t: t.problem.scale, transcription, scale)


def limits_of(transcription: Transcription, nlp: NLP) -> Limits:
    """Return the bounds of variables and constraints.

    Raises:
        ValueError: For bounds that do not fit what they bound.
    """
    problem, mesh = transcription.problem, transcription.mesh
    shape = (mesh.num_nodes, problem.num_states)
    lower, upper = (np.broadcast_to(b, shape).copy() for b in problem.state_bounds)
    initial = problem.initial
    if initial is not None and initial.scale is None:
        given = np.asarray(initial.values, float)
        values = np.broadcast_to(given, lower[mesh.starts].shape)
        known = ~np.isnan(values)
        for bound in (lower, upper):
            bound[mesh.starts] = np.where(known, values, bound[mesh.starts])
    flat = nlp.flat().shape[0]
    parameters = flat_bounds(problem.parameter_bounds, nlp.template.parameters)
    free = np.full(flat - len(parameters[0]), np.inf)
    ends = [
        np.concatenate([(bound / problem.nominal).ravel(), of_parameters, sign * free])
        for bound, of_parameters, sign in zip(
            (lower, upper), parameters, (-1, 1), strict=True
        )
    ]
    return Limits(*ends, *_row_limits(problem, nlp, mesh))


def _row_limits(problem: Problem, nlp: NLP, mesh: Mesh) -> list[np.ndarray]:
    """Return lower and upper bounds of all constraints, in their order."""
    equations = sum(int(np.prod(shape)) for shape in constraint_shapes(nlp)[:2])
    counts = (mesh.num_nodes, len(mesh.starts), 1, len(mesh.links))
    parts = [np.zeros((2, equations))]
    for kind, num in zip(KINDS, counts, strict=True):
        chosen = [c for c in problem.constraints if isinstance(c, kind)]
        row = [np.stack(_bounds_of(c, nlp)) for c in chosen]
        parts.append(np.tile(np.concatenate([*row, np.zeros((2, 0))], axis=1), num))
    return list(np.concatenate(parts, axis=1))


def constraint_size(constraint: Constraint, nlp: NLP) -> int:
    """Return how many numbers a constraint is."""
    model, x = nlp.template, nlp.problem.nominal
    given: tuple[Any, ...] = (model.parameters, model.networks)
    if isinstance(constraint, PathConstraint):
        given = (nlp.ts[0], x, nlp.inputs[0], *given)
    elif isinstance(constraint, BoundaryConstraint | LinkConstraint):
        given = (x, x, *given)
    found = eqx.filter_eval_shape(constraint.function, *given)
    return int(np.prod(found.shape))


def _bounds_of(constraint: Constraint, nlp: NLP) -> tuple[np.ndarray, np.ndarray]:
    num = constraint_size(constraint, nlp)
    try:
        lower, upper = (
            np.broadcast_to(np.asarray(b, float), (num,)) for b in constraint[1:3]
        )
    except ValueError as error:
        raise ValueError(
            f"constraint {constraint.name!r} is {num} numbers and its bounds are "
            f"{constraint.lower} and {constraint.upper}: pass numbers, or ({num},)."
        ) from error
    return lower, upper


def shapes_of(nlp: NLP) -> list[tuple[int, ...]]:
    """Return the shapes of all multipliers, in their order."""
    nodes, flat = (len(nlp.ts), nlp.problem.num_states), nlp.flat().shape
    return [*constraint_shapes(nlp), nodes, nodes, flat, flat]


def packed(multipliers: Multipliers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return multipliers as Ipopt has them: constraints, lower and upper bounds."""
    flat = [np.asarray(part, np.float64).reshape(-1) for part in multipliers]
    return (
        np.concatenate(flat[:-4]),
        np.concatenate([flat[-4], flat[-2]]),
        np.concatenate([flat[-3], flat[-1]]),
    )


def unpacked(shapes: list[tuple[int, ...]], point: Point) -> Multipliers:
    """Return Ipopt's multipliers in their shapes."""
    constraints, lower, upper = point[1:]
    sizes = [int(np.prod(shape)) for shape in shapes]
    parts = np.split(np.asarray(constraints), np.cumsum(sizes[:-4])[:-1])
    parts += [np.asarray(side)[: sizes[-4]] for side in (lower, upper)]
    parts += [np.asarray(side)[sizes[-4] :] for side in (lower, upper)]
    return Multipliers(
        *(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
    )
