"""Sequential Monte Carlo from a normal law's neighborhood to a density, on the host."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


Rows = Float[np.ndarray, "particles parameters"]
LogDensity = Callable[[Rows], Float[np.ndarray, " particles"]]

_DEGREES = 5.0  # of Student's law: its tails are above the density's
_SHARE = 0.5  # the effective share of particles that a stage keeps
_MOST_STAGES = 40
_SWEEPS = 20
_ACCEPTED = 0.3  # the rate for which the length of moves is tuned


class Tempered(NamedTuple):
    """Particles of a density, of equal weight.

    Attributes:
        particles: Shape `(particles, parameters)`.
        accepted: The share of moves accepted in the last stage.
        distinct: The share of particles that are different.
    """

    particles: Rows
    accepted: float
    distinct: float


def student(
    rng: np.random.Generator, num: int, size: int
) -> tuple[Rows, Float[np.ndarray, " particles"]]:
    """Draw from Student's law, with its log-density up to a constant."""
    noise = rng.normal(size=(num, size))
    z = noise / np.sqrt(rng.chisquare(_DEGREES, size=(num, 1)) / _DEGREES)
    return z, log_student(z)


def log_student(z: Rows) -> Float[np.ndarray, " particles"]:
    """Return Student's log-density, up to a constant."""
    half = -0.5 * (_DEGREES + z.shape[1])
    return half * np.log1p(np.sum(z**2, axis=1) / _DEGREES)


def tempered(
    log_density: LogDensity,
    z: Rows,
    logs: Float[np.ndarray, " particles"],
    rng: np.random.Generator,
) -> Tempered:
    """Move draws of Student's law to a density, in stages.

        log p_beta(z) = (1 - beta) log_student(z) + beta log_density(z)

    From `beta` 0 to 1, each stage goes as far as leaves half of the particles
    effective, resamples them, and moves them by random walks with their covariance.

    Arguments:
        log_density: Of several particles, up to a constant, in nats.
        z: Draws of Student's law, of unit scale.
        logs: Their `log_density`.
        rng: A random generator.

    Returns:
        Particles of the density.

    Source:
        Del Moral, Doucet and Jasra (2006); the stages, Jasra et al. (2011).
    """
    beta, length, accepted = 0.0, 2.4 / np.sqrt(z.shape[1]), 0.0
    logs = np.where(np.isfinite(logs), logs, -np.inf)
    for _ in range(_MOST_STAGES):
        ahead = _next(beta, logs - log_student(z))
        chosen = _systematic((ahead - beta) * (logs - log_student(z)), rng)
        beta, z, logs = ahead, z[chosen], logs[chosen]
        root = _root(z)
        for _ in range(_SWEEPS):
            z, logs, accepted = _moved(log_density, beta, length * root, z, logs, rng)
            length *= np.exp(accepted - _ACCEPTED)
        if beta == 1.0:
            break
    return Tempered(z, accepted, len(np.unique(z, axis=0)) / len(z))


def _next(beta: float, gains: np.ndarray) -> float:
    """Return the farthest `beta` with an effective share of one half, by bisection."""
    low, high = beta, 1.0
    if effective_share((1 - beta) * gains) >= _SHARE:
        return 1.0
    for _ in range(40):
        middle = (low + high) / 2
        enough = effective_share((middle - beta) * gains) >= _SHARE
        low, high = (middle, high) if enough else (low, middle)
    return high


def effective_share(logs: np.ndarray) -> float:
    """Return the effective share of particles with these log-weights."""
    weights = np.exp(logs - np.max(logs))
    return float(np.sum(weights) ** 2 / np.sum(weights**2) / len(weights))


def _systematic(logs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return which particles stay, as often as their weights say."""
    weights = np.exp(logs - np.max(logs))
    ends = np.cumsum(weights) / np.sum(weights)
    places = (np.arange(len(logs)) + rng.uniform()) / len(logs)
    return np.minimum(np.searchsorted(ends, places), len(logs) - 1)


def _root(z: Rows) -> Float[np.ndarray, "parameters parameters"]:
    """Return a root of the particles' covariance, of full rank."""
    covariance = np.atleast_2d(np.cov(z.T))
    floor = 1e-6 * max(np.trace(covariance) / len(covariance), 1e-12)
    return np.linalg.cholesky(covariance + floor * np.eye(len(covariance)))


def _moved(
    log_density: LogDensity,
    beta: float,
    root: np.ndarray,
    z: Rows,
    logs: np.ndarray,
    rng: np.random.Generator,
) -> tuple[Rows, np.ndarray, float]:
    """Move each particle by one step of Metropolis' random walk."""
    there = z + rng.normal(size=z.shape) @ root.T
    found = log_density(there)
    found = np.where(np.isfinite(found), found, -np.inf)
    own = (1 - beta) * log_student(z) + beta * logs
    other = (1 - beta) * log_student(there) + beta * found
    taken = np.log(rng.uniform(size=len(z))) < other - own
    z = np.where(taken[:, None], there, z)
    return z, np.where(taken, found, logs), float(np.mean(taken))
