"""How a trained model does on what it has not seen, and how much the start matters."""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray, PyTree
from scipy.spatial import KDTree

from effgen.collocation.modeling.clocks import mesh_times, switches_of
from effgen.collocation.modeling.constraints import LinkConstraint
from effgen.collocation.modeling.doses import pieces
from effgen.collocation.modeling.inputs import inputs_at
from effgen.collocation.modeling.phases import followers
from effgen.collocation.modeling.problem import Initial, Model, Problem, as_model
from effgen.collocation.program.transcription import Transcription, transcribe
from effgen.collocation.states.guesses import at_start, measured, simulated_at
from effgen.collocation.states.inference import inferred
from effgen.collocation.states.solution import Solution
from effgen.core.contract.state import TrainState
from effgen.core.outcome.results import RunWarning, TrainingError
from effgen.core.running.verbs import fit

from .trainer import CollocationTrainer, check_double


def held_out(problem: Problem, indices: Sequence[int]) -> tuple[Problem, Problem]:
    """Return the problem without some trajectories, and one of these alone.

    Arguments:
        problem: The problem of all trajectories.
        indices: Which trajectories to hold out, counted from 0.

    Returns:
        The problem of the other trajectories, and the problem of those held out.

    Raises:
        IndexError: For trajectories that are not there.
        ValueError: If none is held out, or none is left, or one is there twice; for
            phases that would be parted from the one that they follow.
    """
    num = len(problem.data)
    given = np.atleast_1d(np.asarray(indices))
    whole = given.ndim == 1 and (given.dtype.kind in "iu" or not len(given))
    if not whole or not all(0 <= i < num for i in given):
        raise IndexError(f"`indices` is {indices} of {num} trajectories.")
    out = [int(i) for i in given]
    rest = [i for i in range(num) if i not in out]
    if not rest or not out or len(set(out)) < len(out):
        raise ValueError(f"`indices` is {out}: hold out some, not all, each once.")
    return _of(problem, rest), _of(problem, out)


def _check_phases(problem: Problem, indices: list[int]) -> None:
    for before, i in zip([None, *indices], indices, strict=False):
        if problem.data[i].follows and before != i - 1:
            raise ValueError(
                f"trajectory {i} follows {i - 1}, which `indices` part: hold out both, "
                "one after the other, or none of them."
            )


def _of(problem: Problem, indices: list[int]) -> Problem:
    _check_phases(problem, indices)
    data = tuple(problem.data[i] for i in indices)
    initial = problem.initial
    if initial is not None:
        initial = Initial(*(_rows(v, indices) for v in (initial.values, initial.scale)))
    links = lambda c: isinstance(c, LinkConstraint)
    linked = bool(len(followers(data)))
    constraints = tuple(c for c in problem.constraints if linked or not links(c))
    where = lambda p: (p.data, p.initial, p.constraints)
    return eqx.tree_at(
        where, problem, (data, initial, constraints), is_leaf=lambda x: x is None
    )


def _rows(value: Any, indices: list[int]) -> Any:
    """Return the rows of some trajectories, if the values have a row for each."""
    if value is None or np.ndim(value) < 2 or len(value) == 1:
        return value
    return np.asarray(value)[indices]


class Extrapolation(NamedTuple):
    """How simulations of a trained model fare on a problem's trajectories.

    Attributes:
        errors: The root mean square of `(y - outputs) / scale`,
            `(trajectories, outputs)`. NaN where the simulation fails or nothing is
            measured.
        distances: How far each simulation went from the nearest node of training,
            `(trajectories,)`, states divided by their standard deviation there;
            infinite where the solver fails.
        states: Each trajectory's simulation at its samples, `(obs, state)`, in the
            states' units; NaN where the solver fails.
    """

    errors: Float[np.ndarray, "trajectories outputs"]
    distances: Float[np.ndarray, " trajectories"]
    states: tuple[Float[np.ndarray, "obs state"], ...]


def extrapolation(
    problem: Problem,
    model: PyTree,
    visited: Solution,
    starts: Any = None,
    solver: diffrax.AbstractSolver | None = None,
) -> Extrapolation:
    """Simulate every trajectory of a problem from its start, and compare.

    Arguments:
        problem: The problem of the trajectories to simulate, such as `held_out`'s.
        model: The trained model.
        visited: The solution of the training problem.
        starts: The states at the starts, `(trajectories, state)`, in their units. By
            default what `initial` says, else the smoothed data.
        solver: Diffrax's solver; by default `Tsit5`.

    Returns:
        The errors, the distances from the training data, and the simulated states.

    Raises:
        ValueError: For `starts` that are not a state of each trajectory, or a start
            that is not known.
    """
    model = as_model(model)
    solver = diffrax.Tsit5() if solver is None else solver
    nodes = np.asarray(visited.positions)
    spread = np.where(nodes.std(0) > 0, nodes.std(0), 1.0)
    tree = KDTree(nodes / spread)
    shape = (len(problem.data), problem.num_states)
    if starts is None:
        starts = known_starts(problem, model)
    elif np.shape(starts) != shape:
        raise ValueError(
            f"`starts` has shape {np.shape(starts)}: pass {shape}, a state of each "
            "trajectory."
        )
    moved = switches_of(problem.brackets, model.parameters)
    errors, distances, rows = [], [], []
    for i, trajectory in enumerate(problem.data):
        ts, _ = mesh_times(moved, trajectory.ts, trajectory.ts[0])
        states = simulated_at(problem, model, i, starts[i], ts, solver)
        outputs = _outputs(problem, model, i, states)
        error = (outputs - trajectory.ys) / problem.scale
        errors.append(np.sqrt(_mean(error**2, ~np.isnan(trajectory.ys))))
        finite = states[np.isfinite(states).all(axis=1)]
        farthest = tree.query(finite / spread)[0].max(initial=0.0)
        distances.append(farthest if len(finite) == len(states) else np.inf)
        rows.append(states)
    return Extrapolation(np.stack(errors), np.array(distances), tuple(rows))


