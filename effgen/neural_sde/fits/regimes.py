"""Regime switches: a record that goes from one linear model to another and back."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from effgen.core.contract.counts import check_count
from effgen.neural_sde.answering.answers import Bands
from effgen.neural_sde.answering.exact import is_exact
from effgen.neural_sde.answering.record import Record, recorded
from effgen.neural_sde.data.frames import Labels
from effgen.neural_sde.data.series import Series
from effgen.neural_sde.filters.histories import drawn, filtered, observed_by
from effgen.neural_sde.linear_sdes.gaussian import as_float
from effgen.neural_sde.modeling.anchors import cast
from effgen.neural_sde.modeling.checks import check_levels
from effgen.neural_sde.modeling.model import LatentSDE


class Switching(eqx.Module):
    """Linear models of one state, and the rates at which one gives way to another.

        P(next regime | now) = expm(Q gap)

    One regime holds from each time to the next. `Q` has the off-diagonal `rates`. The
    first regime has the chain's own law. The state continues through a switch. Rates
    are learned by their logarithms.

    Arguments:
        models: Models by name, linear and observed linearly, of equal numbers of states
            and of sensors, without inputs and with constant coefficients.
        rates: From each regime (row) to each, shape `(regimes, regimes)`, one over the
            mean time until the switch; or one number for all. The diagonal is not
            used.

    Raises:
        TypeError: For fewer than two models, or models without names.
        ValueError: For models that do not fit together, that vary with time or have a
            `t0`, and rates not positive.
    """

    models: tuple[LatentSDE, ...]
    names: tuple[str, ...] = eqx.field(static=True)
    log_rates: Float[Array, "regimes regimes"]

    def __init__(self, models: Mapping[str, LatentSDE], rates: ArrayLike) -> None:
        """Check the models."""
        if not isinstance(models, Mapping) or len(models) < 2:
            raise TypeError('`models` must be two or more, {"calm": model, ...}.')
        self.models, self.names = tuple(models.values()), tuple(models)
        for name, model in models.items():
            if not isinstance(model, LatentSDE) or not is_exact(model):
                raise ValueError(
                    f"the model of {name!r} must be a `LatentSDE` that is linear and "
                    "observed linearly."
                )
            _check_regime(name, model)
        shapes = {(m.num_states, observed_by(m).matrix.shape[0]) for m in self.models}
        if len(shapes) > 1:
            raise ValueError(
                f"regimes have (states, sensors) {sorted(shapes)}: all must have the "
                "same, since the state goes on."
            )
        if any(m.linear.input_matrix is not None for m in self.models):
            raise ValueError("regimes with an `input_matrix` are not supported.")
        num = len(models)
        rates = jnp.broadcast_to(as_float(rates), (num, num))
        away = ~np.eye(num, dtype=bool)
        if not bool(jnp.all(jnp.where(away, rates, 1) > 0)):
            raise ValueError(f"`rates` are {rates}: pass positive ones.")
        self.log_rates = jnp.log(jnp.where(away, rates, 1))

    @property
    def generator(self) -> Float[Array, "regimes regimes"]:
        """`Q`, whose rows sum to zero."""
        away = 1 - jnp.eye(len(self.names), dtype=self.log_rates.dtype)
        rates = away * jnp.exp(self.log_rates)
        return rates - jnp.diag(jnp.sum(rates, axis=1))

    def filter(
        self,
        ts: ArrayLike,
        ys: ArrayLike,
        mask: ArrayLike | None = None,
        *,
        num_histories: int = 64,
        unit: str = "s",
    ) -> "Regimes":
        """Return which regime held when, and the law of the state.

        Each history of regimes has its own Kalman filter. All are followed while there
        are no more than `num_histories`. Then only the most probable ones are followed.
        From there on `log_evidence` is a lower bound, and `dropped` says what was left
        out.

        Arguments:
            ts: Times of one series in order, numbers or dates, shape `(obs,)`.
            ys: Values, shape `(obs,)` or `(obs, sensors)`.
            mask: Where there is a value, of the shape of `ts` or `ys`.
            num_histories: The most histories, at least as many as regimes.
            unit: The unit in which the models count dates, one of NumPy's.

        Returns:
            The probabilities of the regimes, and what forecasts need.

        Raises:
            ValueError: For a batch of series, fewer histories than regimes, and what
                `posterior` refuses.

        Source:
            Tugnait (1982); Ghahramani and Hinton (2000).
        """
        check_histories(self, num_histories)
        record = record_of(self, ts, ys, mask, unit)
        # Its covariances would lose a small noise beside a wide initial law in float32.
        with jax.enable_x64(True):  # noqa: FBT003
            wide, series = cast((self, one_of(record.series)), jnp.float64)
            found = filtered(wide.models, wide.generator, series, num_histories)
        found = cast(found, self.log_rates.dtype)
        return Regimes(*found, self.names, record, self)  # pyright: ignore


class Regimes(NamedTuple):
    """Regimes of one series.

    Attributes:
        log_evidence: `log p(y)` in nats, a lower bound where histories were left out.
        filtered: The probability of each regime at each time given what was seen until
            then, shape `(obs, regimes)`.
        smoothed: The same given all.
        dropped: The share of probability left out at each time, shape `(obs,)`.
        means: Each history's mean of the last state, shape `(histories, state)`.
        covariances: Its covariance, shape `(histories, state, state)`.
        log_weights: Its log-probability, shape `(histories,)`.
        last: Its last regime, shape `(histories,)`.
        names: The names of the regimes.
        record: The series, and how answers return to the user's times and names.
        model: The regimes' models and rates.
    """

    log_evidence: Float[Array, ""]
    filtered: Float[Array, "obs regimes"]
    smoothed: Float[Array, "obs regimes"]
    dropped: Float[Array, " obs"]
    means: Float[Array, "histories state"]
    covariances: Float[Array, "histories state state"]
    log_weights: Float[Array, " histories"]
    last: Array
    names: tuple[str, ...]
    record: Record
    model: Switching

    def to_pandas(self) -> Any:
        """Return the smoothed probabilities as a frame on the record's own index.

        Returns:
            A `pandas.DataFrame`, a column for each regime.

        Raises:
            ImportError: Without pandas, with the command to install it.
        """
        ts = self.record.asked(None, self.record.series.ts)[0]
        labels = self.record.labels
        columns = {n: self.smoothed[:, i : i + 1] for i, n in enumerate(self.names)}
        labels = Labels(None, labels.name, labels.zone, labels.unit, labels.period)
        return labels.table(ts, columns)

    def forecast(
        self,
        times: ArrayLike,
        *,
        key: PRNGKeyArray,
        num_paths: int = 1_000,
        levels: tuple[float, ...] = (0.05, 0.25, 0.5, 0.75, 0.95),
    ) -> Bands:
        """Return quantiles of what will be observed, regimes to come drawn as well.

        Arguments:
            times: Sorted, at or after the last time, shape `(times,)`.
            key: A random key.
            num_paths: How many whole records are drawn.
            levels: Probabilities of the quantiles, in (0, 1).

        Returns:
            Mean, quantiles and whole records.

        Raises:
            ValueError: For times that are not sorted, or before the last, `levels`
                that are no probabilities, and no paths.
            TypeError: For an object that is no key, and `levels` that are no tuple.
        """
        check_levels(levels)
        self.record.keys(key, num_paths)
        self.record.check_later(times, np.asarray(self.record.series.ts)[:, -1])
        rows = self.record.rows(times)[0]
        if np.any(np.diff(rows) < 0):
            raise ValueError("`times` must be sorted.")
        gaps = np.diff(
            np.concatenate([np.asarray(self.record.series.ts)[0, -1:], rows])
        )
        state = (self.means, self.covariances, self.log_weights, self.last)
        dtype = self.means.dtype
        samples = drawn(
            self.model.models,
            self.model.generator,
            state,
            jnp.asarray(gaps, dtype),
            num_paths,
            key,
        )
        quantiles = jnp.quantile(samples, jnp.asarray(levels, dtype), axis=0)
        ts = self.record.asked(times, jnp.asarray(rows, dtype)[None])[0]
        ess = jnp.full(len(rows), float(num_paths))
        labels = self.record.labels
        return Bands(
            ts, samples.mean(0), tuple(levels), quantiles, samples, ess, labels
        )


def _check_regime(name: str, model: LatentSDE) -> None:
    """Raise `ValueError` for a model whose law is not the same at all times."""
    if not model.linear.time_invariant:
        raise ValueError(
            f"the model of {name!r} varies with time: pass one of constant "
            "coefficients, such as a `LinearSDE`."
        )
    if model.t0 is not None:
        raise ValueError(
            f"the model of {name!r} has `t0` {model.t0}: leave it out. The law of "
            "`linear.initial` is that at the first time of the record."
        )


def check_histories(model: Switching, num: int) -> None:
    """Raise `ValueError` for fewer histories than regimes."""
    check_count("num_histories", num)
    if num < len(model.names):
        raise ValueError(
            f"`num_histories` is {num}: pass at least {len(model.names)}, one for each "
            "regime."
        )


def record_of(model: Switching, ts: Any, ys: Any, mask: Any, unit: str) -> Record:
    """Return the record, checked as `posterior` does; one series alone."""
    record = recorded(model.models[0], ts, ys, mask, None, None, dt=None, unit=unit)[1]
    if not record.single:
        raise ValueError("`ts` has a leading axis of series: pass one series.")
    return record


def one_of(series: Series) -> Series:
    """Return the one series of a batch."""
    return jax.tree.map(lambda x: jnp.asarray(x[0]), series)
