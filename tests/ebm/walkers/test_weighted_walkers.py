"""Walkers: resampling, genealogies, blocks, and error bars that are right."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effgen import ebm
from effgen.ebm.evaluation.reliability import LARGEST_SPREAD
from effgen.ebm.walkers.blocks import log_mean, spread_error
from effgen.ebm.walkers.islands import islands, resampled_below
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
        walkers, log_partition=booked, least_ess=jnp.ones(blocks)
    )


@pytest.mark.slow
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


@pytest.mark.slow
def test_blocks_are_resampled_by_themselves_and_weigh_by_their_own_partition():
    walkers = weighted(blocks=4)
    drawn = walkers.resampled(jax.random.key(1))
    one = dataclasses.replace(
        walkers.arranged(lambda x: x[16:32]),
        log_partition=walkers.log_partition[1:2],
        least_ess=walkers.least_ess[1:2],
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


@pytest.mark.one_case("8")
@pytest.mark.parametrize("num_blocks", [None, 8])
def test_error_bars_are_as_wide_as_the_spread_of_replicates(num_blocks):
    # A path on which walkers are resampled and mix slowly: relatives matter.
    num, num_steps = 256, 40

    def replicate(key):
        start, run = jax.random.split(key)
        walkers = ebm.Walkers.from_gaussian(start, num, (2,))
        walkers = walkers.reweighted(model_at(jnp.array(0.0)))
        if num_blocks:
            walkers = walkers.in_blocks(num_blocks)

        def body(walkers, inputs):
            i, key = inputs
            keys = jax.random.split(key)
            model = model_at(i / num_steps)
            moved = ebm.ULA(0.03).follow(walkers, model, i, key=keys[0])
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


@pytest.mark.slow
def test_ancestors_are_never_forgotten():
    walkers = weighted(num=32)
    heavy = dataclasses.replace(walkers, log_weights=8.0 * walkers.log_weights)
    drawn = heavy.resampled(jax.random.key(0))
    assert int(drawn.num_roots) < 8
    again = drawn.resampled(jax.random.key(1))
    assert int(again.num_roots) <= int(drawn.num_roots)
    # Relatives count as one: the error is that of the weights before.
    expected = heavy.estimate().standard_error
    np.testing.assert_allclose(drawn.estimate().standard_error, expected, rtol=0.1)


def test_fresh_walkers_become_islands_and_others_stay_as_they_are():
    fresh = weighted(num=1000)
    assert islands(fresh).num_blocks == 10  # 16 to 11 do not divide them
    assert islands(weighted(num=64)).num_blocks == 8
    assert islands(weighted(num=1021)).num_blocks == 1
    assert islands(weighted(num=32)).num_blocks == 1
    assert islands(fresh.resampled(jax.random.key(0))).num_blocks == 1
    assert islands(fresh.in_blocks(2)).num_blocks == 2
    np.testing.assert_allclose(
        islands(fresh).estimate().value, fresh.estimate().value, rtol=1e-5
    )
    with pytest.raises(ValueError, match="`num_blocks` is 3"):
        fresh.in_blocks(3)


@pytest.mark.one_case("8-1.0")
@pytest.mark.parametrize("spread", [0.1, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("num_blocks", [8, 16])
def test_two_bars_of_islands_hold_the_truth_as_often_as_they_say(spread, num_blocks):
    # Lognormal `Z`, as of long paths: their mean is 1, and most are below it.
    shape = (4000, num_blocks)
    values = spread * jax.random.normal(jax.random.key(0), shape) - spread**2 / 2
    errors = jax.vmap(spread_error)(values)
    off = jax.vmap(log_mean)(values)
    assert 0.92 < float(jnp.mean(jnp.abs(off) < 2 * errors)) < 0.97


@pytest.mark.one_case("8-0.9-2.0")
@pytest.mark.parametrize("spread", [1.0, 1.5, 2.0])
@pytest.mark.parametrize(("num_blocks", "least"), [(8, 0.9), (16, 0.93)])
def test_two_bars_hold_where_the_spread_gives_no_warning(spread, num_blocks, least):
    # What is not warned of is chosen by the spread that was seen, and so by the bar.
    values = spread * jax.random.normal(jax.random.key(1), (20_000, num_blocks))
    errors = jax.vmap(spread_error)(values - spread**2 / 2)
    held = jnp.abs(jax.vmap(log_mean)(values - spread**2 / 2)) < 2 * errors
    seen = jnp.std(values, axis=1, ddof=1)
    share = lambda bound: float(jnp.mean(held, where=seen <= bound))
    assert share(LARGEST_SPREAD) > least
    assert share(1.0) < 0.91  # kept are those whose bars happen to be too short


@pytest.mark.slow
def test_the_least_share_of_a_path_is_remembered():
    walkers = ebm.Walkers.from_gaussian(jax.random.key(0), 512, (3,))
    narrow = walkers.reweighted(lambda x: 8.0 * jnp.sum(x**2))
    assert float(narrow.least_share) < 0.2
    settled = narrow.resampled(jax.random.key(1)).reweighted(
        lambda x: 8.01 * jnp.sum(x**2)
    )
    assert settled.least_share == narrow.least_share


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


@pytest.mark.parametrize("scale", [100_000, 65_536, 50_000])
def test_a_scale_that_is_a_whole_number_is_that_number(scale):
    """Its square wrapped around in 32 bits."""
    walkers = ebm.Walkers.from_gaussian(jax.random.key(0), 16, (64,), scale=scale)
    exact = 32 * np.log(2 * np.pi * float(scale) ** 2)
    np.testing.assert_allclose(walkers.estimate().value, exact, rtol=1e-5)
