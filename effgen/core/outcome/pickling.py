"""Errors that travel between processes, with the states that they hold."""

import importlib
import io
import marshal
import pickle
from types import CellType, FunctionType
from typing import Any, TypeVar


Error = TypeVar("Error", bound=BaseException)


class _Pickler(pickle.Pickler):
    """Pickles what models hold beside arrays: functions of every kind.

    `jax.nn.relu` and its like are no plain functions, and pickle looks for what they
    wrap; but the name that they carry leads to themselves. A function without a name
    of its own, as `equinox.nn.MLP` has one, goes by its code.
    """

    def reducer_override(self, obj: Any) -> Any:
        """Return how to make `obj` again, where pickle itself would not know."""
        module = getattr(obj, "__module__", None)
        name = getattr(obj, "__qualname__", None)
        if isinstance(obj, type) or not isinstance(module, str) or name is None:
            return NotImplemented
        if _found(module, name) is obj:
            # What pickle does with a plain function; asked for `_named`, without end.
            plain = isinstance(obj, FunctionType)
            return NotImplemented if plain else (_named, (module, name))
        return _by_code(obj) if isinstance(obj, FunctionType) else NotImplemented


def packed(error: BaseException) -> tuple[type, tuple[Any, ...], dict[str, bytes]]:
    """Return the class of `error`, its arguments, and its attributes pickled.

    An attribute that cannot be pickled is left behind, with a note: an error that
    could not travel at all would hide what happened.
    """
    kept, notes = {}, list(getattr(error, "__notes__", []))
    for name, value in error.__dict__.items():
        try:
            kept[name] = _pickled(value)
        except Exception as failure:
            kept[name] = _pickled(None)
            notes.append(f"`{name}` was left behind, it cannot be pickled: {failure}")
    if notes:
        kept["__notes__"] = _pickled(notes)
    return type(error), error.args, kept


def unpacked(
    kind: type[BaseException], args: tuple[Any, ...], kept: dict[str, bytes]
) -> BaseException:
    """Return the error that `packed` took apart."""
    error = kind.__new__(kind, *args)
    error.__dict__.update({name: pickle.loads(value) for name, value in kept.items()})
    return error


def with_attributes(error: Error, attributes: dict[str, Any]) -> Error:
    """Return another error of the class and arguments of `error`."""
    made = type(error).__new__(type(error), *error.args)
    made.__dict__.update(attributes)
    return made


def _pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer).dump(value)
    return buffer.getvalue()


def _found(module: str, name: str) -> Any:
    try:
        return _named(module, name)
    except (ImportError, AttributeError):
        return None


def _named(module: str, name: str) -> Any:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _by_code(function: FunctionType) -> tuple[Any, tuple[Any, ...]]:
    values = [cell.cell_contents for cell in function.__closure__ or ()]
    code = marshal.dumps(function.__code__)
    defaults = function.__defaults__, function.__kwdefaults__
    return _made, (function.__module__, code, *defaults, values)


def _made(
    module: str, code: bytes, defaults: Any, keyword_defaults: Any, values: list[Any]
) -> FunctionType:
    names = vars(importlib.import_module(module))
    cells = tuple(map(CellType, values))
    function = FunctionType(marshal.loads(code), names, None, defaults, cells)
    function.__kwdefaults__ = keyword_defaults
    return function
