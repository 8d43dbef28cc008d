"""Pictures of forecasts, components and predictions; this file imports matplotlib."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from effgen.core.outcome.picture import Picture


_MOST_PANELS = 12
_LEVELS = ((0.6744898, 0.5), (1.6448536, 0.25))  # of 50 and 90 %, with their shade


def _panels(num: int, width: float = 7.0) -> tuple[Picture, list[Any]]:
    if num > _MOST_PANELS:
        raise ValueError(f"{num} panels are too many to draw: choose up to 12.")
    height = 1.1 + 1.6 * num
    picture = Picture(figsize=(width, height), layout="constrained")
    return picture, list(picture.subplots(num, 1, squeeze=False, sharex=True)[:, 0])


def _single(ts: Any) -> np.ndarray:
    ts = np.asarray(ts)
    if ts.ndim != 1:
        raise ValueError("a picture is of one series: ask its posterior alone.")
    return ts


def bands(
    ts: Any, mean: Any, levels: Sequence[float], quantiles: Any, names: Any
) -> Picture:
    """Draw each sensor's mean, and a band for each pair of levels."""
    ts, mean, quantiles = _single(ts), np.asarray(mean), np.asarray(quantiles)
    if mean.ndim != 2:
        raise ValueError("only columns of numbers are drawn, and no pictures.")
    names = names or range(mean.shape[1])
    picture, axes = _panels(mean.shape[1])
    order = np.argsort(levels)
    for j, (panel, name) in enumerate(zip(axes, names, strict=True)):
        for i in range(len(order) // 2):
            low, high = order[i], order[-1 - i]
            label = f"{100 * (levels[high] - levels[low]):.3g} %"
            shades = (quantiles[low, :, j], quantiles[high, :, j])
            panel.fill_between(ts, *shades, color="C0", alpha=0.25, label=label)
        panel.plot(ts, mean[:, j], color="C0", linewidth=1.2, label="mean")
        panel.set_title(str(name), loc="left", fontsize="medium")
    axes[0].legend(loc="upper left", fontsize="small")
    return picture


def components(ts: Any, names: Sequence[str], mean: Any, scale: Any) -> Picture:
    """Draw each part's mean with bands of 50 and 90 %."""
    ts, mean, scale = _single(ts), np.asarray(mean), np.asarray(scale)
    picture, axes = _panels(len(names))
    for j, (panel, name) in enumerate(zip(axes, names, strict=True)):
        for times, alpha in _LEVELS:
            low, high = (mean[:, j] + s * times * scale[:, j] for s in (-1, 1))
            panel.fill_between(ts, low, high, color="C0", alpha=alpha, linewidth=0)
        panel.plot(ts, mean[:, j], color="C0", linewidth=1.0)
        panel.set_title(name, loc="left", fontsize="medium")
    return picture


def predictions(ts: Any, residuals: Any, sensor: int) -> Picture:
    """Draw a sensor's residuals in time, against normal quantiles, and by lag."""
    from scipy.special import ndtri

    ts = _single(ts)
    residuals = np.asarray(residuals, np.float64).reshape(len(ts), -1)[:, sensor]
    there = np.isfinite(residuals)
    if np.sum(there) < 2:
        raise ValueError("fewer than two values have residuals: nothing to draw.")
    known = residuals[there]
    picture = Picture(figsize=(9.0, 3.0), layout="constrained")
    in_time, normal, by_lag = picture.subplots(1, 3, width_ratios=(2, 1, 1))
    in_time.axhspan(-1.96, 1.96, color="C0", alpha=0.15)
    in_time.plot(ts[there], known, "k.", markersize=3)
    in_time.set(title="standardized residuals")
    num = len(known)
    ranks = ndtri((np.arange(num) + 0.5) / num)
    normal.axline((0, 0), slope=1, color="C0")
    normal.plot(ranks, np.sort(known), "k.", markersize=3)
    normal.set(title="against a normal law", xlabel="its quantiles")
    lags, share = autocorrelations(residuals)
    bound = 1.96 / np.sqrt(num)
    by_lag.axhspan(-bound, bound, color="C0", alpha=0.15)
    by_lag.vlines(lags, 0, share, color="k")
    by_lag.set(title="autocorrelation", xlabel="lag")
    return picture


def autocorrelations(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return lags up to 20 and the correlations at them, of pairs that are there."""
    there = np.isfinite(values)
    centered = np.where(there, values - np.mean(values[there]), 0)
    lags = np.arange(1, min(20, len(values) - 1) + 1)
    variance = np.sum(centered**2) / np.sum(there)
    pairs = [max(np.sum(there[k:] * there[:-k]), 1) for k in lags]
    sums = [np.sum(centered[k:] * centered[:-k]) for k in lags]
    return lags, np.asarray(sums) / np.asarray(pairs) / (variance or 1.0)
