"""Natural gradient steps, against the dense matrix and where they are known exactly."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import effgen as eg
from effgen import ebm
from effgen.core.contract.update import apply_gradients, init_opt_state
from effgen.ebm.contract.energy import energy_of_one
from effgen.ebm.training.natural_gradient import Samples
from tests.ebm.gaussians import SIZE, Shifted, data, populations


def model_of(key):
    energy = ebm.mlp_energy((3,), key=key, width_size=6)
    last = lambda energy: energy.network.layers.layers[-1].weight
    return eqx.tree_at(last, energy, 0.5 * jnp.ones((1, 6)))


def reservoir(num, block_size):
    walkers = populations(jax.random.key(0), num)
    return ebm.Reservoir.from_walkers(walkers, block_size=block_size)


def flat(tree, lead=()):
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
    return np.concatenate([x.reshape(*lead, -1) for x in leaves], -1)


def dense(samples, gradient, last, damping):
    """Return the direction by the whole matrix, in float64."""
    of_one = jax.vmap(lambda x: eqx.filter_grad(energy_of_one)(samples.model, x))
    groups = []
    equal = np.full(len(samples.batch), 1 / len(samples.batch))
    shares = np.asarray(samples.weights, np.float64)
    for x, share in ((samples.batch, equal), (samples.positions, shares)):
        rows = flat(of_one(x), (len(x),))
        centered = rows - share @ rows
        groups.append(np.sqrt(share / 2)[:, None] * centered)
    rows = np.concatenate(groups)
    shift = damping * np.sum(rows**2) / len(rows)
    matrix = rows.T @ rows + shift * np.eye(rows.shape[1])
    return np.linalg.solve(matrix, gradient + shift * last)


def test_a_step_is_that_of_the_dense_matrix():
    keys = jax.random.split(jax.random.key(0), 4)
    model = model_of(keys[0])
    weights = jax.nn.softmax(jax.random.normal(keys[1], (10,)))
    batch = jax.random.normal(keys[2], (8, 3))
    positions = 1.5 * jax.random.normal(keys[3], (10, 3))
    samples = Samples(model, batch, positions, weights)
    optim = ebm.minsr(0.5, momentum=0.9, num_samples=16)
    state = init_opt_state(optim, model)
    params = eqx.filter(model, eqx.is_inexact_array)
    gradients = jax.tree.map(lambda x: 0.1 + jnp.sin(x), params)
    last = np.zeros(flat(params).size)
    for _ in range(2):
        moved, state = eqx.filter_jit(
            lambda state: apply_gradients(
                optim, gradients, state, model, samples=samples
            )
        )(state)
        found = flat(params) - flat(eqx.filter(moved, eqx.is_inexact_array))
        expected = dense(samples, flat(gradients), 0.9 * last, 0.1)
        np.testing.assert_allclose(
            found, 0.5 * expected, atol=1e-4 * np.abs(expected).max()
        )
        last = expected


@pytest.mark.slow
def test_the_natural_gradient_of_a_gaussian_points_at_the_data():
    # The Fisher matrix of a mean in badly scaled units is undone: one step is enough.
    scales = jnp.logspace(-1, 1, SIZE)

    class Units(eqx.Module):
        mean: jax.Array

        def __call__(self, x):
            return 0.5 * jnp.sum((x - scales * self.mean) ** 2)

    walkers = reservoir(8192, 4096)
    trainer = ebm.JarzynskiTrainer(
        ebm.minsr(damping=1e-4, momentum=0.0, num_samples=512),
        kernel=ebm.MALA(0.1),
        radius=0.5,
    )
    state = trainer.init(Units(jnp.zeros(SIZE)), walkers)
    x = eg.Minibatches(data(shift=0.4), 4096)
    state, _ = eg.fit(trainer, state, x, key=jax.random.key(1), num_steps=12)
    np.testing.assert_allclose(scales * state.model.mean, 0.4, atol=0.1)


@pytest.mark.slow
def test_few_samples_are_all_taken():
    trainer = ebm.JarzynskiTrainer(ebm.minsr(), kernel=ebm.MALA(0.1), radius=0.1)
    state = trainer.init(Shifted(jnp.zeros(SIZE)), reservoir(64, 32))
    x = eg.Minibatches(data(), 16)
    state, history = eg.fit(trainer, state, x, key=jax.random.key(1), num_steps=3)
    assert bool(jnp.isfinite(state.model.mean).all())
    assert float(history["update_radius"].max()) <= 0.1 * 1.001


@pytest.mark.slow
def test_dead_walkers_are_no_samples():
    walkers = populations(jax.random.key(0), 512)
    model = Shifted(jnp.zeros(SIZE))
    alive = jnp.arange(512) % 2 == 0
    weights = jnp.where(alive, 2 / 512, 0.0)
    optim = ebm.minsr(num_samples=512)
    samples = Samples(model, data(64), walkers.positions, weights)
    gradient = Shifted(jnp.ones(SIZE))
    moved, _ = apply_gradients(
        optim, gradient, init_opt_state(optim, model), model, samples=samples
    )
    kept = samples._replace(positions=walkers.positions[alive], weights=weights[alive])
    expected, _ = apply_gradients(
        optim, gradient, init_opt_state(optim, model), model, samples=kept
    )
    np.testing.assert_allclose(moved.mean, expected.mean, rtol=0.3)


@pytest.mark.slow
def test_it_serves_persistent_chains():
    trainer = ebm.PCDTrainer(ebm.minsr(0.1), kernel=ebm.MALA(0.1), radius=0.3)
    state = trainer.init(Shifted(jnp.zeros(SIZE)), reservoir(512, 256))
    x = eg.Minibatches(data(shift=1.0), 256)
    state, _ = eg.fit(trainer, state, x, key=jax.random.key(1), num_steps=200)
    np.testing.assert_allclose(state.model.mean, 1.0, atol=0.3)


@pytest.mark.slow
def test_samples_on_many_devices_are_as_on_one():
    trainer = ebm.JarzynskiTrainer(
        ebm.minsr(num_samples=16), kernel=ebm.MALA(0.1), radius=0.1
    )
    walkers = populations(jax.random.key(0), 16 * 16)
    memory = ebm.Reservoir.from_walkers(walkers, block_size=16, active=8)
    state = trainer.init(Shifted(jnp.zeros(SIZE)), memory)
    x, key = eg.Minibatches(data(64, shift=1.0), 16), jax.random.key(1)
    whole, _ = eg.fit(trainer, state, x, key=key, num_steps=5)
    split, _ = eg.fit(trainer, eg.shard(state, eg.make_mesh()), x, key=key, num_steps=5)
    expected = np.asarray(whole.model.mean)
    np.testing.assert_allclose(np.asarray(split.model.mean), expected, rtol=1e-4)


def test_settings_and_trainers_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="`damping` is 0"):
        ebm.minsr(damping=0.0)
    with pytest.raises(ValueError, match="`momentum` is 1"):
        ebm.minsr(momentum=1.0)
    with pytest.raises(ValueError, match="`num_samples`"):
        ebm.minsr(num_samples=0)
    x, key = eg.Minibatches(data(), 64), jax.random.key(0)
    walkers = populations(key, 64)
    for kind in (ebm.ScoreMatchingTrainer, ebm.CDTrainer, ebm.JarzynskiTrainer):
        trainer = kind(ebm.minsr(), kernel=ebm.ULA(0.1))
        state = trainer.init(Shifted(jnp.zeros(SIZE)), walkers)
        with pytest.raises(ValueError, match="Reservoir` of two blocks or more"):
            eg.fit(trainer, state, x, key=key, num_steps=1)


def test_it_keeps_the_model_s_precision():
    with jax.enable_x64(True):
        model = Shifted(jnp.zeros(SIZE, jnp.float32))
        optim = ebm.minsr(0.5, num_samples=4)
        state = init_opt_state(optim, model)
        for dtype in (jnp.float32, jnp.float64):
            x = jnp.ones((4, SIZE), dtype)
            samples = Samples(model, x, 2 * x, jnp.full(4, 0.25, dtype))
            step = lambda state, samples: optim.update(
                model, state, model, samples=samples
            )[1]
            after = eqx.filter_eval_shape(step, state, samples)[0].direction
            assert after.mean.dtype == jnp.float32


def test_the_last_direction_is_kept_in_the_state():
    trainer = ebm.JarzynskiTrainer(ebm.minsr(), kernel=ebm.MALA(0.1), radius=0.1)
    state = trainer.init(Shifted(jnp.zeros(SIZE)), reservoir(64, 32))
    first = state.opt_state[0]
    assert int(first.num_steps) == 0
    assert not jnp.any(first.direction.mean)
    assert dataclasses.is_dataclass(first.direction)
