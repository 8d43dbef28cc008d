"""Warnings: parameters that are not determined, and meshes that are too coarse."""

import dataclasses
import warnings

import jax.numpy as jnp
import numpy as np

from effgen.collocation.modeling.misfits import Squares
from effgen.collocation.modeling.model import Model, names_of_model
from effgen.collocation.modeling.problem import Problem
from effgen.collocation.program.compiled import misfit_of
from effgen.collocation.program.curvature import LimitedMemory
from effgen.collocation.program.elimination import (
    Eliminated,
    SampleJacobian,
    eliminated,
    sample_jacobian,
    sample_residuals,
)
from effgen.collocation.program.evaluator import Evaluator
from effgen.collocation.program.nlp import NLP, ravel
from effgen.collocation.program.pattern import unused
from effgen.collocation.program.points import Limits
from effgen.collocation.program.transcription import Transcription, limits_of, weighed
from effgen.collocation.states.solution import Solution
from effgen.core.contract.state import TrainState
from effgen.core.outcome.results import RunWarning

from .information import name_of_free
from .mesh_errors import MeshError, mesh_error
from .switches import switches


_AT_BOUND, _OPEN, _NAMED, _AT_SAMPLE = 1e-6, 1e-8, 0.1, 1e-4
_FAR_FROM_NOISE = 3.0
_ABOVE_NOISE, _SURELY = 1.5, 4.0  # times the noise, in deviations of its estimate
_MOSTLY = 0.5
_MESH = "the mesh's error is most of them. `fit_refined` cuts the mesh."
_LAW = (
    "the law does not fit. Change it, or let `choose` say whether a network in it "
    "helps. If `scale` is not the noise's, leave it out."
)
_MOST_FREE = 200
_MOST_NAMES = 4


def warn_of_unused(evaluator: Evaluator) -> None:
    """Warn of parameters that stay at their start because nothing depends on them."""
    nlp = evaluator.nlp
    names = [names_of_model(nlp.template)[i] for i in unused(nlp, evaluator.depends)]
    if not names:
        return
    more = len(names) - _MOST_NAMES
    listed = ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
    warnings.warn(
        f"no equation and no output has a derivative by {listed}: they stay at their "
        "start. A time or level that is only compared, as in `t > p[...]`, has none: "
        "pass `switches=[Switch(lambda p: p[...], near=...)]` for a time, or write "
        "`jax.nn.sigmoid((x - p[...]) / width)`.",
        RunWarning,
        stacklevel=3,
    )


def warn_of_state(transcription: Transcription, state: TrainState) -> None:
    """Warn as a last solve does, after solves of which none was the last."""
    level = weighed(transcription, state.memory)
    evaluator = Evaluator(level.program(state.model), LimitedMemory())
    warn_of_unused(evaluator)
    warn_of_solution(level, evaluator, state.memory, state.model)


def warn_of_solution(
    batch: Transcription, evaluator: Evaluator, solution: Solution, model: Model
) -> None:
    """Warn of a mesh that is too coarse, and of parameters that the data leave open."""
    nlp = dataclasses.replace(evaluator.nlp, template=model)
    _warn_of_switches(batch.problem, model)
    limits, z = limits_of(batch, nlp), nlp.joined(solution.positions)
    try:
        through = eliminated(nlp, evaluator.functions(), limits, z)
    except ValueError:
        return
    jacobian = sample_jacobian(nlp, z)
    error = mesh_error(batch, nlp, through, jacobian, solution)
    if error is not None and error.excess > 1:
        _warn_of_mesh(batch, error, solution, model)
    if not _warn_of_prior(nlp, z):
        _warn_of_noise(nlp, error, z)
    if not _other_terms(batch.problem):
        never = len(z) - len(nlp.flat()) + unused(nlp, evaluator.depends)
        _warn_of_open(nlp, through, jacobian, limits, z, never)


def _warn_of_switches(problem: Problem, model: Model) -> None:
    """Warn of switch times that were held back by a sample."""
    for time, before, at, after in problem.brackets:
        found = float(np.asarray(time(model.parameters)))
        room = _AT_SAMPLE * (after - before)
        if before + room < found < after - room:
            continue
        side = "before" if found < at else "after"
        warnings.warn(
            f"the switch near {at:.6g} ended at the sample at t = {found:.6g}, past "
            f"which it cannot move: solve again with `near` {side} that sample.",
            RunWarning,
            stacklevel=4,
        )


def _warn_of_prior(nlp: NLP, z: np.ndarray) -> bool:
    """Warn of priors if the residuals' noise is far from the problem's `scale`."""
    initial, count = nlp.problem.initial, float(nlp.counted)
    names = ["`initial.scale`"] * (initial is not None and initial.scale is not None)
    names += [f"the scale of {prior.name!r}" for prior in nlp.problem.priors]
    if not names:
        return False
    taken = len(nlp.flat()) + len(nlp.starts) * nlp.problem.num_states
    found = np.sqrt(2 * misfit_of(nlp, z) * count / max(count - taken, 1.0))
    if taken > count / 2 or 1 / _FAR_FROM_NOISE < found < _FAR_FROM_NOISE:
        return False
    warnings.warn(
        f"the residuals are {found:.2g} of the problem's `scale`, so that "
        f"{names[0]} acts as a standard deviation of {found:.2g} times its size: "
        "pass `scale`, the noise's standard deviation.",
        RunWarning,
        stacklevel=4,
    )
    return True


