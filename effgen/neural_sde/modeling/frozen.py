"""What is not trained: parts of a model, and entries of its arrays, by name."""

import ast
import dataclasses
import re
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp

from effgen.neural_sde.observing.decoders import LinearDecoder

from .structure import Structure


class Part(NamedTuple):
    """A part of a model, or entries of one of its arrays.

    Attributes:
        name: With dots.
        entries: An index of NumPy's, or `None` for the whole part.
    """

    name: str
    entries: Any

    def of(self, model: Any) -> Any:
        """Return the whole part.

        Raises:
            AttributeError: Where the model has none of this name.
        """
        for step in self.name.split("."):
            if isinstance(model, tuple) and step.isdigit() and int(step) < len(model):
                model = model[int(step)]
            else:
                model = getattr(model, step)
        return model


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


def part_of(model: Any, name: str) -> Part:
    """Return the part of a model with this name, which may be that of a parameter."""
    return as_part(_places(model).get(name, name))


def _places(model: Any) -> dict[str, str]:
    """Return the path of each of a structure's parameters, by its name."""
    found = {}
    if isinstance(model.linear, Structure):
        for i, name in enumerate(model.linear.names):
            for own, place in _kept(model.linear.parts[i]).items():
                found[f"{name}.{own}"] = f"linear.parts.{i}.{place}"
    if isinstance(model.decoder, LinearDecoder) and model.decoder.lower is None:
        found["observation.scale"] = "decoder.log_scale"
    return found


def _kept(part: Any) -> dict[str, str]:
    """Return the fields of a part that are logarithms, by the parameters' names."""
    found = {}
    for field in dataclasses.fields(part):
        own = part.kept_as.get(field.name, field.name.removeprefix("log_"))
        if own == field.name:
            continue
        shape = jnp.shape(getattr(part, field.name))
        if shape == () or (own == "rate" and shape == (1,)):
            found[own] = field.name
        elif own != "rate":
            pairs = {f"{own}_{k + 1}": f"{field.name}[{k}]" for k in range(shape[0])}
            found |= pairs
    return found


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


def as_names(names: Any) -> tuple[str, ...]:
    """Return names as a tuple, which can be hashed.

    Raises:
        ValueError: For a single name.
    """
    if isinstance(names, str):
        raise ValueError(f"`frozen` is {names!r}: pass a tuple of names.")
    return tuple(names)


def check_frozen(model: Any, names: tuple[str, ...]) -> None:
    """Raise `ValueError` for names and entries that the model does not have."""
    for name in names:
        part = part_of(model, name)
        try:
            value = part.of(model)
        except AttributeError as error:
            fields = sorted(field.name for field in dataclasses.fields(model))
            raise ValueError(
                f"`frozen` names {name!r}: choose among {fields}, or a part of one, "
                'such as "linear.matrix", or of a structure "cycle.period".'
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
