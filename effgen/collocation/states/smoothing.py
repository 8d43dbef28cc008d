"""One measured column, smoothed: a natural spline whose smoothness the data choose."""

import warnings

import numpy as np
import scipy.interpolate
import scipy.linalg
from jaxtyping import Float


_FEWEST = 5  # what a smoothing spline needs
_UNEVEN, _FLATTENED = 1e3, 0.25
_DECOMPOSED = 400  # samples; of more, the trace is estimated
_PROBES, _TRIED = 30, 40
_ROBUST = 0.3
_ROUGHEST, _SMOOTHEST = 1e-6, 1e2  # the latter times the cube of the samples


def smoothed(
    ts: np.ndarray, ys: np.ndarray, at: np.ndarray
) -> Float[np.ndarray, " at"] | None:
    """Return one column at other times, smoothed if it is long; `None` of nothing."""
    seen = ~np.isnan(ys)
    ts, index = np.unique(ts[seen], return_index=True)
    ys = ys[seen][index]
    if len(ts) == 0:
        return None
    inside = np.clip(at, ts[0], ts[-1])
    if len(ts) < _FEWEST:
        return np.interp(inside, ts, ys)
    clock = _clock(ts)
    here, there = (np.interp(t, ts, clock) for t in (ts, inside))
    middle, spread = ys.mean(), np.ptp(ys) or 1.0
    unit = (ys - middle) / spread
    with warnings.catch_warnings():  # noise-free data: the smoothness goes to zero
        warnings.simplefilter("ignore")
        try:
            smoothness = likeliest_smoothness(here, unit)
            spline = scipy.interpolate.make_smoothing_spline(here, unit, lam=smoothness)
        except (ValueError, np.linalg.LinAlgError):  # of times or values that are alike
            return np.interp(inside, ts, ys)
    found = middle + spline(there) * spread
    return found if np.all(np.isfinite(found)) else np.interp(inside, ts, ys)


def _clock(ts: np.ndarray) -> Float[np.ndarray, " ts"]:
    """Return times whose gaps are one on average and none tiny beside the others.

    Splines of times spaced by logarithms are ill-posed in the times themselves.
    """
    gaps = np.diff(ts)
    if gaps.max() > _UNEVEN * gaps.min():
        gaps = gaps**_FLATTENED
    clock = np.concatenate([[0.0], np.cumsum(gaps)])
    return clock / clock[-1] * (len(ts) - 1)


def likeliest_smoothness(ts: Float[np.ndarray, " obs"], ys: np.ndarray) -> float:
    """Return the `lam` of a smoothing spline by robust generalized cross-validation.

        lam = argmin  obs |ys - fit(lam)|^2 / trace(I - hat(lam))^2
                      (robust + (1 - robust) trace(hat(lam)^2) / obs)

    over a grid of its logarithm. SciPy's own search steps evenly in `lam`, whose
    optimum is many powers of ten below its range: it flattens records that oscillate.

    Arguments:
        ts: Times that rise, `(obs,)`, whose gaps are about one.
        ys: The samples, `(obs,)`.

    Returns:
        The weight of the squared second derivative's integral.

    Source:
        Lukas (2006); Green and Silverman (1994), section 2.3, for the bands.
    """
    num = len(ts)
    tried = np.geomspace(_ROUGHEST, _SMOOTHEST * num**3.0, _TRIED)
    parts = _by_eigenvalues if num <= _DECOMPOSED else _by_probes
    left, trace, squared = parts(ts, ys, tried)
    # The second factor keeps splines from following the noise where samples cluster.
    scores = left / np.maximum(trace, 1e-12) ** 2
    scores = scores * (_ROBUST + (1 - _ROBUST) * squared / num)
    return float(tried[np.argmin(scores)])


def _bands(ts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return `Q` by its three diagonals, and the bands of `Q^T Q` and of `R`.

    A natural spline through `g` has the integral `g^T Q R^-1 Q^T g` of its squared
    second derivative. Bands are SciPy's lower ones.
    """
    h = np.diff(ts)
    q = np.stack([1 / h[:-1], -1 / h[:-1] - 1 / h[1:], 1 / h[1:]])
    squares, gram = np.zeros((3, len(h) - 1)), np.zeros((3, len(h) - 1))
    squares[0] = np.sum(q**2, axis=0)
    squares[1, :-1] = q[1, :-1] * q[0, 1:] + q[2, :-1] * q[1, 1:]
    squares[2, :-2] = q[2, :-2] * q[0, 2:]
    gram[0] = (h[:-1] + h[1:]) / 3
    gram[1, :-1] = h[1:-1] / 6
    return q, squares, gram


def _bent(q: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return `Q^T values`."""
    first, second, third = (
        column.reshape(-1, *[1] * (values.ndim - 1)) for column in q
    )
    return first * values[:-2] + second * values[1:-1] + third * values[2:]


def _by_eigenvalues(
    ts: np.ndarray, ys: np.ndarray, tried: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the squares that are left and both traces, for each weight, exactly."""
    q, squares, gram = _bands(ts)
    values, vectors = scipy.linalg.eigh(_dense(squares), _dense(gram))
    share = vectors.T @ _bent(q, ys)
    values = np.maximum(values, np.finfo(float).tiny)
    part = tried[:, None] * values / (1 + tried[:, None] * values)
    squared = 2 + np.sum((1 - part) ** 2, axis=1)  # two for what does not bend
    return part**2 @ (share**2 / values), part.sum(1), squared


def _dense(bands: np.ndarray) -> np.ndarray:
    lower = sum(
        (np.diag(band[: len(band) - k], -k) for k, band in enumerate(bands) if k),
        np.zeros((bands.shape[1], bands.shape[1])),
    )
    return np.diag(bands[0]) + lower + lower.T


def _by_probes(
    ts: np.ndarray, ys: np.ndarray, tried: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the same with traces as means over random signs (Hutchinson)."""
    q, squares, gram = _bands(ts)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (len(ts), _PROBES))
    both = np.column_stack([ys, signs])
    left, trace, squared = [], [], []
    for weight in tried:
        inner = scipy.linalg.solveh_banded(
            gram + weight * squares, _bent(q, both), lower=True
        )
        rest = np.zeros_like(both)
        for k, column in enumerate(q):
            rest[k : len(rest) - 2 + k] += weight * column[:, None] * inner
        left.append(np.sum(rest[:, 0] ** 2))
        trace.append(np.mean(np.sum(signs * rest[:, 1:], axis=0)))
        squared.append(np.mean(np.sum((signs - rest[:, 1:]) ** 2, axis=0)))
    return np.array(left), np.array(trace), np.array(squared)
