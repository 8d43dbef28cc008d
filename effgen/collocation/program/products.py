"""The sparse derivatives against JAX's own, by one product each with a vector."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jaxtyping import Array

from .curvature import AbstractCurvature
from .evaluator import Evaluator
from .nlp import NLP, constraints
from .pattern import Pattern
from .points import Point
from .transcription import Transcription
from .violations import name_of_row, name_of_variable


# A lost entry is a large share of its row. Saturated networks have derivatives that are
# differences of nearly equal numbers: their rounding is one of the largest row's.
_TOLERANCE, _ROUNDING = 1e-5, 1e-13


def check_products(evaluator: Evaluator, batch: Transcription, point: Point) -> None:
    """Raise `RuntimeError` where the stored entries are not all of the derivatives.

    `J v` of the constraints' Jacobian, and `H v` of the Lagrangian's curvature, with
    random `v` and multipliers, against `jax.jvp`. What is not finite is left to Ipopt,
    which shortens its step.
    """
    nlp, z = evaluator.nlp, jnp.asarray(point.z)
    rng = np.random.default_rng(0)
    v, functions = rng.normal(size=len(point.z)), evaluator.functions()
    rows = rng.normal(size=evaluator.sizes()["constraints"])
    num = len(rows)
    curvature = evaluator.curvature
    given = (jnp.asarray(part) for part in (v, rows))
    first, second = _products(nlp, curvature, z, *given)
    size = len(v)
    pattern = functions.jacobian_pattern
    jacobian = _matrix(pattern, functions.jacobian(point.z), (num, size))
    row = _worst(jacobian, v, np.asarray(first))
    if row is not None:
        _complain(f"Jacobian, of {name_of_row(row, batch, nlp)},")
    if second is None or functions.hessian is None:
        return
    assert functions.hessian_pattern is not None
    values = functions.hessian(point.z, rows, 1.0)
    half = _matrix(functions.hessian_pattern, values, (size, size))
    whole = half + scipy.sparse.tril(half, -1).T
    row = _worst(whole.tocsr(), v, np.asarray(second))
    if row is not None:
        _complain(f"curvature, of {name_of_variable(row, batch, nlp)},")


def _complain(what: str) -> None:
    raise RuntimeError(
        f"the stored entries of the {what} are not the whole derivative: it would be "
        "silently wrong, so the solve ends here. This is a fault of effgen's: please "
        "report the functions of the problem. `ShootingTrainer` needs no entries."
    )


@eqx.filter_jit
def _products(
    nlp: NLP, curvature: AbstractCurvature, z: Array, v: Array, rows: Array
) -> tuple[Array, Array | None]:
    along = lambda f: jax.jvp(f, (z,), (v,))[1]
    first = along(lambda z: constraints(nlp, z))
    if curvature.blocks is None:
        return first, None
    value = lambda there: curvature.lagrangian(nlp, there, z, rows)
    return first, along(jax.grad(value))


def _matrix(pattern: Pattern, values: np.ndarray, shape: Any) -> Any:
    return scipy.sparse.coo_matrix(
        (values, (pattern.rows, pattern.columns)), shape
    ).tocsr()


def _worst(matrix: Any, v: np.ndarray, exact: np.ndarray) -> int | None:
    """Return the row whose product is furthest from what it should be, if any is."""
    with np.errstate(invalid="ignore", over="ignore"):
        size, error = abs(matrix) @ np.abs(v) + np.abs(exact), matrix @ v - exact
    finite = np.isfinite(size) & np.isfinite(error)
    least = _ROUNDING * np.max(size, where=finite, initial=0.0)
    error = np.where(finite, np.abs(error), 0.0)
    wrong = error > np.where(finite, np.maximum(_TOLERANCE * size, least), 0.0)
    return int(np.argmax(np.where(wrong, error, 0))) if wrong.any() else None
