"""Walkers: resampling, genealogies, blocks, and error bars that are right."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effgen import ebm
from effgen.ebm.walkers import resampled_below
from tests.ebm.paths import model_at


def weighted(num=64, key=0, blocks=None):
    keys = jax.random.split(jax.random.key(key))
    walkers = ebm.Walkers.from_gaussian(keys[0], num, (3,))
    log_weights = jax.random.normal(keys[1], (num,))
    walkers = dataclasses.replace(walkers, log_weights=log_weights)
    if blocks is None:
        return walkers
    booked = walkers.log_partition + jnp.arange(1.0, 1.0 + blocks)
    return dataclasses.replace(
        walkers, log_partition=booked, variance=jnp.zeros(blocks)
    )


def test_resampling_is_unbiased_and_moves_every_array():
    walkers = weighted()
    labels = jnp.arange(64.0)
    marked = dataclasses.replace(
        walkers,
        positions=jnp.stack([labels] * 3, 1),
        energies=labels,
        gradients=jnp.stack([labels] * 3, 1),
    )
    keys = jax.random.split(jax.random.key(1), 4000)
    drawn = jax.vmap(marked.resampled)(keys)
    for array in (drawn.positions[..., 0], drawn.gradients[..., 1], drawn.roots):
        np.testing.assert_array_equal(array, drawn.energies)
    counts = jax.vmap(lambda e: jnp.bincount(e.astype(int), length=64))(drawn.energies)
    expected = 64 * walkers.weights
    assert bool((jnp.abs(counts - expected[None]) < 1.001).all())
    np.testing.assert_allclose(counts.mean(0), expected, atol=0.04)
    np.testing.assert_allclose(drawn.log_partition, walkers.estimate().value, rtol=1e-5)


def test_blocks_are_resampled_by_themselves_and_weigh_by_their_own_partition():
    walkers = weighted(blocks=4)
    drawn = walkers.resampled(jax.random.key(1))
    one = dataclasses.replace(
        jax.tree.map(lambda x: x[16:32] if x.ndim else x, walkers),
        log_partition=walkers.log_partition[1],
        variance=walkers.variance[1],
    )
    booked = one.estimate().value
    np.testing.assert_allclose(drawn.log_partition[1], booked, rtol=1e-5)
    inside = (drawn.positions[16:32][:, None] == one.positions[None]).all(-1).any(-1)
    assert bool(inside.all())
    # Resampling leaves expectations and log Z where they were, on average.
    before = walkers.weights @ walkers.positions
    keys = jax.random.split(jax.random.key(2), 4000)
    after = jax.vmap(lambda key: _mean(walkers.resampled(key)))(keys).mean(0)
    np.testing.assert_allclose(after, before, atol=0.01)
    np.testing.assert_allclose(
        drawn.estimate().value, walkers.estimate().value, rtol=1e-5
    )


def _mean(walkers):
    return walkers.weights @ walkers.positions


def test_only_blocks_that_need_it_are_resampled():
    walkers = weighted(blocks=4)
    flat = walkers.log_weights.at[:16].set(0.0)
    walkers = dataclasses.replace(walkers, log_weights=flat)
    drawn = resampled_below(0.9, walkers, key=jax.random.key(1))
    np.testing.assert_array_equal(drawn.positions[:16], walkers.positions[:16])
    np.testing.assert_array_equal(drawn.roots[:16], walkers.roots[:16])
    assert drawn.log_partition[0] == walkers.log_partition[0]
    assert bool((drawn.log_partition[1:] != walkers.log_partition[1:]).all())
    untouched = resampled_below(0.01, walkers, key=jax.random.key(1))
    np.testing.assert_array_equal(untouched.positions, walkers.positions)


@pytest.mark.parametrize("num_blocks", [None, 8])
def test_error_bars_are_as_wide_as_the_spread_of_replicates(num_blocks):
    # A path on which walkers are resampled and mix slowly: relatives matter.
    num, num_steps = 256, 40

    def replicate(key):
        start, run = jax.random.split(key)
        walkers = ebm.Walkers.from_gaussian(start, num, (2,))
        walkers = walkers.reweighted(model_at(jnp.array(0.0)))
        if num_blocks:
            walkers = dataclasses.replace(
                walkers,
                log_partition=jnp.broadcast_to(walkers.log_partition, num_blocks),
                variance=jnp.zeros(num_blocks),
            )

        def body(walkers, inputs):
            i, key = inputs
            keys = jax.random.split(key)
            model = model_at(i / num_steps)
            flat = dataclasses.replace(
                walkers, log_partition=jnp.zeros(()), variance=jnp.zeros(())
            )
            moved = ebm.ULA(0.03).follow(flat, model, i, key=keys[0])
            moved = dataclasses.replace(
                moved, log_partition=walkers.log_partition, variance=walkers.variance
            )
            return resampled_below(0.5, moved, key=keys[1]), None

        steps = jnp.arange(1.0, num_steps + 1)
        walkers, _ = jax.lax.scan(body, walkers, (steps, jax.random.split(run, 40)))
        return walkers.estimate()

    keys = jax.random.split(jax.random.key(0), 400)
    values, errors = jax.jit(jax.vmap(replicate))(keys)
    spread = float(np.std(values))
    # Root mean square over the replicates: within a third of the truth.
    claimed = float(np.sqrt(np.mean(np.asarray(errors) ** 2)))
    assert 0.67 * spread < claimed < 1.5 * spread


def test_few_roots_are_booked():
    walkers = weighted(num=32)
    heavy = dataclasses.replace(walkers, log_weights=8.0 * walkers.log_weights)
    drawn = heavy.resampled(jax.random.key(0))
    assert drawn.variance > 0
    assert int(drawn.num_roots) == 32  # begun anew
    light = dataclasses.replace(walkers, log_weights=0.1 * walkers.log_weights)
    drawn = light.resampled(jax.random.key(0))
    assert drawn.variance == 0
    assert 24 < int(drawn.num_roots) < 32


def test_bernoulli_walkers_are_exact():
    logits = jnp.array([-1.0, 0.0, 2.0])
    walkers = ebm.Walkers.from_bernoulli(jax.random.key(0), 20_000, logits)
    assert bool(((walkers.positions == 0) | (walkers.positions == 1)).all())
    np.testing.assert_allclose(
        walkers.positions.mean(0), jax.nn.sigmoid(logits), atol=0.02
    )
    states = jnp.array([[(i >> j) & 1 for j in range(3)] for i in range(8)], float)
    truth = jax.nn.logsumexp(states @ logits)
    np.testing.assert_allclose(walkers.log_partition, truth, rtol=1e-6)
