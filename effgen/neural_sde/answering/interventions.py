"""Interventions: forecasts under inputs as planned and under others, and the effect."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PRNGKeyArray

from effgen.neural_sde.modeling.checks import takes_inputs
from effgen.neural_sde.modeling.model import LatentSDE

from .answers import Bands
from .posteriors import Posterior


class Intervention(NamedTuple):
    """Forecasts under two courses of the inputs.

    Attributes:
        planned: What will be observed under the first.
        changed: What will be observed under the other.
        effect: The difference between what is observed on average, path by path. Both
            courses have the same past and the same noise, so its bands are of the
            effect alone.
    """

    planned: Bands
    changed: Bands
    effect: Bands


def intervention(
    posterior: Posterior,
    times: ArrayLike,
    *,
    inputs: ArrayLike,
    instead: ArrayLike,
    key: PRNGKeyArray,
    num_paths: int = 1_000,
    levels: tuple[float, ...] = (0.05, 0.25, 0.5, 0.75, 0.95),
) -> Intervention:
    """Forecast under `inputs` and under others `instead`, from each of `times` on.

        effect = E[y | X under instead] - E[y | X under inputs]

    The model must depend on the inputs: by an `input_matrix` or a drift `(t, x, u)`.
    The answer is causal only if the model is.

    Arguments:
        posterior: The posterior of a record with inputs.
        times: At or after the last observation, shape `(times,)` or `(series, times)`.
        inputs: As planned, shape `(times, inputs)` or `(series, times, inputs)`.
        instead: Others, of the same shape.
        key: A random key.
        num_paths: How many whole records are drawn.
        levels: Probabilities of the quantiles, in (0, 1).

    Returns:
        Both forecasts, and the effect of the change.

    Raises:
        ValueError: For a model that does not see inputs, times before a series' last,
            and inputs of another shape, or of a series that has none.

    Source:
        Pearl (2009), definition 3.2.1, `do(u)`.
    """
    _check_inputs_matter(posterior.model)
    both = [
        posterior.forecast(
            times, key=key, num_paths=num_paths, levels=levels, inputs=given
        )
        for given in (inputs, instead)
    ]
    # The same keys as the forecasts': the same paths but for the inputs.
    paths_key = jax.random.split(key)[0]
    planned, changed = (
        posterior.paths(num_paths, key=paths_key, times=times, inputs=given).positions
        for given in (inputs, instead)
    )
    difference = _means(posterior.model, changed) - _means(posterior.model, planned)
    axis = 0 if posterior.record.single else 1
    wanted = jnp.asarray(levels, difference.dtype)
    quantiles = jnp.quantile(difference, wanted, axis=axis)
    first = both[0]
    effect = first._replace(
        mean=difference.mean(axis),
        quantiles=jnp.moveaxis(quantiles, 0, axis),
        samples=difference,
        ess=jnp.minimum(first.ess, both[1].ess),
    )
    return Intervention(first, both[1], effect)


def _check_inputs_matter(model: LatentSDE) -> None:
    drift = model.drift is not None and takes_inputs(model.drift)
    if model.linear.input_matrix is None and not drift:
        raise ValueError(
            "the model does not see inputs: give its linear part an `input_matrix`, or "
            "a drift `(t, x, u)`."
        )


@eqx.filter_jit
def _means(model: LatentSDE, positions: Array) -> Array:
    """Return what is observed on average at positions, `(..., state)`."""
    over = model.decoder.mean
    for _ in range(positions.ndim - 1):
        over = jax.vmap(over)
    return over(positions)
