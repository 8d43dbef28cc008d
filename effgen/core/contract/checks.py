"""What a step may return: the state it was given, one step on, and its metrics."""

import dataclasses
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from effgen.core.outcome.results import RESULTS

from .state import Metrics, TrainState, is_key, named_arrays
from .static import Static


# What trainers report of a batch itself.
_OF_DATA = (
    RESULTS.too_many_steps,
    RESULTS.times_out_of_order,
    RESULTS.documents_differ,
    RESULTS.document_missing,
    RESULTS.data_outside,
)


def counted_state(old: TrainState, new: Any) -> TrainState:
    """Return `new` one step after `old`, whatever the step made of the count.

    Raises:
        TypeError: If `new` is no state.
    """
    if not isinstance(new, TrainState):
        raise TypeError(
            f"`step` returned a {type(new).__name__} where the new `TrainState` should "
            "be: return `state.advance(model, opt_state, memory), metrics`."
        )
    return TrainState(new.model, new.opt_state, new.memory, old.step + 1)


def check_tree(old: TrainState, new: TrainState) -> None:
    """Raise `ValueError`, naming what differs, if `new` is another tree than `old`.

    A compiled loop would silently swap its arrays, or drop what changed.
    """
    faults = _differences("state", old, new)
    if not faults and Static(old) != Static(new):
        faults = ["a static part of the state changed"]
    if faults:
        raise ValueError(
            "`step` must return a state with the arrays it was given, in the same "
            "tree, but "
            + "; ".join(faults[:6])
            + ". Cast, reshape or reorder them back, and "
            "give `init` a complete first state; what is not an array cannot change."
        )


def checked_metrics(metrics: Any) -> Metrics:
    """Return `metrics`, or raise `TypeError` where they are not a dict of numbers."""
    if not isinstance(metrics, dict):
        raise TypeError(
            f"`step` returned metrics that are a {type(metrics).__name__}: return a "
            'dict of arrays, such as {"loss": loss}.'
        )
    for name in ("loss", "grad_norm"):
        if name in metrics and not eqx.is_array_like(metrics[name]):
            raise TypeError(
                f"metrics[{name!r}] is a {type(metrics[name]).__name__}: the name is "
                "for one array, which the core watches."
            )
    named = {k: v for k, v in metrics.items() if k != "result"}
    for path, leaf in jax.tree_util.tree_flatten_with_path(named)[0]:
        numbers = eqx.is_array_like(leaf) and not (eqx.is_array(leaf) and is_key(leaf))
        if not numbers:
            raise TypeError(
                f"metrics{jax.tree_util.keystr(path)} is a "
                f"{getattr(leaf, 'dtype', type(leaf).__name__)}: report numbers."
            )
    if not isinstance(metrics.get("result", RESULTS.successful), RESULTS):
        raise TypeError(
            f'metrics["result"] is a {type(metrics["result"]).__name__}: the name is '
            "reserved for an item of `effgen.RESULTS`."
        )
    return metrics


def watched_finite(metrics: Metrics) -> Bool[Array, ""]:
    """Return whether the loss and the gradient's norm are finite, where reported."""
    finite = jnp.ones((), bool)
    for name in ("loss", "grad_norm"):
        if name in metrics:
            finite &= jnp.isfinite(metrics[name]).all()
    return finite


def result_code(metrics: Metrics) -> Int[Array, ""]:
    """Return the code of the step's result: `nonfinite` if loss or gradient are not.

    A fault of the batch, where the trainer names one, is why they are not.
    """
    finite = watched_finite(metrics)
    reported = metrics.get("result", RESULTS.successful)
    explained = jnp.zeros((), bool)
    for fault in _OF_DATA:
        explained |= reported == fault
    result = RESULTS.where(finite | explained, reported, RESULTS.nonfinite)
    (value,) = jax.tree.leaves(result)
    return jnp.asarray(value, jnp.int32)


def _differences(path: str, old: Any, new: Any) -> list[str]:
    """Return what is not the same in two trees, arrays by shape and dtype."""
    if eqx.is_array(old) and eqx.is_array(new):
        kinds = _kind(old), _kind(new)
        return [] if kinds[0] == kinds[1] else [f"{path}: {kinds[0]} became {kinds[1]}"]
    if type(old) is not type(new):
        return _missing(path, old, new)
    if isinstance(old, eqx.Module):
        names = [field.name for field in dataclasses.fields(old)]
        pairs = [(f"{path}.{n}", vars(old).get(n), vars(new).get(n)) for n in names]
        return _joined(pairs)
    if isinstance(old, dict) and _keys(old) != _keys(new):
        return [f"{path}: the keys {_keys(old)} became {_keys(new)}"]
    if isinstance(old, dict):
        return _joined((f"{path}[{k!r}]", old[k], new[k]) for k in old)
    if isinstance(old, tuple | list):
        return _items(path, old, new)
    same = old is new or Static(old) == Static(new)
    return [] if same else [f"{path}: {old!r} became {new!r}"]


def _keys(mapping: dict[Any, Any]) -> list[Any]:
    # JAX sorts the keys of a dict, and keeps those of an ordered one in their order.
    keys = list(mapping)
    return keys if isinstance(mapping, OrderedDict) else sorted(keys, key=repr)


def _items(path: str, old: Any, new: Any) -> list[str]:
    if len(old) != len(new):
        return [f"{path}: {len(old)} items became {len(new)}"]
    names = [f".{n}" for n in getattr(old, "_fields", ())]
    names = names or [f"[{i}]" for i in range(len(old))]
    pairs = zip(names, old, new, strict=True)
    return _joined((path + name, a, b) for name, a, b in pairs)


def _joined(pairs: Iterable[tuple[str, Any, Any]]) -> list[str]:
    return [fault for pair in pairs for fault in _differences(*pair)]


def _missing(path: str, old: Any, new: Any) -> list[str]:
    """Return the arrays of two trees of other types that only one of them has."""
    named = [named_arrays(old), named_arrays(new)]
    faults = [
        f"{path}{name}: {_kind(named[0].get(name))} became {_kind(named[1].get(name))}"
        for name in {**named[0], **named[1]}
        if _kind(named[0].get(name)) != _kind(named[1].get(name))
    ]
    return faults or [f"{path}: a {type(old).__name__} became a {type(new).__name__}"]


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if not eqx.is_array(value):
        return repr(value)
    return f"{value.dtype}{list(value.shape)}"
