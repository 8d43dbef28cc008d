"""Arrays in a file: the format of safetensors, with a digest of every byte."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np


# What every reader of safetensors knows. All else is stored as bytes, and has its dtype
# in the manifest.
_CODES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}


class CorruptCheckpoint(RuntimeError):
    """What was read is not what was written."""


class Part(NamedTuple):
    """A block of the array `name` that begins at `start`; `whole` if it is all."""

    name: str
    start: tuple[int, ...]
    block: Any
    whole: bool


def write_parts(path: Path, parts: list[Part]) -> dict[str, Any]:
    """Write `parts` to `path` and through to the disk; empty the list on the way.

    **Returns:** what `read_piece` needs: the file's size, the digest of its header, and
    of each part where it lies and the digest of its bytes.
    """
    # The widest first, so that each is aligned for those who map the file.
    parts.sort(key=lambda part: -part.block.dtype.itemsize)
    head, starts = _header(parts)
    pieces: dict[str, list[Any]] = {}
    with path.open("wb") as file:
        file.write(head)
        for start in starts:
            part = parts.pop(0)
            block = np.asarray(part.block)
            file.write(_bytes(block))
            piece = {"file": path.name, "offset": len(head) + start}
            piece |= {"start": list(part.start), "shape": list(block.shape)}
            pieces.setdefault(part.name, []).append(piece | {"sha256": digest(block)})
        size = file.tell()
        synced(file)
    return {
        "files": {path.name: {"size": size, "head": hashlib.sha256(head).hexdigest()}},
        "pieces": pieces,
    }


def _header(parts: list[Part]) -> tuple[bytes, list[int]]:
    entries, starts, stop = {}, [], 0
    for name, where, block, whole in parts:
        code, shape = _CODES.get(str(block.dtype)), list(block.shape)
        if code is None:
            code, shape = "U8", [*shape, block.dtype.itemsize]
        start, stop = stop, stop + block.size * block.dtype.itemsize
        label = name if whole else f"{name}@{list(where)}"
        span = {"data_offsets": [start, stop]}
        entries[label] = {"dtype": code, "shape": shape} | span
        starts.append(start)
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, starts


def check_files(directory: Path, files: dict[str, Any]) -> None:
    """Raise `CorruptCheckpoint` unless each file has its size and its header."""
    for name, entry in files.items():
        with _opened(directory / name) as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(8)
            head += file.read(min(int.from_bytes(head, "little"), size))
        if size != entry["size"]:
            raise CorruptCheckpoint(
                f"its file `{name}` has {size} bytes, and {entry['size']} were written"
            )
        if hashlib.sha256(head).hexdigest() != entry["head"]:
            raise CorruptCheckpoint(f"the header of its file `{name}` has changed")


def read_array(directory: Path, name: str, entry: dict[str, Any]) -> np.ndarray:
    """Return the array `name`, every byte of it verified."""
    shape, dtype = tuple(entry["stored_shape"]), jnp.dtype(entry["stored_dtype"])
    pieces = (
        (tuple(piece["start"]), _read_piece(directory, name, piece, dtype))
        for piece in entry["pieces"]
    )
    return assembled(shape, dtype, pieces)


def _read_piece(
    directory: Path, name: str, piece: dict[str, Any], dtype: Any
) -> np.ndarray:
    block = np.empty(piece["shape"], dtype)
    with _opened(directory / piece["file"]) as file:
        file.seek(piece["offset"])
        file.readinto(_bytes(block))
    check_digest(name, block, piece["sha256"])
    return block


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise CorruptCheckpoint(f"its file `{path.name}` is missing") from error


def check_digest(name: str, block: np.ndarray, expected: str) -> None:
    """Raise `CorruptCheckpoint`, naming the leaf, unless its bytes are as written."""
    if digest(block) != expected:
        raise CorruptCheckpoint(
            f"`state{name}` has changed since it was written (its digest differs)"
        )


def assembled(
    shape: tuple[int, ...],
    dtype: Any,
    pieces: Iterable[tuple[tuple[int, ...], np.ndarray]],
) -> np.ndarray:
    """Return the array that `pieces`, each with where it begins, make together."""
    whole = None
    for start, block in pieces:
        if block.shape == shape:
            return block
        whole = np.empty(shape, dtype) if whole is None else whole
        spans = zip(start, block.shape, strict=True)
        whole[tuple(slice(first, first + size) for first, size in spans)] = block
    assert whole is not None
    return whole


def digest(array: np.ndarray) -> str:
    """Return the SHA-256 of an array's shape, dtype and bytes."""
    total = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    total.update(_bytes(array))
    return total.hexdigest()


def synced(file: BinaryIO) -> None:
    """Wait until what was written to `file` is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def _bytes(array: np.ndarray) -> Any:
    """Return the memory of an array, in order; a copy only where that is scattered."""
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
