"""A neural drift that begins at a linear fit, and moves only what noise drives."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from effgen.neural_sde.answering.exact import is_exact
from effgen.neural_sde.answering.posteriors import posterior
from effgen.neural_sde.data.grid import usual_gap
from effgen.neural_sde.modeling.model import LatentSDE
from effgen.neural_sde.modeling.networks import residual_network, zero_at_first
from effgen.neural_sde.modeling.structure import Structure


class DrivenDrift(eqx.Module):
    """A neural drift beside a linear fit, zero at first, for `LatentSDE(drift=...)`.

        drift(t, x) = sigma v((x[sees] - center) / scale)

    `v` moves only the columns of the fit's noise, so it changes nothing that noise does
    not. It sees components in units of their own, and counts deviations of the noise of
    a usual gap. So a fit in other units of state or time is the same.

    Arguments:
        layers: The network `v`.
        sigma: The columns of the fit's noise that it moves, over the root of the
            record's usual gap, shape `(state, moves)`.
        center: What is taken off the components seen, shape `(sees,)`.
        scale: What these are divided by, shape `(sees,)`. `sigma`, `center` and `scale`
            are not trained.
        sees: The numbers of the components that it sees.
    """

    layers: eqx.nn.MLP
    sigma: Float[Array, "state moves"]
    center: Float[Array, " sees"]
    scale: Float[Array, " sees"]
    sees: tuple[int, ...] = eqx.field(static=True)

    def __call__(
        self, t: Float[Array, ""], x: Float[Array, " state"], u: Array | None = None
    ) -> Float[Array, " state"]:
        """Return the drift beside the linear one.

        Arguments:
            t: The time, which is not used.
            x: A state, shape `(state,)`.
            u: The inputs, which are not used.

        Returns:
            Shape `(state,)`, units of the state over the unit of time.
        """
        sigma, center, scale = jax.lax.stop_gradient(
            (self.sigma, self.center, self.scale)
        )
        seen = (x[jnp.asarray(self.sees)] - center) / scale
        return sigma @ self.layers(seen)


def with_network(
    model: LatentSDE,
    ts: ArrayLike,
    ys: ArrayLike,
    mask: ArrayLike | None = None,
    inputs: ArrayLike | None = None,
    *,
    key: PRNGKeyArray,
    unit: str = "s",
    sees: Sequence[str] | None = None,
    moves: Sequence[str] | None = None,
    width_size: int = 32,
    depth: int = 2,
) -> LatentSDE:
    """Return a linear fit with a neural drift beside it, and a neural control.

    Both are zero at first: training begins at the fit. Train it with
    `LatentSDETrainer`, by Adam at 5e-3 falling to zero over some hundred steps.

    Arguments:
        model: A linear fit, `fit_linear(...).model`.
        ts: The times of its record, numbers or dates, shape `(obs,)` or `(series,
            obs)`.
        ys: Values, shape `(obs,)` or `(obs, sensors)`, a batch's with an axis before.
        mask: Where there is a value, of the shape of `ts` or `ys`. NaN are missing too.
        inputs: Held from each time to the next, shape `(obs, inputs)`. The control
            sees them, and the drift does not.
        key: A random key.
        unit: The unit in which the model counts dates, one of NumPy's.
        sees: Names of the parts of its `Structure` that the network sees; `None`: all.
        moves: Names of the parts that it moves; `None`: all.
        width_size: The width of each hidden layer of both networks.
        depth: The number of hidden layers of both.

    Returns:
        The model with `drift` and `residual`.

    Raises:
        ValueError: For a model that is not linear, and names of none of its parts.
    """
    place = seen_and_moved(model, ts, ys, mask, inputs, unit, sees, moves)
    keys = jax.random.split(key)
    dtype = place.sigma.dtype
    drift = DrivenDrift(
        zero_at_first(
            len(place.sees), place.sigma.shape[1], width_size, depth, key=keys[0]
        ),
        place.sigma / np.sqrt(place.gap).astype(dtype),
        jnp.asarray(place.center, dtype),
        jnp.asarray(place.scale, dtype),
        place.sees,
    )
    residual = residual_network(
        model.linear,
        key=keys[1],
        width_size=width_size,
        depth=depth,
        num_inputs=0 if inputs is None else np.shape(inputs)[-1],
        gap=place.gap,
    )
    kept = tuple(f"drift.{name}" for name in ("sigma", "center", "scale"))
    return dataclasses.replace(
        model, drift=drift, residual=residual, frozen=(*model.frozen, *kept)
    )


class Place(NamedTuple):
    """What a drift sees and moves of a linear fit, and where the record has led it.

    Attributes:
        sees: Components.
        sigma: The noise's columns that are moved.
        center: Of the components seen.
        scale: Of the components seen.
        means: Of the linear posterior at each time until the last value.
        scales: Its standard deviations there.
        gap: The median time between observations.
    """

    sees: tuple[int, ...]
    sigma: Float[Array, "state moves"]
    center: np.ndarray
    scale: np.ndarray
    means: np.ndarray
    scales: np.ndarray
    gap: float


def seen_and_moved(
    model: LatentSDE,
    ts: ArrayLike,
    ys: ArrayLike,
    mask: ArrayLike | None,
    inputs: ArrayLike | None,
    unit: str,
    sees: Sequence[str] | None,
    moves: Sequence[str] | None,
) -> Place:
    """Return where a drift begins that is beside a linear fit.

    Raises:
        ValueError: For a model that is not linear, and names of none of its parts.
    """
    if not isinstance(model, LatentSDE) or not is_exact(model):
        raise ValueError("`model` must be linear and observed linearly: a linear fit.")
    seen, moved = (
        _components(model, n, x) for n, x in (("sees", sees), ("moves", moves))
    )
    found = posterior(model, ts, ys, mask, inputs, unit=unit)
    law = found.marginals()
    # Rows after the last value are a forecast: they say nothing of the record's spread.
    there = np.atleast_2d(found.series.seen)
    there = np.flip(np.maximum.accumulate(np.flip(there, axis=1), axis=1), axis=1)
    shape = (*there.shape, model.num_states)
    means, scales = (
        np.asarray(x, np.float64).reshape(shape)[there][:, seen]
        for x in (law.mean, law.scale)
    )
    spread = np.sqrt(means.var(0) + np.mean(scales**2, axis=0))
    sigma = model.linear.coefficients(jnp.zeros(())).diffusion
    columns = np.flatnonzero(np.any(np.asarray(sigma)[moved] != 0, axis=0))
    return Place(
        tuple(int(i) for i in seen),
        sigma[:, columns],
        means.mean(0),
        np.where(spread > 0, spread, 1.0),
        means,
        scales,
        usual_gap(found.series.ts),
    )


def _components(
    model: LatentSDE, argument: str, names: Sequence[str] | None
) -> np.ndarray:
    """Return the components of the parts that are named."""
    if names is None:
        return np.arange(model.num_states)
    slices = model.linear.slices if isinstance(model.linear, Structure) else {}
    unknown = [name for name in names if name not in slices]
    if isinstance(names, str) or unknown or not names:
        raise ValueError(
            f"`{argument}` is {names!r}: pass a list of names among {list(slices)}."
        )
    return np.concatenate([np.r_[slices[name]] for name in names])
