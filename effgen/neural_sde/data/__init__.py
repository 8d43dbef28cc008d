"""Records as users have them, times as numbers, and pandas' frames and figures."""

from .series import (
    Series as Series,
    merge_sensors as merge_sensors,
    pad_series as pad_series,
)