def known_starts(
    problem: Problem, model: Model
) -> Float[np.ndarray, "trajectories state"]:
    """Return where trajectories start: as `initial` says, as measured, or as inferred.

    Raises:
        ValueError: If a state is none of these.
    """
    shape = (len(problem.data), problem.num_states)
    given = np.full(shape, np.nan)
    if problem.initial is not None:
        given = np.broadcast_to(np.asarray(problem.initial.values, float), shape)
    seen = np.stack([measured(problem, i) for i in range(len(problem.data))])
    found = np.stack([at_start(problem, i) for i in range(len(problem.data))])
    if not np.all(seen | ~np.isnan(given)):
        mesh = transcribe(problem, stages=3).mesh
        states, told = inferred(problem, mesh, model)
        seen = seen | told
        found = np.where(np.isnan(given), states[mesh.starts], given)
    _check_doses(problem, given)
    open_ = ~seen & np.isnan(given)
    open_[:, problem.num_states - problem.num_algebraic :] = False
    if np.any(open_):
        i, state = np.argwhere(open_)[0]
        raise ValueError(
            f"state {state} of trajectory {i} is not measured, and neither outputs nor "
            "slopes tell where it starts: pass `starts`, or an `Initial` of it."
        )
    return found


def _check_doses(problem: Problem, given: np.ndarray) -> None:
    """Raise `ValueError` for a start before a dose, of which no sample tells."""
    num = problem.num_states - problem.num_algebraic
    open_ = np.any(np.isnan(given[:, :num]), axis=1)
    for i, trajectory in enumerate(problem.data):
        seen = np.any(~np.isnan(trajectory.ys), axis=1)
        before = pieces(trajectory, trajectory.ts) == 0
        if trajectory.doses and open_[i] and not np.any(seen & before):
            raise ValueError(
                f"trajectory {i} has a dose at t = {trajectory.doses[0][0]:.6g}, and "
                "no sample before it tells where it starts: pass `starts`, or an "
                "`Initial`."
            )


def _mean(values: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Return means over what is there; NaN of nothing."""
    total = np.where(there, values, 0).sum(0)
    counts = there.sum(0)
    return np.where(counts > 0, total / np.maximum(counts, 1), np.nan)


def _outputs(
    problem: Problem, model: Model, i: int, states: np.ndarray
) -> Float[np.ndarray, "obs outputs"]:
    ts, inputs = problem.data[i].ts, problem.data[i].inputs
    if not isinstance(inputs, np.ndarray):  # of a time that stands twice, its own
        inputs = inputs_at(problem.data[i], ts, "right")
    given = (model.parameters, model.networks)
    one = lambda t, x, u: problem.outputs(t, x, u, *given)
    return np.asarray(jax.vmap(one)(*map(jnp.asarray, (ts, states, inputs))))


def ensemble(
    trainer: CollocationTrainer,
    models: Iterable[PyTree],
    levels: Sequence[Transcription],
    *,
    key: PRNGKeyArray,
) -> list[TrainState]:
    """Train each of several models on the same levels, such as a network of many seeds.

    The differences between their laws and simulations are what the data leave open and
    the start decides.

    Arguments:
        trainer: The trainer of all.
        models: The models to begin from.
        levels: The transcriptions of one run. Each model begins at its own guess on
            the first, `levels[0].guess(model)`.
        key: A JAX random key for `fit`.

    Returns:
        The trained states in order of their final objectives, the lowest first.

    Raises:
        RuntimeError: If JAX computes in float32.
        TrainingError: If all trainings fail; the last of their errors.
        TypeError: For `levels` that are no list of transcriptions.
        ValueError: For no models, or no levels.

    Warns:
        RunWarning: For a training that fails, and is left out.
    """
    if isinstance(levels, Transcription):
        raise TypeError("`levels` is a Transcription: pass a list of one or more.")
    levels = list(levels)
    if not levels:
        raise ValueError("`levels` is empty: pass one or more transcriptions.")
    check_double()
    found, failure = [], None
    for i, model in enumerate(models):
        start = trainer.init(model, levels[0].guess(model))
        try:
            state, history = fit(trainer, start, levels, key=key)
        except TrainingError as error:
            failure = error
            text = f"model {i} of the ensemble is left out: {error}"
            warnings.warn(text, RunWarning, stacklevel=2)
            continue
        found.append((float(history["loss"][-1]), i, state))
    if not found and failure is not None:
        raise failure
    if not found:
        raise ValueError("`models` is empty: pass one or more to begin from.")
    return [state for _, _, state in sorted(found, key=lambda row: row[:2])]
