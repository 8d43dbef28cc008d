"""A second opinion of `log Z`: exact by itself, and against walkers that miss mass."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import effgen as eg
from effgen import ebm
from effgen.ebm.evaluation.importance import second_opinion
from tests.ebm.gaussians import Scaled


KEY = jax.random.key(0)
MODEL = Scaled(jnp.array([0.5, 2.0, 8.0]))
TRUTH = 1.5 * np.log(2 * np.pi) - 0.5 * np.log(8.0)


def two_modes(x):
    squares = jnp.stack([jnp.sum((x - 1.5) ** 2), jnp.sum((x + 1.5) ** 2)])
    return -jax.nn.logsumexp(-0.5 * squares)


@pytest.mark.slow
def test_draws_about_the_walkers_tell_log_z():
    x = jax.random.normal(KEY, (1024, 3)) / jnp.sqrt(MODEL.precisions)[None]
    density = -jax.vmap(MODEL)(x) - TRUTH
    walkers = ebm.Walkers.from_samples(x, density).reweighted(MODEL)
    opinion = second_opinion(MODEL, walkers)
    assert opinion.counts
    value, error = opinion.estimate
    assert abs(float(value) - TRUTH) < 4 * float(error) < 0.05
    with warnings.catch_warnings():
        warnings.simplefilter("error", eg.RunWarning)
        ebm.NormalizedEnergy.from_walkers(MODEL, walkers)


@pytest.mark.slow
def test_walkers_that_have_missed_a_mode_are_contradicted():
    # All in one of two modes three deviations apart, their weights of it alone.
    x = 1.5 + jax.random.normal(KEY, (1024, 1))
    density = -jax.vmap(two_modes)(x) - 0.5 * np.log(2 * np.pi)
    walkers = ebm.Walkers.from_samples(x, density).in_blocks(16)
    with pytest.warns(eg.RunWarning, match=r"walkers tell a `log Z` that is \+0.[67]"):
        ebm.NormalizedEnergy.from_walkers(two_modes, walkers)


def test_boxes_labels_bits_and_many_coordinates_have_none():
    inside = ebm.Walkers.from_uniform(KEY, 64, (2,))
    assert second_opinion(MODEL, inside) is None
    labeled = ebm.labeled_walkers(KEY, 64, (2,), 2)
    assert second_opinion(MODEL, labeled) is None
    bits = ebm.Walkers.from_bernoulli(KEY, 64, jnp.zeros(2))
    assert second_opinion(MODEL, bits) is None
    assert second_opinion(MODEL, ebm.Walkers.from_gaussian(KEY, 512, (40,))) is None
    assert second_opinion(MODEL, ebm.Walkers.from_gaussian(KEY, 8, (3,))) is None


@pytest.mark.parametrize("mean", [1e6, 1e8])
def test_numbers_too_large_for_fractions_are_no_lattice(mean):
    """Walkers in the wrong place are told of, wherever zero is."""
    x = mean + 1e6 * np.random.default_rng(0).normal(size=(4096, 1))
    to = ebm.Standardized.of(x.astype(np.float32))
    energy = ebm.FunctionEnergy(
        lambda p, x: 0.5 * p * jnp.sum(to(x) ** 2), jnp.ones(())
    )
    start = ebm.Walkers.from_gaussian(KEY, 4096, (1,), coordinates=to)
    center = to.mean.value[None]
    narrow = center + 0.8 * (start.positions - center)
    walkers = ebm.Walkers.from_samples(narrow, -jax.vmap(energy)(narrow)).in_blocks(16)
    with pytest.warns(eg.RunWarning):
        density = ebm.NormalizedEnergy.from_walkers(energy, walkers)
    assert density.imbalance > 5
