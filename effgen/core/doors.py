"""The names that a package's `__init__.py` exports."""

from types import ModuleType
from typing import Any


def exported(names: dict[str, Any]) -> list[str]:
    """Return the names for users: those that are not private, and no modules."""
    return sorted(
        name
        for name, value in names.items()
        if not (name.startswith("_") or isinstance(value, ModuleType))
    )
