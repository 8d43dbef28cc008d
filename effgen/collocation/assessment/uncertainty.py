"""What the data leave open: covariances from the conditions of optimality."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from effgen.collocation.modeling.misfits import Squares
from effgen.collocation.modeling.problem import (
    Model,
    Problem,
    as_numbers,
    names_of_model,
)
from effgen.collocation.program.curvature import AbstractCurvature, GaussNewton
from effgen.collocation.program.elimination import columns
from effgen.collocation.program.evaluator import Evaluator
from effgen.collocation.program.nlp import NLP, ravel, unravel
from effgen.collocation.program.points import Point
from effgen.collocation.program.transcription import (
    Transcription,
    limits_of,
    packed,
    weighed,
)
from effgen.collocation.states.solution import OTHER_MESH, same_mesh
from effgen.core.contract.state import TrainState

from .information import Information, information, open_names, pulls
from .noise import estimated, leverages


class Covariance(NamedTuple):
    """Second moments of what was estimated, for small noise.

    Attributes:
        model: The covariance of the raveled parameters and networks, parameters first,
            `(model, model)`.
        states: The standard deviation at each node, `(nodes, state)`, in the states'
            units.
        noise: The standard deviation of residuals in units of `problem.scale`, a number
            for one output and `(outputs,)` for more; NaN where an output is not
            measured. For a `misfit` other than `Squares`, it is the normal noise that
            would give the same covariance.
        effective: How many of the samples' degrees of freedom the estimate takes,
            `(outputs,)`.
        names: The names of the model's numbers, in the order of `model`.
    """

    model: Float[np.ndarray, "model model"]
    states: Float[np.ndarray, "nodes state"]
    noise: float | Float[np.ndarray, " outputs"]
    effective: Float[np.ndarray, " outputs"]
    names: tuple[str, ...]


def covariance(
    transcription: Transcription,
    state: TrainState,
    *,
    noise: ArrayLike | None = None,
    curvature: AbstractCurvature = GaussNewton(),
) -> Covariance:
    """Return the covariance of model and states at a solution.

        cov = P K (sum over outputs of spread^2 J^T J + rest) K P^T / count
        spread^2 = sum of misfit'^2 / (samples - effective)    of an output

    `misfit'` are the derivatives of the residuals' costs, for squares the residuals.
    `spread` is the noise. With outliers, `Huber` and `SoftL1` keep them small. `P` is
    the derivative of all variables by the free ones, the model and the starts.
    `K = (P^T H P)^-1` where equations and active bounds hold, `H` the objective's
    curvature. `J` are the residuals' derivatives. `rest` is the remaining curvature, of
    priors such as weight decay, times the pooled `spread^2`. `effective` is the trace
    of `K J^T W J`, with `W` the second derivatives of the costs, and `count` the
    number of measured values. Starts, and parameters with priors, take degrees of
    freedom to the extent that the data determine them. For equal noise the result is
    `noise^2 K / count`, the Cramer-Rao bound of the linearized least squares problem.

    Arguments:
        transcription: The transcription that `state` was solved on.
        state: The trained state of a `CollocationTrainer`.
        noise: The standard deviation of the residuals divided by `problem.scale`, a
            number or `(outputs,)`; by default estimated.
        curvature: `GaussNewton()` or `ExactHessian()`.

    Returns:
        The covariance of the model, and the standard deviations of states and
            residuals.

    Raises:
        ValueError: If the state is of another mesh; for a `noise` that is not positive
            where an output is measured, or with a `misfit` that is no squares; if the
            data leave a direction open,
            with the names of what it moves; if no sample is left to estimate a noise
            from; if the point is no minimum; for `LimitedMemory()`.

    Source:
        Bock, Kostina and Schlöder (2007); Pirnay, López-Negrete and Biegler (2012);
        Huber (1964), of outliers.
    """
    known = None if noise is None else known_noise(noise, transcription.problem)
    nlp, found = informed(transcription, state, curvature)
    if names := open_names(found, nlp):
        raise ValueError(
            f"the data leave a direction of model and states open: {', '.join(names)} "
            "can move together and no residual changes, so that no variance is finite. "
            "Fix one of them, add a prior such as `weight_decay`, or pass more data."
        )
    asked = np.asarray(nlp.problem.scale) / transcription.problem.scale
    spread, variances, block = moments(
        found, nlp, None if known is None else known / asked
    )
    nominal = transcription.problem.nominal
    effective, counts = leverages(found, nlp)
    weights, mask = pulls(nlp, found.residuals)[1], np.asarray(nlp.samples.mask)
    mean = np.sum(weights * mask, axis=0) / np.maximum(counts, 1)
    units = np.where(counts > 0, spread * asked / np.maximum(mean, 1e-300), np.nan)
    return Covariance(
        block,
        np.sqrt(variances).reshape(len(nlp.ts), -1) * nominal,
        float(units[0]) if len(units) == 1 else units,
        effective,
        tuple(names_of_model(nlp.template)),
    )


def informed(
    transcription: Transcription, state: TrainState, curvature: AbstractCurvature
) -> tuple[NLP, Information]:
    """Return the program of a solution, and the information of the data there.

    Raises:
        ValueError: If the state is of another mesh; if the point is no minimum; for
            `LimitedMemory()`.
    """
    if not same_mesh(state.memory, transcription.mesh) or state.opt_state is None:
        raise ValueError(OTHER_MESH)
    weighted = weighed(transcription, state.memory)
    nlp = weighted.program(state.model)
    point = Point(nlp.joined(state.memory.positions), *packed(state.opt_state))
    evaluator = Evaluator(nlp, curvature)
    return nlp, information(evaluator, limits_of(weighted, nlp), point)


def moments(
    found: Information, nlp: NLP, known: Float[np.ndarray, " outputs"] | None
) -> tuple[
    Float[np.ndarray, " outputs"],
    Float[np.ndarray, " states"],
    Float[np.ndarray, "model model"],
]:
    """Return the outputs' spread, the variances of all states, the model's covariance.

    `known` is the noise in units of the program's scale; `None` to estimate it.
    """
    spread, pooled = estimated(found, nlp, known)
    weights = pulls(nlp, found.residuals)[1]
    root = _root(found, spread, pooled, weights) / np.sqrt(float(nlp.counted))
    return (spread, *_moments(found, root, nlp))


def known_noise(noise: ArrayLike, problem: Problem) -> Float[np.ndarray, " outputs"]:
    """Return the noise of each output, checked; one where nothing is measured."""
    if not isinstance(problem.misfit, Squares):
        raise ValueError(
            f"`noise` is of least squares and `misfit` is {problem.misfit}, whose "
            "covariance is estimated from the residuals: leave `noise` out."
        )
    given = np.asarray(noise, float)
    seen = np.any([np.any(~np.isnan(t.ys), axis=0) for t in problem.data], axis=0)
    if given.shape not in ((), (1,), seen.shape):
        raise ValueError(
            f"`noise` has shape {given.shape}: pass a number or ({len(seen)},), one "
            "for each output."
        )
    found = np.where(seen, np.broadcast_to(given, seen.shape), 1.0)
    if not (np.all(np.isfinite(found)) and np.all(found > 0)):
        raise ValueError(
            f"`noise` is {given}: pass positive numbers, the standard deviation of "
            "residuals divided by `problem.scale`, or `None` to estimate it."
        )
    return found


def _root(
    found: Information, spread: np.ndarray, pooled: float, weights: np.ndarray
) -> np.ndarray:
    """Return `R` with `L R R^T L^T` the free numbers' moments, not divided by `count`.

    The curvature that is not of samples is that of priors.
    """
    along = found.sensitivities
    size = along.shape[2]
    if np.ptp(spread) == 0 and np.all(weights == 1):
        return np.eye(size) * spread[0]
    by_output = np.einsum("sor,soq->orq", along, along)
    told = np.einsum("so,sor,soq->rq", weights, along, along, optimize=True)
    middle = np.einsum("o,orq->rq", spread**2, by_output)
    values, vectors = np.linalg.eigh(middle + pooled**2 * (np.eye(size) - told))
    return vectors * np.sqrt(np.maximum(values, 0))


def _moments(
    found: Information, root: np.ndarray, nlp: NLP
) -> tuple[Float[np.ndarray, " states"], Float[np.ndarray, "model model"]]:
    """Return the variances of all states, and the model's covariance."""
    num = len(nlp.ts) * nlp.problem.num_states
    num_model = found.eliminated.size - num
    variances, block = np.zeros(num), np.zeros((num_model, num_model))
    for c in columns(root.shape[1]):
        moved = found.moved(root[:, c])
        variances += np.sum(moved[:num] ** 2, axis=1)
        block += moved[num:] @ moved[num:].T
    return variances, block


