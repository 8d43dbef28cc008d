"""The evidence of a fit, and by it the choice between a law with a network and without.

It is MacKay's evidence: the probability of the data under a law, averaged over its
weights. A network that only follows the noise lowers it.
"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from effgen.core.state import TrainState

from .curvature import GaussNewton
from .evaluator import Evaluator
from .information import information
from .model import Model, names_of_model
from .nlp import NLP, costs_of, ravel
from .noise import leverages
from .points import Point
from .problem import Problem
from .solution import OTHER_MESH, same_mesh
from .transcription import Transcription, limits_of, packed, weighed


_MOST_CORRELATED = 0.8
_ONE_PRIOR = (
    "`weight_decay` is {}: the evidence is of networks whose weights have one prior; "
    "pass a positive number."
)


class Evidence(NamedTuple):
    """The evidence of a fit and what it was computed from, as `evidence` returns it.

    Attributes:
        log_evidence: The log probability of the data, but for a constant that laws of
            the same parameters share.
        effective: `gamma`, how many weights of the networks the data decide.
        precision: `alpha`, the precision of the weights' prior.
        noise: The standard deviation of each output in its own units, `(outputs,)`.
        correlation: The correlation of neighboring residuals.
        deviations: The standard deviation of each number of the raveled model,
            `(model,)`; zero for what is not free.
        names: The names of these numbers.
    """

    log_evidence: float
    effective: float
    precision: float
    noise: Float[np.ndarray, " outputs"]
    correlation: float
    deviations: Float[np.ndarray, " model"]
    names: tuple[str, ...]


def evidence(
    transcription: Transcription, state: TrainState, *, correlation: float = 0.0
) -> Evidence:
    """Return the evidence of a solution, with the weights' prior that it was solved by.

        log p = -tau (SS / (2 sigma^2) + n log sigma) - alpha |w|^2 / 2
                - tau n costs / sigma^2 + k log(alpha) / 2 - logdet(H) / 2

    `H = tau J^T J / sigma^2 + alpha` over model and free starts, by Gauss and Newton,
    with the states eliminated. `costs` are what else the objective has, such as priors
    of starts, whose curvature `H` has as well. For residuals correlated by `rho`,
    `tau = (1 - rho) / (1 + rho)`. Further, `alpha = tau n weight_decay / sigma^2` and
    `sigma^2 = tau SS / (tau n - leverage)`.

    Arguments:
        transcription: The transcription that `state` was solved on.
        state: The trained state of a `CollocationTrainer`.
        correlation: `rho`, in `[0, 1)`. That of the residuals is in the result.

    Returns:
        The evidence, the noise, and what the data decide.

    Raises:
        ValueError: For a state of another mesh, a `correlation` out of range, a weight
            decay that is not one number, or one of zero with networks; where the
            equations do not determine the states, or the point is no minimum.

    Source:
        MacKay (1992).
    """
    check_one_prior(transcription.problem)
    if not same_mesh(state.memory, transcription.mesh) or state.opt_state is None:
        raise ValueError(OTHER_MESH)
    if not 0 <= correlation < 1:
        raise ValueError(f"`correlation` is {correlation}: pass a number in [0, 1).")
    tau = (1 - correlation) / (1 + correlation)
    level = weighed(transcription, state.memory)
    nlp = level.program(state.model)
    decay = np.asarray(level.problem.weight_decay, float)
    point = Point(nlp.joined(state.memory.positions), *packed(state.opt_state))
    found = information(Evaluator(nlp, GaussNewton()), limits_of(level, nlp), point)
    num_states = len(nlp.ts) * nlp.problem.num_states
    first = num_states + len(ravel(Model(state.model.parameters, None)))
    mine = found.eliminated.free >= first
    num = int(mine.sum())
    if num and not decay > 0:
        raise ValueError(_ONE_PRIOR.format(decay))
    count = float(nlp.counted)
    squares = count * float(np.sum(found.residuals**2))
    left = float(np.sum(found.roots[mine] ** 2)) * float(decay)
    leverage = float(leverages(found, nlp)[0].sum())
    variance = tau * squares / max(tau * count - leverage, 0.5)
    precision = tau * count * float(decay) / variance
    told = found.roots.shape[1]
    gram = np.linalg.slogdet(found.roots.T @ found.roots)[1]
    logdet = told * np.log(tau * count / variance) - gram
    scales = np.asarray(nlp.samples.mask).sum(0) @ np.log(np.asarray(nlp.problem.scale))
    log = -tau * (squares / (2 * variance) + count * np.log(variance) / 2 + scales)
    # The weights' prior is one of the costs.
    log -= tau * count / variance * costs_of(nlp, point.z) + logdet / 2
    log += num * np.log(precision) / 2 if num else 0.0
    moments = np.sum(found.roots**2, axis=1) * variance / (tau * count)
    deviations = np.zeros(len(nlp.flat()))
    free = found.eliminated.free
    deviations[free[free >= num_states] - num_states] = np.sqrt(
        moments[free >= num_states]
    )
    return Evidence(
        float(log),
        num - left,
        precision,
        np.sqrt(variance) * np.asarray(nlp.problem.scale),
        _correlation(nlp, found.residuals, leverage),
        deviations,
        tuple(names_of_model(nlp.template)),
    )


def check_one_prior(problem: Problem) -> None:
    """Raise `ValueError` for a weight decay that is not one number."""
    decay = problem.weight_decay
    if len(jax.tree.leaves(decay)) != 1 or jax.tree.leaves(decay)[0] is not decay:
        shown = jax.tree.map(float, decay)
        raise ValueError(_ONE_PRIOR.format(shown))


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
