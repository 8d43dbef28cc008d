"""Rows of different lengths in one array: what each row has, and no filling."""

from collections.abc import Iterator, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int


class Ragged(eqx.Module):
    """Rows of different lengths, which become arrays of one width where some are taken.

        ragged[i] = [*values[starts[i] : starts[i] + lengths[i]], fill, fill, ...]

    `Minibatches` and `HostMinibatches` take it for an array: a batch has its own rows
    filled up to the longest of all, and the rest stays as it is. Rows may share values.

    Arguments:
        starts: Where each row begins in `values`, shape `(rows,)`.
        lengths: How many values each row has, shape `(rows,)`.
        values: The rows' values, shape `(entries,)`.
        width: The width of a filled row.
        fill: What rows are filled with.
    """

    starts: Int[Any, " rows"]
    lengths: Int[Any, " rows"]
    values: Int[Any, " entries"]
    width: int = eqx.field(static=True)
    fill: int = eqx.field(static=True, default=-1)

    @classmethod
    def of(
        cls, rows: Sequence[Sequence[int]], index: Any = None, *, fill: int = -1
    ) -> "Ragged":
        """Return rows of integers, each as often as `index` has it, or once."""
        lengths = np.array([len(row) for row in rows], np.int32)
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        if len(starts) and starts[-1] + lengths[-1] >= 1 << 31:
            raise ValueError("`rows` hold more than 2^31 numbers: pass fewer.")
        values = np.fromiter((x for row in rows for x in row), np.int32)
        values = values if len(values) else np.full(1, fill, np.int32)
        width = max(int(lengths.max(initial=0)), 1)
        whole = cls(starts.astype(np.int32), lengths, values, width, fill)
        return whole if index is None else whole.of_rows(np.asarray(index))

    def of_rows(self, index: Int[Any, " rows"]) -> "Ragged":
        """Return some of the rows, with the same values."""
        own = self.starts[index], self.lengths[index]
        return Ragged(*own, self.values, self.width, self.fill)

    @property
    def shape(self) -> tuple[int, int]:
        """How many rows, and the width of a filled one."""
        return len(self.starts), self.width

    @property
    def ndim(self) -> int:
        """Two: as an array's."""
        return 2

    @property
    def dtype(self) -> Any:
        """The values' type."""
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        """Bytes in all, those of shared values once."""
        return self.starts.nbytes + self.lengths.nbytes + self.values.nbytes

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: Any) -> Any:
        """Return rows, filled up, as an array."""
        xp: Any = np if isinstance(self.values, np.ndarray) else jnp
        starts, lengths = self.starts[index], self.lengths[index]
        place = xp.arange(self.width).reshape((1,) * starts.ndim + (-1,))
        at = xp.minimum(starts[..., None] + place, len(self.values) - 1)
        return xp.where(place < lengths[..., None], self.values[at], self.fill)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def tolist(self) -> list[list[int]]:
        """Return all rows, filled up."""
        return np.asarray(self[:]).tolist()


def is_ragged(x: Any) -> bool:
    """Return whether something is to be taken as one array, of rows of any length."""
    return isinstance(x, Ragged)


def whole(x: Any) -> Any:
    """Return rows filled up, and all else as it is."""
    return x[:] if isinstance(x, Ragged) else x
