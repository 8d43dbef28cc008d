"""The density of a trained model: `log Z`, its error bar, annealing and diagnostics."""

from .annealing import (
    Sandwich as Sandwich,
    annealed as annealed,
    sandwich as sandwich,
    saved_models as saved_models,
)
from .chains import (
    Chains as Chains,
    long_run as long_run,
)
from .density import (
    NormalizedEnergy as NormalizedEnergy,
)
from .diagnostics import (
    imbalance as imbalance,
    pareto_k as pareto_k,
)
from .modes import (
    mode_masses as mode_masses,
)
from .samples import (
    sample as sample,
    weighted_samples as weighted_samples,
)
