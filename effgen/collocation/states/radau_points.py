"""Radau points: nodes, weights and matrices of one interval, in float64.

Right to 4e-15 of their largest entries up to twelve stages, to 1e-14 at twenty.
"""

import functools
from typing import NamedTuple

import numpy as np
import scipy.special
from jaxtyping import ArrayLike, Float
from numpy.polynomial.legendre import legvander

from effgen.core.contract.counts import check_count


class Radau(NamedTuple):
    """The flipped Legendre-Gauss-Radau scheme (Radau IIA) on `[0, 1]`.

    A polynomial of degree `m` through the start and the stages solves the ODE at the
    nodes; the error at the interval's end is of order `2m - 1`.

    Attributes:
        nodes: `c`, `(stages,)`, the roots of `P_m(2c - 1) - P_{m-1}(2c - 1)`, of which
            the last is 1.
        weights: `b`, `(stages,)`, of the integral over `[0, 1]`.
        integration: `A_jk`, `(stages, stages)`, the integral of the `k`-th Lagrange
            polynomial of the nodes from 0 to `c_j`.
        differentiation: `D_jk`, `(stages, stages + 1)`, the derivative at `c_j` of the
            `k`-th Lagrange polynomial of the points `0, c_1, ..., c_m`. The first
            column is that of 0, the rest is `A^-1`.
        barycentric: The weights of interpolation through these points,
            `(stages + 1,)`, the largest of size 1.

    Source:
        Hairer and Wanner, *Solving ordinary differential equations II*, IV.5.
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
        """Return the Lagrange polynomials of the points, at numbers in `[0, 1]`.

        Arguments:
            at: Where, a number or `(at,)`.

        Returns:
            One row for each number and one column for each point, `(at, stages + 1)`.
        """
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

    Arguments:
        stages: The number of stages.

    Returns:
        Nodes, weights and matrices in float64.

    Raises:
        ValueError: Unless `stages` is a positive integer.

    >>> radau(2).nodes.round(4).tolist(), radau(2).weights.round(4).tolist()
    ([0.3333, 1.0], [0.75, 0.25])
    """
    check_count("stages", stages)
    stages = int(stages)
    nodes = np.ones(1)
    if stages > 1:
        x, _ = scipy.special.roots_jacobi(stages - 1, 1, 0)
        nodes = np.append((x + 1) / 2, 1.0)
    legendre = legvander(2 * nodes - 1, stages)
    integrals = np.zeros((stages, stages))
    integrals[:, 0] = nodes
    for n in range(1, stages):
        gap = legendre[:, n + 1] - legendre[:, n - 1]
        integrals[:, n] = gap / (4 * n + 2)
    integration = np.linalg.solve(legendre[:, :-1].T, integrals.T).T
    weights = integration[-1].copy()
    points = np.append(0.0, nodes)
    away = points[:, None] - points + np.eye(stages + 1)
    barycentric = 1 / np.prod(away, axis=1)
    inner = np.linalg.inv(integration)
    differentiation = np.column_stack([-inner.sum(axis=1), inner])
    # Only ratios of barycentric weights matter; at many stages they are large.
    barycentric = barycentric / np.abs(barycentric).max()
    return Radau(nodes, weights, integration, differentiation, barycentric)
