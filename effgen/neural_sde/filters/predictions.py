"""One-step-ahead predictions, and how the values compare with them."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from effgen.core.outcome.extras import needed
from effgen.neural_sde.data.frames import Labels
from effgen.neural_sde.data.series import Series
from effgen.neural_sde.linear_sdes.noise import standard_uniform
from effgen.neural_sde.modeling.dynamics import AbstractLatentSDE
from effgen.neural_sde.observing.decoders import LinearDecoder

from .filtering import Filtered


class Predictions(NamedTuple):
    """What was expected of each observation from those before its time.

    Attributes:
        ts: The times of the record, shape `(obs,)`.
        mean: The mean of the prediction, shape `(obs, *shape)`, in units of the data.
        scale: Its standard deviation, noise included, of the same shape.
        residuals: Normal scores of the values under it, `(y - mean) / scale` where it
            is Gaussian; NaN where a value is missing. If the model is right, they are
            standard normal and independent in time.
        scores: The log-density of all that is seen at a time, at the first of equal
            times, shape `(obs,)`, in nats.
        ess: The effective number of particles, shape `(obs,)`, infinite where the
            prediction is exact.
        labels: The names of the record.
    """

    ts: Float[Array, " obs"]
    mean: Float[Array, "obs *shape"]
    scale: Float[Array, "obs *shape"]
    residuals: Float[Array, "obs *shape"]
    scores: Float[Array, " obs"]
    ess: Float[Array, " obs"]
    labels: Labels = Labels()

    def to_pandas(self) -> Any:
        """Return mean, scale and residuals as a frame on the record's own index.

        Returns:
            A `pandas.DataFrame`.

        Raises:
            ImportError: Without pandas, with the command to install it.
            ValueError: For observations that are no columns of numbers.
        """
        names = ("mean", "scale", "residuals")
        return self.labels.table(self.ts, {name: getattr(self, name) for name in names})

    def plot(self, sensor: int = 0) -> Any:
        """Draw a sensor's residuals: in time, against a normal law, and by lag.

        If the model is right, 95 % of the points and of the bars lie within the shades,
        and the middle is a straight line.

        Arguments:
            sensor: The number of the sensor.

        Returns:
            A `matplotlib` figure.

        Raises:
            ImportError: Without matplotlib, with the command to install it.
            ValueError: For a batch, or fewer than two values.
        """
        needed("matplotlib", by="Predictions.plot()", extra="plots")
        from effgen.neural_sde.data.pictures import predictions

        return predictions(self.ts, self.residuals, sensor)


def predictions(
    model: AbstractLatentSDE, series: Series, found: Filtered, *, key: PRNGKeyArray
) -> Predictions:
    """Return one-step-ahead predictions from particles, and the values' residuals.

    A value's rank among draws of it, ties broken at random, is uniform if the model is
    right; `residuals` are the ranks' normal scores.

    Source:
        Dawid (1984); Dunn and Smyth (1996).
    """
    num = found.predicted.shape[1]
    keys = jax.random.split(key)
    each = jax.random.split(keys[0], (len(series.ts), num))
    draws = jax.vmap(jax.vmap(partial(_drawn, model), (0, 0, None)))(
        found.predicted, each, series.errors
    )
    mean = jax.vmap(jax.vmap(model.decoder.mean))(found.predicted).mean(1)
    scale = draws.std(1)
    ties = standard_uniform(keys[1], series.ys.shape, series.ys.dtype)
    below = jnp.sum(draws < series.ys[:, None], axis=1)
    same = jnp.sum(draws == series.ys[:, None], axis=1)
    rank = (below + ties * (same + 1)) / (num + 1)
    least = 0.5 / (num + 1)
    scores = jax.scipy.stats.norm.ppf(jnp.clip(rank, least, 1 - least))
    residuals = jnp.where(series.mask, scores, jnp.nan)
    return Predictions(series.ts, mean, scale, residuals, found.scores, found.ess)


def _drawn(
    model: AbstractLatentSDE, x: Array, key: PRNGKeyArray, errors: Array | None
) -> Array:
    """Draw an observation, of a noise that the record's errors multiply."""
    decoder = model.decoder
    if errors is None:
        return decoder.sample(x, key=key)
    assert isinstance(decoder, LinearDecoder)
    return decoder.sample(x, key=key, errors=errors)
