"""Compiled programs kept from one process to the next."""

import os
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache


def cache_compilations(directory: str | os.PathLike[str] | None = None) -> Path:
    """Keep compiled programs in `directory`, and return it.

    A second process then spends its time on tracing alone. What is in the directory
    is run as code: never point it at a folder that others can write to. What was
    compiled before this call is not kept.

    Arguments:
        directory: The folder, made where it is missing. The default is
            `effgen/compilations` in `$XDG_CACHE_HOME`, or else in `~/.cache`.

    Returns:
        The path of the folder.

    Raises:
        OSError: If the directory cannot be made.
    """
    if directory is None:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        directory = Path(root) / "effgen" / "compilations"
    path = Path(directory).absolute()
    path.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(path))
    # JAX's defaults skip what compiles within a second: most of a small model.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # JAX looks once, at the first compilation, if there is a cache.
    compilation_cache.reset_cache()
    return path
