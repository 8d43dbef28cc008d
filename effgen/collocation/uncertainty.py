"""What the data leave open: covariances from the conditions of optimality."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from jaxtyping import Array, Float

from effgen.core.state import TrainState

from .curvature import AbstractCurvature, GaussNewton
from .evaluator import Evaluator
from .ipopt import Functions, Limits, Point
from .nlp import over_samples, ravel, sample_loss, unravel
from .problem import Model
from .solution import same_mesh
from .transcription import Transcription, limits_of, packed


_AT_ONCE = 256
_ACTIVE = 1e-7


class Covariance(NamedTuple):
    """Second moments of what was estimated, for small noise.

    **Attributes:** `model`, of the raveled parameters and networks, parameters first;
    `states`, the standard deviation at each node, in units of the states; `noise`, the
    estimated standard deviation of residuals, in units of `problem.scale`.
    """

    model: Float[np.ndarray, "model model"]
    states: Float[np.ndarray, "nodes state"]
    noise: float


def covariance(
    transcription: Transcription,
    state: TrainState,
    *,
    noise: float | None = None,
    curvature: AbstractCurvature = GaussNewton(),
) -> Covariance:
    """Return the covariance of model and states at a solution.

    With `H` the objective's curvature, `A` the Jacobian of the equations and of what is
    active, `cov = noise^2 / count * K_11`, `K` the inverse of `[[H, A^T], [A, 0]]`:
    equal to `Z (Z^T H Z)^-1 Z^T` for a basis `Z` of what the equations leave free, and
    the Cramer-Rao bound of the linearized problem. Weight decay counts as a prior.

    **Arguments:** `noise`, of the residuals divided by `problem.scale`; by default
    estimated by them, with the model's size as degrees of freedom.

    **Raises:** `ValueError` if the state is of another mesh, or if the data leave a
    direction open (add a `weight_decay` or fix a parameter).

    **Source:** Bock, Kostina and Schlöder (2007); Pirnay, López-Negrete and Biegler
    (2012).
    """
    if not same_mesh(state.memory, transcription.mesh) or state.opt_state is None:
        raise ValueError(
            "the state was not solved on this transcription: take one step of `train` "
            "with it first."
        )
    nlp = transcription.program(state.model)
    functions = Evaluator(nlp, curvature).functions()
    z = nlp.joined(state.memory.positions)
    point = Point(z, *packed(state.opt_state))
    solve, free = _factorized(functions, limits_of(transcription, nlp), point)
    inverse = _diagonal_and_block(solve, free, len(z), len(nlp.flat()))
    count = float(nlp.counted)
    if noise is None:
        x, flat = nlp.split(jnp.asarray(z))
        misfit = float(jnp.sum(over_samples(nlp, sample_loss, x, flat)))
        noise = float(np.sqrt(2 * misfit * count / max(count - len(flat), 1.0)))
    factor = noise**2 / count
    states = np.sqrt(np.maximum(inverse[0], 0) * factor).reshape(nlp.ts.shape[0], -1)
    nominal = transcription.problem.nominal
    return Covariance(inverse[1] * factor, states * nominal, noise)


def propagated(
    function: Callable[[Model], Array],
    model: Model,
    covariance: Float[np.ndarray, "model model"],
) -> Float[np.ndarray, "..."]:
    """Return the standard deviations of `function(model)`: bands of what is predicted.

    `sqrt(diag(J covariance J^T))`, `J` the function's Jacobian at the estimate (the
    delta method), such as of a learned law, or of `integrate` beyond the data.
    """
    flat = ravel(model)
    at = lambda flat: jnp.asarray(function(unravel(model, flat)))
    jacobian = eqx.filter_jit(jax.jacfwd(at))(flat)
    moments = jnp.einsum(
        "...i,ij,...j->...", jacobian, jnp.asarray(covariance), jacobian
    )
    return np.sqrt(np.maximum(np.asarray(moments), 0))


def _factorized(
    functions: Functions, limits: Limits, point: Point
) -> tuple[scipy.sparse.linalg.SuperLU, np.ndarray]:
    """Factor `[[H, A^T], [A, 0]]` of what is free, and return which variables are."""
    rows, lower, upper = point.constraints, point.lower, point.upper
    assert rows is not None
    assert lower is not None
    assert upper is not None
    fixed = (limits.lower == limits.upper) | (lower > _ACTIVE) | (upper > _ACTIVE)
    equal = limits.constraints_lower == limits.constraints_upper
    held = equal | (np.abs(rows) > _ACTIVE)
    free = np.flatnonzero(~fixed)
    size = len(point.z)
    first, second = functions.jacobian_pattern, functions.hessian_pattern
    if functions.hessian is None or second is None:
        raise ValueError("pass `ExactHessian()` or `GaussNewton()` as `curvature`.")
    jacobian = scipy.sparse.coo_matrix(
        (functions.jacobian(point.z), (first.rows, first.columns)), (len(rows), size)
    ).tocsr()[np.flatnonzero(held)][:, free]
    values = functions.hessian(point.z, rows, 1.0)
    half = scipy.sparse.coo_matrix(
        (values, (second.rows, second.columns)), (size, size)
    ).tocsr()
    whole = (half + scipy.sparse.tril(half, -1).T).tocsr()[free][:, free]
    matrix = scipy.sparse.bmat([[whole, jacobian.T], [jacobian, None]], format="csc")
    try:
        return scipy.sparse.linalg.splu(matrix), free
    except RuntimeError as error:
        raise ValueError(
            "the data leave a direction of model and states open, so that no variance "
            "is finite: add a `weight_decay`, fix a parameter, or pass more data."
        ) from error


def _diagonal_and_block(
    solve: scipy.sparse.linalg.SuperLU, free: np.ndarray, size: int, num_model: int
) -> tuple[Float[np.ndarray, " states"], Float[np.ndarray, "model model"]]:
    """Return the inverse's diagonal over the states, and its block over the model."""
    diagonal, block = np.zeros(size), np.zeros((num_model, num_model))
    num_states, num = size - num_model, solve.shape[0]
    of_model = np.flatnonzero(free >= num_states)
    for start in range(0, len(free), _AT_ONCE):
        columns = np.arange(start, min(start + _AT_ONCE, len(free)))
        right = np.zeros((num, len(columns)))
        right[columns, np.arange(len(columns))] = 1
        found = solve.solve(right)
        diagonal[free[columns]] = found[columns, np.arange(len(columns))]
        mine = np.flatnonzero(free[columns] >= num_states)
        at = free[of_model] - num_states, free[columns[mine]] - num_states
        block[np.ix_(*at)] = found[np.ix_(of_model, mine)]
    return diagonal[:num_states], block
