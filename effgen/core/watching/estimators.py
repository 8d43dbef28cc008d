"""What the losses of a run show: which run will be better.

Axis: `steps`. All are functions of the losses that `history["loss"]` holds, and free.
"""

from collections.abc import Callable, Mapping
from numbers import Integral

import numpy as np
from jaxtyping import Float

from effgen.core.contract.masked import check_unmasked
from effgen.core.outcome.history import History


Losses = Float[np.ndarray, " steps"]


def sotl(losses: Losses) -> float:
    """Return the sum over training losses, `sum(losses)`; smaller is better.

    Where each loss is the mean over a batch of rows not seen before, `batch_size` times
    the sum is the length in nats of a code of the data. If each loss is also that of a
    draw from the posterior given the rows before, the negative of that length bounds
    the log marginal likelihood from below, on average. Over repeated epochs it is a
    heuristic: `docs/sweeps.md`.

    Arguments:
        losses: One training loss a step, shape `(steps,)`.

    Returns:
        The sum, in units of loss.

    Raises:
        TypeError: For a whole history.
        ValueError: For losses that are not finite, or none.

    Source:
        Lyle et al. (2020), section 3; Ru et al. (2021), equation 1.
    """
    return float(np.sum(checked_losses(losses)))


def tse_e(losses: Losses, *, last: int) -> float:
    """Return the sum of the last losses, `sum(losses[-last:])`; smaller is better.

    It leaves out the start, which depends on the initialization more than on the model.

    Arguments:
        losses: One training loss a step, shape `(steps,)`.
        last: How many steps to sum, as many as one or a few epochs have.

    Returns:
        The sum, in units of loss.

    Raises:
        TypeError: For a whole history.
        ValueError: For `last` outside `1 .. steps`, or losses that are not finite, or
            none.

    Source:
        Ru et al. (2021), TSE-E.
    """
    losses = checked_losses(losses)
    if not isinstance(last, Integral) or not 1 <= last <= len(losses):
        raise ValueError(f"`last` is {last}: pass 1 to {len(losses)}.")
    return float(np.sum(losses[-last:]))


def tse_ema(losses: Losses, *, decay: float = 0.999) -> float:
    """Return `sum(decay^(steps - 1 - i) * losses[i])`; smaller is better.

    Late losses count more.

    Arguments:
        losses: One training loss a step, shape `(steps,)`.
        decay: In (0, 1]; about the last `1 / (1 - decay)` steps count.

    Returns:
        The sum, in units of loss.

    Raises:
        TypeError: For a whole history.
        ValueError: For a decay outside (0, 1], or losses that are not finite, or none.

    Source:
        Ru et al. (2021), TSE-EMA.
    """
    losses = checked_losses(losses)
    check_share("decay", decay)
    return float(np.sum(decay ** np.arange(len(losses) - 1, -1, -1.0) * losses))


def rank_runs(
    losses: Mapping[str, Losses], estimator: Callable[[Losses], float] = sotl
) -> list[str]:
    """Return the names of the runs, the most promising first.

    All are cut to the length of the shortest, since a sum over more steps is larger.

    Arguments:
        losses: The runs' names, each with one training loss a step, shape `(steps,)`.
        estimator: From losses to a number, smaller for the better run, such as `sotl`
            or `tse_ema`.

    Returns:
        The names, ordered by the estimate.

    Raises:
        TypeError: If `losses` is no mapping of names to losses.
        ValueError: If `losses` has no run, or if a run, which is named, has no loss
            or one that is not finite, or an estimate that is not a number.
    """
    if not isinstance(losses, Mapping) or isinstance(losses, History):
        raise TypeError(
            f"`losses` is a {type(losses).__name__}: pass a mapping of names to losses."
        )
    if not losses:
        raise ValueError("`losses` names no run: pass a mapping of names to losses.")
    runs = {
        name: checked_losses(run, f"losses[{name!r}]") for name, run in losses.items()
    }
    shortest = min(map(len, runs.values()))
    scores = {name: estimator(run[:shortest]) for name, run in runs.items()}
    for name, score in scores.items():
        if np.ndim(score) or np.isnan(score):
            raise ValueError(
                f"`estimator` gives {score} for the run {name!r}: return one number."
            )
    return sorted(scores, key=scores.__getitem__)


def check_share(name: str, value: float) -> None:
    """Raise `ValueError` unless `0 < value <= 1`."""
    if not 0 < value <= 1:
        raise ValueError(f"`{name}` is {value}: pass a number in (0, 1].")


def checked_losses(losses: Losses, name: str = "losses") -> Losses:
    """Return `losses` in double precision; raise for what are none, or not finite."""
    if isinstance(losses, Mapping):
        raise TypeError(
            f"`{name}` is a {type(losses).__name__}: pass one metric of it, such as "
            "`history['loss']`."
        )
    check_unmasked(name, losses)
    losses = np.asarray(losses, np.float64)
    if losses.ndim != 1 or not len(losses):
        raise ValueError(f"`{name}` has shape {losses.shape}: pass one loss a step.")
    bad = np.flatnonzero(~np.isfinite(losses))
    if len(bad):
        raise ValueError(
            f"`{name}` is {losses[bad[0]]} at step {bad[0]}: leave such steps out."
        )
    return losses
