"""Stopping by held-out likelihood: the best that can be believed, and nothing else."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import ebm
from effgen.ebm.training.stopping import _recorded
from tests.ebm.gaussians import SIZE, Shifted, data, populations


KERNEL = ebm.MALA(0.3)


def run(trainer, memory, num_steps=200):
    state = trainer.init(Shifted(jnp.zeros(SIZE)), memory)
    batches = eg.Minibatches(data(512), 512)
    return eg.train(
        trainer, state, batches, key=jax.random.key(1), num_steps=num_steps, every=5
    )


@pytest.mark.slow
def test_the_state_of_the_highest_likelihood_is_kept():
    # The mean goes from 0 to the data's 1.5, past that of the held-out rows, 0.6.
    trainer = ebm.JarzynskiTrainer(optax.sgd(0.02), kernel=KERNEL)
    memory = populations(jax.random.key(0), 256, audit=1024)
    held_out = data(512) - 0.9
    found = ebm.early_stopped(run(trainer, memory), held_out, patience=4)
    mean = found.state.model.mean
    np.testing.assert_allclose(mean, 0.6, atol=0.2)
    assert all(found.believed)
    best = int(np.argmax(found.likelihoods))
    assert found.steps[best] == int(found.state.step) < found.steps[-1] < 200
    assert len(found.steps) == best + 1 + 4
    truth = -0.5 * jnp.sum((held_out - mean[None]) ** 2, axis=1).mean()
    truth -= 0.5 * SIZE * np.log(2 * np.pi)
    assert abs(found.likelihoods[best] - truth) < 4 * found.errors[best] < 0.4


def exact(state):
    """Return the density of `Shifted`, whose `log Z` is known, of any trainer."""
    half = jnp.asarray(0.5 * SIZE * np.log(2 * np.pi))
    return ebm.NormalizedEnergy(state.evaluated, half, jnp.zeros(()), (SIZE,))


def test_a_density_of_ones_own_serves_trainers_without_weights():
    trainer = ebm.PCDTrainer(optax.sgd(0.02), kernel=KERNEL)
    memory = ebm.Walkers.from_gaussian(jax.random.key(0), 256, (SIZE,))
    held_out = data(512) - 0.9
    following = run(trainer, memory)
    found = ebm.early_stopped(following, held_out, patience=3, density=exact)
    np.testing.assert_allclose(found.state.model.mean, 0.6, atol=0.15)
    assert all(found.believed)
    assert not any(found.errors)
    best = int(np.argmax(found.likelihoods))
    assert len(found.steps) == best + 1 + 3 < 40
    with pytest.raises(TypeError, match="`density` gave a float: return an"):
        ebm.early_stopped(run(trainer, memory), held_out, density=lambda _: 1.0)


def test_an_audit_that_is_lost_on_the_way_loses_no_state():
    trainer = ebm.JarzynskiTrainer(optax.sgd(0.02), kernel=KERNEL)
    memory = populations(jax.random.key(0), 16, audit=64)
    state = trainer.init(Shifted(jnp.zeros(SIZE)), memory)
    weights = lambda state: state.memory.audit.log_weights
    lost = eqx.tree_at(weights, state, jnp.full(64, -jnp.inf))
    with pytest.raises(ValueError, match="no weight left"):
        ebm.NormalizedEnergy.from_state(lost)
    value, error, believed = _recorded(ebm.NormalizedEnergy.from_state, lost, data(512))
    assert np.isnan([value, error]).all()
    assert not believed


def test_rows_without_a_density_are_named():
    trainer = ebm.JarzynskiTrainer(optax.sgd(0.02), kernel=ebm.ReflectedMALA(0.1))
    both = [
        ebm.Walkers.from_uniform(key, 64, (2,))
        for key in jax.random.split(jax.random.key(0))
    ]
    state = trainer.init(Shifted(jnp.zeros(2)), ebm.Audited(*both))
    x = jax.random.uniform(jax.random.key(1), (64, 2))
    refused = eg.train(
        trainer, state, eg.Minibatches(x, 16), key=jax.random.key(2), num_steps=5
    )
    with pytest.raises(ValueError, match="`held_out` has a mean log-density of -inf"):
        ebm.early_stopped(refused, x + 0.5)
    assert int(refused.state.step) == 0


def test_without_a_likelihood_to_believe_nothing_stops():
    # The training walkers' own is no reason to stop, and the weights of none are none.
    trainer = ebm.JarzynskiTrainer(optax.sgd(0.02), kernel=KERNEL)
    memory = populations(jax.random.key(0), 256)
    with pytest.warns(eg.RunWarning, match="nothing to stop by.*audit walkers"):
        found = ebm.early_stopped(run(trainer, memory, 60), data(512) - 0.9, patience=1)
    assert not any(found.believed)
    assert int(found.state.step) == found.steps[-1] == 60
    plain = ebm.PCDTrainer(optax.sgd(0.02), kernel=KERNEL)
    with pytest.raises(ValueError, match="does not know `log Z`"):
        ebm.early_stopped(run(plain, memory, 60), data(512))
    audited = populations(jax.random.key(0), 16, audit=16)
    for rows, match in (
        (data(512)[:0], "`x` has no rows"),
        (data(512)[:, 1:], "does not end in that of an example"),
        (data(512).at[3, 0].set(jnp.nan), "in 1 of 512 rows"),
    ):
        refused = run(trainer, audited, 60)
        with pytest.raises(ValueError, match=match):
            ebm.early_stopped(refused, rows)
        assert int(refused.state.step) == 0  # before a step is taken
    with pytest.raises(ValueError, match="`patience` is 0"):
        ebm.early_stopped(run(plain, memory, 60), data(512), patience=0)
    with pytest.raises(TypeError, match="`run` is a TrainState"):
        ebm.early_stopped(plain.init(Shifted(jnp.zeros(SIZE)), memory), data(512))
