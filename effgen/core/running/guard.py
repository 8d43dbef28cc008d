"""What a run does when a step fails: stop, skip the step, or roll back."""

import equinox as eqx

from effgen.core.contract.counts import check_count
from effgen.core.outcome.results import RESULTS


class AbstractGuard(eqx.Module):
    """A policy for failed steps; the failed step's state is never kept."""

    num_skips: eqx.AbstractVar[int]
    num_retries: eqx.AbstractVar[int]


class Stop(AbstractGuard):
    """Raise `TrainingError` with the last good state. The default."""

    num_skips: int = eqx.field(default=0, init=False)
    num_retries: int = eqx.field(default=0, init=False)


class Skip(AbstractGuard):
    """Leave out a failed step and continue with the next batch and new noise.

    It is for rare bad batches. The skipped steps are counted in `run.num_skipped`.

    Arguments:
        at_most: The most failed steps in a row; one more ends the run.

    Raises:
        ValueError: If `at_most` is no integer of 1 or more.
    """

    num_skips: int
    num_retries: int = eqx.field(default=0, init=False)

    def __init__(self, at_most: int = 10) -> None:
        """Set the most failed steps in a row."""
        check_count("at_most", at_most)
        self.num_skips = at_most
        self.num_retries = 0


class Rollback(AbstractGuard):
    """Go back to the run's last yield and take the steps again with fresh noise.

    It is for failures that the noise causes (a diverged walker, a bad path). The data
    stay the same. It holds one more copy of the state and, of data on the host, the
    batches since that yield. Without `every`, it goes back to the last of each 100
    steps.

    Arguments:
        at_most: The most further attempts at the steps between two yields.

    Raises:
        ValueError: If `at_most` is no integer of 1 or more.
    """

    num_skips: int = eqx.field(default=0, init=False)
    num_retries: int

    def __init__(self, at_most: int = 3) -> None:
        """Set the most attempts."""
        check_count("at_most", at_most)
        self.num_skips = 0
        self.num_retries = at_most


def final_result(guard: AbstractGuard, result: RESULTS) -> RESULTS:
    """Return why a run under `guard` ends when a step has failed with `result`."""
    if guard.num_skips:
        return RESULTS.too_many_skips
    return RESULTS.too_many_rollbacks if guard.num_retries else result
