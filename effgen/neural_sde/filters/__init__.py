"""Filters of linear and nonlinear models, their evidence, and what they warn of."""

from .evidence import (
    Evidence as Evidence,
)
from .filtering import (
    Filtered as Filtered,
)
from .predictions import (
    Predictions as Predictions,
)
from .twisted import (
    Smoothed as Smoothed,
)
