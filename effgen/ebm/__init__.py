"""Energy-based models, trained by maximum likelihood with weighted walkers.

Axes: `walkers`, `batch`, `examples`, `blocks`; `*shape` is that of one example.
"""

from effgen.core.doors import exported as _exported

from .energies import (
    RBM as RBM,
    AbstractCoordinates as AbstractCoordinates,
    ConfinedEnergy as ConfinedEnergy,
    FunctionEnergy as FunctionEnergy,
    LabeledEnergy as LabeledEnergy,
    Standardized as Standardized,
    TemperedEnergy as TemperedEnergy,
    Whitened as Whitened,
    image_energy as image_energy,
    labeled_mlp_energy as labeled_mlp_energy,
    mlp_energy as mlp_energy,
    residual_energy as residual_energy,
    with_labels as with_labels,
)
from .evaluation import (
    Chains as Chains,
    NormalizedEnergy as NormalizedEnergy,
    Sandwich as Sandwich,
    annealed as annealed,
    imbalance as imbalance,
    long_run as long_run,
    mode_masses as mode_masses,
    pareto_k as pareto_k,
    sample as sample,
    sandwich as sandwich,
    saved_models as saved_models,
    weighted_samples as weighted_samples,
)
from .moves import (
    MALA as MALA,
    ULA as ULA,
    AbstractKernel as AbstractKernel,
    AbstractStepSizeRule as AbstractStepSizeRule,
    BlackJAX as BlackJAX,
    BlockGibbs as BlockGibbs,
    GibbsWithGradients as GibbsWithGradients,
    LabelGibbs as LabelGibbs,
    ReflectedMALA as ReflectedMALA,
    ReweightFirst as ReweightFirst,
    TargetAcceptance as TargetAcceptance,
    TargetVariance as TargetVariance,
    UncorrectedULA as UncorrectedULA,
)
from .training import (
    CDTrainer as CDTrainer,
    JarzynskiTrainer as JarzynskiTrainer,
    NCETrainer as NCETrainer,
    PCDTrainer as PCDTrainer,
    ScoreMatchingTrainer as ScoreMatchingTrainer,
    Stopped as Stopped,
    early_stopped as early_stopped,
    minsr as minsr,
)
from .walkers import (
    Audited as Audited,
    Reservoir as Reservoir,
    Walkers as Walkers,
    labeled_walkers as labeled_walkers,
)


# pyright reads the aliases above instead.
__all__ = _exported(vars())  # pyright: ignore[reportUnsupportedDunderAll]
