"""Noise-contrastive estimation: the model, its `log Z`, and an honest likelihood."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import ebm
from tests.ebm.gaussians import LOG_PARTITION, SIZE, Shifted, data, populations


@pytest.mark.one_case("100.0")
@pytest.mark.parametrize("units", [1.0, 100.0])
def test_it_finds_the_model_and_its_log_z(units):
    x = units * data(shift=0.5)

    def energy(mean, x):
        return 0.5 * jnp.sum((x / units - mean) ** 2)

    trainer = ebm.NCETrainer(
        optax.adam(optax.linear_schedule(0.03, 0.0, 800)),
        kernel=ebm.MALA(0.3),
        noise_scale=1.2,
        coordinates=ebm.Standardized.of(x) if units > 1 else None,
    )
    state = trainer.init(ebm.FunctionEnergy(energy, jnp.zeros(SIZE)))
    state, history = eg.fit(
        trainer, state, eg.Minibatches(x, 512), key=jax.random.key(1), num_steps=800
    )
    np.testing.assert_allclose(state.model.parameters, 0.5, atol=0.1)
    expected = LOG_PARTITION + SIZE * np.log(units)
    np.testing.assert_allclose(
        history["learned_log_partition"][-50:].mean(), expected, atol=0.15
    )


@pytest.mark.slow
def test_walkers_that_watch_tell_its_likelihood():
    trainer = ebm.NCETrainer(optax.adam(0.02), kernel=ebm.MALA(0.3), radius=0.2)
    watching = populations(jax.random.key(0), 2048)
    state = trainer.init(Shifted(jnp.zeros(SIZE)), watching)
    x = eg.Minibatches(data(shift=0.5), 256)
    state, history = eg.fit(trainer, state, x, key=jax.random.key(1), num_steps=100)
    assert float(history["update_radius"].max()) < 0.2 * 1.001
    density = ebm.NormalizedEnergy.from_state(state)
    assert abs(density.log_partition - LOG_PARTITION) < 3 * density.standard_error


def test_it_may_go_on_where_another_trainer_stopped():
    # The model is the noise's own Gaussian, whose log Z the noise tells exactly.
    trainer = ebm.NCETrainer(optax.sgd(0.0), kernel=ebm.MALA(0.3))
    other = ebm.ScoreMatchingTrainer(optax.sgd(0.0), kernel=ebm.MALA(0.3))
    state = other.init(Shifted(jnp.zeros(SIZE)))
    state = dataclasses.replace(state, step=jnp.array(500))
    state = eg.continued(trainer, state)
    _, metrics = eqx.filter_jit(trainer.step)(
        state, data(64)[:8], key=jax.random.key(0)
    )
    np.testing.assert_allclose(
        metrics["learned_log_partition"], LOG_PARTITION, rtol=1e-5
    )


def test_settings_out_of_range_are_named():
    with pytest.raises(ValueError, match="`noise_scale` is 0"):
        ebm.NCETrainer(optax.sgd(0.1), kernel=ebm.ULA(0.1), noise_scale=0.0)
