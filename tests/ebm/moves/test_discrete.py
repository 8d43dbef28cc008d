"""Zeros and ones: moves that leave any model invariant, against enumeration."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import ebm


SIZE = 6
STATES = jnp.array(list(itertools.product([0.0, 1.0], repeat=SIZE)))
BIAS = jnp.asarray(np.linspace(-0.5, 0.5, SIZE), jnp.float32)


class Chain(eqx.Module):
    """A chain of spins in a field, which is no RBM."""

    coupling: jax.Array
    field: jax.Array

    def __call__(self, x):
        spins = 2 * x - 1
        return -self.coupling * jnp.sum(spins[:-1] * spins[1:]) - self.field @ spins


CHAIN = Chain(jnp.array(0.7), jnp.asarray(np.linspace(-0.4, 0.6, SIZE), jnp.float32))


def potts(coupling, x):
    """Three sites of four colors each, which two bits spell: alike ones gain."""
    bits = x.reshape(3, 2)
    alike = jnp.prod(1 - jnp.abs(bits[:-1] - bits[1:]), axis=1)
    return -coupling * jnp.sum(alike)


POTTS = ebm.FunctionEnergy(potts, jnp.array(1.2))


def log_partition(energy):
    return jax.nn.logsumexp(-jax.vmap(energy)(STATES))


@pytest.mark.slow
def test_the_move_leaves_the_model_invariant():
    # From exact samples, each state stays as frequent as its probability.
    energy, num = CHAIN, 1 << 16
    logits = -jax.vmap(energy)(STATES)
    index = jax.random.categorical(jax.random.key(0), logits, shape=(num,))
    density = (logits - log_partition(energy))[index]
    walkers = ebm.Walkers.from_samples(STATES[index], density).reweighted(energy)
    kernel = ebm.GibbsWithGradients()

    def body(walkers, key):
        return kernel.move(walkers, energy, jnp.array(0), key=key), None

    keys = jax.random.split(jax.random.key(1), 20)
    moved, _ = jax.lax.scan(body, walkers, keys)
    codes = moved.positions @ (2.0 ** jnp.arange(SIZE)[::-1])
    counts = jnp.bincount(codes.astype(int), length=2**SIZE)
    expected = num * jax.nn.softmax(logits)
    z = (counts - expected) / jnp.sqrt(expected)
    assert float(jnp.mean(z**2)) < 1.6
    assert float(jnp.mean(jnp.any(moved.positions != walkers.positions, 1))) > 0.8
    np.testing.assert_allclose(
        moved.energies, jax.vmap(energy)(moved.positions), rtol=1e-4
    )


def test_colors_are_spelled_in_bits():
    # Of a chain of q colors, Z = q (exp(coupling) + q - 1)^(sites - 1).
    closed = np.log(4) + 2 * np.log(np.exp(1.2) + 3)
    np.testing.assert_allclose(log_partition(POTTS), closed, rtol=1e-5)


@pytest.mark.parametrize("energy", [CHAIN, POTTS], ids=["spins", "Potts"])
def test_annealing_finds_the_partition_function(energy):
    start = ebm.FunctionEnergy(lambda bias, x: -x @ bias, BIAS)
    walkers = ebm.Walkers.from_bernoulli(jax.random.key(0), 4096, BIAS)
    walkers = ebm.annealed(
        [start, energy],
        walkers,
        kernel=ebm.GibbsWithGradients(),
        key=jax.random.key(1),
        num_moves=2,
    )
    value, error = walkers.estimate()
    assert error < 0.05
    assert abs(value - log_partition(energy)) < 3 * error


@pytest.mark.slow
def test_an_energy_of_bits_is_trained():
    index = jax.random.categorical(
        jax.random.key(0), -jax.vmap(CHAIN)(STATES), shape=(4096,)
    )
    trainer = ebm.JarzynskiTrainer(
        optax.adam(0.03), kernel=ebm.GibbsWithGradients(), radius=0.1, num_moves=3
    )
    populations = [
        ebm.Walkers.from_bernoulli(key, 1024, jnp.zeros(SIZE))
        for key in jax.random.split(jax.random.key(1))
    ]
    start = Chain(jnp.zeros(()), jnp.zeros(SIZE))
    state = trainer.init(start, ebm.Audited(*populations))
    x = eg.Minibatches(STATES[index], 256)
    state, _ = eg.fit(trainer, state, x, key=jax.random.key(2), num_steps=300)
    np.testing.assert_allclose(state.model.coupling, 0.7, atol=0.1)
    np.testing.assert_allclose(state.model.field, CHAIN.field, atol=0.15)
    density = ebm.NormalizedEnergy.from_state(state)
    truth = log_partition(state.model)
    assert abs(density.log_partition - truth) < 3 * density.standard_error


def test_walkers_leave_a_corner_where_the_gradient_is_infinite():
    root = lambda x: jnp.sqrt(jnp.sum(x))
    walkers = ebm.Walkers.from_samples(jnp.zeros((64, SIZE))).reweighted(root)
    assert bool(jnp.isinf(walkers.gradients).all())
    kernel = ebm.GibbsWithGradients()
    moved = kernel.move(walkers, root, jnp.array(0), key=jax.random.key(0))
    assert 5 < int(moved.positions.sum()) < 60
    with pytest.raises(ValueError, match="of 64 walkers an energy that is not finite"):
        kernel.check(lambda x: -jnp.log(jnp.sum(x)), walkers)


def test_codes_that_stand_for_nothing_may_be_forbidden():
    # Two sites of three colors, free: of 16 states 9 are left, log Z = 2 log 3.
    def three(x):
        codes = x.reshape(2, 2).sum(axis=1)
        return jnp.where(jnp.any(codes == 2), jnp.inf, 0.0)

    walkers = ebm.Walkers.from_bernoulli(jax.random.key(0), 512, jnp.zeros(4))
    kernel = ebm.GibbsWithGradients()
    kernel.check(three, walkers)
    value, error = walkers.reweighted(three).estimate()
    assert abs(float(value) - 2 * np.log(3)) < 4 * float(error) < 0.2


def test_what_is_not_zeros_and_ones_is_named():
    trainer = ebm.PCDTrainer(optax.sgd(0.1), kernel=ebm.GibbsWithGradients())
    with pytest.raises(ValueError, match="`memory` has walkers that are not zeros"):
        trainer.init(CHAIN, ebm.Walkers.from_gaussian(jax.random.key(0), 64, (SIZE,)))
    walkers = ebm.Walkers.from_bernoulli(jax.random.key(0), 64, BIAS)
    state = trainer.init(CHAIN, walkers)
    spins = np.where(np.arange(64 * SIZE).reshape(64, SIZE) % 2, 1.0, -1.0)
    for data in (eg.Minibatches(spins, 16), [spins]):
        with pytest.raises(ValueError, match="`data` has values that are not zeros"):
            eg.fit(trainer, state, data, key=jax.random.key(0), num_steps=1)
    # Of these only the shape is known before the step, which tells.
    for data in (iter([spins]), lambda key: jnp.asarray(spins, jnp.float32)):
        with pytest.raises(eg.TrainingError, match="other values than 0 and 1"):
            eg.fit(trainer, state, data, key=jax.random.key(0), num_steps=1)


def test_zeros_and_ones_may_come_from_anywhere():
    trainer = ebm.PCDTrainer(optax.sgd(0.1), kernel=ebm.GibbsWithGradients())
    walkers = ebm.Walkers.from_bernoulli(jax.random.key(0), 64, BIAS)
    state = trainer.init(CHAIN, walkers)
    bits = np.float32(np.random.default_rng(0).integers(0, 2, (64, SIZE)))
    drawn = lambda key: jax.random.bernoulli(key, 0.5, (64, SIZE)).astype(jnp.float32)
    for data in ([bits], iter([bits]), drawn):
        _, history = eg.fit(trainer, state, data, key=jax.random.key(0), num_steps=1)
        assert np.isfinite(history["loss"]).all()
