"""Several processes agree on what they do next; alone, there is nothing to agree on."""

import jax
import numpy as np

from .interrupts import Interrupts
from .results import RESULTS, code, with_code


def agreed_steps(num: int, interrupts: Interrupts) -> int:
    """Return how many steps every process takes next; 0 if one was told to stop.

    The processes' clocks differ, and a compiled loop with collectives must have the
    same length everywhere: the least `num` is taken. A signal that one process received
    reaches all, so that they stop, and save, at the same step. A signal that comes
    while they agree waits for the next time.
    """
    received = code(
        RESULTS.successful if interrupts.result is None else interrupts.result
    )
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        mine = np.array([-num, received], np.int32)
        least, received = multihost_utils.process_allgather(mine).max(axis=0).tolist()
        num = -least
    if received:
        interrupts.result = with_code(RESULTS.successful, received)
    return 0 if received else num
