"""Efficient training of generative and scientific models in JAX.

The methods are imported when they are first asked for: `effgen.ebm`, or
`from effgen import ebm`. Each brings its own solvers, and few scripts use two.
"""

import typing as _typing
from importlib import import_module as _import_module, metadata as _metadata

from .core import names as _names
from .core.checkpoint import (
    restore as restore,
    restore_model as restore_model,
    resume as resume,
)
from .core.compilation import cache_compilations as cache_compilations
from .core.curves import (
    LearningCurve as LearningCurve,
    extrapolate as extrapolate,
    should_stop as should_stop,
)
from .core.batches import (
    AbstractBatches as AbstractBatches,
    AbstractHostBatches as AbstractHostBatches,
    HostMinibatches as HostMinibatches,
    Minibatches as Minibatches,
)
from .core.doors import exported as _exported
from .core.estimators import (
    rank_runs as rank_runs,
    sotl as sotl,
    tse_e as tse_e,
    tse_ema as tse_ema,
)
from .core.guard import Rollback as Rollback, Skip as Skip, Stop as Stop
from .core.history import History as History
from .core.logs import logged as logged
from .core.manifest import state_digest as state_digest
from .core.bar import progress as progress
from .core.repetition import replay as replay
from .core.results import (
    RESULTS as RESULTS,
    RunWarning as RunWarning,
    TrainingError as TrainingError,
)
from .core.run import Run as Run
from .core.runs import averaged as averaged, guarded as guarded
from .core.saving import checkpointed as checkpointed
from .core.sharding import make_mesh as make_mesh, shard as shard
from .core.state import TrainState as TrainState
from .core.stream import Stream as Stream
from .core.events import tensorboard as tensorboard
from .core.tensors import CorruptCheckpoint as CorruptCheckpoint
from .core.verbs import drain as drain, fit as fit, train as train
from .core.trainer import (
    AbstractHostTrainer as AbstractHostTrainer,
    AbstractTrainer as AbstractTrainer,
    continued as continued,
)
from .core.update import (
    apply_gradients as apply_gradients,
    init_opt_state as init_opt_state,
)
from .core.weights import (
    Estimate as Estimate,
    conditional_ess as conditional_ess,
    effective_sample_size as effective_sample_size,
    log_mean_exp as log_mean_exp,
    resample as resample,
)
from .core.writer import save as save


_names.warn_of_another()
try:
    __version__ = _metadata.version("effgen-jax")
except _metadata.PackageNotFoundError:  # run from its source, not installed
    __version__ = "unknown"

_METHODS = ("collocation", "ebm", "neural_sde", "retrieval_cache")

if _typing.TYPE_CHECKING:
    from . import (
        collocation as collocation,
        ebm as ebm,
        neural_sde as neural_sde,
        retrieval_cache as retrieval_cache,
    )
else:  # hidden from type checkers, which would find any name here

    def __getattr__(name):
        if name not in _METHODS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return _import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_METHODS})


# pyright reads the aliases above instead.
__all__ = sorted(  # pyright: ignore[reportUnsupportedDunderAll]
    {*_exported(vars()), *_METHODS, "__version__"}
)
