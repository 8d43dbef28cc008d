"""An exponential average of the model over the steps, beside the model itself."""

import dataclasses

from .run import Run
from .state import TrainState, copied


def averaged(run: Run, decay: float = 0.999) -> Run:
    """Keep an exponential average of the model, in `state.average`.

        average = d * average + (1 - d) * model,   d = min(decay, (1 + n) / (10 + n))

    after each step, for any trainer; `n` counts the steps, so that the first models,
    which are far from the last, soon weigh nothing. The average is saved with the state
    and goes on after `effgen.resume`. `state.evaluated` is the model to evaluate: the
    average where there is one. Training goes on from the model itself.

    **Arguments:** `run`; `decay`, in (0, 1): the average remembers about
    `1 / (1 - decay)` steps.

    **Returns:** the run, in place of the one given.

    **Raises:** `ValueError` for a decay outside (0, 1).

    **Source:** Polyak and Juditsky (1992); the first steps' weights are those of
    TensorFlow's `ExponentialMovingAverage`.
    """
    if not 0 < decay < 1:
        raise ValueError(f"`decay` is {decay!r}: pass a number between 0 and 1.")
    run = run.through(lambda chunks, job: chunks)
    run.job.decay = float(decay)
    run.job.state = _with_average(run.job.state)
    return run


def _with_average(state: TrainState) -> TrainState:
    if state.average is not None:
        return state
    return dataclasses.replace(state, average=copied(state.model))
