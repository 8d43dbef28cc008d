"""Linear SDEs, their exact steps, and messages from the future."""

from .fractional import (
    FractionalSDE as FractionalSDE,
    fractional_variance as fractional_variance,
)
from .gaussian import (
    Gaussian as Gaussian,
)
from .linear import (
    AbstractLinearSDE as AbstractLinearSDE,
    DiagonalSDE as DiagonalSDE,
    LinearSDE as LinearSDE,
)
from .messages import (
    Guide as Guide,
    Guided as Guided,
    Site as Site,
    condition as condition,
    marginals as marginals,
)
from .transitions import (
    Transition as Transition,
)
from .varying import (
    VaryingSDE as VaryingSDE,
)
