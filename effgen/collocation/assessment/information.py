"""What the data tell at a solution: which directions, and how well."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse
from jaxtyping import Bool, Float

from effgen.collocation.modeling.misfits import influence
from effgen.collocation.modeling.problem import names_of_model
from effgen.collocation.program.elimination import (
    Eliminated,
    columns,
    eliminated,
    sample_jacobian,
    sample_residuals,
)
from effgen.collocation.program.evaluator import Evaluator
from effgen.collocation.program.nlp import NLP
from effgen.collocation.program.points import Limits, Point


_OPEN = 1e-10
_LEAST = 1e-20
_NAMED = 0.1
_ROUNDED = 1e-14  # of a curvature of one
_KEPT = 1e-6  # of a direction, along weights with a prior


class Information(NamedTuple):
    """The objective's curvature over what is free, factored.

    Attributes:
        eliminated: The map of what is free to all variables.
        roots: `L` with `L L^T` the inverse of the curvature in the directions that are
            told.
        open: Directions that are not, each scaled to the sizes of what it moves.
        sensitivities: `J P L` of the samples' residuals.
        residuals: The samples' residuals.
    """

    eliminated: Eliminated
    roots: Float[np.ndarray, "free told"]
    open: Float[np.ndarray, "free open"]
    sensitivities: Float[np.ndarray, "samples outputs told"]
    residuals: Float[np.ndarray, "samples outputs"]

    def moved(self, factor: np.ndarray) -> Float[np.ndarray, "variables columns"]:
        """Return `P L factor`."""
        return self.eliminated.moved(self.roots @ factor)


def information(evaluator: Evaluator, limits: Limits, point: Point) -> Information:
    """Return what is told at a point: curvature, active bounds, open directions.

    With `P` the map from what is free to all variables, the curvature is `P^T H P`. A
    bound is active where the solution without it would pass it: its multiplier times
    the inverse curvature there is larger than the distance.

    Raises:
        ValueError: Without second derivatives, or where the point is no minimum.
    """
    nlp, functions = evaluator.nlp, evaluator.functions()
    if functions.hessian is None or functions.hessian_pattern is None:
        raise ValueError("pass `ExactHessian()` or `GaussNewton()` as `curvature`.")
    assert point.constraints is not None
    through = eliminated(nlp, functions, limits, point.z)
    pattern = functions.hessian_pattern
    values = functions.hessian(point.z, point.constraints, 1.0)
    shape = (len(point.z), len(point.z))
    half = scipy.sparse.coo_matrix((values, (pattern.rows, pattern.columns)), shape)
    half = half.tocsr()
    whole = half + scipy.sparse.tril(half, -1).T
    eye = np.eye(len(through.free))
    parts = [
        through.pulled(whole @ through.moved(eye[:, c])) for c in columns(len(eye))
    ]
    curvature = np.concatenate([np.zeros((len(eye), 0)), *parts], axis=1)
    curvature = (curvature + curvature.T) / 2
    sizes = np.maximum(np.abs(point.z), 1.0)[through.free]
    jacobian = sample_jacobian(nlp, point.z)
    along = lambda roots: np.concatenate(
        [
            np.zeros((*jacobian.model.shape[:2], 0)),
            *(
                jacobian.along(nlp, through.moved(roots[:, c]))
                for c in columns(roots.shape[1])
            ),
        ],
        axis=2,
    )
    residuals = np.asarray(sample_residuals(nlp, jnp.asarray(point.z)))
    weights = np.maximum(pulls(nlp, residuals)[1], 0.0)
    seen = (np.sqrt(weights)[..., None] * along(eye)).reshape(-1, len(eye))
    whole = _in_units(curvature, sizes, np.sqrt(_decays(nlp)[through.free]), seen)
    held = _held_rows(through, limits)
    roots, _ = _inverse(whole, held)
    values = functions.constraints(point.z)
    active = _active_rows(through, limits, point, roots, values)
    roots, left = _inverse(whole, np.concatenate([held, active]))
    return Information(through, roots, left, along(roots), residuals)


class _Curvature(NamedTuple):
    """The objective's curvature in units in which each number alone has one.

    `half` is `R` with `R^T R` the curvature, or `None` where it has no such root. Of a
    formed matrix small eigenvalues are lost as the square of what they are of its root:
    on precise data those of the weights' prior, whose root is `prior`.
    """

    unit: np.ndarray
    whole: np.ndarray
    prior: np.ndarray
    half: np.ndarray | None


def _in_units(
    curvature: np.ndarray, sizes: np.ndarray, prior: np.ndarray, seen: np.ndarray
) -> _Curvature:
    """Return the curvature, of which the squares of `prior` and of `seen` are parts."""
    diagonal = np.diag(curvature)
    there = diagonal * sizes**2 > _LEAST
    unit = np.where(there, 1 / np.sqrt(np.where(there, diagonal, 1.0)), sizes)
    whole = curvature * unit * unit[:, None]
    rows = np.concatenate([seen * unit, np.diag(prior * unit)])
    rest = whole - rows.T @ rows
    values, vectors = scipy.linalg.eigh((rest + rest.T) / 2)
    half = None
    if values.min(initial=0.0) >= -_ROUNDED * len(unit):
        more = values > _ROUNDED * len(unit)
        half = np.concatenate([rows, (vectors[:, more] * np.sqrt(values[more])).T])
    return _Curvature(unit, whole, prior * unit, half)


def _decays(nlp: NLP) -> np.ndarray:
    """Return the weight decay of each variable, zero of states and parameters."""
    networks = eqx.filter(nlp.template.networks, eqx.is_inexact_array)
    decays = nlp.problem.decays(nlp.template.networks)
    pairs = zip(jax.tree.leaves(decays), jax.tree.leaves(networks), strict=True)
    own = [np.full(np.size(weights), float(decay)) for decay, weights in pairs]
    found = np.concatenate([np.zeros(0), *own])
    num = len(nlp.ts) * nlp.problem.num_states + len(nlp.flat())
    return np.concatenate([np.zeros(num - len(found)), found])


def pulls(
    nlp: NLP, residuals: Float[np.ndarray, "samples outputs"]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and second derivatives of the costs of samples' residuals."""
    return influence(nlp.problem.misfit, residuals * np.sqrt(float(nlp.counted)))


