"""Natural gradient steps, by the Fisher matrix of a step's own samples."""

from numbers import Real
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from effgen.core.contract.counts import check_count
from effgen.ebm.contract.arguments import check_positive
from effgen.ebm.contract.energy import Energy, energies_at, slopes_along

from .example_gradients import gram


class Samples(NamedTuple):
    """What a step's gradient comes from.

    Attributes:
        model: The energy.
        batch: The data, shape `(batch, *shape)`.
        positions: Those of walkers, shape `(walkers, *shape)`.
        weights: The walkers', normalized to one, shape `(walkers,)`.
    """

    model: Energy
    batch: Float[Array, "batch *shape"]
    positions: Float[Array, "walkers *shape"]
    weights: Float[Array, " walkers"]


class MinSRState(NamedTuple):
    """The state of `minsr`.

    Attributes:
        num_steps: How many there were so far.
        direction: The last one.
    """

    num_steps: Int[Array, ""]
    direction: PyTree


class _Rows(NamedTuple):
    """Examples in two groups, data and walkers, with the share of each in its group."""

    positions: Float[Array, "rows *shape"]
    shares: Float[Array, " rows"]
    groups: Int[Array, " rows"]


def minsr(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    *,
    damping: float = 0.1,
    momentum: float = 0.9,
    num_samples: int = 256,
) -> optax.GradientTransformationExtraArgs:
    """Return an optimizer of energies that takes natural gradient steps.

        direction = (F + shift)^-1 (gradient + shift * momentum * direction)
        F = S' S,  shift = damping * trace(F) / rows

    Of all updates with the same cost in walkers (a trainer's `radius`), this one raises
    the likelihood the most. `S` has one row for each of `num_samples` data and
    `num_samples` walkers: the gradient of its energy, less its group's mean, over the
    square root of the rows. So `F` is the covariance of the energy's gradients, which
    is the samples' estimate of the Fisher matrix. The inverse is one of `S S'`, a
    matrix of `rows` by `rows` (`gram`). It costs a pass over the rows, forward and
    back, and `rows^3 / 3` multiplications.

    Use it with a `radius`. Without one the length of its steps is not bounded. A step's
    own samples underestimate its cost, so the walkers must be a `Reservoir` of two
    blocks or more. One block gives the gradient, and the next block to move gives the
    cost.

    Arguments:
        learning_rate: A number or a schedule, by which the direction is multiplied.
        damping: A share of `F`'s trace over the rows, above 0.
        momentum: In [0, 1); how much of the last direction is kept where the samples do
            not determine it.
        num_samples: How many of the data, and how many of the walkers; fewer, where
            there are fewer.

    Returns:
        An optax transformation. In training it raises `ValueError` where no other
            walkers tell what an update costs.

    Raises:
        ValueError: For settings out of range.

    Source:
        Chen and Heyl (2024) and Rende et al. (2024) for the inverse; Goldshlager,
        Abrahamsen and Lin (2024) for the momentum.
    """
    if not callable(learning_rate) and not isinstance(learning_rate, jax.Array):
        check_positive("learning_rate", learning_rate)
    check_positive("damping", damping)
    _check_momentum(momentum)
    check_count("num_samples", num_samples)

    def init(params: PyTree) -> MinSRState:
        return MinSRState(
            jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params)
        )

    def update(
        updates: PyTree,
        state: MinSRState,
        params: Any = None,
        *,
        samples: Samples | None = None,
        **extra: Any,  # optax passes on what other transformations ask for
    ) -> tuple[PyTree, MinSRState]:
        del params, extra
        if samples is None:
            raise ValueError(
                "`optim` is `ebm.minsr`, which uses a step's own walkers, so that "
                "others must measure the cost of its update: train by weighted walkers "
                "or PCD, with an `ebm.Reservoir` of two blocks or more."
            )
        rows = _rows(samples, num_samples, state.num_steps)
        last = jax.tree.map(lambda x: momentum * x, state.direction)
        direction = _solved(samples.model, rows, updates, last, damping)
        return direction, MinSRState(state.num_steps + 1, direction)

    first = optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore
    return optax.chain(first, optax.scale_by_learning_rate(learning_rate))


def _check_momentum(momentum: Any) -> None:
    if not isinstance(momentum, Real) or not 0 <= float(momentum) < 1:
        raise ValueError(f"`momentum` is {momentum!r}: pass a share below 1.")


def _rows(samples: Samples, num: int, count: Int[Array, ""]) -> _Rows:
    """Return data and walkers, evenly spaced: relatives sit side by side."""

    def chosen(num_there: int) -> Int[Array, " rows"]:
        stride = max(1, num_there // num)
        return jnp.arange(min(num, num_there)) * stride + count % stride

    data, walkers = chosen(len(samples.batch)), chosen(len(samples.positions))
    shares = samples.weights[walkers]
    total = jnp.sum(shares)
    shares = jnp.where(total > 0, shares / jnp.where(total > 0, total, 1), shares)
    equal = jnp.full(len(data), 1 / len(data), shares.dtype)
    return _Rows(
        jnp.concatenate([samples.batch[data], samples.positions[walkers]]),
        jnp.concatenate([equal, shares]),
        (jnp.arange(len(data) + len(walkers)) >= len(data)).astype(jnp.int32),
    )


def _solved(
    model: Energy, rows: _Rows, gradient: PyTree, last: PyTree, damping: float
) -> PyTree:
    """Return `(S' S + shift)^-1 (gradient + shift * last)`, by Woodbury's identity."""
    size = len(rows.shares)
    scale = jnp.sqrt(rows.shares / 2)
    inner = gram(model, rows.positions)
    inner = scale[:, None] * _centered(_centered(inner, rows).T, rows) * scale[None]
    # Below a few rounding errors of the largest eigenvalue there is no factor.
    least = 8 * jnp.finfo(inner.dtype).eps
    shift = (damping / size + least) * jnp.trace(inner) + jnp.finfo(inner.dtype).tiny
    # Each in its own precision, whatever that of the positions is.
    wanted = jax.tree.map(lambda g, x: (g + shift * x).astype(g.dtype), gradient, last)
    _, pushed = slopes_along(model, wanted, rows.positions)
    pushed = scale * _centered(pushed, rows)
    factor = jax.scipy.linalg.cho_factor(
        inner + shift * jnp.eye(size, dtype=inner.dtype)
    )
    solved = jax.scipy.linalg.cho_solve(factor, pushed)
    back = _pulled(model, rows.positions, _uncentered(scale * solved, rows))
    return jax.tree.map(
        lambda w, b, g: ((w - b) / shift).astype(g.dtype), wanted, back, gradient
    )


def _pulled(
    model: Energy,
    positions: Float[Array, "rows *shape"],
    weights: Float[Array, " rows"],
) -> PyTree:
    """Return the gradient of `sum(weights * energies)` in the parameters."""

    def weighted(model: Energy) -> Float[Array, ""]:
        return jnp.sum(weights * energies_at(model, positions))

    return eqx.filter_grad(weighted)(model)


def _centered(x: Float[Array, "rows ..."], rows: _Rows) -> Float[Array, "rows ..."]:
    """Return `x` less its group's mean, by shares."""
    shares = rows.shares.reshape(-1, *[1] * (x.ndim - 1))
    means = jax.ops.segment_sum(shares * x, rows.groups, 2)
    return x - means[rows.groups]


def _uncentered(x: Float[Array, " rows"], rows: _Rows) -> Float[Array, " rows"]:
    """Return the transpose of `_centered`, applied to `x`."""
    totals = jax.ops.segment_sum(x, rows.groups, 2)
    return x - rows.shares * totals[rows.groups]
