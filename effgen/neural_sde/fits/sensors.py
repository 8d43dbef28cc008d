"""Whether several sensors show one sum of parts, or each one its own."""

import warnings

import numpy as np
from jaxtyping import ArrayLike

from effgen.core.outcome.results import RunWarning

from .selection import Candidate, ranked


_MUCH = 5.0  # nats: one sum would have a share below one percent


def warn_of_own_sums(best: Candidate, ts: ArrayLike, values: np.ndarray) -> None:
    """Warn where sensors have more evidence each alone than as readings of one sum.

    Arguments:
        best: The best structure, fitted to all sensors.
        ts: Times, shape `(obs,)`.
        values: NaN where missing, shape `(obs, sensors)`.

    Warns:
        RunWarning: If the criterion of `ranked`, summed over fits of the same structure
            to each sensor, is more than 5 nats above that of `best`.
    """
    if values.shape[1] == 1:
        return
    alone = [ranked([best.structure], ts, column)[0] for column in values.T]
    more = sum(c.criterion for c in alone) - best.criterion
    if more > _MUCH:
        warnings.warn(
            f"the {values.shape[1]} columns of `ys` are no readings of one sum: fitted "
            f"each alone they have {more:.0f} nats more, and bands of one sum would "
            "not hold. Call `forecaster` once for each column.",
            RunWarning,
            stacklevel=3,
        )
