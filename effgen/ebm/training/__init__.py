"""Maximum likelihood by weighted walkers, what bounds and stops it, the baselines."""

from .contrastive import (
    CDTrainer as CDTrainer,
)
from .natural_gradient import (
    minsr as minsr,
)
from .noise_contrast import (
    NCETrainer as NCETrainer,
)
from .persistent import (
    PCDTrainer as PCDTrainer,
)
from .score_matching import (
    ScoreMatchingTrainer as ScoreMatchingTrainer,
)
from .stopping import (
    Stopped as Stopped,
    early_stopped as early_stopped,
)
from .trainer import (
    JarzynskiTrainer as JarzynskiTrainer,
)
