"""What is not trained: parts of a model, and entries of its arrays, by name."""

import ast
import dataclasses
import operator
import re
from typing import Any, NamedTuple

import equinox as eqx


class Part(NamedTuple):
    """A part of a model, or entries of one of its arrays.

    Attributes:
        name: With dots.
        entries: An index of NumPy's, or `None` for the whole part.
    """

    name: str
    entries: Any

    def of(self, model: Any) -> Any:
        """Return the whole part."""
        return operator.attrgetter(self.name)(model)


def as_part(name: str) -> Part:
    """Return what `"linear.matrix[0, 1:]"` names.

    Raises:
        ValueError: For an index that is none of whole numbers and slices.

    >>> as_part("linear.matrix[0, 1:]")
    Part(name='linear.matrix', entries=(0, slice(1, None, None)))
    """
    match = re.fullmatch(r"([\w.]+)(\[.*\])?", name.replace(" ", ""))
    if match is None:
        raise ValueError(f"`frozen` names {name!r}: {_REMEDY}")
    whole, index = match.groups()
    return Part(whole, None if index is None else _index(name, index))


_REMEDY = 'pass a name such as "linear.matrix", or entries as "linear.matrix[0, 1:]".'


def _index(name: str, text: str) -> tuple[int | slice, ...]:
    try:
        found = ast.parse(f"_{text}", mode="eval").body.slice  # pyright: ignore
        items = found.elts if isinstance(found, ast.Tuple) else [found]
        return tuple(_item(item) for item in items)
    except (SyntaxError, ValueError, AttributeError) as error:
        raise ValueError(f"`frozen` names {name!r}: {_REMEDY}") from error


def _item(node: ast.expr) -> int | slice:
    if not isinstance(node, ast.Slice):
        value = ast.literal_eval(node)
        if type(value) is not int:
            raise ValueError(f"{value!r} is no index")
        return value
    ends = (node.lower, node.upper, node.step)
    return slice(*(None if end is None else ast.literal_eval(end) for end in ends))


def check_frozen(model: Any, names: tuple[str, ...]) -> None:
    """Raise `ValueError` for names of nothing, and entries that are not there."""
    if isinstance(names, str):
        raise ValueError(f"`frozen` is {names!r}: pass a tuple of names.")
    for name in names:
        part = as_part(name)
        try:
            value = part.of(model)
        except AttributeError as error:
            fields = sorted(field.name for field in dataclasses.fields(model))
            raise ValueError(
                f"`frozen` names {name!r}: choose among {fields}, or a part of one, "
                'such as "linear.matrix".'
            ) from error
        if part.entries is not None:
            _check_entries(name, value, part.entries)


def _check_entries(name: str, value: Any, entries: Any) -> None:
    if not eqx.is_array(value):
        raise ValueError(f"`frozen` names entries by {name!r}, which is no array.")
    shape = value.shape
    fits = len(entries) <= len(shape) and all(
        isinstance(at, slice) or -size <= at < size
        for at, size in zip(entries, shape, strict=False)
    )
    if not fits:
        raise ValueError(f"`frozen` names {name!r}, and the array has shape {shape}.")
