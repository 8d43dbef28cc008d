"""Lines of a file, whatever it is packed in; broken ones are named."""

import bz2
import gzip
import io
import lzma
import shutil
import subprocess
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, TypeVar


Raw = TypeVar("Raw")
Row = TypeVar("Row")
Place = Path | zipfile.Path

# Either unpacks; the second comes with apt.
_LZ4 = (("lz4", "-dc"), ("/usr/lib/apt/apt-helper", "cat-file"))


def parsed(
    path: Place, parse: Callable[[str], Row | None], max_broken: int = 0
) -> list[Row]:
    """Return what `parse` makes of a file's lines, in order.

    Blank lines are left out, and those of which it makes `None`.

    Arguments:
        path: A file of UTF-8 text, plain or packed as in `opened`.
        parse: It raises `ValueError`, `LookupError` or `TypeError` for a broken line.
        max_broken: How many of these to leave out, with a warning, before it is an
            error.

    Raises:
        FileNotFoundError: Without the file.
        ValueError: For a broken line, with file and line.
    """
    with opened(path) as file:
        numbered = enumerate(file, 1)
        return sound(
            numbered, lambda line: _of_text(line, parse), f"{path}:", max_broken
        )


def sound(
    numbered: Iterable[tuple[int, Raw]],
    parse: Callable[[Raw], Row | None],
    where: str,
    max_broken: int = 0,
) -> list[Row]:
    """Return what `parse` makes of rows, as `parsed`; `where` comes before a number."""
    found, broken = [], []
    for number, row in numbered:
        try:
            made = parse(row)
        except (ValueError, LookupError, TypeError) as error:
            broken.append(f"{where}{number}: {type(error).__name__}: {error}")
            if len(broken) > max_broken:
                raise ValueError(_refusal(broken, max_broken)) from error
            continue
        if made is not None:
            found.append(made)
    if broken:
        warnings.warn(
            f"{len(broken)} broken left out; the first is {broken[0]}", stacklevel=3
        )
    return found


def opened(path: Place) -> IO[bytes]:
    """Return a file to read, unpacked if it ends in `.gz`, `.bz2`, `.xz` or `.lz4`.

    Raises:
        FileNotFoundError: Without it; also for the command `lz4` where it is needed.
        ValueError: For what is not packed as its name says.
    """
    if isinstance(path, zipfile.Path):
        return path.open("rb")  # pyright: ignore[reportReturnType]
    openers: dict[str, Callable[[Path], Any]]
    openers = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".lz4": _unpacked}
    return openers.get(path.suffix, lambda path: path.open("rb"))(path)


def _unpacked(path: Path) -> IO[bytes]:
    path.stat()
    command = next((command for command in _LZ4 if shutil.which(command[0])), None)
    if command is None:
        raise FileNotFoundError(
            f"`{path}` is packed and there is no command `lz4`: `apt-get install lz4`, "
            "or unpack it elsewhere."
        )
    done = subprocess.run([*command, str(path)], capture_output=True, check=False)
    if done.returncode:
        raise ValueError(f"`{path}`: {done.stderr.decode(errors='replace').strip()}")
    return io.BytesIO(done.stdout)


def _of_text(line: bytes, parse: Callable[[str], Row | None]) -> Row | None:
    # A file's first line may begin with a byte order mark.
    text = line.decode("utf-8-sig").rstrip("\r\n")
    return parse(text) if text.strip() else None


def _refusal(broken: list[str], max_broken: int) -> str:
    if max_broken:
        return f"more than `max_broken`, {max_broken}, are broken: {broken[0]}"
    return f"{broken[-1]} (mend it, or leave out a few with `max_broken`)"