def _inverse(curvature: _Curvature, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return roots of the inverse where rows stay, and what is left open."""
    unit, prior = curvature.unit, curvature.prior[:, None]
    basis = _left_by(rows * unit)
    if curvature.half is None:
        scaled = basis.T @ curvature.whole @ basis
        values, vectors = scipy.linalg.eigh((scaled + scaled.T) / 2)
    else:  # it has more rows than columns, as each number has one of its prior
        half = curvature.half @ basis
        _, roots, turned = scipy.linalg.svd(half, full_matrices=False)
        values, vectors = roots**2, turned.T
    directions = basis @ vectors
    most = np.abs(values).max(initial=0.0)
    if np.any(values < -1e-6 * most):
        raise ValueError(
            "the solution is no minimum: the objective curves down along a direction "
            "that the constraints leave free; pass `GaussNewton()` as `curvature`, or "
            "train on from another guess."
        )
    # What a prior tells is told, however little beside the data.
    by_prior = np.sum((prior * directions) ** 2, axis=0)
    kept = np.sum(((prior > 0) * directions) ** 2, axis=0)
    by_prior = np.where(kept > _KEPT, by_prior, 0.0)
    told = (values > _OPEN * max(most, _LEAST)) | (by_prior > 0)
    values = np.where(told, np.maximum(values, by_prior), values)
    there = unit[:, None] * directions
    return there[:, told] / np.sqrt(values[told]), directions[:, ~told]


def _left_by(rows: np.ndarray) -> np.ndarray:
    """Return a basis of what keeps the rows at zero."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows[norms[:, 0] > 0] / norms[norms[:, 0] > 0]
    if not len(rows):
        return np.eye(rows.shape[1])
    return scipy.linalg.null_space(rows, rcond=1e-10)


def _held_rows(through: Eliminated, limits: Limits) -> Float[np.ndarray, "rows free"]:
    """Return the rows of equations between variables, and of states held fixed."""
    num = through.rows.shape[0]
    lower, upper = limits.constraints_lower, limits.constraints_upper
    equal = (lower == upper)[len(lower) - num :]
    return np.concatenate(
        [_pulled(through, through.rows[equal]), _pulled_units(through, through.fixed)]
    )


def _pulled(through: Eliminated, rows: Any) -> np.ndarray:
    return through.pulled(rows.toarray().T).T


def _pulled_units(through: Eliminated, variables: np.ndarray) -> np.ndarray:
    units = np.zeros((through.size, len(variables)))
    units[variables, np.arange(len(variables))] = 1
    return through.pulled(units).T


def _active_rows(
    through: Eliminated,
    limits: Limits,
    point: Point,
    roots: np.ndarray,
    values: np.ndarray,
) -> Float[np.ndarray, "rows free"]:
    """Return the rows of bounds and constraints that hold the solution back."""
    z, rows = point.z, point.constraints
    assert rows is not None
    assert point.lower is not None
    assert point.upper is not None
    num = through.rows.shape[0]
    variance, of_rows = np.zeros(len(z)), np.zeros(num)
    for c in columns(roots.shape[1]):
        moved = through.moved(roots[:, c])
        variance += np.sum(moved**2, axis=1)
        of_rows += np.sum((through.rows @ moved) ** 2, axis=1)
    bounds = _beyond(z, limits.lower, limits.upper, point.lower, point.upper, variance)
    first = len(rows) - num
    lower, upper = limits.constraints_lower[first:], limits.constraints_upper[first:]
    rows = rows[first:]
    given = (values[first:], lower, upper, np.maximum(-rows, 0), np.maximum(rows, 0))
    held = _beyond(*given, of_rows)
    return np.concatenate(
        [
            _pulled_units(through, np.flatnonzero(bounds)),
            _pulled(through, through.rows[held]),
        ]
    )


def _beyond(
    value: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    by_lower: np.ndarray,
    by_upper: np.ndarray,
    variance: np.ndarray,
) -> Bool[np.ndarray, " values"]:
    """Return what would be past a bound without it: multiplier against distance.

    The multiplier times the inverse curvature is how far the value would go. Where that
    tells little or nothing, the value's own size stands for the curvature.
    """
    most = np.maximum(np.abs(value), 1.0) ** 2
    move = np.where(variance > 0, np.minimum(variance, most), most)
    past = by_lower * move > np.maximum(value - lower, 0)
    past |= by_upper * move > np.maximum(upper - value, 0)
    return past & (lower < upper)


def open_names(found: Information, nlp: NLP) -> list[str]:
    """Return the names of all numbers that open directions move."""
    if not found.open.shape[1]:
        return []
    much = np.linalg.norm(found.open, axis=1)
    moved = found.eliminated.free[much > _NAMED * much.max()]
    return [name_of_free(nlp, int(i)) for i in moved]


def name_of_free(nlp: NLP, index: int) -> str:
    """Return which number of the model, or which state at a start, a variable is."""
    size, num = nlp.problem.num_states, len(nlp.ts) * nlp.problem.num_states
    if index >= num:
        return names_of_model(nlp.template)[index - num]
    i = int(np.searchsorted(np.asarray(nlp.starts), index // size))
    return f"state {index % size} at the start of trajectory {i}"
