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
from .contrastive import CDTrainer as CDTrainer, PCDTrainer as PCDTrainer
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
from .diagnostics import (
    Chains as Chains,
    imbalance as imbalance,
    long_run as long_run,
    mode_masses as mode_masses,
    pareto_k as pareto_k,
)
from .discrete import GibbsWithGradients as GibbsWithGradients
from .energies import (
    ConfinedEnergy as ConfinedEnergy,
    FunctionEnergy as FunctionEnergy,
    TemperedEnergy as TemperedEnergy,
    image_energy as image_energy,
    mlp_energy as mlp_energy,
    residual_energy as residual_energy,
)
from .kernels import MALA as MALA, ULA as ULA, AbstractKernel as AbstractKernel
from .label_moves import LabelGibbs as LabelGibbs
from .labels import (
    LabeledEnergy as LabeledEnergy,
    labeled_mlp_energy as labeled_mlp_energy,
    labeled_walkers as labeled_walkers,
    with_labels as with_labels,
)
from .natural_gradient import minsr as minsr
from .noise_contrast import NCETrainer as NCETrainer
from .orders import ReweightFirst as ReweightFirst
from .populations import Audited as Audited
from .rbm import RBM as RBM, BlockGibbs as BlockGibbs
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
from .walkers import Walkers as Walkers


# pyright reads the aliases above instead.
__all__ = _exported(vars())  # pyright: ignore[reportUnsupportedDunderAll]
