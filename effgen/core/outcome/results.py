"""The ways a run can end, each with what to do about it."""

import copy
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import numpy as np

from .pickling import packed, unpacked, with_attributes


if TYPE_CHECKING:
    from .history import History


class RESULTS(eqx.Enumeration):
    """Every way a run can end; `RESULTS[item]` is its message with the remedy.

    A trainer puts an item under `metrics["result"]`: the code travels through `jit`
    as an integer and has a name again outside. Anything but `successful` stops the
    run before the step's state is kept.

    Attributes:
        successful: All steps are taken, or the run still goes.
        nonfinite: The loss, a gradient or a parameter is not finite.
        weights_collapsed: The walkers' weights lie on too few of them.
        walkers_lost: Moves took walkers to where the energy is not finite.
        unconfined: The energy has no normalizable density any more.
        energies_apart: Data and walkers differ too far in their mean energies.
        too_many_skips: `Skip` left out too many steps in a row.
        too_many_rollbacks: Steps failed again after every `Rollback`.
        too_many_steps: A series needs more solver steps than allowed.
        times_out_of_order: A series has times that are not in order.
        documents_differ: A batch's document is not that of its number in the cache.
        document_missing: A batch's document is not in the index.
        data_outside: A batch has rows where the walkers can never be.
        infeasible: Ipopt found no point where all constraints hold.
        diverging: Ipopt's iterates grew without bound.
        evaluation_failed: Ipopt was given a value or derivative that is not finite.
        restoration_failed: Ipopt could not come back to feasibility.
        step_failed: Ipopt could not compute a step.
        too_many_equations: There are more equality constraints than variables.
        solver_failed: Ipopt ended with an error of its own.
        data_failed: The data source raised.
        data_exhausted: The data ended before `num_steps`.
        checkpoint_failed: A checkpoint could not be written.
        interrupted: Ctrl-C ended the run.
        terminated: SIGTERM ended the run.
        left: The loop was left before the last step.
        data_stalled: The data gave no batch for `patience` seconds.
        stopped_elsewhere: Another process failed.
        processes_apart: Another process did not answer for `patience` seconds.
        batches_differ: The processes' batches differ in tree, shapes or dtypes.
        count_ended: The count of steps reached the limit of 32 bits.
    """

    successful = ""
    nonfinite = (
        "the loss, a gradient or a parameter became non-finite. Lower the learning "
        "rate or the step size, clip gradients (optax.clip_by_global_norm), check the "
        "batch for extreme values, or pass the error's state to `effgen.replay` to "
        "run the bad step again op by op."
    )
    weights_collapsed = (
        "the walkers' weights collapsed onto too few of them. Lower the learning rate "
        "or the kernel's step size, use more walkers, or resample earlier; "
        "`radius=0.1` shortens the updates that would do it."
    )
    walkers_lost = (
        "moves took walkers to where the energy is not finite: the step size times the "
        "energy's curvature is above 2. The metric `step_size` says how long they were "
        "and `steepest` the largest gradient: lower the kernel's `step_size`, give it "
        "a `clip`, or use `ebm.MALA`, which refuses such moves."
    )
    unconfined = (
        "the energy no longer confines: along some ray it does not grow fast enough "
        "for `exp(-energy)` to have an integral, so that there is no density. Lower "
        "the learning rate, clip gradients, or put the network into "
        "`ebm.ConfinedEnergy(network, scale)` with a smaller `scale`."
    )
    energies_apart = (
        "the mean energies of data and walkers are more than 10,000 nats a coordinate "
        "apart: the training diverges. Lower the learning rate or the step size, clip "
        "gradients (optax.clip_by_global_norm), or make more moves a step."
    )
    too_many_skips = (
        "more steps in a row were skipped than `Skip(at_most=...)` allows. The cause "
        "is not passing noise: look at the data and the learning rate."
    )
    too_many_rollbacks = (
        "the step failed again after every rollback with fresh noise. The cause is in "
        "the parameters or the data: lower the learning rate or look at the batch."
    )
    too_many_steps = (
        "a series needs more steps than `max_steps`. Raise it, or `dt`, or cut the "
        "series; given arrays, as in `effgen.Minibatches`, `train` finds it by itself."
    )
    times_out_of_order = (
        "a series has times that are not in order, not finite, or before `t0`, or "
        "other times than the rest where `shared_times` is set. Sort them, and pad a "
        "series by repeating its last time."
    )
    documents_differ = (
        "a batch's document has a number that is of another document in the cache, or "
        "past 2^30: the metric `differing` says which. Number documents as the cache "
        "was filled, give them as they are there, or leave `ids` out: documents are "
        "then identified by their content."
    )
    document_missing = (
        "a batch's document has a number that the index has no document of: the metric "
        "`missing` says which. Number documents as the index was made."
    )
    data_outside = (
        "a batch of `data` has rows where the kernel's walkers can never be: other "
        "values than 0 and 1 (`ebm.GibbsWithGradients`, `ebm.BlockGibbs`), values "
        "outside of `low` and `high` (`ebm.ReflectedMALA`), or labels that are no "
        "integers from 0 to `num_labels - 1` (`ebm.LabelGibbs`). Threshold, rescale or "
        "renumber them where the batches are made."
    )
    infeasible = (
        "Ipopt found no point where all constraints hold. `metrics` and the warning "
        "name the worst: loosen or correct it, or start from another guess."
    )
    diverging = (
        "Ipopt's iterates grew without bound. Bound states and parameters, scale by "
        "`nominal`, or add a weight decay."
    )
    evaluation_failed = (
        "Ipopt was given a value or a derivative that is not finite. The warning names "
        "it: bound states and parameters away from where a law ends, such as the root "
        "or the logarithm of zero, or start from another guess."
    )
    restoration_failed = (
        "Ipopt could not come back to feasibility. Start from a better guess, such as "
        "a coarser mesh's solution, or check the scaling (`nominal`)."
    )
    step_failed = (
        "Ipopt could not compute a step. Check the scaling (`nominal`), remove "
        "redundant constraints, or choose another `Ipopt(linear_solver=)`."
    )
    too_many_equations = (
        "there are more equality constraints than variables. Free some initial states "
        "or remove constraints."
    )
    solver_failed = (
        "Ipopt ended with an error of its own. The metric `status` is its code: see "
        'its list of return codes, and `Ipopt(options={"print_level": 5})` for its log.'
    )
    data_failed = (
        "the data source raised. Mend the source, then resume from the last "
        "checkpoint, or from the error's `state`."
    )
    data_exhausted = (
        "the data ended before `num_steps`. Pass a source that repeats, such as "
        "`effgen.Minibatches`, or ask for fewer steps."
    )
    checkpoint_failed = (
        "Make room or choose another directory, save the error's `state` with "
        "`effgen.save`, and resume from there; checkpoints written before are good."
    )
    interrupted = (
        "interrupted by Ctrl-C. The state is that of the last finished step; train "
        "from it to go on."
    )
    terminated = (
        "the process was asked to terminate (SIGTERM). The state is that of the last "
        "finished step; resume from its checkpoint."
    )
    left = (
        "the loop was left before the last step. The state is that of the last "
        "finished step; train from it to go on."
    )
    data_stalled = (
        "the data gave no batch for `patience` seconds. Look at what the source waits "
        "for, or raise `train(..., patience=...)`; the error's `state` is good."
    )
    stopped_elsewhere = (
        "another process failed, and says why; this one stopped at the same step. "
        "Start all of them again: they resume from the same checkpoint."
    )
    processes_apart = (
        "another process did not answer for `patience` seconds. Look at its output; "
        "start all of them again from the last checkpoint, or raise "
        "`train(..., patience=...)`."
    )
    batches_differ = (
        "the processes' batches differ in their tree, shapes or dtypes. Give each the "
        "same number of rows of the batch."
    )
    count_ended = (
        "steps are counted in 32 bits, up to 2,147,483,647. Go on from the model by "
        "`trainer.init(state.model, state.memory)`, which counts from 0."
    )


