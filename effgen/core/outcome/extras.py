"""Packages that only an extra brings, imported where they are used."""

import importlib
from types import ModuleType


def needed(package: str, *, by: str, extra: str, module: str = "") -> ModuleType:
    """Import `module` (by default `package` itself), which `by` needs.

    Raises:
        ImportError: With the command to install the extra, if it is missing.
    """
    try:
        return importlib.import_module(module or package)
    except ImportError as error:
        raise ImportError(
            f"`{by}` needs {package}: `pip install {package}`, or the extra `{extra}` "
            f"of effgen-jax: `pip install '.[{extra}]'` in a clone of it."
        ) from error
