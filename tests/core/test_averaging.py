"""The average of the model: exact, saved, resumed, and what is evaluated."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import effgen as eg
from effgen import ebm
from tests.cases import KEY, energy_and_walkers, jarzynski, regression
from tests.core.tiny import OnHost, Total, ones


def averaged(state, num_steps, decay=0.9, trainer=None):
    trainer = Total() if trainer is None else trainer
    run = eg.train(trainer, state, ones, key=KEY, num_steps=num_steps, every=7)
    return eg.averaged(run, decay)


@pytest.mark.parametrize("trainer", [Total(), OnHost()])
def test_the_average_is_its_recursion(trainer):
    state, _ = eg.drain(averaged(trainer.init(2.0), 30, trainer=trainer))
    average = 2.0
    for n in range(1, 31):
        decay = min(0.9, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * (2.0 + n)
    np.testing.assert_allclose(state.average, average, rtol=1e-6)
    assert float(state.model) == 32.0
    assert state.evaluated is state.average


def test_training_is_what_it_was():
    case = regression()
    plain, _ = eg.fit(case.trainer(), case.state, case.data, key=KEY, num_steps=20)
    run = eg.train(case.trainer(), case.state, case.data, key=KEY, num_steps=20)
    state, _ = eg.drain(eg.averaged(run, 0.5))
    without = dataclasses.replace(state, average=None)
    assert eg.state_digest(without) == eg.state_digest(plain)
    assert state.average.layers[0].weight.shape == plain.model.layers[0].weight.shape
    assert state.average.activation is state.model.activation


def test_the_average_is_resumed_bit_for_bit(tmp_path):
    whole, _ = eg.drain(averaged(Total().init(), 20))
    eg.drain(eg.checkpointed(averaged(Total().init(), 12), tmp_path, every=5))
    state = eg.resume(tmp_path, Total().init())
    assert int(state.step) == 12
    rest, _ = eg.drain(averaged(state, 8))
    assert eg.state_digest(rest) == eg.state_digest(whole)


def test_the_average_of_half_precision_moves():
    # In bfloat16 a step of `1 - d` of the difference is rounded away.
    state = Total().init()
    state = dataclasses.replace(state, model=jnp.ones((), jnp.bfloat16))
    run = eg.train(InHalf(), state, ones, key=KEY, num_steps=400, every=400)
    state, _ = eg.drain(eg.averaged(run, 0.999))
    average = 1.0
    for n in range(1, 401):
        decay = min(0.999, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * (1.0 if n < 100 else 1.25)
    assert state.average.dtype == jnp.float32
    np.testing.assert_allclose(state.average, average, rtol=1e-5)
    assert state.evaluated.dtype == jnp.bfloat16
    assert float(state.evaluated) == float(jnp.bfloat16(average))


class InHalf(Total):
    """Its model is 1, and 1.25 from step 100 on."""

    def step(self, state, batch, *, key):
        model = jnp.where(state.step < 99, 1.0, 1.25).astype(jnp.bfloat16)
        return state.advance(model, None, None), {"loss": jnp.zeros(())}


def test_a_run_has_one_average_and_one_guard():
    with pytest.raises(ValueError, match=r"`run` is averaged with decay 0.9 already"):
        eg.averaged(averaged(Total().init(), 3), 0.5)
    run = eg.guarded(averaged(Total().init(), 3), eg.Skip())
    with pytest.raises(ValueError, match=r"`run` is guarded by Skip.* already"):
        eg.guarded(run, eg.Rollback())


def test_an_average_is_never_left_behind_in_silence():
    state, _ = eg.drain(averaged(Total().init(), 3))
    with pytest.raises(ValueError, match="keeps an average of its model"):
        eg.fit(Total(), state, ones, key=KEY, num_steps=1)
    state = dataclasses.replace(state, average=None)
    eg.fit(Total(), state, ones, key=KEY, num_steps=1)


@pytest.mark.parametrize("decay", [0, 1, -0.1, 2, float("nan")])
def test_a_decay_outside_its_range_is_named(decay):
    with pytest.raises(ValueError, match=f"`decay` is {decay}"):
        averaged(Total().init(), 3, decay)


@pytest.mark.slow
def test_densities_are_those_of_the_average():
    """Its `log Z`, by walkers weighted anew, against the sum over a grid."""
    case = jarzynski()
    energy, populations = energy_and_walkers(num=4096)
    state = case.trainer().init(energy, populations)
    run = eg.train(case.trainer(), state, case.data, key=KEY, num_steps=60)
    state, _ = eg.drain(eg.averaged(run, 0.9))
    density = ebm.NormalizedEnergy.from_state(state)
    axis = jnp.linspace(-8, 8, 161)
    grid = jnp.stack(jnp.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    energies = jax.vmap(state.average)(grid)
    exact = jax.nn.logsumexp(-energies) + 2 * jnp.log(axis[1] - axis[0])
    assert abs(float(density.log_partition - exact)) < 4 * float(density.standard_error)
    assert eqx.tree_equal(density.energy, state.average)