class TrainingError(RuntimeError):
    """A run failed midway; nothing already trained or saved is lost.

    It can be copied and pickled, as a pool of processes does; what of it cannot be
    pickled, such as a model with functions of a notebook, is left behind with a note.

    Attributes:
        result: A `RESULTS` item.
        step: The step that failed.
        state: The `TrainState` before that step: usable, and what `replay` wants.
        metrics: Those of the failed step, as numpy arrays.
        attempt: The state that the failed step made, where it is kept: of trainers on
            the host; else `None`.
        history: The `History` of the sound steps, where it is kept: by `fit` and
            `drain` of the whole run, in a loop of those since its last yield; else
            `None`.
        position: The data's position that belongs to `state`, if they have one.
    """

    def __init__(
        self,
        message: str,
        *,
        result: Any,
        step: int,
        state: Any,
        metrics: Any,
        attempt: Any = None,
        history: "History | None" = None,
        position: Any = None,
    ) -> None:
        """Keep what is needed to resume or to replay the failed step."""
        RuntimeError.__init__(self, message)
        self.result = result
        self.step = step
        self.state = state
        self.metrics = metrics
        self.attempt = attempt
        self.history = history
        self.position = position

    def __reduce__(self) -> tuple[Any, ...]:
        return unpacked, packed(self)

    def __copy__(self) -> "TrainingError":
        return with_attributes(self, self.__dict__)

    def __deepcopy__(self, memo: dict[int, Any]) -> "TrainingError":
        return with_attributes(self, copy.deepcopy(self.__dict__, memo))


class RunWarning(UserWarning):
    """A run ended early, or continued after something failed; the text says how."""


def told(result: Any, metrics: Any) -> str:
    """Return a result's message, with the values of the metrics that it names."""
    message = RESULTS[result]
    there = [
        f" `{name}` is {np.asarray(value).item()}."
        for name, value in metrics.items()
        if f"`{name}`" in message and np.size(value) == 1
    ]
    return message + "".join(there)


def code(result: Any) -> int:
    """Return the integer code of a `RESULTS` item outside `jit`."""
    (value,) = jax.tree.leaves(result)
    return int(value)


def with_code(like: Any, value: int) -> Any:
    """Return the item of `like`'s enumeration whose integer code is `value`."""
    return jax.tree.unflatten(jax.tree.structure(like), [np.asarray(value, np.int32)])
