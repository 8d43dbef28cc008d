"""Weighted walkers: where they start, their blocks, a trainer's populations."""

from .labeled_starts import (
    labeled_walkers as labeled_walkers,
)
from .populations import (
    Audited as Audited,
)
from .reservoir import (
    Reservoir as Reservoir,
)
from .weighted_walkers import (
    Walkers as Walkers,
)
