"""The contract that every training method fulfills: `init` and a pure `step`."""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray, PyTree

from .state import Metrics, TrainState, copied


class AbstractTrainer(eqx.Module):
    """A training method: frozen hyperparameters and two methods.

    A subclass is an `eqx.Module` whose fields are constructor arguments. `watched`
    names the metrics that a progress bar shows.
    """

    watched: ClassVar[tuple[str, ...]] = ("loss",)

    @abc.abstractmethod
    def init(self, model: PyTree, memory: Any = None) -> TrainState:
        """Return the first state, `TrainState.start(model, opt_state, memory)`."""

    @abc.abstractmethod
    def step(
        self, state: TrainState, batch: PyTree, *, key: PRNGKeyArray
    ) -> tuple[TrainState, Metrics]:
        """Take one step; pure, so that it can be compiled, mapped and repeated.

        The metrics are a dict of arrays of fixed shape. The core refuses the step if
        `"loss"` or `"grad_norm"` is non-finite (or, without a `"grad_norm"`, if a
        parameter is), and if `"result"`, where given, is not successful.
        """

    def check(self, state: TrainState, batch: PyTree, source: Any) -> None:
        """Raise on input that this trainer cannot use; called once, before any compute.

        `batch` has the arrays' shapes and dtypes (`jax.ShapeDtypeStruct`), `source` is
        the data as given. A subclass may override it: by default all input is accepted.
        """

    def for_data(self, state: TrainState, data: Any) -> "AbstractTrainer":
        """Return the trainer with what it must know of the data before it is compiled.

        Such as a number of steps, which is an array's length. A subclass may override
        it; it raises nothing, for `check` does. By default, the trainer itself.
        """
        return self

    def batches(self, state: TrainState, data: Any) -> Any:
        """Return the data that a run from `state` takes its batches of.

        A subclass may override it, where the state says what of a sequence is left.
        By default, the data as given.
        """
        return data


class AbstractHostTrainer(AbstractTrainer):
    """A trainer whose `step` runs on the host and calls compiled functions itself.

    `train` neither compiles nor donates for it: one step is one call.
    """


def continued(
    trainer: AbstractTrainer, state: TrainState, memory: Any = None
) -> TrainState:
    """Return the state from which `trainer` goes on where another one stopped.

        TrainState(state.model, state.opt_state, memory, state.step)

    One method begins and another ends: schedules, moments, data and noise go on by the
    same count, and only the memory is new.

    **Arguments:**

    - `trainer`: the one that goes on, with the optimizer of the one that stopped.
    - `state`: what that one left; its arrays stay usable.
    - `memory`: as for `trainer.init`.

    **Raises:** `ValueError` if `state` is of another optimizer; what `trainer.init`
    raises for the model and the memory.
    """
    first = trainer.init(state.model, memory)
    if jax.tree.structure(first.opt_state) != jax.tree.structure(state.opt_state):
        raise ValueError(
            "`state` was trained by another optimizer than the trainer's: pass both "
            "trainers the same, or begin anew by `trainer.init(state.model, memory)`."
        )
    opt_state, step = copied((state.opt_state, state.step))  # `init` copies the rest
    average = copied(state.average)
    return TrainState(first.model, opt_state, first.memory, step, average)
