"""The state, the trainer, and what a step must keep."""

from .state import (
    TrainState as TrainState,
)
from .trainer import (
    AbstractHostTrainer as AbstractHostTrainer,
    AbstractTrainer as AbstractTrainer,
    continued as continued,
)
from .update import (
    apply_gradients as apply_gradients,
    init_opt_state as init_opt_state,
)
