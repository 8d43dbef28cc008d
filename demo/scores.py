"""How a forecast is scored: by its draws, against what came."""

from typing import Any

import numpy as np


BANDS = ("within_50", "within_90")


def crps(samples: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return each value's ranked probability score, `E|X - y| - E|X - X'| / 2`."""
    ordered = np.sort(samples, axis=0)
    num = len(ordered)
    weights = (2 * np.arange(1, num + 1) - num - 1) / num**2
    return np.abs(samples - y).mean(0) - np.tensordot(weights, ordered, 1)


def scored(samples: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Return the mean score, and how many values are within the bands."""
    there = np.isfinite(y)
    samples, y = np.asarray(samples, np.float64)[:, there], y[there]
    low, lower, upper, high = np.quantile(samples, (0.05, 0.25, 0.75, 0.95), axis=0)
    return {
        "crps": float(np.mean(crps(samples, y))),
        "num": int(there.sum()),
        "within_50": int(np.sum((y >= lower) & (y <= upper))),
        "within_90": int(np.sum((y >= low) & (y <= high))),
    }
