"""Equality of a program's static half, so that equal trainers compile once."""

import dataclasses
import dis
import functools
import types
import weakref
from collections.abc import Hashable
from typing import Any

import equinox as eqx
import jax
import numpy as np


# Libraries whose functions are compared by code and closure. `optax.adam(1e-3)` makes
# new functions at every call; they are equal if their code and the values they close
# over are. A user's own functions stay equal to themselves alone: they may read globals
# that change (a notebook cell that is run again), which no comparison here would see.
_LIBRARIES = {"optax", "equinox", "jax", "diffrax", "lineax", "blackjax", "effgen"}
_STANDARD = {"builtins", "collections", "functools", "jaxlib", "numpy", "types"}


class Static:
    """The non-array half of a pytree, hashable, equal by value where that is safe.

    Two are equal if they would trace to the same program. `key` is what is compared: it
    keeps none of the user's objects alive, of which `owned` lists those that count by
    identity.
    """

    __slots__ = ("_arrays", "_rest", "key", "owned")

    def __init__(self, tree: Any) -> None:
        """Keep all of `tree` but its arrays; the comparison key is made once."""
        arrays, self._rest = eqx.partition(tree, eqx.is_array)
        self._arrays = jax.tree.structure(arrays)
        self.owned: list[Any] = []
        self.key = _Hashed(_node(tree, self.owned))

    def combine(self, arrays: Any) -> Any:
        """Return the pytree with `arrays`, in order, where its arrays were."""
        return eqx.combine(jax.tree.unflatten(self._arrays, arrays), self._rest)

    def __hash__(self) -> int:
        """Return the hash of the key."""
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        """Return whether the two halves are equal."""
        return self is other or (isinstance(other, Static) and self.key == other.key)


def arrays_of(tree: Any) -> tuple[jax.Array, ...]:
    """Return the arrays of `tree`, in the order that `Static.combine` takes them."""
    return tuple(jax.tree.leaves(eqx.filter(tree, eqx.is_array)))


def settings() -> Hashable:
    """Return all that JAX's own settings say now: what they are, a trace depends on.

    The 64-bit mode, the random numbers, the precision of products, the default device;
    those of a `with` block in this thread too, and the mesh that is set.
    """
    values = [getattr(jax.config, name, None) for name in sorted(jax.config.values)]
    plain = [v if isinstance(v, Hashable) else repr(v) for v in values]
    return (*plain, jax.sharding.get_abstract_mesh())


class _Hashed:
    """A key whose hash is computed once."""

    __slots__ = ("hash", "value")

    def __init__(self, value: Any) -> None:
        self.value, self.hash = value, hash(value)

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashed) and self.value == other.value


def _node(value: Any, owned: list[Any]) -> Any:
    """Return the key of a pytree: an array is one whatever it holds."""
    if eqx.is_array(value):
        return "array"
    if isinstance(value, eqx.Module):
        fields = [(f, vars(value).get(f.name)) for f in dataclasses.fields(value)]
        static = [f.metadata.get("static", False) for f, _ in fields]
        keys = [
            (_reduced if s else _node)(x, owned) for s, (_, x) in zip(static, fields)
        ]
        return (_kind(type(value), owned), *keys)
    flat = jax.tree_util.default_registry.flatten_one_level(value)
    if flat is None or value is None:
        return _reduced(value, owned)
    children, rest = flat
    keys = [_node(child, owned) for child in children]
    return (_kind(type(value), owned), _reduced(rest, owned), *keys)


def _reduced(value: Any, owned: list[Any]) -> Any:
    """Return the key of a value that a trace takes as it is."""
    reduce = functools.partial(_reduced, owned=owned)
    if isinstance(value, types.FunctionType):
        return _function(value, owned)
    if isinstance(value, types.MethodType | functools.partial):
        return _bound(value, owned)
    if isinstance(value, dict):
        return (type(value), tuple((reduce(k), reduce(v)) for k, v in value.items()))
    if isinstance(value, tuple | list):
        return (_kind(type(value), owned), tuple(map(reduce, value)))
    if isinstance(value, eqx.Module):
        return ("module", _node(value, owned), *map(reduce, arrays_of(value)))
    if isinstance(value, np.ndarray):
        return ("array", value.shape, value.dtype.str, value.tobytes())
    if isinstance(value, type):
        return _kind(value, owned)
    return _plain(value, owned)


def _bound(value: Any, owned: list[Any]) -> Any:
    if isinstance(value, types.MethodType):
        parts = ["method", value.__func__, value.__self__]
    else:
        parts = ["partial", value.func, value.args, value.keywords]
    return tuple(_reduced(part, owned) for part in parts)


def _kind(value: type, owned: list[Any]) -> Any:
    """Return a class, or a weak reference to one of the user's."""
    known = _library(value.__module__) in _LIBRARIES | _STANDARD
    return value if known else _identity(value, owned)


def _function(function: types.FunctionType, owned: list[Any]) -> Any:
    # Where it was defined, and not `__module__`, which `functools.wraps` copies.
    if _library(function.__globals__.get("__name__")) not in _LIBRARIES:
        return _identity(function, owned)
    names = function.__code__.co_freevars
    closure = zip(names, function.__closure__ or (), strict=True)
    cells = tuple(_cell(name, cell, function, owned) for name, cell in closure)
    defaults = function.__defaults__, function.__kwdefaults__
    return ("function", function.__code__, _reduced(defaults, owned), cells)


def _library(module: Any) -> str:
    return str(module or "").partition(".")[0]


def _cell(name: str, cell: Any, owner: types.FunctionType, owned: list[Any]) -> Any:
    try:
        contents = cell.cell_contents
    except ValueError:
        return "empty"
    if type(contents) is int and name in _rebound(owner.__code__):
        contents = float(contents)
    return "itself" if contents is owner else _reduced(contents, owned)


@functools.lru_cache(maxsize=256)
def _rebound(code: types.CodeType) -> frozenset[str]:
    """Return the names of closed-over values that a function replaces by itself.

    `optax.cosine_decay_schedule` makes its count of steps a float in the first trace:
    an integer there and its float are one program.
    """
    stores = (i for i in dis.get_instructions(code) if i.opname == "STORE_DEREF")
    return frozenset(i.argval for i in stores) & frozenset(code.co_freevars)


def _plain(value: Any, owned: list[Any]) -> Any:
    if value is None:
        return None
    if _library(type(value).__module__) == "optax" and hasattr(value, "__dict__"):
        return (type(value), _reduced(vars(value), owned))  # optax.MultiSteps and kin
    if type(value).__eq__ is object.__eq__:
        return _identity(value, owned)
    try:
        hash(value)
    except TypeError:
        return _identity(value, owned)
    if isinstance(value, float | complex):
        return (type(value), repr(value))  # which tells 0.0 from -0.0
    return (type(value), value)  # the type tells 1 from 1.0 and True


def _identity(value: Any, owned: list[Any]) -> "_Identity":
    owned.append(value)
    return _Identity(value)


class _Identity:
    """An object equal to itself alone; once it is gone, it equals nothing.

    What cannot be referred to weakly is kept, so that its id is not used again.
    """

    __slots__ = ("number", "refer")

    def __init__(self, value: Any) -> None:
        self.number = id(value)
        try:
            self.refer: Any = weakref.ref(value)
        except TypeError:
            self.refer = lambda: value

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Identity):
            return False
        value = self.refer()
        return value is not None and value is other.refer()
