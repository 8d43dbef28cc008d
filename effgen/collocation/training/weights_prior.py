"""The prior of a law's weights, found by the evidence from fit to fit."""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from effgen.collocation.assessment.laplace import Evidence, evidence, groups
from effgen.collocation.descent.matching import slopes_of
from effgen.collocation.modeling.model import Model
from effgen.collocation.modeling.problem import Problem
from effgen.collocation.program.elimination import sample_residuals
from effgen.collocation.program.nlp import ravel, unravel
from effgen.collocation.program.transcription import Transcription
from effgen.collocation.states.solution import Solution
from effgen.core.contract.state import TrainState
from effgen.core.outcome.results import TrainingError
from effgen.core.running.verbs import fit

from .trainer import CollocationTrainer


_MOST_A_TURN = 30.0  # the factor by which a turn moves the weights' precision
_MOST_HALVINGS = 3
_SETTLED = 0.1
_FARTHER = 1.5  # than smoothed data are from the samples
_LEAST_NOISE = 1e-6  # of `scale`, where smoothed data meet all samples
_MOST_ROWS = 512
_LEAST_GAIN = 1e-3  # in nats; a smaller gain may be rounding of weights that are zero


Weighed = tuple[TrainState, Transcription, Evidence]


def gains(found: Evidence, before: Evidence) -> bool:
    """Return whether the evidence is higher by more than rounding."""
    return found.log_evidence > before.log_evidence + _LEAST_GAIN


class Start(NamedTuple):
    """Where a search begins: a state, and the precisions it was asked to try first."""

    state: TrainState
    noise: Float[np.ndarray, " outputs"]
    precision: PyTree

    @classmethod
    def after(cls, fitted: Weighed) -> "Start":
        """Return where a fit ended."""
        state, _, found = fitted
        return cls(state, found.noise, found.precision)


def starts_of(
    trainer: CollocationTrainer,
    model: Model,
    level: Transcription,
    plain: TrainState,
    shown: Evidence,
) -> list[Start]:
    """Return where the law with networks begins: at the law without, and at the data.

    Both have the parameters of the law without. Where `weight_decay` is zero, the prior
    is one under which the networks' part of the slopes is as large as what the law
    without them leaves of the slopes of the data.
    """
    given = Model(plain.model.parameters, model.networks)
    guess = level.guess(given)
    states = [trainer.init(given, at) for at in (plain.memory, guess)]
    noises = [shown.noise, _noise_of(level, states[1])]
    decays = jax.tree.leaves(level.problem.weight_decay)
    # Nothing is left to match where each group has its decay.
    given_all = all(float(decay) for decay in decays)
    wide = level.problem.weight_decay if given_all else matched(level, guess, given)
    alphas = [_precision_of(level.problem, noise, wide) for noise in noises]
    return [Start(*each) for each in zip(states, noises, alphas, strict=True)]


def searched(
    trainer: CollocationTrainer,
    starts: Sequence[Start],
    level: Transcription,
    shown: Evidence,
    key: PRNGKeyArray,
    num_solves: int,
) -> Weighed | None:
    """Return the fit with the highest evidence, starting at the given `weight_decay`.

    A prior that is too narrow holds all weights at zero, and the iteration then does
    not widen it. In that case the search is repeated from one that fits the slopes.
    """
    best = _from_best(trainer, starts, level, key, num_solves)
    if best is not None and gains(best[2], shown):
        return best
    if not any(jax.tree.leaves(level.problem.weight_decay)):
        return best
    last = starts[-1].state  # that of the data, which a law has not been fitted to
    alpha = matched(level, last.memory, last.model)
    wide = [start._replace(precision=alpha) for start in starts]
    return likeliest([best, _from_best(trainer, wide, level, key, num_solves)])


def likeliest(fits: Sequence[Weighed | None]) -> Weighed | None:
    """Return the fit with the highest evidence; `None` where all failed."""
    found = [fit for fit in fits if fit is not None]
    return max(found, key=lambda fit: fit[2].log_evidence, default=None)


def _from_best(
    trainer: CollocationTrainer,
    starts: Sequence[Start],
    level: Transcription,
    key: PRNGKeyArray,
    num_solves: int,
) -> Weighed | None:
    """Search from the start whose first fit is best.

    Another start than the first is tried only where the fit is farther from the samples
    than that start is.
    """
    go = lambda start: _solved(trainer, start, level, 0.0, key)
    first = go(starts[0])
    for other in starts[1:]:
        if first is None or np.any(first[2].noise > _FARTHER * other.noise):
            first = likeliest([first, go(other)])
    return first and _improved(trainer, first, level, 0.0, key, num_solves)


def settled(
    trainer: CollocationTrainer,
    start: Start,
    level: Transcription,
    rho: float,
    key: PRNGKeyArray,
    num_solves: int,
) -> Weighed | None:
    """Return the fit of the highest evidence from one start."""
    first = _solved(trainer, start, level, rho, key)
    return first and _improved(trainer, first, level, rho, key, num_solves)


def _solved(
    trainer: CollocationTrainer,
    start: Start,
    level: Transcription,
    rho: float,
    key: PRNGKeyArray,
) -> Weighed | None:
    """Return the fit under the prior of a start; `None` where it fails."""
    here = _with_precision(level, start.precision, start.noise, rho)
    try:
        state, _ = fit(trainer, start.state, iter([here]), key=key)
        return state, here, evidence(here, state, correlation=rho)
    except (TrainingError, ValueError):
        return None


