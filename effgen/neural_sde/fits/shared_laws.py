"""How well a series' own parameters are known, where their shared law is fitted too."""

import numpy as np
from jaxtyping import Bool, Float


Deviations = Float[np.ndarray, "series parameters"]
Counted = Bool[np.ndarray, "series parameters"]

_GRID = np.geomspace(1e-3, 1e3, 400)  # of the shared deviation, in units of the data's
_VAGUE = 10.0  # the scale of its half-Cauchy prior, in the same units

# The least curvature of a likelihood, as a share of the density's, and how far from the
# shared mean it may lie, in squared deviations of both.
_LEAST, _FARTHEST = 1e-6, 25.0


def own_deviations(
    each: Float[np.ndarray, "series parameters"],
    curvature: Float[np.ndarray, "series parameters parameters"],
    mean: Float[np.ndarray, " parameters"],
    spread: Float[np.ndarray, " parameters"],
) -> tuple[Deviations, Counted]:
    """Return deviations of each series' parameters about `each`, over shared laws.

    Also returned is whether a series' own likelihood counted. One that is not normal at
    all counts as flat, and the series has the deviation of the shared law.

    A fitted `spread` is too small as often as it is too large, and the deviations given
    it alone are too small just where it is. Here a parameter's mean and spread are
    integrated out, with flat and half-Cauchy priors, where its likelihoods are normal;
    the spreads of the others are as fitted.

    Arguments:
        each: The modes of each series' parameters.
        curvature: That of the negative log-density there, prior included.
        mean: The mean of the shared law.
        spread: Its deviations.

    Source:
        Kass and Steffey (1989); Gelman (2006), of the prior.
    """
    found = np.zeros_like(each)
    telling = np.zeros(each.shape, bool)
    for k in range(len(mean)):
        likelihoods, telling[:, k] = _alone(each, curvature, mean, spread, k)
        found[:, k] = _integrated(*likelihoods, each[:, k], spread[k])
    return found, telling


def _alone(
    each: np.ndarray,
    curvature: np.ndarray,
    mean: np.ndarray,
    spread: np.ndarray,
    k: int,
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Return each series' likelihood of one parameter alone, and whether it is normal.

    That is `exp(pull x - precision x^2 / 2)`. One that is not even concave at the mode,
    or as a normal one would lie where the shared law has nothing, counts as flat.
    """
    prior = 1 / spread**2
    linear = np.einsum("sij,sj->si", curvature, each)
    rest = np.arange(len(mean)) != k
    inner = curvature[:, rest][:, :, rest]
    across = np.linalg.solve(inner, curvature[:, rest, k][..., None])[..., 0]
    precision = curvature[:, k, k] - np.sum(across * curvature[:, rest, k], axis=1)
    pull = linear[:, k] - np.sum(across * linear[:, rest], axis=1)
    precision, pull = precision - prior[k], pull - mean[k] * prior[k]
    telling = precision > _LEAST * curvature[:, k, k]
    safe = np.where(telling, precision, 1.0)
    away = (pull / safe - mean[k]) ** 2 / (spread[k] ** 2 + 1 / safe)
    telling &= away <= max(_FARTHEST, len(each))
    return (np.where(telling, pull, 0), np.where(telling, precision, 0)), telling


def _integrated(
    pulls: np.ndarray, precisions: np.ndarray, each: np.ndarray, spread: float
) -> np.ndarray:
    """Return deviations about `each`, the shared law integrated out."""
    own = precisions > 0
    if not own.any():
        return np.full(len(each), spread)
    centers = pulls[own] / precisions[own]
    unit = max(spread, np.median(precisions[own]) ** -0.5)
    grid = unit * _GRID[:, None]
    weights = 1 / (grid**2 + 1 / precisions[own])
    total = weights.sum(axis=1, keepdims=True)
    mean = np.sum(weights * centers, axis=1, keepdims=True) / total
    away = np.sum(weights * (centers - mean) ** 2, axis=1) + np.log(total[:, 0])
    logs = 0.5 * np.sum(np.log(weights), axis=1) - 0.5 * away
    logs += np.log(grid[:, 0]) - np.log1p((grid[:, 0] / (_VAGUE * unit)) ** 2)
    share = np.exp(logs - logs.max())[:, None]
    share /= share.sum()
    prior = grid**-2
    pulled = prior / (precisions + prior)
    there = (pulls + prior * mean) / (precisions + prior)
    variance = 1 / (precisions + prior) + pulled**2 / total
    return np.sqrt(np.sum(share * (variance + (there - each) ** 2), axis=0))
