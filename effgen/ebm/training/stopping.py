"""Stopping by the likelihood of rows that are held out, while it can be believed."""

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from effgen.core.contract.counts import check_count
from effgen.core.contract.state import TrainState
from effgen.core.outcome.results import RunWarning
from effgen.core.running.run import Run, check_run
from effgen.ebm.evaluation.density import NormalizedEnergy


Density = Callable[[TrainState], NormalizedEnergy]


class Stopped(NamedTuple):
    """What `early_stopped` found: a state, and one record for each yield of the run.

    Attributes:
        state: The state of the highest believed likelihood; the last where none was.
        steps: The number of steps taken.
        likelihoods: The mean log-density of the held-out rows, in nats.
        errors: One standard error of `log Z`, in nats.
        believed: Whether the likelihood is finite and came without a warning.
    """

    state: TrainState
    steps: list[int]
    likelihoods: list[float]
    errors: list[float]
    believed: list[bool]


def early_stopped(
    run: Run,
    held_out: Float[Array, "examples *shape"],
    *,
    patience: int = 5,
    density: Density = NormalizedEnergy.from_state,
) -> Stopped:
    """Train until the likelihood of `held_out` has not risen for `patience` yields.

        likelihood = -mean(energy(held_out)) - log_partition

    at each yield of the run, by `density(state)`. By default that is
    `NormalizedEnergy.from_state`, by the audit walkers. If the run is `averaged`, it is
    that of the average. A likelihood of which `density` warns is recorded, but is no
    reason to keep a state or to stop. All likelihoods are of the same rows, so the
    noise between them is that of `log Z`.

    Arguments:
        run: As `effgen.train(..., every=50)` makes it, not yet started.
        held_out: Rows that are not trained on, shape `(examples, *shape)`.
        patience: How many believed likelihoods in a row may be no higher.
        density: From a state to the density of `state.evaluated`. Where a long training
            wears the audit walkers out, fresh ones that are `annealed` from a known
            start tell more, for any trainer; with the same key at each yield their
            errors are alike.

    Returns:
        The state of the highest believed likelihood, with the records.

    Raises:
        TypeError: If `run` is no run, or `density` gives no `NormalizedEnergy`.
        ValueError: For a patience below 1, rows of another shape or not finite, or a
            state that does not know its `log Z`.

    Warns:
        RunWarning: If no likelihood on the way could be believed: the state is then
            the last.

    Source:
        Prechelt (1998).
    """
    check_run(run)
    check_count("patience", patience)
    first, _, _ = _told(
        density, run.state, held_out
    )  # refused before a step, if it must be
    if not np.isfinite(first):
        raise ValueError(
            f"`held_out` has a mean log-density of {first} under the first model: "
            "leave out rows where walkers can never be, such as those outside of walls."
        )
    seen = Stopped(run.state, [], [], [], [])
    best, since = -np.inf, 0
    with run:
        for state, _ in run:
            value, error, believed = _recorded(density, state, held_out)
            seen.steps.append(int(state.step))
            seen.likelihoods.append(value)
            seen.errors.append(error)
            seen.believed.append(believed)
            higher = believed and value > best
            if higher or not any(seen.believed):
                best, seen = (value if higher else best), seen._replace(state=state)
            since = 0 if higher else since + believed
            if since >= patience:
                break
    _check_believed(seen)
    return seen


def _told(
    density: Density, state: TrainState, held_out: Float[Array, "examples *shape"]
) -> tuple[float, float, bool]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RunWarning)
        told = density(state)
    if not isinstance(told, NormalizedEnergy):
        raise TypeError(
            f"`density` gave a {type(told).__name__}: return an "
            "`ebm.NormalizedEnergy` of `state.evaluated`."
        )
    value = float(told.log_likelihood(held_out).value)
    doubted = any(issubclass(one.category, RunWarning) for one in caught)
    believed = not doubted and bool(np.isfinite(value))
    return value, float(told.standard_error), believed


def _recorded(
    density: Density, state: TrainState, held_out: Float[Array, "examples *shape"]
) -> tuple[float, float, bool]:
    """Return the likelihood and its error; without walkers both are undefined.

    The run then continues.
    """
    try:
        return _told(density, state, held_out)
    except ValueError:
        return math.nan, math.nan, False


def _check_believed(seen: Stopped) -> None:
    if seen.steps and not any(seen.believed):
        warnings.warn(
            "no likelihood on the way could be believed, so that there was nothing to "
            "stop by: the state is the last. Give `trainer.init` audit walkers, or "
            "more of them; bound the updates by `radius`; or give `density`, by fresh "
            "walkers that are `ebm.annealed`.",
            RunWarning,
            stacklevel=3,
        )
