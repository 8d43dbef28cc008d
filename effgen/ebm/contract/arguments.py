"""What arguments must be: settings in range, energies, rows of numbers."""

from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from effgen.core.contract.keys import check_key
from effgen.core.contract.masked import check_unmasked


def check_share(name: str, value: Any) -> None:
    """Raise `ValueError` unless `0 < value < 1`."""
    if not _is_number(value) or not 0 < value < 1:
        raise ValueError(f"`{name}` is {value!r}: pass a share between 0 and 1.")


def check_positive(name: str, value: Any) -> None:
    """Raise `ValueError` unless `value` is one finite number above 0."""
    if not _is_number(value) or not 0 < float(value) < float("inf"):
        raise ValueError(f"`{name}` is {value!r}: pass a positive number.")


def check_box(low: Any, high: Any) -> None:
    """Raise `ValueError` unless `low < high`, both one finite number."""
    numbers = all(
        np.ndim(x) == 0 and np.asarray(x).dtype.kind in "iuf" for x in (low, high)
    )
    if not (numbers and -np.inf < float(low) < float(high) < np.inf):
        raise ValueError(
            f"`low` is {low} and `high` {high}: pass two finite numbers, the lower "
            "one first; they are the walls of every coordinate."
        )


def as_walls(walls: Any) -> tuple[float, float]:
    """Return the walls of a box, two numbers, the lower one first.

    Raises:
        ValueError: For values that are not two such numbers.
    """
    if not isinstance(walls, Sequence) or len(walls) != 2:
        raise ValueError(f"`walls` is {walls!r}: pass `(low, high)`.")
    low, high = walls
    check_box(low, high)
    return float(low), float(high)


def check_logits(name: str, logits: Any) -> None:
    """Raise `ValueError` for infinite logits, which are those of shares of 0 or 1."""
    if isinstance(logits, Tracer):
        return
    with jax.ensure_compile_time_eval():  # constants may be met under a trace
        finite = bool(jnp.isfinite(logits).all())
    if not finite:
        raise ValueError(
            f"`{name}` has NaN or infinite values: clip the shares that they are of, "
            "as in `jax.scipy.special.logit(jnp.clip(x.mean(0), 0.01, 0.99))`."
        )


def check_penalty(value: Any) -> None:
    """Raise `ValueError` unless it is a number, 0 or more."""
    if not _is_number(value) or not 0 <= float(value) < float("inf"):
        raise ValueError(f"`penalty` is {value!r}: pass a number of 0 or more.")


def check_draw(key: Any, num: Any, shape: Any) -> None:
    """Raise for an invalid key, fewer than 2 walkers, or an invalid shape of one."""
    check_key(key)
    if not isinstance(num, Integral) or num < 2:
        raise ValueError(f"`num` is {num!r}: weights need at least 2 walkers.")
    check_shape(shape)


def check_shape(shape: Any) -> None:
    """Raise `TypeError` or `ValueError` for an invalid shape of an example."""
    whole = isinstance(shape, Iterable) and all(isinstance(n, Integral) for n in shape)
    if not whole or isinstance(shape, str | bytes):
        raise TypeError(
            f"`shape` is {shape!r}: pass that of one example, as in `x.shape[1:]`."
        )
    if any(n < 1 for n in shape):
        raise ValueError(f"`shape` is {tuple(shape)}: every axis has 1 or more.")


def check_channels(channels: Any) -> None:
    """Raise `ValueError` unless they are positive integers, one or more."""
    whole = isinstance(channels, Sequence) and all(
        isinstance(n, Integral) and int(n) > 0 for n in channels
    )
    if not whole or not channels:
        raise ValueError(
            f"`channels` is {channels!r}: pass positive integers, such as `(16, 32)`."
        )


def as_shape(shape: Any) -> tuple[int, ...]:
    """Return the shape of an example as a tuple.

    Raises:
        TypeError: For an object that is no shape.
        ValueError: For an axis of 0 entries.
    """
    check_shape(shape)
    return tuple(int(n) for n in shape)


def check_energy(name: str, value: Any) -> None:
    """Raise `TypeError` for what cannot be called."""
    if not callable(value) or isinstance(value, type):
        raise TypeError(
            f"`{name}` is {value!r}: pass a function or a module from an example to "
            "its energy, such as `ebm.mlp_energy(shape, key=key)`."
        )


def check_energies_in(models: Any) -> None:
    """Raise `TypeError` for an object that is no sequence of energies.

    Those of a list are looked at; others when they are drawn.
    """
    if not isinstance(models, Iterable) or isinstance(models, str | bytes):
        raise TypeError(
            f"`models` is a {type(models).__name__}: pass several, such as "
            "`[start, model]`, the first of a known `log Z`."
        )
    if isinstance(models, Sequence):
        for i, model in enumerate(models):
            check_energy(f"models[{i}]", model)


def as_rows(name: str, rows: Any) -> Float[Array, "rows *shape"]:
    """Return `rows`, an array, a list or a frame, as an array of floats.

    They have 32 bits or more. With fewer, energies would be off by tenths of nats.

    Raises:
        TypeError: For an object that is no array of numbers.
    """
    values = rows if isinstance(rows, jax.Array) else as_numbers(name, rows)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        values = values.astype(jnp.result_type(float))
    if jnp.finfo(values.dtype).bits < 32:
        values = values.astype(jnp.float32)
    return jnp.asarray(values)


def check_finite(name: str, values: Any) -> None:
    """Raise `ValueError` for rows with values that are NaN or infinite."""
    if isinstance(values, Tracer) or not values.size:
        return
    with jax.ensure_compile_time_eval():  # constants may be met under a trace
        good = jnp.isfinite(values.reshape(len(values), -1)).all(axis=1)
        bad, first = int(jnp.sum(~good)), int(jnp.argmin(good))
    if bad:
        raise ValueError(
            f"`{name}` has NaN or infinite values in {bad} of {len(values)} rows (row "
            f"{first} first): drop or fill them."
        )


def as_numbers(name: str, rows: Any) -> np.ndarray:
    """Return `rows` as numpy's array, in their own precision.

    Raises:
        TypeError: For an object that is no array of numbers.
    """
    check_unmasked(name, rows)
    try:
        values = np.asarray(rows)
    except ValueError:  # rows of unequal lengths
        values = np.empty((), object)
    if not np.issubdtype(values.dtype, np.number) and values.dtype != bool:
        raise TypeError(
            f"`{name}` is a {type(rows).__name__} that is no array of numbers: pass "
            "rows of floats, `(rows, *shape)`."
        )
    return values


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def traced(tree: Any) -> bool:
    """Return whether there are no numbers yet to look at."""
    return any(isinstance(x, Tracer) for x in jax.tree.leaves(tree))
