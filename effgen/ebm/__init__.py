"""Energy-based models, trained by maximum likelihood with weighted walkers.

Axes: `walkers`, `batch`, `examples`; `*shape` is that of one example.
"""

from .density import NormalizedEnergy as NormalizedEnergy, sample as sample
from .energies import (
    ConfinedEnergy as ConfinedEnergy,
    image_energy as image_energy,
    mlp_energy as mlp_energy,
)
from .kernels import ULA as ULA, AbstractKernel as AbstractKernel
from .trainer import (
    JarzynskiTrainer as JarzynskiTrainer,
    PCDTrainer as PCDTrainer,
)
from .walkers import Audited as Audited, Walkers as Walkers
