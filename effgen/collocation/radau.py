"""Radau points: nodes, weights and matrices of one interval, right to the last digit.

Computed in fifty decimal digits and rounded once, for any number of stages.
"""

import functools
from collections.abc import Iterable
from decimal import Decimal, localcontext
from typing import NamedTuple

import numpy as np
import scipy.special
from jaxtyping import ArrayLike, Float


_DIGITS = 50


class Radau(NamedTuple):
    """The flipped Legendre-Gauss-Radau scheme (Radau IIA) on `[0, 1]`.

    **Attributes:** `nodes`, `c`, the roots of `P_m(2c - 1) - P_{m-1}(2c - 1)`, of which
    the last is 1; `weights`, `b`; `integration`, `A_jk`, the integral of the `k`-th
    Lagrange polynomial of the nodes from 0 to `c_j`; `differentiation`, `D_jk`, the
    derivative at `c_j` of the `k`-th Lagrange polynomial of the points `0, c_1, ...,
    c_m`, the first column that of 0 (the rest is `A^-1`); `barycentric`, the weights of
    interpolation through these points.

    A polynomial of degree `m` through the start and the stages solves the ODE at the
    nodes; the error at the interval's end is of order `2m - 1`.

    **Source:** Hairer and Wanner, *Solving ordinary differential equations II*, IV.5.
    """

    nodes: Float[np.ndarray, " stages"]
    weights: Float[np.ndarray, " stages"]
    integration: Float[np.ndarray, "stages stages"]
    differentiation: Float[np.ndarray, "stages points"]
    barycentric: Float[np.ndarray, " points"]

    @property
    def points(self) -> Float[np.ndarray, " points"]:
        """The start of the interval and the nodes."""
        return np.concatenate([[0.0], self.nodes])

    def basis(self, at: ArrayLike) -> Float[np.ndarray, "at points"]:
        """Return the Lagrange polynomials of the points, at numbers in `[0, 1]`."""
        at = np.atleast_1d(np.asarray(at, np.float64))
        away = at[:, None] - self.points
        hit = away == 0
        here = hit.any(axis=1, keepdims=True)
        terms = self.barycentric / np.where(here, 1.0, away)
        values = terms / np.where(here, 1.0, terms.sum(axis=1, keepdims=True))
        return np.where(here, hit.astype(float), values)


@functools.cache
def radau(stages: int) -> Radau:
    """Return the scheme of so many stages.

    **Raises:** `ValueError` unless `stages` is a positive integer.

    >>> radau(2).nodes.round(4).tolist(), radau(2).weights.tolist()
    ([0.3333, 1.0], [0.75, 0.25])
    """
    if not isinstance(stages, int) or stages < 1:
        raise ValueError(f"`stages` is {stages}: pass an integer of at least 1.")
    with localcontext() as context:
        context.prec = _DIGITS
        nodes = _nodes(stages)
        legendre = [_legendre(stages, 2 * c - 1) for c in nodes]
        size = Decimal(stages)
        weights = [
            c / (size * row[stages - 1]) ** 2
            for c, row in zip(nodes, legendre, strict=True)
        ]
        points = [Decimal(0), *nodes]
        barycentric = [1 / _product(p - q for q in points if q != p) for p in points]
        differentiation = [_slopes(j + 1, points, barycentric) for j in range(stages)]
        integration = _integrals(nodes, weights, legendre)
    # Only ratios of barycentric weights matter; at many stages they overflow floats.
    largest = max(map(abs, barycentric))
    return Radau(
        *(
            np.array(table, np.float64)
            for table in (
                nodes,
                weights,
                integration,
                differentiation,
                [b / largest for b in barycentric],
            )
        )
    )


def _legendre(degree: int, x: Decimal) -> list[Decimal]:
    """Return `P_0(x), ..., P_degree(x)`."""
    values = [Decimal(1), x]
    for n in range(1, degree):
        values.append(((2 * n + 1) * x * values[n] - n * values[n - 1]) / (n + 1))
    return values[: degree + 1]


def _nodes(stages: int) -> list[Decimal]:
    """Return the roots, by Newton's method from their rounded values."""
    if stages == 1:
        return [Decimal(1)]
    rough, _ = scipy.special.roots_jacobi(stages - 1, 1, 0)
    return [(_root(stages, Decimal(x)) + 1) / 2 for x in rough.tolist()] + [Decimal(1)]


def _root(stages: int, x: Decimal) -> Decimal:
    for _ in range(6):
        last, value = _legendre(stages, x)[-2:]
        before = _legendre(stages - 1, x)[-2] if stages > 1 else Decimal(0)
        # (1 - x^2) P_n' = n (P_{n-1} - x P_n)
        slope = stages * (last - x * value) - (stages - 1) * (before - x * last)
        x -= (value - last) * (1 - x * x) / slope
    return x


def _slopes(j: int, points: list[Decimal], weights: list[Decimal]) -> list[Decimal]:
    row = [
        Decimal(0) if k == j else weights[k] / weights[j] / (points[j] - points[k])
        for k in range(len(points))
    ]
    row[j] = -sum(row, Decimal(0))
    return row


def _integrals(
    nodes: list[Decimal], weights: list[Decimal], legendre: list[list[Decimal]]
) -> list[list[Decimal]]:
    """Return `A`: a Lagrange polynomial is `b_k sum (2n + 1) P_n(c_k) P_n`, exactly."""
    stages = len(nodes)

    def entry(j: int, k: int) -> Decimal:
        upper = [
            legendre[k][n] * (legendre[j][n + 1] - legendre[j][n - 1]) / 2
            for n in range(1, stages)
        ]
        return weights[k] * (nodes[j] + sum(upper, Decimal(0)))

    return [[entry(j, k) for k in range(stages)] for j in range(stages)]


def _product(factors: Iterable[Decimal]) -> Decimal:
    value = Decimal(1)
    for factor in factors:
        value *= factor
    return value
