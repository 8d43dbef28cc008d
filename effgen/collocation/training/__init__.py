"""One solve a step, and calls that solve several times."""

from .choice import (
    Choice as Choice,
    choose as choose,
)
from .generalization import (
    Extrapolation as Extrapolation,
    ensemble as ensemble,
    extrapolation as extrapolation,
    held_out as held_out,
)
from .refinement import (
    accuracy as accuracy,
    fit_refined as fit_refined,
    interval_errors as interval_errors,
    refine as refine,
    residuals as residuals,
)
from .trainer import (
    CollocationTrainer as CollocationTrainer,
)
