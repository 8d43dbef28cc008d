"""How noisy each output is: residuals, and the degrees of freedom that are left."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from effgen.collocation.program.curvature import GaussNewton
from effgen.collocation.program.elimination import sample_residuals
from effgen.collocation.program.evaluator import Evaluator
from effgen.collocation.program.nlp import NLP
from effgen.collocation.program.points import Limits, Point

from .information import Information, information, pulls


_FEWEST_LEFT = 0.5
_UNEQUAL = 1.5
_LEAST = 1e-3


def leverages(
    found: Information, nlp: NLP
) -> tuple[Float[np.ndarray, " outputs"], Float[np.ndarray, " outputs"]]:
    """Return each output's effective degrees of freedom, and how many samples it has.

    The former is the trace of `K J^T W J`, `J` the output's residuals' derivatives and
    `W` their costs' second derivatives, one of squares.
    """
    counts = np.asarray(nlp.samples.mask).sum(0).astype(float)
    weights = pulls(nlp, found.residuals)[1]
    along = found.sensitivities
    return np.einsum("so,sor,sor->o", weights, along, along, optimize=True), counts


def estimated(
    found: Information, nlp: NLP, known: Float[np.ndarray, "..."] | None
) -> tuple[Float[np.ndarray, " outputs"], float]:
    """Return the outputs' noise in units of the scale, and all of it pooled.

    An output without samples has the pooled noise. For a misfit other than `Squares` it
    is the standard deviation of the costs' derivatives.

    Raises:
        ValueError: If an output has no degrees of freedom left.
    """
    effective, counts = leverages(found, nlp)
    if known is not None:
        noise = np.broadcast_to(known, counts.shape).astype(float)
        return noise, float(np.sqrt(np.average(noise**2, weights=counts)))
    # Where nothing is measured the residual is zero, and so is the derivative.
    squares = np.sum(pulls(nlp, found.residuals)[0] ** 2, axis=0)
    left, seen = counts - effective, counts > 0
    if np.any(left[seen] < _FEWEST_LEFT):
        output = int(np.argmax(seen & (left < _FEWEST_LEFT)))
        raise ValueError(
            f"output {output} has {counts[output]:.0f} samples and the estimate takes "
            f"{effective[output]:.1f} of their degrees of freedom: no noise can be "
            "estimated; pass `noise`, more data, or a stronger prior."
        )
    pooled = float(np.sqrt(squares.sum() / left[seen].sum()))
    noise = np.sqrt(squares / np.where(seen, left, 1.0))
    return np.where(seen, noise, pooled), pooled


def reweighed(
    nlp: NLP,
    limits: Limits,
    point: Point,
    spread: Float[np.ndarray, " outputs"],
) -> Float[np.ndarray, " outputs"] | None:
    """Return a scale in the ratios of the outputs' noise; `None` where it is one now.

    To solve with it and to ask again maximizes the likelihood over the noise as well,
    with the degrees of freedom of each output. The geometric mean over all samples is
    that of `spread`, by which other costs keep their weight; a noise of less than a
    thousandth of it counts as that. Weights stay where an output has no degrees of
    freedom left.
    """
    counts = np.asarray(nlp.samples.mask).sum(0).astype(float)
    residuals = np.asarray(sample_residuals(nlp, jnp.asarray(point.z)))
    squares = float(nlp.counted) * np.sum(residuals**2, axis=0)
    scale = np.asarray(nlp.problem.scale)

    def noise(left: np.ndarray) -> np.ndarray:
        found = scale * np.sqrt(squares / np.maximum(left, _FEWEST_LEFT))
        return np.maximum(found, _LEAST * spread)

    def unequal(noise: np.ndarray) -> bool:
        ratios = (noise / scale)[counts > 0]
        return bool(ratios.max() > _UNEQUAL * ratios.min())

    if not unequal(noise(counts)):
        return None
    found = information(Evaluator(nlp, GaussNewton()), limits, point)
    left = counts - leverages(found, nlp)[0]
    if np.any(left[counts > 0] < _FEWEST_LEFT) or not unequal(noise(left)):
        return None
    level = np.average(np.log(noise(left) / spread), weights=counts)
    return np.where(counts > 0, noise(left) * np.exp(-level), spread)
