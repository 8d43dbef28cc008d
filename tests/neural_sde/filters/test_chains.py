"""Probabilities of regimes after a time, against exponentials in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from effgen.neural_sde.filters.chains import turned


RATES = np.array([[-0.3, 0.2, 0.1], [2.0, -3.0, 1.0], [0.0, 0.5, -0.5]])


@pytest.mark.parametrize("gap", [0.0, 1e-6, 0.1, 1.0, 7.0, 100.0])
def test_regimes_turn_by_the_exponential(gap):
    found = turned(jnp.asarray(RATES, jnp.float32), jnp.float32(gap))
    np.testing.assert_allclose(found, scipy.linalg.expm(RATES * gap), rtol=2e-5)


@pytest.mark.parametrize("gap", [1e4, 1e8, 1e30])
def test_after_long_the_chain_has_its_own_law(gap):
    own = np.linalg.solve(np.vstack([RATES.T[:2], np.ones(3)]), [0, 0, 1.0])
    found = turned(jnp.asarray(RATES, jnp.float32), jnp.float32(gap))
    np.testing.assert_allclose(found, np.broadcast_to(own, (3, 3)), rtol=1e-4)


def test_rates_far_apart_keep_their_digits():
    rates = np.array([[-1e6, 1e6], [1e-6, -1e-6]])
    found = turned(jnp.asarray(rates, jnp.float32), jnp.float32(1.0))
    np.testing.assert_allclose(found[:, 0], 1e-12, rtol=1e-3)


@pytest.mark.usefixtures("x64")
def test_slopes_are_those_of_the_exponential():
    chance = lambda rates, gap: turned(jnp.asarray(RATES) * rates, gap)[0, 1]
    found = jax.grad(chance, argnums=(0, 1))(1.0, 3.0)
    exact = (RATES @ scipy.linalg.expm(3 * RATES))[0, 1]
    np.testing.assert_allclose(found, [3 * exact, exact], rtol=1e-9)
