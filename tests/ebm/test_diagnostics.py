"""Tails, modes, and long chains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effgen import ebm
from tests.ebm.gaussians import SIZE, Shifted


@pytest.mark.parametrize("shape", [0.3, 0.7, 1.2])
def test_the_tail_of_pareto_weights_is_found(shape):
    uniform = jax.random.uniform(jax.random.key(0), (40_000,))
    log_weights = -shape * jnp.log(uniform)
    np.testing.assert_allclose(ebm.pareto_k(log_weights), shape, atol=0.12)


def test_equal_weights_have_no_tail():
    assert ebm.pareto_k(jnp.full(1000, 3.0)) == -jnp.inf


def test_masses_of_modes_with_their_errors():
    keys = jax.random.split(jax.random.key(0))
    labels = jax.random.choice(keys[0], 3, (900,), p=jnp.array([0.5, 0.3, 0.2]))
    positions = labels[:, None].astype(float)
    weights = jax.random.uniform(keys[1], (900,))
    masses, errors = ebm.mode_masses(
        positions, weights, lambda x: x[:, 0].astype(int), 3
    )
    np.testing.assert_allclose(masses.sum(), 1.0, rtol=1e-5)
    truth = jnp.array([0.5, 0.3, 0.2])
    assert bool((jnp.abs(masses - truth) < 4 * errors).all())
    assert 0.015 < float(errors[0]) < 0.025
    with pytest.raises(ValueError, match="one label for each"):
        ebm.mode_masses(positions, weights, lambda x: x, 3)
    with pytest.raises(ValueError, match="`num_modes` is 0"):
        ebm.mode_masses(positions, weights, lambda x: x, 0)


def test_long_chains_of_the_model_s_own_samples_stay():
    model = Shifted(jnp.ones(SIZE))
    positions = 1 + jax.random.normal(jax.random.key(0), (512, SIZE))
    chains = ebm.long_run(
        model,
        positions,
        kernel=ebm.MALA(0.3),
        key=jax.random.key(1),
        num_steps=1000,
        num_records=5,
    )
    assert chains.mean_energies.shape == (6,)
    error = np.sqrt(0.5 * SIZE / 512)
    assert bool((jnp.abs(chains.mean_energies - 0.5 * SIZE) < 4.5 * error).all())
    assert 0.3 < float(chains.acceptances[-1]) < 1
    away = ebm.long_run(
        model,
        positions + 5,
        kernel=ebm.MALA(0.3),
        key=jax.random.key(1),
        num_steps=1000,
        num_records=5,
    )
    assert away.mean_energies[0] > 10 * SIZE
    assert abs(away.mean_energies[-1] - 0.5 * SIZE) < 4.5 * error
    with pytest.raises(ValueError, match="`num_steps` is 0"):
        ebm.long_run(
            model,
            positions,
            kernel=ebm.MALA(0.3),
            key=jax.random.key(0),
            num_steps=0,
        )
