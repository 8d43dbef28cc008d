"""Wrappers that change what a run does: on failure, and beside the model."""

import dataclasses

from effgen.core.contract.state import TrainState, copied, kept_precisely
from effgen.core.running.guard import AbstractGuard, Stop
from effgen.core.running.run import Run, check_run


def guarded(run: Run, guard: AbstractGuard) -> Run:
    """Choose what happens when a step fails: `Stop()`, `Skip(...)` or `Rollback(...)`.

    A step fails if its loss, gradient or parameters are not finite or if it reports a
    `"result"` that is not successful; its state is never kept.

    Arguments:
        run: What `train` or another wrapper returned, not yet started.
        guard: What to do about a failed step.

    Returns:
        The run, in place of the one given.

    Raises:
        TypeError: If `run` is no run, or `guard` no guard.
        ValueError: If the run has a guard already.
        RuntimeError: If `run` has started, or is wrapped already.
    """
    check_run(run)
    run.check_unstarted()
    if not isinstance(guard, AbstractGuard):
        raise TypeError(f"`guard` is {guard!r}: pass Stop(), Skip() or Rollback().")
    if not isinstance(run.job.guard, Stop):
        raise ValueError(f"`run` is guarded by {run.job.guard} already: choose one.")
    run = run.through(lambda chunks, job: chunks)
    run.job.guard = guard
    return run


def averaged(run: Run, decay: float = 0.999) -> Run:
    """Keep an exponential average of the model, in `state.average`.

        average = d * average + (1 - d) * model,   d = min(decay, (1 + n) / (10 + n))

    after each step, for any trainer; `n` counts the steps, so that the first models,
    which are far from the last, soon weigh nothing. The average is saved with the state
    and continues after `effgen.resume`. `state.evaluated` is the model to evaluate: the
    average where there is one. Training continues from the model itself. The average of
    parameters in half precision is kept in single precision, because steps as small as
    `1 - d` of the difference would be rounded away.

    Arguments:
        run: What `train` or another wrapper returned, not yet started.
        decay: In (0, 1): the average remembers about `1 / (1 - decay)` steps.

    Returns:
        The run, in place of the one given.

    Raises:
        ValueError: For a decay outside (0, 1), or if the run is averaged already.
        TypeError: If `run` is no run.
        RuntimeError: If `run` has started, or is wrapped already.

    Source:
        Polyak and Juditsky (1992). The first steps' weights are those of TensorFlow's
        `ExponentialMovingAverage`.
    """
    check_run(run)
    run.check_unstarted()
    if not 0 < decay < 1:
        raise ValueError(f"`decay` is {decay!r}: pass a number between 0 and 1.")
    if run.job.decay is not None:
        raise ValueError(
            f"`run` is averaged with decay {run.job.decay} already: choose one decay."
        )
    run = run.through(lambda chunks, job: chunks)
    run.job.decay = float(decay)
    run.job.state = _with_average(run.job.state)
    return run


def _with_average(state: TrainState) -> TrainState:
    if state.average is None:
        average = copied(kept_precisely(state.model))
    else:
        average = kept_precisely(state.average)
    return dataclasses.replace(state, average=average)
