"""How far a solution is from the equations between nodes, and finer meshes for it."""

import warnings

import numpy as np
from jaxtyping import ArrayLike, Float, PRNGKeyArray, PyTree

from effgen.collocation.assessment.cautions import warn_of_state
from effgen.collocation.assessment.mesh_errors import MeshError, field_at, mesh_error
from effgen.collocation.assessment.switches import Switches, switches
from effgen.collocation.modeling.inputs import inputs_at
from effgen.collocation.modeling.problem import Model, Problem, as_model
from effgen.collocation.program.curvature import LimitedMemory
from effgen.collocation.program.elimination import eliminated, sample_jacobian
from effgen.collocation.program.evaluator import Evaluator
from effgen.collocation.program.transcription import (
    Transcription,
    limits_of,
    transcribe,
    weighed,
)
from effgen.collocation.states.radau_points import radau
from effgen.collocation.states.solution import OTHER_MESH, Solution, same_mesh
from effgen.core.contract.counts import check_count
from effgen.core.contract.state import TrainState
from effgen.core.outcome.results import RunWarning
from effgen.core.running.verbs import fit

from .trainer import CollocationTrainer


_MOST_PARTS = 4
_NARROW = 1 / 32  # of an interval: where the state crosses a surface, on both sides
_NEAR = 1e-6


def residuals(
    problem: Problem,
    model: PyTree,
    solution: Solution,
    ts: ArrayLike,
    trajectory: int = 0,
) -> Float[np.ndarray, "ts state"]:
    """Return `(dx/dt - vector_field(t, x, u, p, nets)) / nominal` at any times.

    It is zero at the nodes. Between them it tells the error of the solution. Algebraic
    components have their own residual, `-g`.

    Arguments:
        problem: The problem that was solved.
        model: The trained model.
        solution: The states, the `memory` of the trained state.
        ts: Times within the trajectory, a number or `(ts,)`.
        trajectory: Which trajectory, counted from 0.

    Returns:
        The residuals, `(ts, state)`, by time; of algebraic components in their own
            units.

    Raises:
        ValueError: For times outside of the trajectory, or a trajectory that is not
            there.
    """
    there, rate = solution.mesh_times(ts, trajectory)
    found = _on_mesh(problem, as_model(model), solution, there, trajectory)
    num = problem.num_states - problem.num_algebraic
    return np.where(np.arange(found.shape[1]) < num, found * rate[:, None], found)


def _on_mesh(
    problem: Problem, model: Model, solution: Solution, ts: np.ndarray, trajectory: int
) -> Float[np.ndarray, "ts state"]:
    """Return the residuals by the mesh's clock, at times on it.

    At an edge those of the interval that ends there, with the law of just before.
    """
    states = solution.with_first_dose(ts, trajectory)
    inputs = inputs_at(problem.data[trajectory], ts)
    at_edge = np.isin(ts, np.asarray(solution.edges[trajectory])[1:])
    just = np.where(at_edge, np.nextafter(ts, -np.inf), ts)
    field = field_at(problem.mesh_field, model, just, states, inputs)
    slopes = solution.derivative_on_mesh(ts, trajectory)
    differential = problem.num_states - problem.num_algebraic
    slopes[:, differential:] = 0
    divisor = np.where(np.arange(problem.num_states) < differential, problem.nominal, 1)
    return (slopes - field) / divisor


def interval_errors(
    problem: Problem, model: PyTree, solution: Solution, trajectory: int = 0
) -> Float[np.ndarray, " intervals"]:
    """Return `h max |residuals|` of each interval, halfway between its points.

    `h` is the length of the interval.

    Arguments:
        problem: The problem that was solved.
        model: The trained model.
        solution: The states, the `memory` of the trained state.
        trajectory: Which trajectory, counted from 0.

    Returns:
        One number for each interval, `(intervals,)`, relative to `nominal`; infinite
            where the law is not finite between points.

    Raises:
        ValueError: For a trajectory that is not there.
    """
    edges = solution.edges_of(trajectory)
    points = radau(solution.stages).points
    middle = (points[1:] + points[:-1]) / 2
    lengths = np.diff(edges)
    ts = edges[:-1, None] + lengths[:, None] * middle
    found = _on_mesh(problem, as_model(model), solution, ts.ravel(), trajectory)
    found = np.nan_to_num(found, nan=np.inf, posinf=np.inf, neginf=-np.inf)
    return lengths * np.abs(found).max(axis=1).reshape(ts.shape).max(axis=1)


def accuracy(transcription: Transcription, state: TrainState) -> MeshError | None:
    """Return how large the mesh's error is beside the noise, by output.

    Arguments:
        transcription: The transcription that `state` was solved on.
        state: The trained state of a `CollocationTrainer`.

    Returns:
        The error of the mesh; `None` where it cannot be told: residuals that are not
            finite between nodes, or equations that do not determine the states.

    Raises:
        ValueError: For a state of another mesh.
    """
    if not same_mesh(state.memory, transcription.mesh):
        raise ValueError(OTHER_MESH)
    level = weighed(transcription, state.memory)
    nlp = level.program(state.model)
    z = nlp.joined(state.memory.positions)
    functions = Evaluator(nlp, LimitedMemory()).functions()
    try:
        through = eliminated(nlp, functions, limits_of(level, nlp), z)
    except ValueError:
        return None
    jacobian = sample_jacobian(nlp, z)
    return mesh_error(level, nlp, through, jacobian, state.memory)


