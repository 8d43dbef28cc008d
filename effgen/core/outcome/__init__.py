"""How a run ended, and what its steps reported."""

from .history import (
    History as History,
)
from .results import (
    RESULTS as RESULTS,
    RunWarning as RunWarning,
    TrainingError as TrainingError,
)
