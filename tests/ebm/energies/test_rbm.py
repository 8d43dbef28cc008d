"""RBMs: exact against enumeration."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import ebm


KEY = jax.random.key(0)


def machine(visible=6, hidden=4, scale=1.0):
    keys = jax.random.split(KEY, 3)
    return ebm.RBM(
        scale * jax.random.normal(keys[0], (visible, hidden)),
        jax.random.normal(keys[1], (visible,)),
        jax.random.normal(keys[2], (hidden,)),
    )


def states(size):
    return np.array(list(itertools.product([0, 1], repeat=size)), np.float32)


@pytest.mark.parametrize("sizes", [(6, 4), (4, 6), (5, 5)])
def test_energy_and_partition_function_equal_sums_over_all_states(sizes):
    rbm = machine(*sizes)
    v, h = states(sizes[0]), states(sizes[1])
    w, a, b = (np.asarray(x, np.float64) for x in jax.tree.leaves(rbm))
    joint = (v @ a)[:, None] + (h @ b)[None] + v @ w @ h.T
    free = -np.logaddexp.reduce(joint, axis=1)
    np.testing.assert_allclose(jax.vmap(rbm)(jnp.asarray(v)), free, rtol=1e-4)
    truth = np.logaddexp.reduce(joint.ravel())
    np.testing.assert_allclose(rbm.log_partition(), truth, rtol=1e-5)


@pytest.mark.slow
def test_gibbs_moves_leave_the_model_as_it_is():
    rbm = machine()
    everything = jnp.asarray(states(6))
    probabilities = jax.nn.softmax(-jax.vmap(rbm)(everything))
    drawn = jax.random.choice(KEY, 64, (200_000,), p=probabilities)
    walkers = ebm.Walkers.from_samples(everything[drawn]).reweighted(rbm)
    kernel = ebm.BlockGibbs()
    moved = eqx.filter_jit(kernel.move)(walkers, rbm, jnp.array(0), key=KEY)
    codes = moved.positions @ (2.0 ** jnp.arange(5, -1, -1))
    shares = jnp.bincount(codes.astype(int), length=64) / 200_000
    errors = jnp.sqrt(probabilities * (1 - probabilities) / 200_000)
    assert float(jnp.abs((shares - probabilities) / errors).max()) < 4.5
    np.testing.assert_allclose(
        moved.energies, jax.vmap(rbm)(moved.positions), rtol=1e-5
    )


@pytest.mark.slow
def test_walkers_follow_a_machine_as_if_no_gradients_were_carried():
    # Bit for bit what the energies alone give: the default `follow` costs no more.
    keys = jax.random.split(KEY, 2)
    rbm, following = machine(scale=1.0), machine(scale=1.2)
    walkers = ebm.Walkers.from_bernoulli(keys[0], 64, jnp.zeros(6)).reweighted(rbm)
    kernel, step = ebm.BlockGibbs(), jnp.array(0)

    @eqx.filter_jit
    def both():
        fallen = walkers.energies - jax.vmap(following)(walkers.positions)
        moved = kernel.move(walkers, following, step, key=keys[1])
        followed = kernel.follow(walkers, following, step, key=keys[1])
        return walkers.log_weights + fallen, moved, followed

    log_weights, moved, followed = both()
    np.testing.assert_array_equal(followed.log_weights, log_weights)
    np.testing.assert_array_equal(followed.positions, moved.positions)
    np.testing.assert_array_equal(followed.energies, moved.energies)


@pytest.mark.slow
def test_weights_are_exact_on_a_path_of_machines():
    final = machine(scale=2.0)
    start = ebm.RBM.independent(jnp.zeros(6), 4)

    def at(share):
        return jax.tree.map(lambda a, b: a + share * (b - a), start, final)

    def replicate(key):
        begin, run = jax.random.split(key)
        walkers = ebm.Walkers.from_bernoulli(begin, 256, jnp.zeros(6))
        walkers = walkers.reweighted(start)

        def body(walkers, inputs):
            i, key = inputs
            keys = jax.random.split(key)
            moved = ebm.BlockGibbs().follow(walkers, at((i + 1) / 20), i, key=keys[0])
            return moved.resampled(keys[1]), None

        steps = jnp.arange(20)
        walkers, _ = jax.lax.scan(body, walkers, (steps, jax.random.split(run, 20)))
        return walkers.log_partition[0] - final.log_partition()

    logs = jax.lax.map(replicate, jax.random.split(KEY, 64))
    ratios = np.exp(np.asarray(logs, np.float64))
    error = ratios.std(ddof=1) / np.sqrt(ratios.size)
    assert abs(ratios.mean() - 1) < 4 * error < 0.2


@pytest.mark.slow
def test_training_knows_its_likelihood():
    keys = jax.random.split(KEY, 5)
    prototypes = jax.random.bernoulli(keys[0], 0.5, (3, 10)).astype(float)
    rows = prototypes[
        jax.random.choice(keys[1], 3, (2000,), p=jnp.array([0.2, 0.3, 0.5]))
    ]
    flips = jax.random.bernoulli(keys[2], 0.05, rows.shape)
    x = jnp.abs(rows - flips)
    bias = jax.scipy.special.logit(jnp.clip(x.mean(0), 0.01, 0.99))
    populations = [ebm.Walkers.from_bernoulli(k, 1024, bias) for k in keys[3:]]
    rbm = ebm.RBM.independent(bias, 8, key=keys[0], scale=0.01)
    trainer = ebm.JarzynskiTrainer(optax.sgd(0.1), kernel=ebm.BlockGibbs())
    state = trainer.init(rbm, ebm.Audited(*populations))
    start = float(jnp.mean(-jax.vmap(rbm)(x)) - rbm.log_partition())
    state, _ = eg.fit(trainer, state, eg.Minibatches(x, 200), key=KEY, num_steps=500)
    density = ebm.NormalizedEnergy.from_state(state)
    truth = state.model.log_partition()
    assert abs(density.log_partition - truth) < 4 * density.standard_error < 0.4
    gain = float(jnp.mean(density.log_prob(x))) - start
    assert gain > 1.0


def test_bad_input_is_named():
    trainer = ebm.JarzynskiTrainer(optax.sgd(0.1), kernel=ebm.BlockGibbs())
    walkers = ebm.Walkers.from_bernoulli(KEY, 16, jnp.zeros(6))
    energy = ebm.mlp_energy((6,), key=KEY)
    with pytest.raises(TypeError, match="`model` is a ConfinedEnergy"):
        trainer.init(energy, walkers)
    with pytest.raises(ValueError, match=r"walkers of shape \(6,\), the RBM \(5,\)"):
        trainer.init(machine(5, 4), walkers)
    gaussian = ebm.Walkers.from_gaussian(KEY, 16, (6,))
    with pytest.raises(ValueError, match="not zeros and ones: draw them"):
        trainer.init(machine(), gaussian)
    state = trainer.init(machine(), walkers)
    x = eg.Minibatches(jnp.full((16, 6), 0.5), 8)
    with pytest.raises(ValueError, match="binary data; threshold it"):
        next(eg.train(trainer, state, x, key=KEY, num_steps=1))
    with pytest.raises(ValueError, match="`num_hidden` is 0"):
        ebm.RBM.independent(jnp.zeros(3), 0)
    with pytest.raises(ValueError, match="`scale` needs a `key`"):
        ebm.RBM.independent(jnp.zeros(3), 2, scale=0.1)
    with pytest.raises(ValueError, match="smaller layer has 30 units"):
        machine(30, 40).log_partition()
