"""What answers each query: documents' numbers as an array, or as rows of any length."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


_MOST = 1 << 31
Numbers = Sequence[tuple[int, ...]]


class Relevant(NamedTuple):
    """Which documents answer each query, and how well.

    Arguments:
        ids: Numbers of documents, `(queries, any)`, filled up with -1.
        gains: Above zero where a document answers, `(queries, any)`; by default one.
    """

    ids: Int[Array, "queries any"]
    gains: Float[Array, "queries any"] | None = None


class Rows(NamedTuple):
    """Documents' numbers, some a query: an array, or rows of any length."""

    name: str
    ids: Any
    gains: Any

    @classmethod
    def of(cls, name: str, ids: Any, gains: Any) -> "Rows":
        """Return the rows of the given numbers and gains.

        Raises:
            TypeError: For an object that is no array and no list.
            ValueError: For values that are no numbers, one or several a query.
        """
        if isinstance(ids, Relevant):
            ids = ids.ids
        if not hasattr(ids, "shape") and not isinstance(ids, list | tuple):
            raise TypeError(
                f"`{name}` is a {type(ids).__name__}: pass documents' numbers, a row "
                "of them a query; of a `Corpus`, `answers(corpus)` or `corpus.full`."
            )
        if not hasattr(ids, "shape"):
            rows: Any = [np.atleast_1d(np.asarray(row)).ravel() for row in ids]
            _check_integers(name, [row for row in rows if row.size])
            rows = [_in_32_bits(row) for row in rows]
            if gains is None:
                return cls(name, rows, None)
            gains, ids = _filled(gains, rows, -1.0), padded(rows)
        found = np.asarray(ids)
        found = found[:, None] if found.ndim == 1 else found
        _check_integers(name, [found])
        found = _in_32_bits(found)
        if gains is None:
            return cls(name, found, None)
        gains = np.asarray(gains)
        gains = gains[:, None] if gains.ndim == 1 else gains
        if gains.shape != found.shape or not np.isfinite(gains[found >= 0]).all():
            raise ValueError(
                f"`{name}` has gains of shape {gains.shape} for numbers of "
                f"{found.shape}, or some not finite: pass a gain for each number."
            )
        return cls(name, found, gains)

    def __len__(self) -> int:
        return len(self.ids)

    def check_length(self, num: int) -> None:
        """Raise `ValueError` unless there is a row for each of `num` queries."""
        if len(self) != num:
            raise ValueError(
                f"`{self.name}` has {len(self)} rows and there are {num} queries: pass "
                "one row a query."
            )

    def warn_if_none_of(self, index: Any) -> None:
        """Warn if there are numbers, and none of them is of the index."""
        own = self.ids if isinstance(self.ids, list) else [self.ids.ravel()]
        named = np.concatenate([np.asarray(row).ravel() for row in own])
        named = named[named >= 0]
        if not index.ids.is_fully_addressable or not len(named):
            return
        if not np.isin(named, np.asarray(index.ids)).any():
            warnings.warn(
                f"`{self.name}` names documents such as {int(named[0])}, and none of "
                "them is in the index, so that nothing can be found: number documents "
                "as the index was made.",
                stacklevel=3,
            )

    def warn_if_left_out(self, known: "Rows") -> None:
        """Warn if what is to be found is left out as `known`."""
        wanted, seen = self._keys(), known._keys()
        lost = wanted[np.isin(wanted, seen)]
        if len(lost):
            query, document = divmod(int(lost[0]), _MOST)
            warnings.warn(
                f"`{known.name}` leaves out {len(lost)} of the {len(wanted)} documents "
                f"that `{self.name}` asks for, such as {document} of query {query}: "
                "they cannot be found; leave them out of one of the two.",
                stacklevel=3,
            )

    def _keys(self) -> Int[np.ndarray, " numbers"]:
        """Return a number for each query and document, each once."""
        rows = self.ids if isinstance(self.ids, list) else list(self.ids)
        sizes = [len(row) for row in rows]
        numbers = np.concatenate([np.asarray(row, np.int64) for row in rows])
        keys = np.repeat(np.arange(len(rows)), sizes) * _MOST + numbers
        gained = numbers >= 0
        if self.gains is not None:
            gained &= self.gains.ravel() > 0
        return np.unique(keys[gained])

    def some(self, cut: slice) -> Relevant:
        """Return those of some queries, filled up with -1 to a power of two."""
        ids = self.ids[cut]
        if isinstance(ids, list):
            ids = padded(ids, _power(max(map(len, ids), default=1)))
        gains = None if self.gains is None else jnp.asarray(self.gains[cut])
        return Relevant(jnp.asarray(ids), gains)


def _in_32_bits(numbers: np.ndarray) -> np.ndarray:
    """Return numbers with -1 for all below zero: of 64 bits they would wrap around."""
    return np.maximum(numbers, -1) if numbers.dtype.kind == "i" else numbers


def padded(
    relevant: Numbers, width: int | None = None
) -> Int[np.ndarray, "queries any"]:
    """Return rows of numbers as one array, filled up with -1.

    Arguments:
        relevant: Numbers for each query, such as `corpus.relevant`.
        width: The numbers of a row; by default those of the longest.

    Raises:
        ValueError: For a width that would cut a row, and make an answer a negative.
    """
    return filled_rows(relevant, width, -1, np.int32)


def filled_rows(
    rows: Sequence[tuple], width: int | None, fill: float, dtype: type
) -> np.ndarray:
    """Return rows of any length as one array, padded with `fill`."""
    lengths = np.array([len(row) for row in rows], np.int64)
    longest = max(int(lengths.max(initial=0)), 1)
    if width is not None and width < longest:
        raise ValueError(f"`width` is {width} and a row has {longest}: raise it.")
    found = np.full((len(rows), width or longest), fill, dtype)
    there = np.arange(found.shape[1])[None] < lengths[:, None]
    found[there] = np.array([x for row in rows for x in row], dtype)
    return found


def _filled(
    gains: Any, rows: list[np.ndarray], fill: float
) -> Float[np.ndarray, "queries any"]:
    """Return rows of gains as one array, padded like the rows of numbers.

    If the lengths differ, the array's shape is one that is refused.
    """
    given = [np.atleast_1d(np.asarray(row, np.float32)).ravel() for row in gains]
    if list(map(len, given)) != list(map(len, rows)):
        return np.zeros((len(given), 0), np.float32)
    lengths = np.array([len(row) for row in rows])
    found = np.full((len(rows), max(int(lengths.max(initial=0)), 1)), fill, np.float32)
    found[np.arange(found.shape[1])[None] < lengths[:, None]] = np.concatenate(given)
    return found


def _power(num: int) -> int:
    return 1 << max(num - 1, 0).bit_length()


def _check_integers(name: str, rows: list[np.ndarray]) -> None:
    for found in rows:
        if found.ndim > 2 or not np.issubdtype(found.dtype, np.integer):
            raise ValueError(
                f"`{name}` is {found.dtype} of shape {found.shape}: pass documents' "
                "numbers, one a query, or a row of them a query, filled up with -1."
            )
        if found.size and int(found.max()) >= _MOST:
            raise ValueError(
                f"`{name}` has {found.max()}: documents' numbers go up to 2^31."
            )
