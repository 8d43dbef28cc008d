"""Energy-based models, trained by maximum likelihood with weighted walkers.

Axes: `walkers`, `batch`, `examples`, `blocks`; `*shape` is that of one example.
"""

from effgen.core.doors import exported as _exported

from .annealing import (
    Sandwich as Sandwich,
    annealed as annealed,
    sandwich as sandwich,
    saved_models as saved_models,
)
from .approximate import UncorrectedULA as UncorrectedULA
from .blackjax_kernel import BlackJAX as BlackJAX
from .block_gibbs import BlockGibbs as BlockGibbs
from .chains import Chains as Chains, long_run as long_run
from .confined import (
    ConfinedEnergy as ConfinedEnergy,
    image_energy as image_energy,
    mlp_energy as mlp_energy,
    residual_energy as residual_energy,
)
from .contrastive import CDTrainer as CDTrainer
from .coordinates import (
    AbstractCoordinates as AbstractCoordinates,
    Standardized as Standardized,
    Whitened as Whitened,
)
from .density import (
    NormalizedEnergy as NormalizedEnergy,
    sample as sample,
    weighted_samples as weighted_samples,
)
from .diagnostics import imbalance as imbalance, pareto_k as pareto_k
from .discrete import GibbsWithGradients as GibbsWithGradients
from .kernels import AbstractKernel as AbstractKernel
from .label_moves import LabelGibbs as LabelGibbs
from .labeled_starts import labeled_walkers as labeled_walkers
from .labels import (
    LabeledEnergy as LabeledEnergy,
    labeled_mlp_energy as labeled_mlp_energy,
    with_labels as with_labels,
)
from .langevin_kernels import MALA as MALA, ULA as ULA
from .modes import mode_masses as mode_masses
from .natural_gradient import minsr as minsr
from .noise_contrast import NCETrainer as NCETrainer
from .orders import ReweightFirst as ReweightFirst
from .persistent import PCDTrainer as PCDTrainer
from .populations import Audited as Audited
from .rbm import RBM as RBM
from .reflected import ReflectedMALA as ReflectedMALA
from .reservoir import Reservoir as Reservoir
from .score_matching import ScoreMatchingTrainer as ScoreMatchingTrainer
from .step_sizes import (
    AbstractStepSizeRule as AbstractStepSizeRule,
    TargetAcceptance as TargetAcceptance,
    TargetVariance as TargetVariance,
)
from .stopping import Stopped as Stopped, early_stopped as early_stopped
from .trainer import JarzynskiTrainer as JarzynskiTrainer
from .weighted_walkers import Walkers as Walkers
from .wrappers import FunctionEnergy as FunctionEnergy, TemperedEnergy as TemperedEnergy


# pyright reads the aliases above instead.
__all__ = _exported(vars())  # pyright: ignore[reportUnsupportedDunderAll]
