"""How well a series' own parameters are known, where their shared law is fitted too."""

import numpy as np
from jaxtyping import Float


_GRID = np.geomspace(1e-3, 1e3, 400)  # of the shared deviation, in units of the data's
_VAGUE = 10.0  # the scale of its half-Cauchy prior, in the same units


def own_deviations(
    each: Float[np.ndarray, "series parameters"],
    curvature: Float[np.ndarray, "series parameters parameters"],
    mean: Float[np.ndarray, " parameters"],
    spread: Float[np.ndarray, " parameters"],
) -> Float[np.ndarray, "series parameters"]:
    """Return deviations of each series' parameters about `each`, over shared laws.

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
    for k in range(len(mean)):
        centers, precisions = _alone(each, curvature, mean, spread, k)
        found[:, k] = _integrated(centers, precisions, each[:, k], spread[k])
    return found


def _alone(
    each: np.ndarray,
    curvature: np.ndarray,
    mean: np.ndarray,
    spread: np.ndarray,
    k: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return center and precision of each series' likelihood of one parameter alone."""
    prior = 1 / spread**2
    linear = np.einsum("sij,sj->si", curvature, each)
    rest = np.arange(len(mean)) != k
    inner = curvature[:, rest][:, :, rest]
    across = np.linalg.solve(inner, curvature[:, rest, k][..., None])[..., 0]
    precision = curvature[:, k, k] - np.sum(across * curvature[:, rest, k], axis=1)
    center = linear[:, k] - np.sum(across * linear[:, rest], axis=1)
    least = 1e-12 * curvature[:, k, k]
    precision = np.maximum(precision - prior[k], least)
    return (center - mean[k] * prior[k]) / precision, precision


def _integrated(
    centers: np.ndarray, precisions: np.ndarray, each: np.ndarray, spread: float
) -> np.ndarray:
    """Return deviations about `each` of what is normal about `centers`."""
    unit = max(spread, np.median(precisions) ** -0.5)
    grid = unit * _GRID[:, None]
    weights = 1 / (grid**2 + 1 / precisions)
    total = weights.sum(axis=1, keepdims=True)
    mean = np.sum(weights * centers, axis=1, keepdims=True) / total
    away = np.sum(weights * (centers - mean) ** 2, axis=1) + np.log(total[:, 0])
    logs = 0.5 * np.sum(np.log(weights), axis=1) - 0.5 * away
    logs += np.log(grid[:, 0]) - np.log1p((grid[:, 0] / (_VAGUE * unit)) ** 2)
    share = np.exp(logs - logs.max())[:, None]
    share /= share.sum()
    prior = grid**-2
    pulled = prior / (precisions + prior)
    there = centers + pulled * (mean - centers)
    variance = 1 / (precisions + prior) + pulled**2 / total
    return np.sqrt(np.sum(share * (variance + (there - each) ** 2), axis=0))
