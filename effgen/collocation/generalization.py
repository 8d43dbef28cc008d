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

from effgen.core.results import RunWarning, TrainingError
from effgen.core.state import TrainState
from effgen.core.train import fit

from .guesses import at_start, simulated_at
from .inputs import inputs_at
from .problem import Initial, Model, Problem, as_model
from .solution import Solution
from .trainer import CollocationTrainer
from .transcription import Transcription


def held_out(problem: Problem, indices: Sequence[int]) -> tuple[Problem, Problem]:
    """Return the problem without some trajectories, and one of these alone.

    Arguments:
        problem: The problem of all trajectories.
        indices: Which trajectories to hold out, counted from 0.

    Returns:
        The problem of the other trajectories, and the problem of those held out.

    Raises:
        IndexError: For trajectories that are not there.
        ValueError: If none is held out, or none is left.
    """
    num = len(problem.data)
    if not all(0 <= i < num for i in indices):
        raise IndexError(f"`indices` is {list(indices)} of {num} trajectories.")
    rest = [i for i in range(num) if i not in set(indices)]
    if not rest or not indices:
        raise ValueError(f"`indices` is {list(indices)}: hold out some, not all.")
    return _of(problem, rest), _of(problem, list(indices))


def _of(problem: Problem, indices: list[int]) -> Problem:
    data = tuple(problem.data[i] for i in indices)
    initial = problem.initial
    if initial is not None:
        rows = lambda v: v if v is None or np.ndim(v) < 2 else np.asarray(v)[indices]
        initial = Initial(rows(initial.values), rows(initial.scale))
    where = lambda p: (p.data, p.initial)
    return eqx.tree_at(where, problem, (data, initial), is_leaf=lambda x: x is None)


class Extrapolation(NamedTuple):
    """How simulations of a trained model fare on a problem's trajectories.

    Attributes:
        errors: The root mean square of `(y - outputs) / scale`,
            `(trajectories, outputs)`. NaN where the simulation fails or nothing is
            measured.
        distances: How far each simulation went from the nearest node of training,
            `(trajectories,)`, states divided by their standard deviation there.
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
    """
    model = as_model(model)
    solver = diffrax.Tsit5() if solver is None else solver
    nodes = np.asarray(visited.positions)
    spread = np.where(nodes.std(0) > 0, nodes.std(0), 1.0)
    tree = KDTree(nodes / spread)
    errors, distances, rows = [], [], []
    for i, trajectory in enumerate(problem.data):
        first = at_start(problem, i) if starts is None else starts[i]
        states = simulated_at(problem, model, i, first, trajectory.ts, solver)
        outputs = _outputs(problem, model, i, states)
        error = (outputs - trajectory.ys) / problem.scale
        errors.append(np.sqrt(_mean(error**2, ~np.isnan(trajectory.ys))))
        finite = states[np.isfinite(states).all(axis=1)]
        distances.append(tree.query(finite / spread)[0].max(initial=0.0))
        rows.append(states)
    return Extrapolation(np.stack(errors), np.array(distances), tuple(rows))


def _mean(values: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Return means over what is there; NaN of nothing."""
    total = np.where(there, values, 0).sum(0)
    counts = there.sum(0)
    return np.where(counts > 0, total / np.maximum(counts, 1), np.nan)


def _outputs(
    problem: Problem, model: Model, i: int, states: np.ndarray
) -> Float[np.ndarray, "obs outputs"]:
    ts = problem.data[i].ts
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
        levels: The transcriptions of one run. The guess is that of the first.
        key: A JAX random key for `fit`.

    Returns:
        The trained states in order of their final objectives, the lowest first.

    Raises:
        TrainingError: If all trainings fail; the last of their errors.
        ValueError: For no models.

    Warns:
        RunWarning: For a training that fails, and is left out.
    """
    found, failure = [], None
    for i, model in enumerate(models):
        start = trainer.init(model, levels[0].guess())
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
