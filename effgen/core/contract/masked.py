"""Masked arrays of NumPy, whose masked entries are missing."""

from typing import Any

import numpy as np


def with_nan(values: Any) -> Any:
    """Return a masked array with NaN where it is masked; anything else as it is."""
    if not isinstance(values, np.ma.MaskedArray):
        return values
    if not np.any(np.ma.getmaskarray(values)):
        return values.data
    kind = values.dtype if np.issubdtype(values.dtype, np.floating) else np.float64
    return np.ma.filled(values.astype(kind), np.nan)


def check_unmasked(name: str, values: Any) -> None:
    """Raise `ValueError` for a masked array with entries that are masked."""
    if isinstance(values, np.ma.MaskedArray) and np.any(np.ma.getmaskarray(values)):
        masked = int(np.sum(np.ma.getmaskarray(values)))
        raise ValueError(
            f"`{name}` is a masked array with {masked} masked entries, which have no "
            "values: drop these rows, or fill them, as by `.filled(0)`."
        )
