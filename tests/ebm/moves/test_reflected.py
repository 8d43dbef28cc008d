"""A box: moves that its walls reflect, against integrals that are known."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import ebm


SLOPES = jnp.array([-3.0, 0.5, 8.0])


class Tilted(eqx.Module):
    """Independent exponentials, cut off: `Z` is a product of integrals."""

    slopes: jax.Array

    def __call__(self, x):
        return self.slopes @ x

    def log_partition(self, low=0.0, high=1.0):
        a = self.slopes
        return jnp.sum(jnp.log((jnp.exp(-a * low) - jnp.exp(-a * high)) / a))

    def draw(self, key, num, low=0.0, high=1.0):
        """Return exact samples, by the inverse of their distribution function."""
        u = jax.random.uniform(key, (num, self.slopes.size))
        a, width = self.slopes[None], high - low
        return low - jnp.log1p(-u * (1 - jnp.exp(-a * width))) / a


@pytest.mark.one_case("box0-0.05")
@pytest.mark.parametrize("step_size", [1e-3, 0.05, 10.0])
@pytest.mark.parametrize("box", [(0.0, 1.0), (-2.0, 1.0)])
def test_the_move_leaves_the_model_invariant(step_size, box):
    low, high = box
    energy = Tilted(SLOPES)
    x = jnp.clip(energy.draw(jax.random.key(0), 20_000, low, high), low, high)
    density = -jax.vmap(energy)(x) - energy.log_partition(low, high)
    walkers = ebm.Walkers.from_samples(x, density).reweighted(energy)
    kernel = ebm.ReflectedMALA(step_size, low=low, high=high)

    def body(walkers, key):
        return kernel.move(walkers, energy, jnp.array(0), key=key), None

    keys = jax.random.split(jax.random.key(1), 40)
    moved, _ = jax.lax.scan(body, walkers, keys)
    assert bool(((moved.positions >= low) & (moved.positions <= high)).all())
    assert float(jnp.mean(jnp.any(moved.positions != x, axis=1))) > 0.1
    # By the distribution function each coordinate is uniform.
    below = 1 - jnp.exp(-SLOPES[None] * (moved.positions - low))
    uniform = below / (1 - jnp.exp(-SLOPES[None] * (high - low)))
    for column in np.asarray(uniform).T:
        counts, _ = np.histogram(column, 20, (0, 1))
        assert np.sum((counts - 1000) ** 2 / 1000) < 50  # 19 degrees of freedom


@pytest.mark.slow
def test_annealing_finds_the_integral_over_the_box():
    walkers = ebm.Walkers.from_uniform(jax.random.key(0), 4096, (3,), low=-1, high=2)
    kernel = ebm.ReflectedMALA(ebm.TargetAcceptance(), low=-1.0, high=2.0)
    start, end = Tilted(jnp.zeros(3)), Tilted(SLOPES)
    np.testing.assert_allclose(walkers.estimate().value, 3 * np.log(3.0), rtol=1e-6)
    walkers = ebm.annealed([start, end], walkers, kernel=kernel, key=jax.random.key(1))
    value, error = walkers.estimate()
    assert error < 0.1
    assert abs(value - end.log_partition(-1.0, 2.0)) < 3 * error


@pytest.mark.slow
def test_a_model_of_data_in_a_box_is_trained():
    truth = Tilted(SLOPES)
    x = jnp.clip(truth.draw(jax.random.key(0), 4096), 0.0, 1.0)
    trainer = ebm.JarzynskiTrainer(
        optax.adam(0.05), kernel=ebm.ReflectedMALA(ebm.TargetAcceptance()), radius=0.1
    )
    populations = [
        ebm.Walkers.from_uniform(key, 1024, (3,))
        for key in jax.random.split(jax.random.key(1))
    ]
    state = trainer.init(Tilted(jnp.zeros(3)), ebm.Audited(*populations))
    state, _ = eg.fit(
        trainer, state, eg.Minibatches(x, 256), key=jax.random.key(2), num_steps=400
    )
    np.testing.assert_allclose(state.model.slopes, SLOPES, atol=0.7)
    density = ebm.NormalizedEnergy.from_state(state)
    exact = state.model.log_partition()
    assert abs(density.log_partition - exact) < 3 * density.standard_error


def test_walkers_out_of_equilibrium_in_a_box_are_told():
    truth = Tilted(SLOPES)
    walkers = ebm.Walkers.from_uniform(jax.random.key(0), 4096, (3,))
    exact = jnp.clip(truth.draw(jax.random.key(1), 4096), 0.0, 1.0)
    density = -jax.vmap(truth)(exact) - truth.log_partition()
    settled = ebm.Walkers.from_samples(exact, density, walls=(0.0, 1.0))
    off = dataclasses.replace(settled, positions=walkers.positions)
    bound = np.sqrt(2 * np.log(300))
    assert ebm.imbalance(settled.reweighted(truth).in_blocks(16)) < bound
    held = dataclasses.replace(off.reweighted(truth), log_weights=jnp.zeros(4096))
    assert ebm.imbalance(held.in_blocks(16)) > bound


def test_what_is_outside_of_the_box_is_named():
    kernel = ebm.ReflectedMALA(0.01)
    trainer = ebm.PCDTrainer(optax.sgd(0.1), kernel=kernel)
    model = Tilted(SLOPES)
    outside = jax.random.normal(jax.random.key(0), (64, 3))
    with pytest.raises(ValueError, match="`memory` has walkers of the walls None"):
        trainer.init(model, ebm.Walkers.from_samples(outside))
    with pytest.raises(ValueError, match="`memory` goes from"):
        trainer.init(model, ebm.Walkers.from_samples(outside, walls=(0.0, 1.0)))
    walkers = ebm.Walkers.from_uniform(jax.random.key(0), 64, (3,))
    state = trainer.init(model, walkers)
    far = eg.Minibatches(jax.random.normal(jax.random.key(0), (64, 3)), 16)
    with pytest.raises(ValueError, match=r"`data` goes from .* outside of \[0.0, 1.0"):
        eg.fit(trainer, state, far, key=jax.random.key(0), num_steps=1)
    rows = np.asarray(far.arrays)
    with pytest.raises(ValueError, match=r"`data` goes from .* outside of \[0.0, 1.0"):
        eg.fit(trainer, state, [rows], key=jax.random.key(0), num_steps=1)
    # Of this only the shape is known before the step, which tells.
    with pytest.raises(eg.TrainingError, match="outside of `low` and `high`"):
        eg.fit(trainer, state, iter([rows]), key=jax.random.key(0), num_steps=1)
    inside = np.clip(rows, 0, 1)
    eg.fit(trainer, state, iter([inside]), key=jax.random.key(0), num_steps=1)
    with pytest.raises(ValueError, match="`low` is 1"):
        ebm.ReflectedMALA(0.01, low=1.0, high=0.0)
    with pytest.raises(ValueError, match="`low` is 1"):
        ebm.Walkers.from_uniform(jax.random.key(0), 64, (3,), low=1.0, high=1.0)
    with pytest.raises(ValueError, match="`TargetVariance`"):
        ebm.ReflectedMALA(ebm.TargetVariance(0.1))


def test_a_wall_is_rounded_as_the_data_are():
    kernel = ebm.ReflectedMALA(0.01, low=0.1, high=0.7)
    rows = np.random.default_rng(0).uniform(0, 1, (64, 3)).clip(0.1, 0.7)
    rows = rows[(rows != 0.7).sum(1) > 2].astype(np.float32)
    rows[0] = 0.7  # above 0.7 in double precision or below, as it is rounded
    rows[1] = 0.1
    kernel.check_data(rows[:10], None)
    assert bool(kernel.admits(Tilted(SLOPES), jnp.asarray(rows)))
