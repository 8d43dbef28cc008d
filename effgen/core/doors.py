"""What a package's door, its `__init__.py`, exports."""

from types import ModuleType
from typing import Any


def exported(names: dict[str, Any]) -> list[str]:
    """Return the names that are meant for users: not private, and no modules."""
    return sorted(
        name
        for name, value in names.items()
        if not (name.startswith("_") or isinstance(value, ModuleType))
    )