def propagated(
    function: Callable[[Model], Array],
    model: Model,
    covariance: Float[np.ndarray, "model model"],
) -> Float[np.ndarray, "..."]:
    """Return the standard deviations of `function(model)`: bands of what is predicted.

        sqrt(diag(J covariance J^T))

    `J` is the function's Jacobian at the estimate (the delta method).

    Arguments:
        function: A `Model` to an array, such as a learned law at some inputs, or
            `integrate` beyond the data. JAX differentiates it forward.
        model: The trained model.
        covariance: That of the raveled model, `(model, model)`, such as
            `covariance(...).model`.

    Returns:
        The standard deviations, in the shape and units of `function(model)`.

    Raises:
        ValueError: For a `covariance` of another shape, or of negative variances.
    """
    model = as_numbers(model)
    flat, moments = ravel(model), np.asarray(covariance)
    if moments.shape != (len(flat), len(flat)):
        raise ValueError(
            f"`covariance` has shape {moments.shape} and the model {len(flat)} "
            "numbers: pass that of the raveled model, `covariance(...).model`."
        )
    if not (np.all(np.isfinite(moments)) and np.all(np.diag(moments) >= 0)):
        raise ValueError(
            "`covariance` has variances that are negative, or numbers that are not "
            "finite: pass `covariance(...).model`."
        )
    at = lambda flat: jnp.asarray(function(unravel(model, flat)))
    jacobian = eqx.filter_jit(jax.jacfwd(at))(flat)
    moments = jnp.einsum(
        "...i,ij,...j->...", jacobian, jnp.asarray(covariance), jacobian
    )
    return np.sqrt(np.maximum(np.asarray(moments), 0))
