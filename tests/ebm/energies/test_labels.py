"""Examples with labels: a density of each label and a classifier, exactly."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import ebm


SHARES = jnp.array([0.2, 0.5, 0.3])
CENTERS = 1.5 * jnp.array([[1.0, 0.0], [-1.0, 1.0], [0.0, -1.0]])
KERNEL = ebm.LabelGibbs(ebm.MALA(ebm.TargetAcceptance()))


class Clusters(eqx.Module):
    """A Gaussian for each label: `Z` is `2 pi` times the sum of `exp(logs)`."""

    centers: jax.Array
    logs: jax.Array

    def __call__(self, x, label):
        return 0.5 * jnp.sum((x - self.centers[label]) ** 2) - self.logs[label]


TRUTH = ebm.LabeledEnergy(Clusters(CENTERS, jnp.log(SHARES)), (2,), 3)
START = ebm.LabeledEnergy(Clusters(jnp.zeros((3, 2)), jnp.zeros(3)), (2,), 3)


def rows(num=4096, key=0):
    keys = jax.random.split(jax.random.key(key))
    labels = jax.random.categorical(keys[0], jnp.log(SHARES), shape=(num,))
    x = CENTERS[labels] + jax.random.normal(keys[1], (num, 2))
    return ebm.with_labels(x, labels)


def label_of(rows):
    return rows[:, -1].astype(int)


@pytest.mark.slow
def test_annealing_finds_z_the_labels_shares_and_their_examples():
    walkers = ebm.labeled_walkers(jax.random.key(0), 4096, (2,), 3)
    start, _ = walkers.estimate()
    np.testing.assert_allclose(start, 0.0, atol=1e-5)  # a normalized density
    walkers = ebm.annealed(
        [START, TRUTH], walkers, kernel=KERNEL, key=jax.random.key(1)
    )
    value, error = walkers.estimate()
    assert error < 0.1
    assert abs(value - np.log(2 * np.pi)) < 3 * error
    masses, errors = ebm.mode_masses(walkers.positions, walkers.weights, label_of, 3)
    assert bool((jnp.abs(masses - SHARES) < 3 * errors).all())
    for label in range(3):
        weights = walkers.weights * (label_of(walkers.positions) == label)
        mean = weights @ walkers.positions[:, :2] / weights.sum()
        np.testing.assert_allclose(mean, CENTERS[label], atol=0.15)


@pytest.mark.slow
def test_training_finds_the_classifier_and_each_labels_likelihood():
    x = rows()
    populations = [
        ebm.labeled_walkers(key, 1024, (2,), 3)
        for key in jax.random.split(jax.random.key(1))
    ]
    trainer = ebm.JarzynskiTrainer(optax.adam(0.02), kernel=KERNEL, radius=0.1)
    state = trainer.init(START, ebm.Audited(*populations))
    state, _ = eg.fit(
        trainer, state, eg.Minibatches(x, 256), key=jax.random.key(2), num_steps=400
    )
    found, truth = (m.log_posterior(x[:500, :2]) for m in (state.model, TRUTH))
    assert float(jnp.mean(jnp.sum(jnp.exp(truth) * (truth - found), 1))) < 0.02
    density = ebm.NormalizedEnergy.from_state(state)
    masses, _ = ebm.mode_masses(*ebm.weighted_samples(state), label_of, 3)
    np.testing.assert_allclose(masses, SHARES, atol=0.06)
    held_out = rows(key=9)
    labels = label_of(held_out)
    given = density.log_prob(held_out) - jnp.log(masses)[labels]
    squares = jnp.sum((held_out[:, :2] - CENTERS[labels]) ** 2, axis=1)
    exact = -0.5 * squares - np.log(2 * np.pi)
    np.testing.assert_allclose(jnp.mean(given), jnp.mean(exact), atol=0.08)


@pytest.mark.slow
def test_a_network_starts_as_a_gaussian_of_every_label():
    energy = ebm.labeled_mlp_energy((1, 2), 3, key=jax.random.key(0), scale=2.0)
    walkers = ebm.labeled_walkers(jax.random.key(1), 64, (1, 2), 3, scale=2.0)
    trainer = ebm.PCDTrainer(optax.sgd(0.1), kernel=KERNEL)
    begun = trainer.init(energy, walkers).memory
    np.testing.assert_allclose(begun.log_weights - begun.log_weights[0], 0.0, atol=1e-4)
    posterior = energy.log_posterior(jnp.ones((5, 1, 2)))
    np.testing.assert_allclose(posterior, -np.log(3), rtol=1e-6)


def test_coordinates_are_of_the_example_alone():
    x = np.random.default_rng(0).normal(120.0, [40.0, 0.02], (50, 2))
    to = ebm.Standardized.of(x)
    walkers = ebm.labeled_walkers(jax.random.key(1), 64, (2,), 3, coordinates=to)
    energy = ebm.labeled_mlp_energy(
        (2,), 3, key=jax.random.key(0), width_size=4, coordinates=to
    )
    value, _ = walkers.reweighted(energy).estimate()
    constant = np.log(3 * 2 * np.pi) + np.log(x.std(axis=0)).sum()
    np.testing.assert_allclose(value, constant, atol=1e-3)


def test_what_does_not_fit_is_named():
    trainer = ebm.PCDTrainer(optax.sgd(0.1), kernel=KERNEL)
    walkers = ebm.labeled_walkers(jax.random.key(0), 64, (2,), 3)
    with pytest.raises(TypeError, match=r"an `ebm\.LabeledEnergy`"):
        trainer.init(ebm.mlp_energy((3,), key=jax.random.key(0)), walkers)
    with pytest.raises(ValueError, match="have 3 entries"):
        trainer.init(START, ebm.Walkers.from_gaussian(jax.random.key(0), 64, (2,)))
    with pytest.raises(ValueError, match="`memory` has labels from"):
        trainer.init(START, ebm.Walkers.from_gaussian(jax.random.key(0), 64, (3,)))
    state = trainer.init(START, walkers)
    noise = eg.Minibatches(np.random.default_rng(0).normal(size=(64, 3)), 16)
    with pytest.raises(ValueError, match="`data` has labels from"):
        eg.fit(trainer, state, noise, key=jax.random.key(0), num_steps=1)
    beyond = rows(64).at[:, -1].add(1)
    for data in (eg.Minibatches(beyond, 64), [np.asarray(beyond)]):
        with pytest.raises(ValueError, match=r"has labels from 1 to 3 .* from 0 to 2"):
            eg.fit(trainer, state, data, key=jax.random.key(0), num_steps=1)
    # Of these only the shape is known before the step, which tells.
    with pytest.raises(eg.TrainingError, match="labels that are no integers from"):
        eg.fit(trainer, state, iter([np.asarray(beyond)]), key=jax.random.key(0))
    eg.fit(trainer, state, iter([np.asarray(rows(64))]), key=jax.random.key(0))
    with pytest.raises(ValueError, match="`labels` have shape"):
        ebm.with_labels(jnp.zeros((4, 2)), jnp.zeros(3))
    with pytest.raises(TypeError, match="`kernel` is ULA"):
        ebm.LabelGibbs(ebm.ULA(0.1))
    fewer = ebm.LabeledEnergy(TRUTH.energy, (2,), 2)
    with pytest.raises(ValueError, match=r"with 3 labels, and of .* with 2: pass"):
        KERNEL.between(START, fewer, jnp.array(0.5))


def test_a_scale_may_be_of_the_example_s_shape():
    model = ebm.LabeledEnergy(lambda x, label: jnp.sum(x**2) + label, (2, 2), 3)
    walkers = ebm.labeled_walkers(jax.random.key(0), 16, (2, 2), 3).reweighted(model)
    scale = jnp.array([[1.0, 0.5], [0.2, 2.0]])

    def moved(scale):
        kernel = ebm.LabelGibbs(ebm.MALA(0.1, scale=scale))
        kernel.check(model, walkers)
        return kernel.move(walkers, model, jnp.array(0), key=jax.random.key(1))

    shaped, flat = (moved(s).positions for s in (scale, scale.ravel()))
    np.testing.assert_array_equal(shaped, flat)
    assert bool((shaped != walkers.positions).any())
    with pytest.raises(ValueError, match=r"`scale` has shape \(3,\): pass an array of"):
        moved(jnp.ones(3))


def test_held_out_rows_of_other_labels_are_no_samples():
    walkers = ebm.labeled_walkers(jax.random.key(0), 16, (2,), 3)
    beyond = rows(64).at[0, -1].set(3)
    with pytest.raises(ValueError, match="`data` has 1 row"):
        ebm.sandwich([START], walkers, beyond, kernel=KERNEL, key=jax.random.key(1))
