"""Extrapolation of learning curves: the gain of further steps.

Axis: `steps`. The losses are those of `history["loss"]`.
"""

from typing import Any, NamedTuple

import numpy as np

from .estimators import Losses, check_share, checked_losses


_NUM_BLOCKS = 150
_NUM_RATES = 60
_NUM_PROFILED = 200
_RATES = 0.02, 20.0
_SHAPES = "power", "exponential"


class LearningCurve(NamedTuple):
    """The extrapolation of a learning curve, as `extrapolate` returns it.

    Losses are in the units of those given.

    Attributes:
        value: The fitted loss at step `at`.
        low: The lower end of the interval for `value`.
        high: The upper end of the interval for `value`.
        asymptote: The limit of the curve, `a`.
        now: The fitted loss at the last step of the run.
        gain: `now - value`.
        most_gain: `now - low`.
        rate: `c`, a pure number for a power, and per step for an exponential.
        shape: The shape that fits better, `"power"` or `"exponential"`.
    """

    value: float
    low: float
    high: float
    asymptote: float
    now: float
    gain: float
    most_gain: float
    rate: float
    shape: str


def extrapolate(
    losses: Losses, *, at: int, tail: float = 0.5, confidence: float = 0.95
) -> LearningCurve:
    """Fit the tail of a learning curve and extend it to step `at`.

    Both `a + b * n^(-c)` and `a + b * exp(-c * n)` are fitted by least squares to the
    means of up to 150 blocks of steps. The means average out minibatch noise, and most
    of its correlation from step to step. The shape with the smaller residual gives the
    `value`. The interval is that of Student's t for the fitted curve, to first order in
    `a`, `b` and `c`. Residuals that are correlated by `rho` from block to block count
    for `(1 - rho) / (1 + rho)` of their number. The interval is widened to hold the
    values of all curves of either shape whose residuals are no larger than it allows,
    because the first order is not enough for few or noisy losses. It does not account
    for learning rates that fall later.

    Arguments:
        losses: One training loss a step, shape `(steps,)`.
        at: A step at or past the last, counted like the entries of `losses`.
        tail: The share of the steps to fit, from the end, in (0, 1].
        confidence: The probability of the interval, in (0, 1).

    Returns:
        The loss at `at`, its interval, and the gain until then.

    Raises:
        TypeError: For a whole history.
        ValueError: For fewer than 20 steps in the tail, `at` before the last step, a
            share or a confidence out of range, or losses that are not finite, or none.

    Source:
        The two shapes are those of Domhan et al. (2015), table 1. The effective number
        of correlated values is that of Bartlett (1935).
    """
    from scipy import stats  # here, as half of what `import effgen` would cost

    losses = checked_losses(losses)
    check_share("tail", tail)
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` is {confidence}: pass one between 0 and 1.")
    first = int(len(losses) * (1 - tail))
    if len(losses) - first < 20:
        raise ValueError(
            f"`losses` has {len(losses) - first} steps in its tail: fit at least 20."
        )
    if not len(losses) <= at < np.inf:
        raise ValueError(
            f"`at` is {at}, before the last step, {len(losses)}, or not finite: pass a "
            "step from there on."
        )
    steps, means = _blocks(losses, first)
    fits = [_fit(shape, steps, means) for shape in _SHAPES]
    best = min(fits, key=lambda fit: fit.squares)
    likely = [f for f in fits if f.squares <= best.squares * (1 + 4 / best.freedom)]
    carried = [_carried(fit, steps, at, confidence) for fit in likely]
    chosen = carried[likely.index(best)]
    width = float(stats.t.ppf(0.5 + confidence / 2, best.freedom))
    most = best.squares * (1 + width**2 / best.freedom)
    ends = [_ends(shape, steps, means, at, most) for shape in _SHAPES]
    low = min(*(c.low for c in carried), *(low for low, _ in ends))
    high = max(*(c.high for c in carried), *(high for _, high in ends))
    return chosen._replace(low=low, high=high, most_gain=chosen.now - low)


def should_stop(losses: Losses, *, at: int, threshold: float) -> bool:
    """Return whether even the lower end of the interval gains less than `threshold`.

        extrapolate(losses, at=at).most_gain < threshold

    Arguments:
        losses: One training loss a step, shape `(steps,)`.
        at: The step that the run would end at.
        threshold: The least gain that is worth the steps, in units of loss.

    Returns:
        Whether to stop.

    Raises:
        TypeError: For a whole history.
        ValueError: For a threshold that is not finite, or as `extrapolate`.
    """
    if not np.isfinite(threshold):
        raise ValueError(f"`threshold` is {threshold}: pass a finite loss.")
    return extrapolate(losses, at=at).most_gain < threshold


class _Fit(NamedTuple):
    shape: str
    scale: float
    rate: float
    coefficients: np.ndarray
    squares: float
    freedom: float


def _blocks(losses: Losses, first: int) -> tuple[np.ndarray, np.ndarray]:
    parts = np.array_split(np.arange(first, len(losses)), _NUM_BLOCKS)
    parts = [part for part in parts if len(part)]
    steps = np.array([part.mean() + 1 for part in parts])
    return steps, np.array([losses[part].mean() for part in parts])


def _curve(shape: str, steps: np.ndarray, rate: float, scale: float) -> np.ndarray:
    scaled = steps / scale  # near one, so that rates are of one size for any length
    return scaled**-rate if shape == "power" else np.exp(-rate * (scaled - 1))


def _fit(shape: str, steps: np.ndarray, means: np.ndarray) -> _Fit:
    from scipy import optimize  # here, as half of what `import effgen` would cost

    scale = float(steps[0])

    def solved(log_rate: float) -> tuple[np.ndarray, np.ndarray]:
        # Given the rate, `a` and `b` are linear: only one number is searched for.
        curve = _curve(shape, steps, np.exp(log_rate), scale)
        matrix = np.stack([np.ones_like(curve), curve], axis=1)
        coefficients = np.linalg.lstsq(matrix, means, rcond=None)[0]
        return coefficients, matrix @ coefficients - means

    def squares(log_rate: float) -> float:
        return float(np.sum(solved(log_rate)[1] ** 2))

    low, high = np.log(_RATES)
    grid = np.linspace(low, high, _NUM_RATES)
    best = int(np.argmin([squares(log_rate) for log_rate in grid]))
    bounds = grid[max(best - 1, 0)], grid[min(best + 1, _NUM_RATES - 1)]
    found: Any = optimize.minimize_scalar(
        squares,
        bounds=bounds,
        method="bounded",
        options={"xatol": 1e-10},
    )
    coefficients, residuals = solved(found.x)
    rate, freedom = float(np.exp(found.x)), _freedom(residuals)
    return _Fit(shape, scale, rate, coefficients, squares(found.x), freedom)


def _ends(
    shape: str, steps: np.ndarray, means: np.ndarray, at: int, most: float
) -> tuple[float, float]:
    """Return the range of losses at `at` of curves with at most `most` squares.

    For each rate the curve is linear in `a` and `b`, so its range is exact.
    """
    low, high = np.inf, -np.inf
    for rate in np.geomspace(*_RATES, _NUM_PROFILED):
        curve = _curve(shape, steps, rate, float(steps[0]))
        (target,) = _curve(shape, np.array([float(at)]), rate, float(steps[0]))
        off, ahead = curve - curve.mean(), target - curve.mean()
        slope = off @ means / (off @ off)
        residuals = means - means.mean() - slope * off
        spare = most - residuals @ residuals
        if spare < 0:
            continue
        value = means.mean() + slope * ahead
        width = np.sqrt(spare * (1 / len(means) + ahead**2 / (off @ off)))
        low, high = min(low, value - width), max(high, value + width)
    return float(low), float(high)


def _freedom(residuals: np.ndarray) -> float:
    """Return the degrees of freedom that correlated residuals leave, 1 or more."""
    num, total = len(residuals), float(residuals @ residuals)
    rho = float(residuals[1:] @ residuals[:-1]) / total if total else 0.0
    rho += (2 + 4 * rho) / num  # approximately the bias by a fit of three numbers
    rho = min(max(rho, 0.0), 0.99)
    return max((num - 3) * (1 - rho) / (1 + rho), 1.0)


def _gradient(fit: _Fit, steps: np.ndarray) -> np.ndarray:
    """Return the curve's derivatives by `a`, `b` and `c`, `(steps, 3)`."""
    curve = _curve(fit.shape, steps, fit.rate, fit.scale)
    scaled = steps / fit.scale
    slope = -np.log(scaled) if fit.shape == "power" else 1 - scaled
    by_rate = fit.coefficients[1] * slope * curve
    return np.stack([np.ones_like(curve), curve, by_rate], axis=1)


def _carried(fit: _Fit, steps: np.ndarray, at: int, confidence: float) -> LearningCurve:
    from scipy import stats

    gradient = _gradient(fit, steps)
    variance = fit.squares / fit.freedom
    covariance = variance * np.linalg.pinv(gradient.T @ gradient)
    ends = np.array([steps[-1], float(at)])
    now, value = fit.coefficients @ np.stack(
        [np.ones(2), _curve(fit.shape, ends, fit.rate, fit.scale)]
    )
    (target,) = _gradient(fit, ends[1:])
    spread = np.sqrt(max(float(target @ covariance @ target), 0.0))
    width = float(stats.t.ppf(0.5 + confidence / 2, fit.freedom)) * spread
    return LearningCurve(
        value=float(value),
        low=float(value - width),
        high=float(value + width),
        asymptote=float(fit.coefficients[0]),
        now=float(now),
        gain=float(now - value),
        most_gain=float(now - value + width),
        rate=fit.rate / (1.0 if fit.shape == "power" else fit.scale),
        shape=fit.shape,
    )