def refine(
    transcription: Transcription, state: TrainState, *, tol: float | None = None
) -> Transcription:
    """Return a finer transcription: intervals whose error is too large are cut.

    By default those that make most of the mesh's error, where that is above a tenth of
    the noise; with `tol`, those whose `interval_errors` are above it. Each is cut into
    as many parts as bring an error of order `stages + 1` below it, four at most. Where
    the law switches inside of one, edges are put there.
    `train(trainer, state, [finer])` then starts warm.

    Arguments:
        transcription: The transcription that `state` was solved on.
        state: The trained state of a `CollocationTrainer`.
        tol: The largest error of an interval, relative to `nominal`.

    Returns:
        The finer transcription, or one on the same mesh where no interval is cut.

    Raises:
        ValueError: Unless `tol` is positive; without it, for a state of another mesh.
    """
    if tol is not None and not tol > 0:
        raise ValueError(f"`tol` is {tol}: pass a positive relative error.")
    solution, problem = state.memory, transcription.problem
    if tol is None:
        wanted = _by_noise(accuracy(transcription, state), solution)
    else:
        found = (
            interval_errors(problem, state.model, solution, i)
            for i in range(len(solution.edges))
        )
        wanted = [errors / tol for errors in found]
    return _with_cuts(transcription, state, wanted)


def finer(
    level: Transcription, state: TrainState, error: MeshError | None
) -> Transcription | None:
    """Return what `refine` does of a mesh whose error is known.

    `None` where the error is below a tenth of the noise, or cannot be told.
    """
    if error is None or error.excess <= 1:
        return None
    return _with_cuts(level, state, _by_noise(error, state.memory))


def _with_cuts(
    transcription: Transcription, state: TrainState, wanted: list[np.ndarray]
) -> Transcription:
    """Return a transcription whose intervals are cut where errors are too large.

    `wanted` says by how much each is, for each trajectory.
    """
    solution, problem = state.memory, transcription.problem
    edges = []
    for i, (old, excess) in enumerate(zip(solution.edges, wanted, strict=True)):
        parts = np.ceil(excess ** (1 / (solution.stages + 1)))
        parts = np.clip(parts, 1, _MOST_PARTS).astype(int)
        chosen = np.flatnonzero(parts > 1)
        found = switches(problem, state.model, solution, i, chosen)
        edges.append(_cut(np.asarray(old), parts, found))
    return transcribe(problem, edges=edges, stages=solution.stages)


def _by_noise(error: MeshError | None, solution: Solution) -> list[np.ndarray]:
    """Return by how much each interval's error is too large, for each trajectory."""
    counts = [len(e) - 1 for e in solution.edges]
    wanted = np.zeros(sum(counts))
    if error is not None and error.excess > 1:
        wanted[error.marked()] = max(2 * error.excess, 2.0)
    return np.split(wanted, np.cumsum(counts)[:-1])


def _cut(old: np.ndarray, parts: np.ndarray, found: Switches) -> np.ndarray:
    """Return edges with intervals in equal parts, or with edges where a law switches.

    Where the state makes it switch the time moves with the model: an edge on both
    sides. An edge that is a rounding away from a switch gives way to it.
    """
    at = np.searchsorted(old, found.ts, side="right") - 1
    lengths = np.diff(old)
    pieces = [old]
    for j in np.setdiff1d(np.flatnonzero(parts > 1), at):
        pieces.append(np.linspace(old[j], old[j + 1], parts[j] + 1)[1:-1])
    for t, timed, j in zip(found.ts, found.timed, at, strict=True):
        away = 0.0 if timed else _NARROW * lengths[j]
        near = np.unique([t - away, t + away])
        gap = _NEAR * lengths[j]
        pieces.append(near[(near > old[j] + gap) & (near < old[j + 1] - gap)])
    return np.unique(np.concatenate(pieces))


def fit_refined(
    trainer: CollocationTrainer,
    state: TrainState,
    transcription: Transcription,
    *,
    key: PRNGKeyArray,
    num_rounds: int = 6,
) -> tuple[TrainState, Transcription]:
    """Solve, and cut the mesh until its error is below a tenth of the noise.

    Each round is one step of `trainer` on a mesh of `refine`, begun warm.

    Arguments:
        trainer: The trainer of all rounds.
        state: The state to begin from, such as `trainer.init(model, guess)`.
        transcription: The problem on its first mesh.
        key: A JAX random key for `fit`.
        num_rounds: The most rounds.

    Returns:
        The trained state and its transcription, for `covariance` and the like.

    Raises:
        TrainingError: If a solve fails.
        ValueError: For no number of rounds.

    Warns:
        RunWarning: Where the error is above a tenth of the noise after all rounds, or
            cannot be told; where the data leave parameters open.
    """
    check_count("num_rounds", num_rounds)
    state, level, error = fitted_until_fine(
        trainer, state, transcription, key=key, num_rounds=num_rounds
    )
    if error is not None and error.excess <= 1:
        warn_of_state(level, state)
        return state, level
    said = (
        "the mesh is not refined, as its error cannot be computed: the law is not "
        "finite between nodes, or its equations do not determine the states."
        if error is None
        else f"the mesh's error is {np.max(error.ratio):.2g} of the noise after "
        f"{num_rounds} rounds: pass more `num_rounds`, or a law that is smooth where "
        "it switches."
    )
    warnings.warn(said, RunWarning, stacklevel=2)
    return state, level


def fitted_until_fine(
    trainer: CollocationTrainer,
    state: TrainState,
    level: Transcription,
    *,
    key: PRNGKeyArray,
    num_rounds: int,
) -> tuple[TrainState, Transcription, MeshError | None]:
    """Return a state, the mesh that it was fitted on, and the error of that mesh.

    Arguments are those of `fit_refined`.
    """
    for left in range(num_rounds - 1, -1, -1):
        state, _ = fit(trainer, state, iter([level.before_finer()]), key=key)
        error = accuracy(level, state)
        following = finer(level, state, error) if left else None
        if following is None:
            break
        level = following
    return state, level, error
