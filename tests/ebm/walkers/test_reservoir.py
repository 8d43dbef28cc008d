"""Reservoirs: blocks that wait lose nothing, and none but the due one is touched."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import ebm
from effgen.ebm.moves.kernels import followed
from effgen.ebm.walkers.islands import resampled_below
from tests.ebm.gaussians import LOG_PARTITION, SIZE, Shifted, data
from tests.ebm.paths import model_at


def reservoir(num=64, block_size=8, active=1, key=0):
    walkers = ebm.Walkers.from_gaussian(jax.random.key(key), num, (2,))
    return ebm.Reservoir.from_walkers(walkers, block_size=block_size, active=active)


def arrays(tree):
    return [x for x in jax.tree.leaves(tree) if eqx.is_array(x)]


@pytest.mark.parametrize("active", [1, 2])
def test_a_turn_comes_back_as_it_went(active):
    whole = reservoir(active=active)
    assert whole.turns == 8 // active
    assert whole.num == 64
    for step in range(whole.turns):
        taken = whole.due(jnp.array(step))
        assert taken.num == 8 * active
        assert taken.num_blocks == active
        back = whole.put(jnp.array(step), taken)
        for a, b in zip(arrays(back), arrays(whole), strict=True):
            np.testing.assert_array_equal(a, b)
    after = whole.current(jnp.array(3))
    np.testing.assert_array_equal(after.positions, whole.due(jnp.array(2)).positions)


def test_a_step_touches_the_due_block_alone():
    trainer = ebm.JarzynskiTrainer(optax.sgd(0.05), kernel=ebm.ULA(0.1))
    walkers = ebm.Walkers.from_gaussian(jax.random.key(0), 256, (SIZE,))
    memory = ebm.Reservoir.from_walkers(walkers, block_size=32)
    state = trainer.init(Shifted(jnp.zeros(SIZE)), memory)
    new, _ = eqx.filter_jit(trainer.step)(state, data()[:64], key=jax.random.key(1))
    same = (new.memory.walkers.positions == state.memory.walkers.positions).all((2, 3))
    np.testing.assert_array_equal(same[0], [False] + [True] * 7)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel",
    [ebm.ULA(0.3), pytest.param(ebm.MALA(0.3), marks=pytest.mark.slow)],
    ids=["ula", "mala"],
)
def test_weights_are_exact_however_long_a_block_has_waited(kernel):
    # Independent replicates; the last blocks catch up without a move.
    num_steps = 24

    def replicate(key):
        start, run = jax.random.split(key)
        walkers = ebm.Walkers.from_gaussian(start, 2048, (2,))
        walkers = walkers.reweighted(model_at(jnp.array(0.0)))
        whole = ebm.Reservoir.from_walkers(walkers, block_size=128, active=2)

        def body(whole, inputs):
            step, key = inputs
            keys = jax.random.split(key)
            model = model_at((step + 1) / num_steps)
            moved = followed(kernel, whole.due(step), model, step, 2, key=keys[0])
            moved = resampled_below(0.5, moved, key=keys[1])
            return whole.put(step, moved), None

        steps = jnp.arange(num_steps)
        whole, _ = jax.lax.scan(body, whole, (steps, jax.random.split(run, num_steps)))
        final = whole.reweighted(model_at(jnp.array(1.0))).flattened()
        booked = jnp.repeat(final.log_partition, 128)
        return jnp.mean(jnp.exp(booked + final.log_weights - 2.0))

    ratios = np.asarray(jax.lax.map(replicate, jax.random.split(jax.random.key(0), 48)))
    error = ratios.std(ddof=1) / np.sqrt(ratios.size)
    assert abs(ratios.mean() - 1) < 4 * error < 0.4


# Draws about the walkers find the bias too, and warn of it.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unreliable")
def test_many_walkers_at_the_cost_of_few_flatter_less():
    x = data(shift=0.5)

    def gap(memory):
        trainer = ebm.JarzynskiTrainer(optax.sgd(0.02), kernel=ebm.ULA(0.3))
        state = trainer.init(Shifted(jnp.zeros(SIZE)), memory)
        state, _ = eg.fit(
            trainer, state, eg.Minibatches(x, 64), key=jax.random.key(1), num_steps=1000
        )
        with pytest.warns(eg.RunWarning, match="also trained the model"):
            density = ebm.NormalizedEnergy.from_state(state)
        return float(density.log_partition) - LOG_PARTITION

    walkers = ebm.Walkers.from_gaussian(jax.random.key(0), 32 * 64, (SIZE,))
    few = walkers.arranged(lambda x: x[:64])
    assert gap(few) < -1.0  # -lr T d / N = -2.5 to first order
    assert abs(gap(ebm.Reservoir.from_walkers(walkers, block_size=64))) < 0.35


@pytest.mark.slow
def test_a_density_from_a_reservoir_has_caught_up():
    trainer = ebm.JarzynskiTrainer(optax.sgd(0.005), kernel=ebm.MALA(0.5))
    keys = jax.random.split(jax.random.key(0))
    populations = [
        ebm.Reservoir.from_walkers(
            ebm.Walkers.from_gaussian(key, 4096, (SIZE,)), block_size=256
        )
        for key in keys
    ]
    state = trainer.init(Shifted(jnp.zeros(SIZE)), ebm.Audited(*populations))
    x = data()
    state, _ = eg.fit(
        trainer, state, eg.Minibatches(x, 256), key=jax.random.key(1), num_steps=400
    )
    density = ebm.NormalizedEnergy.from_state(state)
    assert abs(density.log_partition - LOG_PARTITION) < 4 * density.standard_error
    # The audit's: the training walkers have pulled the model toward themselves.
    positions, weights = ebm.weighted_samples(state)
    assert positions.shape == (4096, SIZE)
    errors = jnp.abs(weights @ positions - state.model.mean) * jnp.sqrt(
        1 / (weights @ weights)
    )
    assert float(errors.max()) < 5


def test_convolutions_catch_up_alike():
    shape = (1, 6, 6)

    @eqx.filter_jit
    def both():
        energy = ebm.image_energy(shape, key=jax.random.key(0), channels=(2, 4))
        head = lambda e: e.network.head.weight
        energy = eqx.tree_at(head, energy, jnp.ones_like(head(energy)))
        walkers = ebm.Walkers.from_gaussian(jax.random.key(1), 48, shape)
        whole = ebm.Reservoir.from_walkers(walkers, block_size=4, active=2)
        flat = whole.reweighted(energy).flattened()
        return walkers, flat, walkers.reweighted(energy)

    walkers, flat, expected = both()
    np.testing.assert_array_equal(flat.positions, walkers.positions)
    np.testing.assert_allclose(flat.energies, expected.energies, rtol=1e-5)
    np.testing.assert_allclose(
        flat.log_weights, expected.log_weights, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"num": 60}, "`walkers` are 60, .* draw 64"),
        ({"num": 64, "active": 3}, "draw 72"),
        ({"num": 64, "block_size": 1}, "`block_size` is 1"),
    ],
)
def test_sizes_that_do_not_fit_are_named(arguments, match):
    with pytest.raises(ValueError, match=match):
        reservoir(**arguments)


@pytest.mark.slow
def test_blocks_that_devices_cannot_share_are_named():
    trainer = ebm.JarzynskiTrainer(optax.sgd(0.05), kernel=ebm.ULA(0.1))
    energy = ebm.mlp_energy((2,), key=jax.random.key(0), width_size=4)
    state = trainer.init(energy, reservoir(active=2))
    with pytest.raises(ValueError, match="2 rows, which 8 devices cannot share"):
        eg.shard(state, eg.make_mesh())
