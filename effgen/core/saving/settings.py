"""Settings of a tree's modules, which are no arrays and so are not saved as such."""

import dataclasses
from numbers import Real
from typing import Any

import equinox as eqx


def settings_of(node: Any, name: str) -> dict[str, str]:
    """Return the static numbers and strings of the modules of a tree, by name.

    They are no arrays, so they must be given again. An example is a well's scale.
    """
    found: dict[str, str] = {}
    if isinstance(node, eqx.Module):
        for field in dataclasses.fields(node):
            value, place = getattr(node, field.name, None), f"{name}.{field.name}"
            if not field.metadata.get("static", False):
                found |= settings_of(value, place)
            elif (told := _told(value)) is not None:
                found[place] = told
    elif isinstance(node, dict | list | tuple):
        parts = node.items() if isinstance(node, dict) else enumerate(node)
        for key, part in parts:
            found |= settings_of(part, f"{name}[{key!r}]")
    return found


def _told(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, Real):
        return repr(float(value))
    if isinstance(value, tuple):
        parts = [_told(part) for part in value]
        return None if None in parts else f"({', '.join(map(str, parts))})"
    return None
