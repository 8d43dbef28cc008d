"""Fits by exact evidence, mixtures, and the recipe that decides by itself."""

from .driven import (
    DrivenDrift as DrivenDrift,
    with_network as with_network,
)
from .fitting import (
    Fitted as Fitted,
    fit_linear as fit_linear,
)
from .hierarchies import (
    Hierarchy as Hierarchy,
    fit_hierarchy as fit_hierarchy,
)
from .recipe import (
    forecaster as forecaster,
)
from .regime_fits import (
    fit_regimes as fit_regimes,
)
from .regimes import (
    Regimes as Regimes,
    Switching as Switching,
)
from .selection import (
    candidates as candidates,
)
from .stacking import (
    Stack as Stack,
    stack as stack,
)
from .structural_models import (
    structural as structural,
)
