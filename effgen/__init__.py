"""Efficient training of generative and scientific models in JAX.

The methods are imported when they are first asked for: `effgen.ebm`, or
`from effgen import ebm`. Each brings its own solvers, and few scripts use two.
"""

import typing as _typing
from importlib import import_module as _import_module, metadata as _metadata

from .core import names as _names
from .core.contract import (
    AbstractHostTrainer as AbstractHostTrainer,
    AbstractTrainer as AbstractTrainer,
    TrainState as TrainState,
    apply_gradients as apply_gradients,
    continued as continued,
    init_opt_state as init_opt_state,
)
from .core.data import (
    AbstractBatches as AbstractBatches,
    AbstractHostBatches as AbstractHostBatches,
    HostMinibatches as HostMinibatches,
    Minibatches as Minibatches,
    Stream as Stream,
)
from .core.devices import (
    make_mesh as make_mesh,
    shard as shard,
)
from .core.doors import exported as _exported
from .core.outcome import (
    RESULTS as RESULTS,
    History as History,
    RunWarning as RunWarning,
    TrainingError as TrainingError,
)
from .core.running import (
    Rollback as Rollback,
    Run as Run,
    Skip as Skip,
    Stop as Stop,
    cache_compilations as cache_compilations,
    drain as drain,
    fit as fit,
    replay as replay,
    train as train,
)
from .core.saving import (
    CorruptCheckpoint as CorruptCheckpoint,
    checkpointed as checkpointed,
    restore as restore,
    restore_model as restore_model,
    resume as resume,
    save as save,
    state_digest as state_digest,
)
from .core.watching import (
    LearningCurve as LearningCurve,
    averaged as averaged,
    extrapolate as extrapolate,
    guarded as guarded,
    logged as logged,
    progress as progress,
    rank_runs as rank_runs,
    should_stop as should_stop,
    sotl as sotl,
    tensorboard as tensorboard,
    tse_e as tse_e,
    tse_ema as tse_ema,
)
from .core.weights import (
    Estimate as Estimate,
    conditional_ess as conditional_ess,
    effective_sample_size as effective_sample_size,
    log_mean_exp as log_mean_exp,
    resample as resample,
)


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
