"""Coordinates: exact constants, data in any units, arrays that no optimizer moves."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import ebm


UNITS = np.array([1e6, 40.0, 1e-6])


def columns(num=1024):
    """Return three columns that differ in scale by a factor of 10^12."""
    mean = np.array([2e6, 120.0, 5e-6])
    noise = np.random.default_rng(0).normal(size=(num, 3))
    mixed = noise @ np.array([[1.0, 0.5, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 1.0]])
    return jnp.asarray(mean + UNITS * mixed, jnp.float32)


@pytest.mark.parametrize("kind", [ebm.Standardized, ebm.Whitened])
def test_walkers_and_energy_agree_in_any_units(kind):
    x = columns()
    to = kind.of(x)

    @eqx.filter_jit
    def start(to):
        energy = ebm.mlp_energy((3,), key=jax.random.key(0), scale=2.0, coordinates=to)
        walkers = ebm.Walkers.from_gaussian(
            jax.random.key(1), 512, (3,), scale=2.0, coordinates=to
        )
        return walkers, walkers.reweighted(energy)

    walkers, weighted = start(to)
    np.testing.assert_allclose(weighted.log_weights, 0.0, atol=2e-3)
    np.testing.assert_allclose(weighted.gradients, walkers.gradients, rtol=1e-2)
    # The constant is that of a Gaussian with the coordinates' own covariance.
    factor = np.diag(to.factor) if to.factor.ndim == 1 else np.asarray(to.factor)
    truth = 1.5 * np.log(2 * np.pi * 4) + np.linalg.slogdet(factor.astype(float))[1]
    np.testing.assert_allclose(walkers.log_partition, truth, rtol=1e-5)
    z = to(x[0])
    np.testing.assert_allclose(to.inverse(z), x[0], rtol=1e-5)
    white = np.cov(np.asarray(jax.vmap(to)(x)).T)
    np.testing.assert_allclose(np.diag(white), 1.0, atol=0.01)
    if kind is ebm.Whitened:
        np.testing.assert_allclose(white, np.eye(3), atol=0.01)


@pytest.mark.slow
def test_training_in_raw_units_finds_the_density():
    x = columns(4096)
    to = ebm.Standardized.of(x)
    kernel = ebm.MALA(ebm.TargetAcceptance(), scale=to.factor)
    trainer = ebm.JarzynskiTrainer(optax.adamw(3e-3, weight_decay=0.1), kernel=kernel)
    keys = jax.random.split(jax.random.key(0), 4)
    both = [
        ebm.Walkers.from_gaussian(k, 512, (3,), scale=2.0, coordinates=to)
        for k in keys[:2]
    ]
    energy = ebm.mlp_energy((3,), key=keys[2], width_size=32, scale=2.0, coordinates=to)
    state = trainer.init(energy, ebm.Audited(*both))
    data = eg.Minibatches(x, 256)
    state, _ = eg.fit(trainer, state, data, key=keys[3], num_steps=400)
    found = ebm.NormalizedEnergy.from_state(state).log_likelihood(x)
    z = (np.asarray(x, np.float64) - np.asarray(x).mean(0)) / UNITS
    entropy = 1.5 * np.log(2 * np.pi * np.e) + 0.5 * np.linalg.slogdet(np.cov(z.T))[1]
    assert abs(float(found.value) + entropy + np.log(UNITS).sum()) < 0.25
    # No optimizer has seen the coordinates, not even its decay of weights.
    for old, new in zip(
        jax.tree.leaves(to), jax.tree.leaves(state.model.coordinates), strict=True
    ):
        np.testing.assert_array_equal(old, new)


def test_bad_data_are_named():
    with pytest.raises(ValueError, match="at least 2 examples"):
        ebm.Standardized.of(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="not finite"):
        ebm.Whitened.of(np.full((8, 2), np.nan))
    twice = np.random.default_rng(0).normal(size=(64, 1)) * np.ones(2)
    with pytest.raises(ValueError, match="singular"):
        ebm.Whitened.of(twice)
    ebm.Whitened.of(twice, noise=0.1)


def trained(x, scale=1.0):
    trainer = ebm.JarzynskiTrainer(optax.sgd(0.0), kernel=ebm.MALA(0.1))
    size = x.shape[1]
    walkers = ebm.Walkers.from_gaussian(jax.random.key(0), 64, (size,), scale=scale)
    state = trainer.init(
        ebm.mlp_energy((size,), key=jax.random.key(1), scale=scale, width_size=8),
        walkers,
    )
    data = eg.Minibatches(jnp.asarray(x, jnp.float32), 16)
    return eg.fit(trainer, state, data, key=jax.random.key(2), num_steps=1)


@pytest.mark.parametrize(
    ("change", "scale", "said"),
    [
        (lambda x: 1e3 * x, 1.0, "differ in scale in column"),
        (lambda x: x + 100, 1.0, "of column 0, the data are 9"),
        (lambda x: 1e-3 * x, 1.0, "Standardized"),
        (lambda x: x * np.array([1e3, 0.1]), 1e3, "column.s. 1:"),
        (lambda x: np.stack([x[:, 0], x[:, 0] > 0], 1), 1.0, "atoms, 1"),
        (lambda x: np.tile(x[:20], (10, 1)), 1.0, "20 different rows in 200"),
    ],
)
def test_data_that_do_not_fit_the_walkers_are_named(change, scale, said):
    x = np.random.default_rng(0).normal(size=(200, 2))
    with pytest.raises(ValueError, match=said):
        trained(change(x), scale)
    trained(x)
    trained(np.round(x, 1))  # as measured: ties are no atoms
