"""The uncertainty of a fit's parameters: standard errors, and models drawn from it.

Both use the posterior density of a linear model's parameters around its maximum.
"""

import warnings
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from effgen.core.contract.counts import check_count
from effgen.core.contract.keys import check_key
from effgen.core.outcome.results import RunWarning
from effgen.core.weights import resample
from effgen.neural_sde.modeling.model import LatentSDE
from effgen.neural_sde.modeling.structure import Structure
from effgen.neural_sde.observing.decoders import LinearDecoder

from .descent import hessian, sloped
from .peak import Maximum, Problem
from .tempering import LogDensity, effective_share, student, tempered


_PROPOSALS, _BATCH = 256, 32
_ENOUGH = 0.1  # the effective share of proposals that weights suffice for
_FEWEST = 0.05  # the least share of moves that are to be accepted
_FARTHEST = 5.0  # the longest Newton step to the maximum, in standard deviations
_FLATTEST = 0.1  # the least curvature, relative to the prior's, in logarithms


def named_parameters(model: LatentSDE) -> dict[str, Array]:
    """Return a linear model's parameters by name, in units of time and data."""
    found = {}
    if isinstance(model.linear, Structure):
        found |= model.linear.parameters
    if isinstance(model.decoder, LinearDecoder):
        found["observation.scale"] = model.decoder.scale
    return found


@eqx.filter_jit
def values_at(problem: Problem, x: Array) -> dict[str, Array]:
    """Return the named parameters where the density's parameters are `x`."""
    return named_parameters(problem.model(x))


@eqx.filter_jit
def _named_slopes(problem: Problem, x: Array) -> dict[str, Array]:
    """Return the derivatives of the named parameters."""
    return jax.jacfwd(lambda x: named_parameters(problem.model(x)))(x)


class Spectrum(NamedTuple):
    """`hessian = D^-1 vectors diag(sizes) vectors^T D^-1`, `D = diag(units)`.

    Attributes:
        units: The unit of each parameter. For a logarithm it is the prior's standard
            deviation, for any other parameter that of the density along it. So the
            spectrum does not depend on the units of time and data.
        sizes: Shape `(parameters,)`.
        vectors: One a column, shape `(parameters, parameters)`.
    """

    units: Float[np.ndarray, " parameters"]
    sizes: Float[np.ndarray, " parameters"]
    vectors: Float[np.ndarray, "parameters parameters"]


def spectrum(
    bends: Float[np.ndarray, "parameters parameters"],
    is_log: Float[np.ndarray, " parameters"],
    prior_scale: float,
) -> Spectrum:
    """Return a curvature's eigenvalues and vectors, free of the parameters' units."""
    diagonal = np.abs(np.diag(bends))
    own = np.where(diagonal > 0, 1 / np.sqrt(np.where(diagonal > 0, diagonal, 1)), 1)
    units = np.where(is_log == 1, prior_scale, own)
    scaled = units[:, None] * (bends + bends.T) / 2 * units
    return Spectrum(units, *np.linalg.eigh(scaled))


def standard_errors(problem: Problem, x: Array) -> dict[str, np.ndarray]:
    """Return the named parameters' standard errors, to first order."""
    slopes = _named_slopes(problem, x)
    bends, scale = hessian(problem, problem.is_log, x), float(problem.prior_scale)
    found = spectrum(bends, np.asarray(problem.is_log), scale)
    held = found.sizes > 1e-9 * np.max(found.sizes, initial=0)
    inverse = np.where(held, 1 / np.where(held, found.sizes, 1), 0)
    errors = {}
    for name, slope in slopes.items():
        across = (np.asarray(slope) * found.units) @ found.vectors
        variance = np.sum(across**2 * inverse, axis=-1)
        open_part = np.sum(across[..., ~held] ** 2, axis=-1)
        whole = np.sum(across**2, axis=-1)
        errors[name] = np.where(open_part > 1e-12 * whole, np.nan, np.sqrt(variance))
    return errors


