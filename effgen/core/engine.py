"""The loop under every run: on the device or on the host."""

import warnings
from collections.abc import Iterator

from .device_run import device_chunks
from .host_run import host_chunks
from .job import Chunk, Job
from .results import RESULTS, RunWarning
from .trainer import AbstractHostTrainer


def chunks_of(job: Job) -> Iterator[Chunk]:
    """Yield the chunks of `job`; warn if they end early.

    **Raises:** `TrainingError` where a step or the data fail.
    """
    host = isinstance(job.trainer, AbstractHostTrainer)
    yield from host_chunks(job) if host else device_chunks(job)
    if job.result == RESULTS.data_exhausted and job.num_steps is None:
        job.result = RESULTS.successful
    elif job.result != RESULTS.successful:
        warnings.warn(RESULTS[job.result], RunWarning, stacklevel=2)
