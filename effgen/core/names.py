"""The name `effgen` on the package index, which another project has."""

import warnings
from importlib import metadata


def warn_of_another() -> None:
    """Warn where the other project has installed its files into our folder.

    Its distribution is named `effgen` and is imported by that name too. Ours is named
    `effgen-jax`. Where both are wheels in one environment, each has written over files
    of the other.
    """
    try:
        other = metadata.distribution("effgen")
    except metadata.PackageNotFoundError:
        return
    if any(file.parts[:1] == ("effgen",) for file in other.files or ()):
        warnings.warn(
            f"another project, effgen {other.version}, is installed in the same folder "
            "as effgen-jax, and each has written over files of the other. Remove both "
            "(`pip uninstall effgen effgen-jax`), and install effgen-jax alone, or "
            "each in an environment of its own.",
            RuntimeWarning,
            stacklevel=3,
        )