def drawn_models(
    peak: Maximum, num: int, *, key: PRNGKeyArray
) -> tuple[LatentSDE, ...]:
    """Draw models from the posterior density of a fit's parameters.

    Proposals are drawn from a Student distribution around the maximum, with the
    curvature there. They are resampled with weights `posterior density / proposal's`.
    No weight exceeds the mean weight times the root of the number of proposals. Where
    fewer than one in ten are effective, the density is not like a normal one: then
    the proposals are moved to it in stages, by sequential Monte Carlo. The prior is
    that of the fit: normal for logarithms, and flat for other parameters.

    Arguments:
        peak: The maximum of the density, or a point near it.
        num: The number of models.
        key: A random key.

    Returns:
        Models of equal weight.

    Warns:
        RunWarning: If moves are seldom accepted, or if the curvature is not finite. In
            the latter case all models are those of the maximum.

    Source:
        Rubin (1988), sampling and importance resampling; Ionides (2008), the weights;
        Del Moral, Doucet and Jasra (2006), the stages.
    """
    check_key(key)
    check_count("num", num)
    keys = jax.random.split(key)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(keys[0])))
    size = max(_PROPOSALS, 8 * num)
    with jax.enable_x64(True):  # noqa: FBT003
        _, slope = sloped(peak.problem, np.asarray(peak.x))
        law = laplace(peak, slope, hessian(peak.problem, peak.problem.is_log, peak.x))
        if law is None:
            _warn("the curvature at the fit is not finite: all models are the fit's.")
            return (peak.model,) * num
        at = lambda z: law[0] + z @ law[1].T
        density = lambda z: np.asarray(_densities(peak.problem, jnp.asarray(at(z))))
        z, proposed = student(rng, size, len(peak.x))
        found = density(z)
        logs = truncated(found - proposed)
        if effective_share(logs) < _ENOUGH:
            z, logs = _annealed(density, z, found, rng), np.zeros(size)
        xs = at(z)
    index = resample(jnp.asarray(logs - np.max(logs)), num, key=keys[1])
    return tuple(peak.at(xs[i]) for i in np.asarray(index))


def _annealed(
    density: LogDensity, z: np.ndarray, logs: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return draws of a density that the proposals miss; warn where moves stick."""
    found = tempered(density, z, logs, rng)
    if found.accepted < _FEWEST or found.distinct < 0.5:
        _warn(
            f"{found.accepted:.1%} of the moves between models are accepted, and "
            f"{found.distinct:.0%} of the models differ: the fit's parameters are held "
            "by little. Leave out a part."
        )
    return found.particles


def laplace(
    peak: Maximum, slope: np.ndarray, bends: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return mean and root of the normal law with a density's gradient and Hessian.

    An eigenvalue of the Hessian that is too small for the prior is raised. Returns
    `None` if the Hessian is not finite.
    """
    if not (np.all(np.isfinite(slope)) and np.all(np.isfinite(bends))):
        return None
    is_log = np.asarray(peak.problem.is_log)
    found = spectrum(bends, is_log, float(peak.problem.prior_scale))
    least = np.maximum(_FLATTEST * (is_log @ found.vectors**2), 1e-6)
    deviations = 1 / np.sqrt(np.maximum(found.sizes, least))
    root = found.units[:, None] * found.vectors * deviations
    step = -root.T @ slope
    step = step * min(1.0, _FARTHEST / max(float(np.linalg.norm(step)), 1e-30))
    return np.asarray(peak.x) + root @ step, root


@eqx.filter_jit
def _densities(problem: Problem, xs: Array) -> Array:
    """Return the log posterior density of each, up to a constant."""
    return -jax.lax.map(lambda x: problem(x), xs, batch_size=_BATCH)


def truncated(logs: Float[np.ndarray, " proposals"]) -> np.ndarray:
    """Return log-weights, none above the mean weight times the root of their number.

    A log-weight that is not finite becomes zero weight. If that holds for all, all
    weights are equal.
    """
    from scipy.special import logsumexp

    logs = np.where(np.isfinite(logs), logs, -np.inf)
    if np.all(np.isneginf(logs)):
        return np.zeros(len(logs))
    mean = logsumexp(logs) - np.log(len(logs))
    return np.minimum(logs, mean + 0.5 * np.log(len(logs)))


def _warn(text: str) -> None:
    warnings.warn(text, RunWarning, stacklevel=4)