def _improved(
    trainer: CollocationTrainer,
    best: Weighed,
    level: Transcription,
    rho: float,
    key: PRNGKeyArray,
    num_solves: int,
) -> Weighed:
    """Return the fit of the highest evidence by MacKay's fixed point, from a fit."""
    alpha, halvings = _fixed_point(level, best), 0
    for _ in range(num_solves - 1):
        start = Start.after(best)._replace(precision=alpha)
        new = _solved(trainer, start, level, rho, key)
        if new is None:
            break
        gain = new[2].log_evidence - best[2].log_evidence
        if not gain > 0:
            halvings += 1
            if halvings > _MOST_HALVINGS:
                break
            middle = lambda a, b: float(np.sqrt(a * b))
            alpha = jax.tree.map(middle, alpha, best[2].precision)
            continue
        best = new
        if gain < _SETTLED and halvings == 0:
            break
        alpha, halvings = _fixed_point(level, best), 0
    return best


def _fixed_point(level: Transcription, fitted: Weighed) -> PyTree:
    state, _, found = fitted
    weights = _squares(level.problem, state.model.networks)
    return jax.tree.map(_wanted, found.effective, weights, found.precision)


def _wanted(effective: float, weights: float, precision: float) -> float:
    wanted = max(effective, 1e-12) / max(weights, 1e-30)
    return float(np.clip(wanted, precision / _MOST_A_TURN, precision * _MOST_A_TURN))


def _with_precision(
    level: Transcription, alpha: PyTree, noise: np.ndarray, rho: float
) -> Transcription:
    """Return the transcription whose weight decay is this prior of the weights."""
    factor = _decay_by_precision(level.problem, noise, rho)
    decay = jax.tree.map(lambda a: np.asarray(a * factor), alpha)
    return eqx.tree_at(lambda t: t.problem.weight_decay, level, decay)


def _precision_of(problem: Problem, noise: np.ndarray, otherwise: PyTree) -> PyTree:
    """Return the prior that `weight_decay` is under a noise, another where it is 0."""
    factor = _decay_by_precision(problem, noise, 0.0)
    chosen = lambda decay, other: float(decay) / factor if decay else other
    return jax.tree.map(chosen, problem.weight_decay, otherwise)


def _decay_by_precision(problem: Problem, noise: np.ndarray, rho: float) -> float:
    # The program's scales keep their geometric mean over samples: see `reweighed`.
    counts = sum(np.sum(~np.isnan(t.ys), axis=0) for t in problem.data)
    ratios = np.average(np.log(noise / problem.scale), weights=np.maximum(counts, 1e-9))
    return float(np.exp(2 * ratios)) / ((1 - rho) / (1 + rho) * max(np.sum(counts), 1))


def _noise_of(level: Transcription, state: TrainState) -> np.ndarray:
    """Return the noise of each output at states that no law has been fitted to."""
    nlp = level.program(state.model)
    z = jnp.asarray(nlp.joined(state.memory.positions))
    residuals = np.asarray(sample_residuals(nlp, z))
    variance = max(float(np.sum(residuals**2)), _LEAST_NOISE**2)
    return np.sqrt(variance) * np.asarray(level.problem.scale)


def matched(level: Transcription, solution: Solution, model: Model) -> PyTree:
    """Return the prior under which the networks' slopes are as large as what is left.

        alpha = groups |d slopes / d weights|^2 / |slopes - vector_field|^2

    The latter is with all weights at zero. Slopes are those of a solution's states.
    """
    problem, networks = level.problem, model.networks
    rows = slopes_of(solution, level.mesh)
    every = max(1, len(rows.ts) // _MOST_ROWS)
    rows = jax.tree.map(lambda x: x[::every], rows)
    num = problem.num_states - problem.num_algebraic
    spread = np.asarray(rows.slopes).std(0)[:num]
    scale = np.where(spread > 0, spread, 1.0)

    def field(flat: Array) -> Array:
        nets = unravel(Model(None, networks), flat).networks
        one = lambda t, x, u: problem.vector_field(t, x, u, model.parameters, nets)
        found = jax.vmap(one)(rows.ts, rows.states, rows.inputs)
        return jnp.asarray(found)[:, :num] / scale[None]

    flat = ravel(Model(None, networks))
    left = np.asarray(rows.slopes)[:, :num] / scale[None] - field(jnp.zeros_like(flat))
    along = np.asarray(jax.jit(jax.jacfwd(field))(flat))
    leaves, tree = jax.tree.flatten(problem.weight_decay)
    squares = np.bincount(
        groups(problem, networks), np.sum(along**2, (0, 1)), len(leaves)
    )
    ratios = len(leaves) * squares / max(float(np.sum(np.square(left))), 1e-300)
    good = np.isfinite(ratios) & (ratios > 0)
    return jax.tree.unflatten(tree, np.where(good, ratios, 1.0).tolist())


def _squares(problem: Problem, networks: PyTree) -> PyTree:
    """Return the sum of squared weights of each group, like `weight_decay`."""
    leaves, tree = jax.tree.flatten(problem.weight_decay)
    squares = np.asarray(ravel(Model(None, networks))) ** 2
    found = np.bincount(groups(problem, networks), squares, minlength=len(leaves))
    return jax.tree.unflatten(tree, found.tolist())
