"""Several processes agree on what they do next; alone, there is nothing to agree on."""

import jax
import numpy as np

from .interrupts import Interrupts
from .results import RESULTS, code, with_code


def agreed_steps(num: int, interrupts: Interrupts) -> int:
    """Return the number of steps that every process takes next.

    The processes' clocks differ, and a compiled loop with collectives must have the
    same length everywhere: the least `num` is taken. A signal that one process received
    reaches all, so that they stop, and save, at the same step.
    """
    if jax.process_count() == 1:
        return num
    from jax.experimental import multihost_utils

    received = RESULTS.successful if interrupts.result is None else interrupts.result
    mine = np.array([-num, code(received)], np.int32)
    worst = multihost_utils.process_allgather(mine).max(axis=0)
    if worst[1]:
        interrupts.result = with_code(RESULTS.successful, int(worst[1]))
    return int(-worst[0])
