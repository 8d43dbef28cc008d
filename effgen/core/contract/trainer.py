"""The contract that every training method fulfills: `init` and a pure `step`."""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray, PyTree

from .state import Metrics, TrainState, check_kind, copied


class AbstractTrainer(eqx.Module):
    """A training method: frozen hyperparameters and two methods.

    A subclass is an `eqx.Module` whose fields are constructor arguments. It defines
    `init` and `step`.

    Attributes:
        watched: The names of the metrics that a progress bar shows.
    """

    watched: ClassVar[tuple[str, ...]] = ("loss",)

    @abc.abstractmethod
    def init(self, model: PyTree, memory: Any = None) -> TrainState:
        """Return the first state, `TrainState.start(model, opt_state, memory)`.

        Arguments:
            model: The pytree to train.
            memory: What the method begins with, where it asks for it.

        Returns:
            The state at step 0, which holds copies of all arrays.
        """

    @abc.abstractmethod
    def step(
        self, state: TrainState, batch: PyTree, *, key: PRNGKeyArray
    ) -> tuple[TrainState, Metrics]:
        """Take one step; pure, so that it can be compiled, mapped and repeated.

        The metrics are a dict of arrays of fixed shape. The core refuses the step if
        `"loss"` or `"grad_norm"` is non-finite (or, without a `"grad_norm"`, if a
        parameter is), and if `"result"`, where given, is not successful.

        Arguments:
            state: The state before the step.
            batch: The data of the step, a pytree of arrays.
            key: The noise of the step, another one at each.

        Returns:
            The state after the step, and its metrics.
        """

    def check(self, state: TrainState, batch: PyTree, source: Any) -> None:
        """Raise on input that this trainer cannot use.

        It is called once, before the first step. A subclass may override it: by default
        all input is accepted.

        Arguments:
            state: The run's first state.
            batch: The first batch's shapes and dtypes (`jax.ShapeDtypeStruct`); of
                steps on the host, the batch itself.
            source: The data that the run takes its batches of.
        """

    def for_data(self, state: TrainState, data: Any) -> "AbstractTrainer":
        """Return the trainer with what it must know of the data before it is compiled.

        An example is a number of steps, which is an array's length. A subclass may
        override it; it raises nothing, for `check` does. By default, it returns the
        trainer itself.

        Arguments:
            state: The run's first state.
            data: The data that the run takes its batches of.

        Returns:
            The trainer that the run uses.
        """
        return self

    def batches(self, state: TrainState, data: Any) -> Any:
        """Return the data that a run from `state` takes its batches of.

        A subclass may override it, where the state says what of a sequence is left.
        By default, the data as given.

        Arguments:
            state: The run's first state.
            data: The data as given to `train`.

        Returns:
            A source of batches, of any kind that `train` takes.
        """
        return data


class AbstractHostTrainer(AbstractTrainer):
    """A trainer whose `step` runs on the host and calls compiled functions itself.

    `train` neither compiles nor donates for it: one step is one call. A subclass
    defines `init` and `step`, as in `AbstractTrainer`.
    """


def check_trainer(trainer: Any) -> None:
    """Raise `TypeError` for an object that is no trainer, such as a class of them."""
    if not isinstance(trainer, AbstractTrainer):
        kind = getattr(trainer, "__name__", type(trainer).__name__)
        raise TypeError(
            f"`trainer` is {kind!r}: pass a trainer made of its settings, such as "
            "`ebm.PCDTrainer(...)`, or one of your own `effgen.AbstractTrainer`s."
        )


def continued(
    trainer: AbstractTrainer, state: TrainState, memory: Any = None
) -> TrainState:
    """Return the state from which `trainer` continues the run of another one.

        TrainState(state.model, state.opt_state, memory, state.step)

    Schedules, moments, data and noise continue by the same count of steps. Only the
    memory is new. An average of the model continues too.

    Arguments:
        trainer: The one that continues, with the optimizer of the one that stopped.
        state: The state that the other one ended with; its arrays stay usable.
        memory: As for `trainer.init`.

    Returns:
        The first state of the run that continues.

    Raises:
        TypeError: If `trainer` is no trainer or `state` no state.
        ValueError: If `state` is of another optimizer, or as `trainer.init` raises it
            for the model and the memory.
    """
    check_trainer(trainer)
    check_kind(state)
    first = trainer.init(state.model, memory)
    if jax.tree.structure(first.opt_state) != jax.tree.structure(state.opt_state):
        raise ValueError(
            "`state` was trained by another optimizer than the trainer's: pass both "
            "trainers the same, or begin anew by `trainer.init(state.model, memory)`."
        )
    opt_state, step = copied((state.opt_state, state.step))  # `init` copies the rest
    average = copied(state.average)
    return TrainState(first.model, opt_state, first.memory, step, average)
