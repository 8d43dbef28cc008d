"""Bounds on the evidence by simulated paths, and their trainer."""

from .controlled import (
    PathELBO as PathELBO,
)
from .objectives import (
    AbstractObjective as AbstractObjective,
    AnchoredELBO as AnchoredELBO,
    MarginalELBO as MarginalELBO,
)
from .plain import (
    DiffraxELBO as DiffraxELBO,
    PlainELBO as PlainELBO,
    plain_paths as plain_paths,
)
from .trainer import (
    LatentSDETrainer as LatentSDETrainer,
)
