"""A failed step again: the very step of the run, and where it went wrong."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import effgen as eg
from tests.cases import KEY
from tests.core.tiny import OnHost, Total


class Scaled(Total):
    """Its steps need a number that the data tell, and its data begin at the state's."""

    scale: float | None = None

    def for_data(self, state, data):
        return dataclasses.replace(self, scale=float(len(data)))

    def batches(self, state, data):
        return [2 * batch for batch in data]

    def step(self, state, batch, *, key):
        return super().step(state, self.scale * batch, key=key)


class ScaledOnHost(Scaled, OnHost):
    """The same, with its steps taken on the host."""


class Rooted(Total):
    """An infinity and a NaN that are meant, and what is left in the end."""

    def step(self, state, batch, *, key):
        state, metrics = super().step(state, batch, key=key)
        masked = jnp.where(batch > 0, jnp.log(batch - 1), jnp.inf)
        least = jnp.min(jnp.where(jnp.isnan(masked), jnp.inf, masked))
        return state, metrics | {"loss": jnp.minimum(least, metrics["loss"])}


@pytest.mark.parametrize("trainer", [Scaled(), ScaledOnHost()])
def test_it_is_the_step_of_the_run(trainer):
    data = [np.float32([i]) for i in range(1, 5)]
    start = trainer.init()
    first, _ = eg.fit(trainer, start, data, key=KEY, num_steps=2)
    _, history = eg.fit(trainer, start, data, key=KEY, num_steps=3)
    for state, step in ((first, None), (start, 2)):
        after, metrics = eg.replay(trainer, state, data, key=KEY, step=step)
        assert float(metrics["loss"]) == history["loss"][-1] == 4 * 2 * 3
        assert float(after.model) == history["loss"].sum()


def test_a_nan_that_is_meant_is_none_that_failed():
    data = [np.float32([0.5, -1.0, 3.0])]
    trainer = Rooted()
    state, history = eg.fit(trainer, trainer.init(), data, key=KEY)
    after, metrics = eg.replay(trainer, trainer.init(), data, key=KEY)
    assert metrics["loss"] == history["loss"][0]
    assert after.model == state.model


def test_a_loss_that_is_infinite_is_found():
    data = [np.float32([np.inf])]
    with pytest.raises(FloatingPointError, match="inf"):
        eg.replay(Total(), Total().init(), data, key=KEY)


def test_a_batch_taken_in_turn_is_replayed_and_not_used_up():
    data = iter([np.float32([i]) for i in range(7)])
    state, _ = eg.fit(Total(), Total().init(), data, key=KEY, num_steps=5)
    for _ in range(2):
        _, metrics = eg.replay(Total(), state, data, key=KEY)
        assert float(metrics["loss"]) == 5
    state, history = eg.fit(Total(), state, data, key=KEY)
    assert history["loss"].tolist() == [5, 6]
    with pytest.raises(ValueError, match="`data` has no batch of step 7"):
        eg.replay(Total(), state, data, key=KEY)


def test_what_cannot_be_replayed_is_named():
    data = [np.float32([1.0])]
    state, _ = eg.fit(Total(), Total().init(), data, key=KEY)
    with pytest.raises(ValueError, match="`data` has no batch of step 1"):
        eg.replay(Total(), state, data, key=KEY)
    with pytest.raises(TypeError, match="`key` is 0: pass one random key"):
        eg.replay(Total(), state, data, key=0)
