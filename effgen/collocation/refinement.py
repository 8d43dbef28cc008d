"""How far a solution is from the equations between nodes, and finer meshes for it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, PyTree

from effgen.core.state import TrainState

from .inputs import inputs_at
from .problem import Problem, as_model
from .radau import radau
from .solution import Solution
from .transcription import Transcription, transcribe


_MOST_PARTS = 4


def residuals(
    problem: Problem,
    model: PyTree,
    solution: Solution,
    ts: ArrayLike,
    trajectory: int = 0,
) -> Float[np.ndarray, "ts state"]:
    """Return `(dx/dt - vector_field(t, x, u, p, nets)) / nominal` at any times.

    Zero at the nodes; between them the certificate of the solution's error. Algebraic
    components have their own residual, `-g`.
    """
    ts = np.atleast_1d(np.asarray(ts, np.float64))
    states = solution(ts, trajectory)
    inputs = inputs_at(problem.data[trajectory], ts)
    rows = (jnp.asarray(x) for x in (ts, states, inputs))
    field = np.asarray(_field(problem.vector_field, as_model(model), *rows))
    slopes = solution.derivative(ts, trajectory)
    differential = problem.num_states - problem.num_algebraic
    slopes[:, differential:] = 0
    divisor = np.where(np.arange(problem.num_states) < differential, problem.nominal, 1)
    return (slopes - field) / divisor


@eqx.filter_jit
def _field(field: Any, model: Any, ts: Any, states: Any, inputs: Any) -> Any:
    given = (model.parameters, model.networks)
    return jax.vmap(lambda t, x, u: jnp.asarray(field(t, x, u, *given)))(
        ts, states, inputs
    )


def interval_errors(
    problem: Problem, model: PyTree, solution: Solution, trajectory: int = 0
) -> Float[np.ndarray, " intervals"]:
    """Return `h max |residuals|` of each interval, halfway between its points."""
    edges = np.asarray(solution.edges[trajectory])
    points = radau(solution.stages).points
    middle = (points[1:] + points[:-1]) / 2
    lengths = np.diff(edges)
    ts = edges[:-1, None] + lengths[:, None] * middle
    found = residuals(problem, model, solution, ts.ravel(), trajectory)
    return lengths * np.abs(found).max(axis=1).reshape(ts.shape).max(axis=1)


def refine(
    transcription: Transcription, state: TrainState, *, tol: float = 1e-4
) -> Transcription:
    """Return a finer transcription: intervals whose error is above `tol` are cut.

    Into as many parts as bring an error of order `stages + 1` below it, four at most;
    the same mesh is returned where none is. `train(trainer, state, [finer])` then
    starts warm.

    **Raises:** `ValueError` unless `tol` is positive.
    """
    if not tol > 0:
        raise ValueError(f"`tol` is {tol}: pass a positive relative error.")
    solution, problem = state.memory, transcription.problem
    order = solution.stages + 1
    edges = []
    for i, old in enumerate(solution.edges):
        errors = interval_errors(problem, state.model, solution, i)
        parts = np.ceil((errors / tol) ** (1 / order)).astype(int)
        parts = np.clip(parts, 1, _MOST_PARTS)
        pieces = [
            np.linspace(a, b, n + 1)[:-1]
            for a, b, n in zip(old[:-1], old[1:], parts, strict=True)
        ]
        edges.append(np.concatenate([*pieces, np.asarray(old)[-1:]]))
    return transcribe(problem, edges=edges, stages=solution.stages)
