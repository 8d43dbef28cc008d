"""Shares of models in a mixture: the prior's, by evidence, and by forecasts."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float


_PRIOR = 2.0  # the weight of the prior shares, in origins
_BOOTSTRAPS, _LEAST = 2_000, 0.01
# A normal law that is wider by this factor has this share, so no density is zero.
_WIDER, _SHARE = 3.0, 0.01
_NARROW = 1e-4  # half of a cell, in deviations of a law that is flat across it


def prior_of(names: list[str], shares: Mapping[str, float] | None) -> np.ndarray:
    """Return the shares in the order of names, summing to one; for `None`, equal ones.

    Raises:
        ValueError: For shares that are not positive, or not one for each member.
    """
    if shares is None:
        return np.full(len(names), 1 / len(names))
    found = dict(shares)
    sound = all(0 < share < np.inf for share in found.values())
    if set(found) != set(names) or not sound:
        raise ValueError(
            f"`shares` are {found}: pass a positive number for each of {names}."
        )
    each = np.array([float(found[name]) for name in names])
    return each / each.sum()


def bootstrapped_shares(
    blocks: Float[np.ndarray, "origins members"],
    shares: Float[np.ndarray, " members"],
) -> Float[np.ndarray, " members"]:
    """Return the shares, updated by the evidence of blocks in nats, as in `stack`.

    Source:
        Yao, Vehtari, Simpson and Gelman (2018), section 3.4; Rubin (1981).
    """
    from scipy.special import softmax

    rng, num = np.random.default_rng(0), len(blocks)
    counts = num * rng.dirichlet(np.ones(num), size=_BOOTSTRAPS)
    found = softmax(counts @ blocks + np.log(shares), axis=1).mean(axis=0)
    found = np.maximum(found, _LEAST)
    return found / found.sum()


def stacking_weights(
    log_densities: Float[np.ndarray, "origins values members"],
    shares: Float[np.ndarray, " members"],
) -> Float[np.ndarray, " members"]:
    """Return the weights that `stack` names, of values' log-densities, by EM.

    A value that is NaN is missing. A member with a density of zero has no weight: its
    forecasts were not finite.

    Raises:
        ValueError: Where that is so of all.
    """
    logs = np.asarray(log_densities, np.float64)
    there = ~np.any(np.isnan(logs), axis=-1)
    sound = ~np.any(np.isneginf(logs), axis=(0, 1))
    if not sound.any():
        raise ValueError("no member's forecasts of the past are finite: lower `dt`.")
    weights = np.zeros(len(sound))
    logs = np.where(there[..., None], logs, 0)[..., sound]
    weights[sound] = _maximized(logs, there, shares[sound] / shares[sound].sum())
    return weights


def _maximized(logs: np.ndarray, there: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return weights by EM of finite log-densities, of values that are there."""
    densities = np.exp(logs - logs.max(axis=-1, keepdims=True))
    share = there / np.maximum(there.sum(axis=1), 1)[:, None]
    weights = shares
    for _ in range(500):
        parts = weights * densities
        parts /= parts.sum(axis=-1, keepdims=True)
        weights = np.einsum("jh,jhk->k", share, parts) + _PRIOR * shares
        weights /= weights.sum()
    return weights


def cell_of(values: np.ndarray) -> float:
    """Return the width of the cell that a value stands for: 1 for whole numbers, or 0.

    Of counts a density says nothing: where all draws are zero it has no bound there.
    """
    there = values[np.isfinite(values)]
    return float(len(there) > 0 and bool(np.all(there == np.round(there))))


def mixed_log_density(
    means: Float[np.ndarray, "laws *shape"],
    variances: Float[np.ndarray, "laws *shape"],
    ys: Float[np.ndarray, "*shape"],
    cell: float,
) -> Float[np.ndarray, "*shape"]:
    """Return log-probabilities of values' cells, by normal laws that count alike.

    For cells of no width they are log-densities. As in `log_density`, a normal law
    three times as wide has one percent. Where a law is not finite the result is minus
    infinity.
    """
    finite = np.all(np.isfinite(means) & np.isfinite(variances), axis=0)
    means, variances = (np.where(finite, x, 1.0) for x in (means, variances))
    mean, scale = means.mean(0), np.sqrt(means.var(0) + variances.mean(0))
    parts = _normal(ys - means, np.sqrt(variances), cell)
    logs = _with_wide(parts, ys - mean, scale, cell)
    return np.where(finite | np.isnan(ys), logs, -np.inf)


def _with_wide(
    parts: np.ndarray, away: np.ndarray, scale: np.ndarray, cell: float
) -> np.ndarray:
    """Return the log of the mean density of parts, and one percent of a wide law."""
    from scipy.special import logsumexp

    inside = logsumexp(parts, axis=0) - np.log(len(parts)) + np.log1p(-_SHARE)
    wide = _normal(away, np.maximum(_WIDER * scale, cell), cell)
    return np.logaddexp(inside, wide + np.log(_SHARE))


def _normal(away: np.ndarray, scale: np.ndarray, cell: float) -> np.ndarray:
    """Return the log-probability of a cell about `away`, or the log-density there."""
    from scipy.special import log_ndtr

    log = -0.5 * (away / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)
    if cell == 0:
        return log
    half = 0.5 * cell / scale
    upper, lower = (log_ndtr(-np.abs(away) / scale + h) for h in (half, -half))
    whole = upper + np.log1p(-np.exp(np.minimum(lower - upper, -1e-300)))
    return np.where(half < _NARROW, log + np.log(cell), whole)


def log_density(
    samples: Float[np.ndarray, "paths *shape"],
    ys: Float[np.ndarray, "*shape"],
    cell: float,
) -> Float[np.ndarray, "*shape"]:
    """Return log-probabilities of values' cells, by Gaussian kernels about draws.

    For cells of no width they are log-densities. The kernel's width is Silverman's; a
    normal law three times as wide has one percent. Where a draw is not finite the
    result is minus infinity.
    """
    finite = np.all(np.isfinite(samples), axis=0)
    samples = np.where(finite, samples, 0)
    num = len(samples)
    mean, scale = samples.mean(0), np.maximum(samples.std(0), 1e-30)
    inner = np.subtract(*np.quantile(samples, (0.75, 0.25), axis=0)) / 1.349
    width = 0.9 * np.minimum(scale, np.where(inner > 0, inner, scale)) * num**-0.2
    logs = _with_wide(_normal(ys - samples, width, cell), ys - mean, scale, cell)
    return np.where(finite | np.isnan(ys), logs, -np.inf)
