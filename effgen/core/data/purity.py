"""A check that a function of a key depends on its key alone."""

import re
import weakref
from types import FunctionType
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex


# Functions that were traced and found to depend on their key alone.
_known: "weakref.WeakSet[FunctionType]" = weakref.WeakSet()


def check_pure(draw: Any) -> None:
    """Raise `ValueError` for a function whose batch does not depend on its key alone.

    The function is traced once for all steps. A number that NumPy's generator draws
    during the trace would be in the batch of every step.
    """
    if not isinstance(draw, FunctionType) or draw in _known:
        return
    try:
        one, other = _traced(draw), _traced(draw)
        # Some traces count themselves: what counts then is what is drawn.
        same = _alike(one, other) or _all_equal(_drawn(one), _drawn(other))
    except Exception:
        return  # the run traces it too, and raises what is wrong
    if not same:
        raise ValueError(
            "`data` is a function that gives other batches for the same key, as by "
            "NumPy's random numbers. It is traced once, so every step would have the "
            "numbers of the first batch. Draw by the key, such as "
            "`jax.random.choice(key, ...)`, or pass an iterable of batches."
        )
    _known.add(draw)


def _traced(draw: Any) -> Any:
    # A function of its own, for JAX remembers what it has traced.
    return jax.make_jaxpr(lambda key: draw(key))(jax.random.key(0))


def _drawn(traced: Any) -> list[Any]:
    return jex.jaxpr_as_fun(traced)(jax.random.key(0))


def _alike(one: Any, other: Any) -> bool:
    return _text(one) == _text(other) and _all_equal(one.consts, other.consts)


def _text(traced: Any) -> str:
    return re.sub("0x[0-9a-f]+", "", str(traced.jaxpr))  # without addresses


def _all_equal(ours: list[Any], theirs: list[Any]) -> bool:
    return len(ours) == len(theirs) and all(map(_equal, ours, theirs))


def _equal(a: Any, b: Any) -> bool:
    same = a is b
    return same or np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True)
