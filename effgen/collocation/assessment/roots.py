"""Roots of inverse curvatures: where rows stay at zero, and what is left open."""

from typing import NamedTuple

import numpy as np
import scipy.linalg


_OPEN = 1e-10
_LEAST = 1e-20
_ROUNDED = 1e-14  # of a curvature of one
_KEPT = 1e-6  # of a direction, along weights with a prior


class Curvature(NamedTuple):
    """The objective's curvature in units in which each number alone has one.

    `half` is `R` with `R^T R` the curvature, or `None` where it has no such root. Of a
    formed matrix small eigenvalues are lost as the square of what they are of its root:
    on precise data those of the weights' prior, whose root is `prior`.
    """

    unit: np.ndarray
    whole: np.ndarray
    prior: np.ndarray
    half: np.ndarray | None


def in_units(
    curvature: np.ndarray, sizes: np.ndarray, prior: np.ndarray, seen: np.ndarray
) -> Curvature:
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
    return Curvature(unit, whole, prior * unit, half)


def inverse(curvature: Curvature, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
