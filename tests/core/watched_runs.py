"""Small runs to watch, and chunks made by hand."""

import jax.numpy as jnp

import effgen as eg
from effgen.core.running.job import Chunk
from tests.cases import KEY
from tests.core.tiny import Total, ones


def made(num_steps=12, every=4, trainer=None, state=None):
    trainer = Total() if trainer is None else trainer
    state = trainer.init() if state is None else state
    return eg.train(trainer, state, ones, key=KEY, num_steps=num_steps, every=every)


def chunk(start, stop, boundary=True, **metrics):
    return Chunk(None, metrics, start, stop, boundary, None)


def watched(run, chunks):
    """Return what the run's last wrapper makes of chunks that were made by hand."""
    return run.wrappers[-1](iter(chunks), run.job)


class BadStep(Total):
    """Fails at one step."""

    bad: int = 6

    def step(self, state, batch, *, key):
        new, metrics = Total.step(self, state, batch, key=key)
        return new, {"loss": jnp.where(state.step == self.bad, jnp.nan, 2.0)} | {
            "twice": 2 * metrics["loss"]
        }
