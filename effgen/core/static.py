"""Equality of a program's static half, so that equal trainers compile once."""

import functools
import types
from typing import Any

import equinox as eqx
import jax
import numpy as np


# Libraries whose functions are compared by code and closure. `optax.adam(1e-3)` makes
# new functions at every call; they are equal if their code and the values they close
# over are. A user's own functions stay equal to themselves alone: they may read globals
# that change (a notebook cell that is run again), which no comparison here would see.
_LIBRARIES = {"optax", "equinox", "jax", "diffrax", "lineax", "blackjax", "effgen"}


class Static:
    """The non-array half of a pytree, hashable, equal by value where that is safe.

    Two are equal if they would trace to the same program.
    """

    __slots__ = ("_arrays", "_hash", "_key", "_rest")

    def __init__(self, tree: Any) -> None:
        """Keep all of `tree` but its arrays; the comparison key is made once."""
        arrays, self._rest = eqx.partition(tree, eqx.is_array)
        self._arrays = jax.tree.structure(arrays)
        leaves, structure = jax.tree.flatten(self._rest)
        self._key = (self._arrays, structure, tuple(map(_reduced, leaves)))
        self._hash = hash(self._key)

    def combine(self, arrays: Any) -> Any:
        """Return the pytree with `arrays`, in order, where its arrays were."""
        return eqx.combine(jax.tree.unflatten(self._arrays, arrays), self._rest)

    def __hash__(self) -> int:
        """Return the hash of the key."""
        return self._hash

    def __eq__(self, other: object) -> bool:
        """Return whether the two halves are equal."""
        return self is other or (isinstance(other, Static) and self._key == other._key)


def arrays_of(tree: Any) -> tuple[jax.Array, ...]:
    """Return the arrays of `tree`, in the order that `Static.combine` takes them."""
    return tuple(jax.tree.leaves(eqx.filter(tree, eqx.is_array)))


def _reduced(value: Any) -> Any:
    if isinstance(value, types.FunctionType):
        return _function(value)
    if isinstance(value, types.MethodType | functools.partial):
        return _bound(value)
    if isinstance(value, dict):
        return ("dict", tuple((k, _reduced(v)) for k, v in sorted(value.items())))
    if isinstance(value, tuple | list):
        return (type(value), tuple(map(_reduced, value)))
    if isinstance(value, eqx.Module):
        return (Static(value), *map(_reduced, arrays_of(value)))
    if isinstance(value, np.ndarray):
        return ("array", value.shape, value.dtype.str, value.tobytes())
    return _plain(value)


def _bound(value: Any) -> Any:
    if isinstance(value, types.MethodType):
        return ("method", _reduced(value.__func__), _reduced(value.__self__))
    return ("partial", *map(_reduced, (value.func, value.args, value.keywords)))


def _function(function: types.FunctionType) -> Any:
    if _library(function) not in _LIBRARIES:
        return _Identity(function)
    cells = tuple(_cell(cell, function) for cell in function.__closure__ or ())
    defaults = _reduced(function.__defaults__), _reduced(function.__kwdefaults__)
    return ("function", function.__code__, defaults, cells)


def _library(definition: Any) -> str:
    return (definition.__module__ or "").partition(".")[0]


def _cell(cell: Any, owner: types.FunctionType) -> Any:
    try:
        contents = cell.cell_contents
    except ValueError:
        return "empty"
    return "itself" if contents is owner else _reduced(contents)


def _plain(value: Any) -> Any:
    if _library(type(value)) == "optax" and hasattr(value, "__dict__"):
        return (type(value), _reduced(vars(value)))  # optax.MultiSteps and its kin
    try:
        hash(value)
    except TypeError:
        return _Identity(value)
    return (type(value), value)  # the type tells 1 from 1.0 and True


class _Identity:
    """An object equal to itself alone, kept alive so that its id is not used again."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.value is other.value
