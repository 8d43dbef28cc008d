"""The evidence of a fit, and by it the choice between a law with a network and without.

It is MacKay's evidence: the probability of the data under a law, averaged over its
weights. A network that only follows the noise lowers it.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
import scipy.special
from jaxtyping import Float, Int, PyTree

from effgen.collocation.modeling.misfits import Squares
from effgen.collocation.modeling.model import Model, names_of_model
from effgen.collocation.modeling.problem import Problem
from effgen.collocation.program.compiled import costs_of
from effgen.collocation.program.curvature import GaussNewton
from effgen.collocation.program.evaluator import Evaluator
from effgen.collocation.program.nlp import NLP, ravel
from effgen.collocation.program.points import Point
from effgen.collocation.program.transcription import (
    Transcription,
    limits_of,
    packed,
    weighed,
)
from effgen.collocation.states.solution import OTHER_MESH, same_mesh
from effgen.core.contract.state import TrainState

from .information import Information, information
from .noise import leverages


_MOST_CORRELATED = 0.8
_NO_PRIOR = (
    "`weight_decay` is {}: the evidence is of networks whose weights all have a prior; "
    "pass positive numbers."
)


class Evidence(NamedTuple):
    """The evidence of a fit and what it was computed from, as `evidence` returns it.

    Attributes:
        log_evidence: The log probability of the data, but for a constant that laws of
            the same parameters share.
        effective: `gamma`, the number of the networks' weights that the data
            determine. If `weight_decay` is a pytree, one number for each of its leaves,
            in a pytree like it.
        precision: `alpha`, the precision of the weights' prior, of the same form.
        noise: The standard deviation of each output in its own units, `(outputs,)`.
        correlation: The correlation of neighboring residuals.
        deviations: The standard deviation of each number of the raveled model,
            `(model,)`; zero for what is not free.
        names: The names of these numbers.
    """

    log_evidence: float
    effective: Any
    precision: Any
    noise: Float[np.ndarray, " outputs"]
    correlation: float
    deviations: Float[np.ndarray, " model"]
    names: tuple[str, ...]


def evidence(
    transcription: Transcription, state: TrainState, *, correlation: float = 0.0
) -> Evidence:
    """Return the evidence of a solution, with the weights' prior that it was solved by.

        log p = -tau (SS / (2 sigma^2) + n log sigma) - sum of alpha |w|^2 / 2
                - tau n costs / sigma^2 + sum of k log(alpha) / 2 - logdet(H) / 2
                + sum of log(integral of exp(-g x - h x^2 / 2) dx / sqrt(2 pi))

    The sums are over groups of weights, the leaves of `weight_decay`. `H = tau J^T J /
    sigma^2 + diag(alpha)` over model and free starts, by Gauss and Newton, with the
    states eliminated. `costs` are what else the objective has, such as priors
    of starts, whose curvature `H` has as well. The last sum is over the model's numbers
    at active bounds, which `H` leaves out: `x` is the distance from the bound, `g` and
    `h` slope and curvature along one of them, the other bounds held. For residuals
    correlated by `rho`, `tau = (1 - rho) / (1 + rho)`. Further, `alpha = tau n
    weight_decay / sigma^2` and `sigma^2 = tau SS / (tau n - leverage)`.

    Arguments:
        transcription: The transcription that `state` was solved on.
        state: The trained state of a `CollocationTrainer`.
        correlation: `rho`, in `[0, 1)`. That of the residuals is in the result.

    Returns:
        The evidence, the noise, and what the data decide.

    Raises:
        ValueError: For a state of another mesh, a `correlation` out of range, weights
            whose decay is zero, or a `misfit` that is no squares; where the equations
            do not determine the states, or the point is no minimum.

    Source:
        MacKay (1992).
    """
    check_squares(transcription.problem)
    group = groups(transcription.problem, state.model.networks)
    if not same_mesh(state.memory, transcription.mesh) or state.opt_state is None:
        raise ValueError(OTHER_MESH)
    if not 0 <= correlation < 1:
        raise ValueError(f"`correlation` is {correlation}: pass a number in [0, 1).")
    tau = (1 - correlation) / (1 + correlation)
    level = weighed(transcription, state.memory)
    nlp = level.program(state.model)
    leaves, tree = jax.tree.flatten(level.problem.weight_decay)
    decay = np.array([float(leaf) for leaf in leaves])
    point = Point(nlp.joined(state.memory.positions), *packed(state.opt_state))
    found = information(Evaluator(nlp, GaussNewton()), limits_of(level, nlp), point)
    num_states = len(nlp.ts) * nlp.problem.num_states
    first = num_states + len(ravel(Model(state.model.parameters, None)))
    mine = found.eliminated.free >= first
    group = group[found.eliminated.free[mine] - first]
    by_group = lambda v: np.bincount(group, v, minlength=len(decay))
    num = by_group(np.ones(len(group)))
    if np.any((num > 0) & ~(decay > 0)):
        shown = jax.tree.map(float, level.problem.weight_decay)
        raise ValueError(_NO_PRIOR.format(shown))
    count = float(nlp.counted)
    squares = count * float(np.sum(found.residuals**2))
    if squares == 0:
        raise ValueError(
            "all residuals are zero: no noise can be estimated, and the evidence is "
            "infinite; pass more samples."
        )
    left = by_group(np.sum(found.roots[mine] ** 2, axis=1)) * decay
    leverage = float(leverages(found, nlp)[0].sum())
    variance = tau * squares / max(tau * count - leverage, 0.5)
    precision = tau * count * decay / variance
    told = found.roots.shape[1]
    logdet = told * np.log(tau * count / variance) - _log_gram(found.roots)
    scales = np.asarray(nlp.samples.mask).sum(0) @ np.log(np.asarray(nlp.problem.scale))
    log = -tau * (squares / (2 * variance) + count * np.log(variance) / 2 + scales)
    # The weights' prior is one of the costs.
    log -= tau * count / variance * costs_of(nlp, point.z) + logdet / 2
    log += _log_at_bounds(found, tau * count / variance)
    log += float(np.sum(num[num > 0] * np.log(precision[num > 0]))) / 2
    moments = np.sum(found.roots**2, axis=1) * variance / (tau * count)
    deviations = np.zeros(len(nlp.flat()))
    free = found.eliminated.free
    deviations[free[free >= num_states] - num_states] = np.sqrt(
        moments[free >= num_states]
    )
    like = lambda v: jax.tree.unflatten(tree, v.tolist())
    return Evidence(
        float(log),
        like(num - left),
        like(precision),
        np.sqrt(variance) * np.asarray(nlp.problem.scale),
        _correlation(nlp, found.residuals, leverage),
        deviations,
        tuple(names_of_model(nlp.template)),
    )


def _log_at_bounds(found: Information, precision: float) -> float:
    """Return the sum over numbers at bounds of the log of `integral / sqrt(2 pi)`.

    The integral is of `exp(-precision (slope x + x^2 / (2 variance)))`, from 0 on.
    """
    slopes, variances = precision * found.slopes, found.variances / precision
    told = variances > 0
    root = np.sqrt(np.where(told, variances, 1.0))
    within = np.log(root / 2) + np.log(scipy.special.erfcx(slopes * root / np.sqrt(2)))
    beyond = -np.log(slopes * np.sqrt(2 * np.pi))
    return float(np.sum(np.where(told, within, beyond)))


def _log_gram(roots: Float[np.ndarray, "free told"]) -> float:
    """Return `logdet(roots^T roots)`, with rows that may be in units far apart."""
    told = roots.shape[1]
    if len(roots) > told:
        return 2 * float(np.sum(np.log(np.linalg.svd(roots, compute_uv=False))))
    sizes = np.linalg.norm(roots, axis=1)
    return 2 * float(
        np.linalg.slogdet(roots / sizes[:, None])[1] + np.sum(np.log(sizes))
    )


def check_squares(problem: Problem) -> None:
    """Raise `ValueError` for a misfit other than `Squares`."""
    if not isinstance(problem.misfit, Squares):
        raise ValueError(
            f"`misfit` is {problem.misfit}: the evidence is that of normal noise; pass "
            "a problem with `Squares()`, without the samples that are far out."
        )


def groups(problem: Problem, networks: PyTree) -> Int[np.ndarray, " weights"]:
    """Return the group of each weight of the networks: the leaf of `weight_decay`.

    Raises:
        ValueError: For a `weight_decay` that is no part of the networks' tree.
    """
    leaves, tree = jax.tree.flatten(problem.weight_decay)
    numbers = jax.tree.unflatten(tree, list(range(len(leaves))))
    numbered = eqx.tree_at(lambda p: p.weight_decay, problem, numbers)
    arrays = jax.tree.leaves(eqx.filter(networks, eqx.is_inexact_array))
    pairs = zip(jax.tree.leaves(numbered.decays(networks)), arrays, strict=True)
    parts = [np.full(array.size, number) for number, array in pairs]
    return np.concatenate([*parts, np.zeros(0, int)]).astype(int)


def _correlation(nlp: NLP, residuals: np.ndarray, leverage: float) -> float:
    """Return how residuals of neighboring samples correlate, less what the fit makes.

    The fit takes `leverage` of the degrees of freedom, which alone makes neighbors
    anticorrelated.
    """
    mask = np.asarray(nlp.samples.mask)
    starts = np.asarray(nlp.starts)
    first = np.asarray(nlp.points)[np.asarray(nlp.samples.interval), 0]
    owner = np.searchsorted(starts, first, side="right")
    product = square = 0.0
    for output in range(mask.shape[1]):
        for i in np.unique(owner):
            r = residuals[mask[:, output] & (owner == i), output]
            product, square = product + r[1:] @ r[:-1], square + r @ r
    raw = product / square if square > 0 else 0.0
    return float(np.clip(raw + leverage / mask.sum(), 0.0, _MOST_CORRELATED))
