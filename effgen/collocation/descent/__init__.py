"""Training by gradient steps: through a solver, or to slopes."""

from .matching import (
    DerivativeMatchingTrainer as DerivativeMatchingTrainer,
    Slopes as Slopes,
    pretrain as pretrain,
    slopes_of as slopes_of,
)
from .shooting import (
    Segments as Segments,
    ShootingTrainer as ShootingTrainer,
    Shot as Shot,
    segments_of as segments_of,
)
