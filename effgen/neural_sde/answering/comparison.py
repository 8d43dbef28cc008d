"""Models compared by how well they predict what they were not fitted to."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float, PRNGKeyArray

from effgen.core.outcome.extras import needed
from effgen.neural_sde.data.clock import as_times
from effgen.neural_sde.data.frames import labels_of
from effgen.neural_sde.modeling.model import LatentSDE

from .posteriors import posterior


class Comparison(NamedTuple):
    """Held-out log scores, the best model first.

    Attributes:
        names: The models' names.
        log_scores: Sums of one-step-ahead log-densities, shape `(models,)`, in nats.
        behind: How far below the first, shape `(models,)`, in nats.
        standard_errors: Of `behind`. A difference of less than two of them says little.
        scores: At each held-out time, those of series one after the other, shape
            `(models, held_out)`.
    """

    names: tuple[str, ...]
    log_scores: Float[np.ndarray, " models"]
    behind: Float[np.ndarray, " models"]
    standard_errors: Float[np.ndarray, " models"]
    scores: Float[np.ndarray, "models held_out"]

    def to_pandas(self) -> Any:
        """Return the comparison as a frame, a row for each model.

        Returns:
            A `pandas.DataFrame`.

        Raises:
            ImportError: Without pandas, with the command to install it.
        """
        pd = needed("pandas", by="Comparison.to_pandas()", extra="plots")
        columns = ("log_scores", "behind", "standard_errors")
        return pd.DataFrame(
            {name: getattr(self, name) for name in columns}, index=list(self.names)
        )


def compare(
    models: Mapping[str, LatentSDE],
    ts: ArrayLike,
    ys: ArrayLike,
    mask: ArrayLike | None = None,
    inputs: ArrayLike | None = None,
    *,
    since: Any,
    key: PRNGKeyArray | None = None,
    num_paths: int = 1_000,
    unit: str = "s",
) -> Comparison:
    """Compare models by their log scores of the times from `since` on.

        log_score = sum over times t >= since of log p(y_t | y before t)

    Each prediction uses all values before its time. Fit the parameters on times before
    `since` alone. The error of a difference is from the differences time by time, which
    may be dependent.

    Arguments:
        models: Models by name.
        ts: All times of the record, shape `(obs,)` or `(series, obs)`.
        ys: Values, shape `(obs,)` or `(obs, *shape)`, a batch's with an axis before.
        mask: Where there is a value, of the shape of `ts` or `ys`. NaN are missing too.
        inputs: Held from each time to the next, shape `(obs, inputs)`.
        since: The first time held out, a number or a date, as `ts` are.
        key: A random key for the filters of nonlinear models, by default
            `jax.random.key(0)`.
        num_paths: How many particles these filters have.
        unit: The unit in which the models count dates, one of NumPy's.

    Returns:
        Scores of all models, the best first.

    Raises:
        ValueError: For no model, or fewer than two held-out times with values.
        TypeError: For models without names, and a `since` that is no time of the
            record's kind.

    Source:
        Gneiting and Raftery (2007); of the error, Diebold and Mariano (1995), with the
        weights of Newey and West (1987).
    """
    if not isinstance(models, Mapping):
        raise TypeError('`models` have no names: pass {"linear": model, ...}.')
    if since is None:
        raise TypeError("`since` is None: pass the first time that is held out.")
    if not models:
        raise ValueError("`models` is empty: pass at least one.")
    scores, zone = [], labels_of(ts, ys).zone
    for model in models.values():
        found = posterior(model, ts, ys, mask, inputs, unit=unit)
        told = found.predictions(key=key, num_paths=num_paths)
        seen = np.asarray(found.series.seen)
        kept = _held_out(np.asarray(told.ts), since, seen, zone)
        scores.append(np.asarray(told.scores, np.float64).reshape(kept.shape)[kept])
    table = np.stack(scores)
    if table.shape[1] < 2:
        raise ValueError(
            f"fewer than two times with values are from `since`, {since}, on: hold "
            "out more of the record."
        )
    totals = table.sum(1)
    order = np.argsort(-totals, kind="stable")
    table = table[order]
    apart = table[0] - table
    errors = np.array([_error_of_sum(row) for row in apart])
    names = tuple(list(models)[i] for i in order)
    return Comparison(names, totals[order], apart.sum(1), errors, table)


def _held_out(ts: np.ndarray, since: Any, seen: np.ndarray, zone: Any) -> np.ndarray:
    """Return where times from `since` on have values, the first of equal times."""
    ts = np.atleast_2d(ts)
    later = ts >= _as_time(since, ts, zone)
    new = np.concatenate([np.ones((len(ts), 1), bool), ts[:, 1:] != ts[:, :-1]], axis=1)
    # Of equal times the first has the score of all.
    groups = np.cumsum(new, axis=1)
    any_seen = np.stack(
        [np.isin(row, row[there]) for row, there in zip(groups, seen, strict=True)]
    )
    return later & new & any_seen


def _as_time(since: Any, ts: np.ndarray, zone: Any) -> np.ndarray:
    """Return the first time that is held out, in the form of the record's times.

    Raises:
        TypeError: For a number where the record has dates, or a date without a time
            zone where the record has one, or the converse.
    """
    aware = getattr(since, "tzinfo", None) is not None
    if aware != (zone is not None):
        lack, has = ("no", "one") if zone is not None else ("a", "none")
        raise TypeError(
            f"`since` has {lack} time zone and the record has {has}: pass a pandas "
            "`Timestamp` such as those of the record."
        )
    found = as_times(since)
    dates = found.dtype.kind in "MSU", ts.dtype.kind == "M"
    if dates[0] != dates[1]:
        kinds = ["a date" if date else "a number" for date in dates]
        raise TypeError(
            f"`since` is {kinds[0]}, {since!r}, and the record's times are not: pass "
            f"{kinds[1]}."
        )
    # In a unit of its own, so that no part of a day is cut off.
    return found.astype("datetime64") if found.dtype.kind in "SU" else found


def _error_of_sum(values: np.ndarray) -> float:
    """Return the standard error of a sum of dependent terms, by Bartlett's weights."""
    num = len(values)
    centered = values - values.mean()
    lags = int(4 * (num / 100) ** (2 / 9))
    variance = centered @ centered
    for lag in range(1, min(lags, num - 1) + 1):
        weight = 1 - lag / (lags + 1)
        variance += 2 * weight * (centered[lag:] @ centered[:-lag])
    return float(np.sqrt(max(variance, 0) * num / (num - 1)))
