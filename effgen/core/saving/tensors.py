"""Arrays in a file: the format of safetensors, with a digest of every byte."""

import hashlib
import json
import os
from collections.abc import Iterable
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from effgen.core.contract.digests import bytes_of, digest


# What every reader of safetensors knows, numpy's too; all else is stored as bytes.
_CODES = {"bool": "BOOL", "bfloat16": "BF16"}
_CODES |= {f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)}
_CODES |= {f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)}
_CODES |= {f"float{bits}": f"F{bits}" for bits in (16, 32, 64)}


class CorruptCheckpoint(RuntimeError):
    """What was read is not what was written."""


class Part(NamedTuple):
    """A block of the array `name` that begins at `start`; `whole` if it is all."""

    name: str
    start: tuple[int, ...]
    block: Any
    whole: bool


class Piece(NamedTuple):
    """Where a part lies in a file, and the digest of its shape, dtype and bytes."""

    file: Path
    offset: int
    shape: list[int]
    start: list[int]
    sha256: str


def write_parts(path: Path, parts: list[Part]) -> None:
    """Write `parts` to `path` and through to the disk; empty the list on the way."""
    # The widest first, so that each is aligned for those who map the file.
    parts.sort(key=lambda part: -part.block.dtype.itemsize)
    header, notes = _header(parts)
    with path.open("wb") as file:
        file.write(_framed(header, notes))
        for note in notes.values():
            block = np.asarray(parts.pop(0).block)
            file.write(bytes_of(block))
            note[-1] = digest(block)
        file.seek(0)
        file.write(_framed(header, notes))
        synced(file)


def _header(parts: list[Part]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Return where each part will lie, and a note of each, its digest to be set."""
    header, notes, stop = {}, {}, 0
    for name, start, block, whole in parts:
        code, shape = _CODES.get(str(block.dtype)), list(block.shape)
        stored = shape if code else [*shape, block.dtype.itemsize]
        first, stop = stop, stop + block.size * block.dtype.itemsize
        label = name if whole else f"{name}@{list(start)}"
        header[label] = {"dtype": code or "U8", "shape": stored}
        header[label]["data_offsets"] = [first, stop]
        notes[label] = [name, shape, start, "-" * 64]
    return header, notes


def _framed(header: dict[str, Any], notes: dict[str, list[Any]]) -> bytes:
    metadata = {label: json.dumps(note) for label, note in notes.items()}
    text = json.dumps({"__metadata__": metadata} | header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def seal_of(path: Path) -> dict[str, Any]:
    """Return the size of a file of arrays and the digest of its header."""
    size, head = _head(path)
    return {"size": size, "sha256": hashlib.sha256(head).hexdigest()}


def pieces_of(path: Path, seal: dict[str, Any]) -> list[tuple[str, Piece]]:
    """Return the name of each part of a file, and where it is.

    Raises:
        CorruptCheckpoint: Unless the file has the size and header of `seal`.
    """
    size, head = _head(path)
    if size != seal["size"]:
        written = seal["size"]
        raise CorruptCheckpoint(
            f"its file `{path.name}` has {size} bytes, and {written} were written"
        )
    if hashlib.sha256(head).hexdigest() != seal["sha256"]:
        raise CorruptCheckpoint(f"the header of its file `{path.name}` has changed")
    header, found = json.loads(head[8:]), []
    for label, note in header.pop("__metadata__").items():
        name, *rest = json.loads(note)
        offset = len(head) + header[label]["data_offsets"][0]
        found.append((name, Piece(path, offset, *rest)))
    return found


def _head(path: Path) -> tuple[int, bytes]:
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(8)
        return size, head + file.read(min(int.from_bytes(head, "little"), size))


def _opened(path: Path) -> BufferedReader:
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise CorruptCheckpoint(f"its file `{path.name}` is missing") from error


def read_array(name: str, entry: dict[str, Any], pieces: list[Piece]) -> np.ndarray:
    """Return the array `name` that `pieces` make, every byte verified."""
    shape, dtype = tuple(entry["stored_shape"]), jnp.dtype(entry["stored_dtype"])
    blocks = ((piece.start, _read_piece(name, piece, dtype)) for piece in pieces)
    return assembled(shape, dtype, blocks)


def _read_piece(name: str, piece: Piece, dtype: Any) -> np.ndarray:
    block = np.empty(piece.shape, dtype)
    with _opened(piece.file) as file:
        file.seek(piece.offset)
        file.readinto(bytes_of(block))
    check_digest(name, block, piece.sha256)
    return block


def check_digest(name: str, block: np.ndarray, expected: str) -> None:
    """Raise `CorruptCheckpoint`, naming the leaf, unless its bytes are as written."""
    if digest(block) != expected:
        raise CorruptCheckpoint(
            f"`state{name}` has changed since it was written (its digest differs)"
        )


def assembled(
    shape: tuple[int, ...], dtype: Any, blocks: Iterable[tuple[Any, np.ndarray]]
) -> np.ndarray:
    """Return the array that `blocks`, each with where it begins, make together."""
    whole = None
    for start, block in blocks:
        if block.shape == shape:
            return block
        whole = np.empty(shape, dtype) if whole is None else whole
        spans = zip(start, block.shape, strict=True)
        whole[tuple(slice(first, first + size) for first, size in spans)] = block
    assert whole is not None
    return whole


def synced(file: BinaryIO) -> None:
    """Wait until what was written to `file` is on the disk."""
    file.flush()
    os.fsync(file.fileno())
