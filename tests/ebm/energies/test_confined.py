"""Energies start as the Gaussian that their walkers are drawn from."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effgen import ebm


ENERGIES = [
    (ebm.mlp_energy, (5,), {"width_size": 16}),
    (ebm.mlp_energy, (3, 4), {}),
    (ebm.image_energy, (1, 12, 12), {"channels": (4, 8)}),
    (ebm.image_energy, (3, 9, 7), {"channels": (4, 8, 8)}),
]


@pytest.mark.one_case("mlp_energy-shape1-arguments1")
@pytest.mark.parametrize(("make", "shape", "arguments"), ENERGIES)
def test_the_start_is_exact(make, shape, arguments):
    @eqx.filter_jit
    def start():
        energy = make(shape, key=jax.random.key(0), scale=1.5, **arguments)
        walkers = ebm.Walkers.from_gaussian(jax.random.key(1), 64, shape, scale=1.5)
        return walkers, walkers.reweighted(energy)

    walkers, started = start()
    np.testing.assert_allclose(started.log_weights, 0.0, atol=1e-4)
    np.testing.assert_allclose(started.gradients, walkers.gradients, atol=1e-5)
    size = np.prod(shape)
    truth = 0.5 * size * np.log(2 * np.pi * 1.5**2)
    value, error = started.estimate()
    np.testing.assert_allclose(value, truth, rtol=1e-5)
    assert error < 1e-4


@pytest.mark.one_case("mlp_energy-shape1-arguments1")
@pytest.mark.parametrize(("make", "shape", "arguments"), ENERGIES)
def test_the_network_can_learn(make, shape, arguments):
    # The last layer starts at zero; what is below it must not, or nothing would move.
    @eqx.filter_jit
    def slopes():
        energy = make(shape, key=jax.random.key(0), **arguments)
        x = jax.random.normal(jax.random.key(1), shape)
        return eqx.filter_grad(lambda e: e(x))(energy)

    gradients = slopes()
    assert any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(gradients))


def test_log_prob_keeps_the_shape_of_the_batch():
    density = ebm.NormalizedEnergy(
        lambda x: 0.5 * jnp.sum(x**2), jnp.log(2 * jnp.pi), jnp.array(0.1), (2,)
    )
    x = jax.random.normal(jax.random.key(0), (3, 4, 2))
    assert density.log_prob(x).shape == (3, 4)
    assert density.log_prob(x[0, 0]).shape == ()
    np.testing.assert_allclose(
        density.log_prob(x), jax.scipy.stats.norm.logpdf(x).sum(-1), rtol=1e-5
    )
    value, error = density.log_likelihood(x.reshape(-1, 2))
    same = density.log_likelihood(x)
    np.testing.assert_allclose(same, (value, error), rtol=1e-6)
    assert density.log_likelihood(x[0, 0]).value == density.log_prob(x[0, 0])
    np.testing.assert_allclose(value, density.log_prob(x).mean(), rtol=1e-5)
    assert error > 0.1
    with pytest.raises(ValueError, match="does not end in that of an example"):
        density.log_prob(jnp.zeros((4, 3)))


def test_samples_follow_the_weights():
    walkers = ebm.Walkers.from_gaussian(jax.random.key(0), 1000, (1,))

    def half(x):
        return jnp.where(x[0] > 0, 0.5 * x[0] ** 2, 1e9)

    class State:
        memory = walkers.reweighted(half)
        model = staticmethod(half)

    drawn = ebm.sample(State, 500, key=jax.random.key(1))
    assert bool((drawn > 0).all())
    with pytest.raises(ValueError, match="`num` is 0"):
        ebm.sample(State, 0, key=jax.random.key(1))
