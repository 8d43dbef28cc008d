"""Baselines whose whole control is learned: in a scan, and through diffrax."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from effgen.core.contract.counts import check_count
from effgen.core.contract.keys import check_key
from effgen.neural_sde.data.grid import steps_needed
from effgen.neural_sde.data.rows import with_rows
from effgen.neural_sde.data.series import Series, as_series, check_times
from effgen.neural_sde.linear_sdes.gaussian import Gaussian
from effgen.neural_sde.linear_sdes.linear import num_brownian
from effgen.neural_sde.modeling.dynamics import AbstractLatentSDE
from effgen.neural_sde.modeling.plain_control import PlainControl

from .controlled import likelihood, simulated
from .objectives import AbstractObjective, Bound, grid_of, require_step


def _divergence(first: Gaussian, second: Gaussian) -> Float[Array, ""]:
    """Return `KL(first | second)` of Gaussians with square, regular roots."""
    if first is second:
        return jnp.zeros((), first.mean.dtype)
    solve = lambda b: jnp.linalg.solve(second.root, b)
    spread, away = solve(first.root), solve(second.mean - first.mean)
    logs = jnp.linalg.slogdet(second.root)[1] - jnp.linalg.slogdet(first.root)[1]
    return 0.5 * (jnp.sum(spread**2) + away @ away - away.shape[0]) + logs


def _log_density(law: Gaussian, x: Float[Array, "paths state"]) -> Array:
    """Return `log N(x)` up to the constant that all laws share."""
    white = jnp.linalg.solve(law.root, (x - law.mean[None]).T)
    return -0.5 * jnp.sum(white**2, axis=0) - jnp.linalg.slogdet(law.root)[1]


def _log_ratio(first: Gaussian, second: Gaussian, x: Array) -> Float[Array, " paths"]:
    if first is second:
        return jnp.zeros(x.shape[:1], x.dtype)
    return _log_density(first, x) - _log_density(second, x)


class PlainELBO(AbstractObjective):
    """The baseline: `model.control` learns the whole control; Euler's steps in a scan.

        elbo = E [sum log p(y | X) - sum |u|^2 dt / 2] - KL(q(x0) | p(x0))

    It raises `ValueError` for a model without a `control`, or with a `residual`.

    Source:
        Li, Wong, Chen and Duvenaud (2020), equation 10.
    """

    def __call__(
        self,
        model: AbstractLatentSDE,
        series: Series,
        *,
        num_steps: int,
        num_paths: int,
        parallel: bool,
        key: PRNGKeyArray,
    ) -> Bound:
        """Return the bound of one series.

        Arguments:
            model: The latent SDE, with a `dt`.
            series: One series, with `ts` of shape `(obs,)`.
            num_steps: The size of the grid: the most steps that a series may need.
            num_paths: The number of paths.
            parallel: Not used.
            key: A random key.

        Returns:
            The bound, estimated by `num_paths` paths, in nats.

        Raises:
            ValueError: For a model that has no `dt` yet, no `control`, or a `residual`.
        """
        plain, contexts = _plain(model, series)
        grid = grid_of(model, series, num_steps)
        prior = model.linear.initial
        initial = plain.initial(contexts[0], prior)

        def control(context, t, since, u, x, sigma):
            return plain(since, x, context, u)

        extras = contexts[jnp.minimum(grid.gap, len(series.ts) - 1)]
        paths = simulated(model, series, grid, control, extras, initial, num_paths, key)
        logs = _log_ratio(initial, prior, paths.first)
        values = paths.values - _divergence(initial, prior)
        weights = paths.values - paths.integral - logs
        return Bound(values, weights, jnp.zeros(()), grid.fits)


def _plain(model: AbstractLatentSDE, series: Series) -> tuple[PlainControl, Array]:
    plain = model.control
    if plain is None:
        raise ValueError(
            "this objective learns the whole control: give the model a "
            "`control=PlainControl(...)`."
        )
    if model.residual is not None:
        raise ValueError(
            "this objective learns the whole control and does not see the model's "
            "`residual`: use `AnchoredELBO`, or leave it out by "
            "`dataclasses.replace(model, residual=None)`."
        )
    size, wanted = plain.network.out_size, num_brownian(model.linear)
    if size != wanted:
        raise ValueError(
            f"`control` gives {size} numbers and the linear part's diffusion has "
            f"{wanted} columns: pass `PlainControl(..., num_brownian={wanted})`."
        )
    return plain, plain.contexts(series)


class DiffraxELBO(AbstractObjective):
    """The baseline through `diffrax.diffeqsolve`, with a virtual Brownian tree.

    The state has the control's cost beside `X`. Observations between steps are
    interpolated. It raises `ValueError` for a model without a `control`, or with a
    `residual`.

    Arguments:
        solver: diffrax's solver of SDEs in the sense of Itô.
        adjoint: diffrax's rule of differentiation.

    Source:
        Li, Wong, Chen and Duvenaud (2020), equation 10.
    """

    solver: diffrax.AbstractSolver = diffrax.Euler()
    adjoint: diffrax.AbstractAdjoint = diffrax.RecursiveCheckpointAdjoint()

    def __call__(
        self,
        model: AbstractLatentSDE,
        series: Series,
        *,
        num_steps: int,
        num_paths: int,
        parallel: bool,
        key: PRNGKeyArray,
    ) -> Bound:
        """Return the bound of one series, without log-weights of its paths.

        Arguments:
            model: The latent SDE, with a `dt` and a `control`.
            series: One series, with `ts` of shape `(obs,)`.
            num_steps: The solver takes at most `num_steps + 8` steps.
            num_paths: The number of paths.
            parallel: Not used.
            key: A random key.

        Returns:
            The bound, estimated by `num_paths` paths, in nats.

        Raises:
            ValueError: For a model that has no `dt` yet, no `control`, or a `residual`.
        """
        plain, contexts = _plain(model, series)
        prior = model.linear.initial
        initial = plain.initial(contexts[0], prior)
        keys = jax.random.split(key)
        x = initial.sample(num_paths, key=keys[0])
        solve = lambda x, key: _solved(
            self, model, series, plain, contexts, x, num_steps, key
        )
        positions, cost = jax.vmap(solve, out_axes=(1, 0))(
            x, jax.random.split(keys[1], num_paths)
        )
        values = likelihood(model, series, positions) - cost
        values = values - _divergence(initial, prior)
        return Bound(values, None, jnp.zeros(()), jnp.array(True))  # noqa: FBT003


def _solved(
    objective: DiffraxELBO,
    model: AbstractLatentSDE,
    series: Series,
    plain: PlainControl,
    contexts: Array,
    x: Array,
    num_steps: int,
    key: PRNGKeyArray,
) -> tuple[Array, Array]:
    first = series.ts[0] if model.t0 is None else jnp.asarray(model.t0, x.dtype)
    last = series.ts[-1]
    require_step(model)

    def drift(t: Any, state: tuple[Array, Array]) -> tuple[Array, Array]:
        x = state[0]
        at = jnp.minimum(
            jnp.searchsorted(series.ts, t, side="right"), len(contexts) - 1
        )
        sigma = model.prior_diffusion(t, x)
        inputs = (
            None if series.inputs is None else series.inputs[jnp.maximum(at - 1, 0)]
        )
        by = plain(t - series.ts[0], x, contexts[at], inputs)
        moved = model.prior_drift(t, x, inputs) + sigma @ by
        return moved, 0.5 * jnp.sum(by**2)

    def diffusion(t: Any, state: tuple[Array, Array]) -> lineax.MatrixLinearOperator:
        sigma = model.prior_diffusion(t, state[0])
        zero = jnp.zeros((1, sigma.shape[1]), x.dtype)
        return lineax.MatrixLinearOperator(jnp.concatenate([sigma, zero]))

    brownian = num_brownian(model.linear)
    tree = diffrax.VirtualBrownianTree(
        first, last, tol=model.dt / 2, shape=(brownian,), key=key
    )
    flat = lambda state: jnp.concatenate([state[0], state[1][None]])
    pair = lambda y: (y[:-1], y[-1])
    terms = diffrax.MultiTerm(
        diffrax.ODETerm(lambda t, y, args: flat(drift(t, pair(y)))),
        diffrax.ControlTerm(lambda t, y, args: diffusion(t, pair(y)), tree),
    )
    solution = diffrax.diffeqsolve(
        terms,
        objective.solver,
        t0=first,
        t1=last,
        dt0=model.dt,
        y0=jnp.concatenate([x, jnp.zeros(1, x.dtype)]),
        saveat=diffrax.SaveAt(ts=series.ts),
        adjoint=objective.adjoint,
        max_steps=num_steps + 8,
    )
    ys = solution.ys
    assert ys is not None
    return ys[:, :-1], ys[-1, -1]


def plain_paths(
    model: AbstractLatentSDE,
    series: Any,
    ts: Float[Array, " times"],
    *,
    num: int,
    key: PRNGKeyArray,
    inputs: ArrayLike | None = None,
) -> Float[Array, "num times state"]:
    """Draw paths of the learned control's posterior at `ts`, by Euler's steps.

    After the last observation the control is zero and paths are the prior's.

    Arguments:
        model: A trained model with a `control`.
        series: `(ts, ys, mask, inputs)` of one series, the last two optional.
        ts: The times at which paths are wanted, sorted, shape `(times,)`.
        num: The number of paths.
        key: A random key.
        inputs: Those from each of `ts` on after the last observation, shape `(times,
            inputs)`. By default the last known are held.

    Returns:
        The paths, shape `(num, times, state)`.

    Raises:
        ValueError: For a model without a `dt` or a `control`, or with a `residual`, a
            batch of series, `ts` that are not sorted or before its first, and inputs of
            another shape or of a series that has none.
        TypeError: If `key` is no random key.
    """
    require_step(model)
    check_key(key)
    check_count("num", num)
    series = as_series(series)
    rows = _rows(model, series, ts)
    many = jax.tree.map(lambda x: x[None], series)
    if inputs is not None and series.inputs is None:
        raise ValueError("`inputs` are given and the series has none.")
    merged, index = with_rows(many, rows[None], inputs)
    steps = steps_needed(np.asarray(merged.ts), dt=model.dt, t0=model.t0)
    merged, index = jax.tree.map(lambda x: jnp.asarray(x[0]), (merged, index))
    return _plain_paths(model, series, merged, index, steps, num, key)


def _rows(model: AbstractLatentSDE, series: Series, ts: ArrayLike) -> np.ndarray:
    """Return times asked for, in the record's precision."""
    known = np.asarray(series.ts)
    if known.ndim != 1:
        raise ValueError(f"`series` has times of shape {known.shape}: pass one series.")
    check_times(known, model.t0)
    rows = np.asarray(ts).astype(known.dtype)
    first = known[0] if model.t0 is None else model.t0
    sound = rows.ndim == 1 and len(rows) and np.all(np.isfinite(rows))
    if not sound or np.any(np.diff(rows) < 0) or rows[0] < first:
        raise ValueError(
            "`ts` must be finite, sorted, and not before the first time of the series."
        )
    return rows


@eqx.filter_jit
def _plain_paths(
    model: AbstractLatentSDE,
    series: Series,
    merged: Series,
    index: Array,
    steps: int,
    num: int,
    key: Array,
) -> Array:
    """Draw paths at all times of `merged`; return those that `index` names."""
    plain, contexts = _plain(model, series)
    grid = grid_of(model, merged, steps)
    at = jnp.searchsorted(jnp.asarray(series.ts), grid.starts, side="right")
    last = jnp.max(jnp.where(series.seen, series.ts, -jnp.inf))

    def control(extra, t, since, u, x, sigma):
        return jnp.where(t < last, plain(since, x, extra, u), 0)

    found = simulated(
        model,
        merged,
        grid,
        control,
        contexts[jnp.minimum(at, len(series.ts) - 1)],
        plain.initial(contexts[0], model.linear.initial),
        num,
        key,
    )
    return jnp.moveaxis(found.positions[index], 0, 1)
