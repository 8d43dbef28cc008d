"""Energies that are trained, and the coordinates that they are built in."""

from .confined import (
    ConfinedEnergy as ConfinedEnergy,
    image_energy as image_energy,
    mlp_energy as mlp_energy,
    residual_energy as residual_energy,
)
from .coordinates import (
    AbstractCoordinates as AbstractCoordinates,
    Standardized as Standardized,
    Whitened as Whitened,
)
from .labels import (
    LabeledEnergy as LabeledEnergy,
    labeled_mlp_energy as labeled_mlp_energy,
    with_labels as with_labels,
)
from .rbm import (
    RBM as RBM,
)
from .wrappers import (
    FunctionEnergy as FunctionEnergy,
    TemperedEnergy as TemperedEnergy,
)
