"""What is wrapped around a run: a bar, logs, guards, averages; learning curves."""

from .bar import (
    progress as progress,
)
from .curves import (
    LearningCurve as LearningCurve,
    extrapolate as extrapolate,
    should_stop as should_stop,
)
from .estimators import (
    rank_runs as rank_runs,
    sotl as sotl,
    tse_e as tse_e,
    tse_ema as tse_ema,
)
from .events import (
    tensorboard as tensorboard,
)
from .logs import (
    logged as logged,
)
from .runs import (
    averaged as averaged,
    guarded as guarded,
)