def _warn_of_noise(nlp: NLP, error: MeshError | None, z: np.ndarray) -> None:
    """Warn of residuals above the noise that a given `scale` says."""
    found = _above_noise(nlp, z)
    if found is None:
        return
    output, times = found
    of_mesh = error is not None and error.ratio[output] > _MOSTLY
    warnings.warn(
        f"the residuals of output {output} are {times:.2g} times `scale`, the noise's "
        f"standard deviation: {_MESH if of_mesh else _LAW}",
        RunWarning,
        stacklevel=4,
    )


def _above_noise(nlp: NLP, z: np.ndarray) -> tuple[int, float] | None:
    """Return the output whose residuals are most above a given `scale`, and how many.

    By how many deviations a sum of squares is above that of the noise follows from its
    cube root, which is nearly normal.

    Source:
        Wilson and Hilferty (1931).
    """
    problem, mask = nlp.problem, np.asarray(nlp.samples.mask)
    by_data = np.array_equal(np.asarray(problem.scale), np.asarray(problem.spread))
    if problem.weighs or by_data or not isinstance(problem.misfit, Squares):
        return None
    counts = np.maximum(mask.sum(0), 1)
    residuals = np.asarray(sample_residuals(nlp, jnp.asarray(z)))
    times = np.sqrt(float(nlp.counted) * np.sum(residuals**2, axis=0) / counts)
    width = 2 / (9 * counts)
    surely = times ** (2 / 3) - 1 + width > _SURELY * np.sqrt(width)
    output = int(np.argmax(np.where(surely, times, 0)))
    above = surely[output] and times[output] > _ABOVE_NOISE
    return (output, float(times[output])) if above else None


def _other_terms(problem: Problem) -> bool:
    """Return whether more than samples and fixed starts tell the parameters."""
    costs = (problem.lagrange, problem.mayer, problem.penalty)
    weighed = problem.initial is not None and problem.initial.scale is not None
    rest = bool(problem.constraints) or bool(problem.priors)
    return weighed or rest or any(c is not None for c in costs)


def _warn_of_open(
    nlp: NLP,
    through: Eliminated,
    jacobian: SampleJacobian,
    limits: Limits,
    z: np.ndarray,
    never: np.ndarray,
) -> None:
    """Warn of parameters and starts that can move together and change no residual.

    Networks are left out, whose weights have a prior; so are what is at a bound and
    what `never` moves anything, which is told already.
    """
    num_states = len(nlp.ts) * nlp.problem.num_states
    num = num_states + len(ravel(Model(nlp.template.parameters, None)))
    free, room = through.free, _AT_BOUND * np.maximum(np.abs(z), 1)
    inside = (z - limits.lower > room) & (limits.upper - z > room)
    chosen = np.flatnonzero((free < num) & inside[free] & ~np.isin(free, never))
    size = np.maximum(np.abs(z[free]), _AT_BOUND)
    units = np.zeros((len(free), len(chosen)))
    units[chosen, np.arange(len(chosen))] = size[chosen]
    if not len(chosen) or len(chosen) > _MOST_FREE:
        return
    moved = jacobian.along(nlp, through.moved(units))
    rows = moved[np.asarray(nlp.samples.mask)]
    norms = np.linalg.norm(rows, axis=0)
    norms = np.where(norms > 0, norms, 1.0)
    _, values, vectors = np.linalg.svd(rows / norms, full_matrices=True)
    values = np.concatenate([values, np.zeros(len(chosen) - len(values))])
    left = vectors[values <= _OPEN * max(values.max(initial=0.0), 1e-300)] / norms
    if not len(left):
        return
    weight = np.linalg.norm(left, axis=0)
    names = [
        name_of_free(nlp, int(i)) for i in free[chosen][weight > _NAMED * weight.max()]
    ]
    moves = "they can move together" if len(names) > 1 else "it can move"
    warnings.warn(
        f"the data do not tell {', '.join(names)}: {moves} and no residual changes, so "
        "that the values are of the guess. Fix one of them, or pass more data.",
        RunWarning,
        stacklevel=4,
    )


def _warn_of_mesh(
    batch: Transcription, error: MeshError, solution: Solution, model: Model
) -> None:
    worst = int(error.marked()[0])
    counts = np.cumsum([len(e) - 1 for e in solution.edges])
    i = int(np.searchsorted(counts, worst, side="right"))
    at = worst - (counts[i - 1] if i else 0)
    first, last = np.asarray(solution.edges[i])[at : at + 2]
    output = int(np.argmax(error.ratio))
    warnings.warn(
        f"the mesh is too coarse: its error is {error.ratio[output]:.2g} of the "
        f"residuals of output {output} ({error.share[output]:.1e} of its standard "
        f"deviation), most of it in trajectory {i} from t = {first:.6g} to "
        f"{last:.6g}.{_switch(batch, solution, model, i, at)} `fit_refined(trainer, "
        "state, transcription, key=key)` cuts the mesh until it is small.",
        RunWarning,
        stacklevel=4,
    )


def _switch(
    batch: Transcription, solution: Solution, model: Model, i: int, at: int
) -> str:
    found = switches(batch.problem, model, solution, i, np.array([at]))
    if not len(found.ts):
        return ""
    if found.timed[0]:
        return (
            f" The law switches there, at t = {found.ts[0]:.6g}: name it by "
            f"`Trajectory(..., jumps=[{found.ts[0]:.6g}])`."
        )
    return f" The law switches there, where the state is at t = {found.ts[0]:.6g}."
