"""Held-out evidence: the log-density, or the law, of what came later."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from effgen.core.weights import Estimate
from effgen.neural_sde.data.frames import as_doubles, check_aligned
from effgen.neural_sde.data.series import check_mask, check_no_dates, check_shapes
from effgen.neural_sde.modeling.model import LatentSDE

from .exact import exact_observations, is_exact
from .posteriors import Posterior, posterior


def held_out_evidence(
    model: LatentSDE,
    ts: ArrayLike,
    ys: ArrayLike,
    mask: ArrayLike | None = None,
    inputs: ArrayLike | None = None,
    *,
    since: float,
    key: PRNGKeyArray,
    num_paths: int = 1_000,
) -> Estimate:
    """Return `log p(ys from since on | ys before) = log Z(all) - log Z(before)`.

    Fit `model` to what is before `since` alone. A model that has fitted noise then has
    a lower value. It is exact for a linear model observed linearly. For others it is
    by twisted particle filters, and has their errors.

    Arguments:
        model: A `LatentSDE`, fitted or trained.
        ts: All times of one series, numbers, shape `(obs,)`.
        ys: All values, shape `(obs,)` or `(obs, *shape)`.
        mask: Where there is a value, of the shape of `ts` or `ys`. NaN are missing too.
        inputs: Held from each time to the next, shape `(obs, inputs)`: those from
            `since` on are known.
        since: The first time held out, a number.
        key: A random key, for models that are not exact.
        num_paths: How many particles these have.

    Returns:
        The log-density, in nats, with its standard error.

    Raises:
        ValueError: For a batch, dates, and where nothing is on one side of `since`.
        TypeError: For an object that is no model, and a `since` that is no number.
    """
    if not isinstance(model, LatentSDE):
        raise TypeError(f"`model` is a {type(model).__name__}: pass a `LatentSDE`.")
    if not isinstance(since, int | float | np.number):
        raise TypeError(f"`since` is {since!r}: pass a time as a number, as `ts` are.")
    check_aligned(ts, ys, "ys")
    ts, ys = np.asarray(ts), as_doubles(ys)
    if ts.ndim != 1 or ys.shape[:1] != ts.shape:
        raise ValueError(
            f"`ts` has shape {ts.shape} and `ys` {ys.shape}: pass one series."
        )
    check_no_dates(ts)
    over = lambda rows: rows.reshape(rows.shape + (1,) * (ys.ndim - rows.ndim))
    values = ys
    if mask is not None:
        check_shapes(ts, ys, np.asarray(mask), None)
        check_mask(np.asarray(mask))
        values = np.where(over(np.asarray(mask, bool)), ys, np.nan)
    there = np.isfinite(values)
    later = over(ts >= since) & there
    if not later.any() or not (there & ~later).any():
        raise ValueError(
            f"`since` is {since}: there must be values before it and from it on."
        )
    both = np.stack([values, np.where(later, np.nan, values)])
    twice = None if inputs is None else np.stack([np.asarray(inputs)] * 2)
    times = np.broadcast_to(ts, (2, len(ts)))
    found = posterior(model, times, both, inputs=twice)
    if is_exact(model):
        logs = found.log_evidence
        return Estimate(logs[0] - logs[1], jnp.zeros((), logs.dtype))
    logs, errors = found.smoother(key=key, num_paths=num_paths).evidence
    return Estimate(logs[0] - logs[1], jnp.sqrt(jnp.sum(errors**2)))


def observed_law(
    found: Posterior, times: ArrayLike
) -> tuple[Float[Array, "*times sensors"], Float[Array, "*times sensors"]]:
    """Return mean and variance of what a linear model shows at times, noise included.

    Arguments:
        found: The posterior of a model that is exact.
        times: As for `Posterior.paths`.
    """
    series, at = found.record.merged(times, None, found.model.t0)
    return found.record.out(exact_observations(found.model, series, at))


def evidence_until(
    model: LatentSDE,
    ts: np.ndarray,
    values: np.ndarray,
    ends: Sequence[int] | np.ndarray,
    *,
    key: PRNGKeyArray,
    num_paths: int = 500,
) -> Estimate:
    """Return `log p(y)` of the first rows of a record, for each of `ends`.

    Arguments:
        model: A `LatentSDE`.
        ts: Shape `(obs,)`.
        values: NaN where missing, shape `(obs, sensors)`.
        ends: How many rows, each time.
        key: A random key, for models that are not exact.
        num_paths: How many particles these have.

    Returns:
        In float64, with standard errors, which are zero where the evidence is exact.
    """
    rows = np.arange(len(values))[:, None]
    known = np.stack([np.where(rows < end, values, np.nan) for end in ends])
    found = posterior(model, np.broadcast_to(ts, known.shape[:2]), known)
    if is_exact(model):
        logs = np.asarray(found.log_evidence, np.float64)
        return Estimate(logs, np.zeros_like(logs))  # pyright: ignore[reportArgumentType]
    told = found.smoother(key=key, num_paths=num_paths).evidence
    return Estimate(*(np.asarray(x, np.float64) for x in told))  # pyright: ignore
