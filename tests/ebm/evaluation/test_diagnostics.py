"""Tails, modes, and long chains."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import effgen as eg
from effgen import ebm
from effgen.ebm.evaluation.diagnostics import gradient_pareto_k
from tests.ebm.gaussians import SIZE, Shifted


@pytest.mark.parametrize("shape", [0.3, 0.7, 1.2])
def test_the_tail_of_pareto_weights_is_found(shape):
    uniform = jax.random.uniform(jax.random.key(0), (40_000,))
    log_weights = -shape * jnp.log(uniform)
    np.testing.assert_allclose(ebm.pareto_k(log_weights), shape, atol=0.12)


def test_equal_weights_have_no_tail():
    assert ebm.pareto_k(jnp.full(1000, 3.0)) == -jnp.inf
    assert ebm.pareto_k(jnp.full(1000, -jnp.inf)) == jnp.inf  # no weights at all


def test_masses_of_modes_with_their_errors():
    keys = jax.random.split(jax.random.key(0))
    labels = jax.random.choice(keys[0], 3, (900,), p=jnp.array([0.5, 0.3, 0.2]))
    positions = labels[:, None].astype(float)
    weights = jax.random.uniform(keys[1], (900,))
    masses, errors = ebm.mode_masses(
        positions, weights, lambda x: x[:, 0].astype(int), 3
    )
    np.testing.assert_allclose(masses.sum(), 1.0, rtol=1e-5)
    truth = jnp.array([0.5, 0.3, 0.2])
    assert bool((jnp.abs(masses - truth) < 4 * errors).all())
    assert 0.015 < float(errors[0]) < 0.025
    with pytest.raises(ValueError, match="one label for each"):
        ebm.mode_masses(positions, weights, lambda x: x, 3)
    with pytest.raises(ValueError, match="`num_modes` is 0"):
        ebm.mode_masses(positions, weights, lambda x: x, 0)


def test_few_walkers_that_are_relatives_count_as_few():
    positions = jnp.repeat(jnp.array([[0.0], [1.0]]), 16, 0)
    classify = lambda x: x[:, 0].astype(int)
    masses, errors = ebm.mode_masses(positions, jnp.ones(32), classify, 2)
    np.testing.assert_allclose(masses, 0.5)
    assert bool((errors > 0.2).all())  # of independent ones it would be 0.09
    one, error = ebm.mode_masses(positions[:1], jnp.ones(1), classify, 2)
    assert one[0] == 1
    assert bool(jnp.isfinite(error).all())


@pytest.mark.slow
def test_long_chains_of_the_model_s_own_samples_stay():
    model = Shifted(jnp.ones(SIZE))
    positions = 1 + jax.random.normal(jax.random.key(0), (512, SIZE))
    chains = ebm.long_run(
        model,
        positions,
        kernel=ebm.MALA(0.3),
        key=jax.random.key(1),
        num_steps=1000,
        num_records=5,
    )
    assert chains.mean_energies.shape == (6,)
    error = np.sqrt(0.5 * SIZE / 512)
    assert bool((jnp.abs(chains.mean_energies - 0.5 * SIZE) < 4.5 * error).all())
    assert 0.3 < float(chains.acceptances[-1]) < 1
    away = ebm.long_run(
        model,
        positions + 5,
        kernel=ebm.MALA(0.3),
        key=jax.random.key(1),
        num_steps=1000,
        num_records=5,
    )
    assert away.mean_energies[0] > 10 * SIZE
    assert abs(away.mean_energies[-1] - 0.5 * SIZE) < 4.5 * error
    with pytest.raises(ValueError, match="`num_steps` is 0"):
        ebm.long_run(
            model,
            positions,
            kernel=ebm.MALA(0.3),
            key=jax.random.key(0),
            num_steps=0,
        )


class Counting(ebm.AbstractKernel):
    """Every move adds one to the first coordinate and keeps its step in the second."""

    def follow(self, walkers, energy, step, *, key):
        return self.move(walkers, energy, step, key=key)

    def move(self, walkers, energy, step, *, key):
        x = walkers.positions
        latest = jnp.maximum(x[:, 1], step)
        return eqx.tree_at(
            lambda w: w.positions, walkers, jnp.stack([x[:, 0] + 1, latest], axis=1)
        )


@pytest.mark.parametrize("num_steps", [1, 5, 30, 103])
def test_long_chains_take_as_many_steps_as_asked(num_steps):
    model = Shifted(jnp.zeros(2))
    chains = ebm.long_run(
        model,
        jnp.zeros((4, 2)),
        kernel=Counting(),
        key=jax.random.key(0),
        num_steps=num_steps,
    )
    assert chains.positions[0].tolist() == [num_steps, num_steps - 1]
    assert len(chains.mean_energies) == min(num_steps, 20) + 1


def test_masses_err_as_much_as_their_islands_differ():
    # Islands of relatives: all walkers of an island are in one mode.
    labels = jnp.repeat(jnp.arange(16) % 4 == 0, 64)[:, None].astype(float)
    weights = jnp.full(1024, 1 / 1024)
    classify = lambda x: x[:, 0].astype(int)
    masses, errors = ebm.mode_masses(labels, weights, classify, 2)
    np.testing.assert_allclose(masses, [0.75, 0.25])
    np.testing.assert_allclose(errors, np.sqrt(0.25 * 0.75 / 15) * 1.087, rtol=0.01)
    # Of a mode without walkers something is known: it is small.
    _, errors = ebm.mode_masses(labels, weights, lambda x: jnp.zeros(1024, int), 2)
    assert 0 < float(errors[1]) < 0.001
    with pytest.raises(ValueError, match="labels from 0 to 1: of 1 modes"):
        ebm.mode_masses(labels, weights, classify, 1)


@pytest.mark.slow
def test_walkers_out_of_equilibrium_are_told():
    model = Shifted(jnp.zeros(4))
    walkers = ebm.Walkers.from_gaussian(jax.random.key(0), 2048, (4,)).in_blocks(16)
    assert float(ebm.imbalance(walkers.reweighted(model))) < 3.5
    narrow = dataclasses.replace(walkers, positions=0.8 * walkers.positions)
    narrow = narrow.reweighted(model)
    narrow = dataclasses.replace(narrow, log_weights=jnp.zeros(2048))
    assert float(ebm.imbalance(narrow)) > 4
    with pytest.warns(eg.RunWarning, match="standard errors from equilibrium"):
        ebm.NormalizedEnergy.from_walkers(model, narrow)


def funnel(width):
    """Return the energy of Neal's funnel in 5 coordinates, and exact walkers."""

    def energy(parameters, x):
        del parameters
        rest = 0.5 * jnp.sum(x[1:] ** 2) * jnp.exp(-x[0]) + 2 * x[0]
        return 0.5 * (x[0] / width) ** 2 + rest

    keys = jax.random.split(jax.random.key(0))
    depth = width * jax.random.normal(keys[0], (1024, 1))
    rest = jnp.exp(depth / 2) * jax.random.normal(keys[1], (1024, 4))
    walkers = ebm.Walkers.from_samples(jnp.hstack([depth, rest]), jnp.zeros(1024))
    return ebm.FunctionEnergy(energy, ()), walkers


def test_walkers_stuck_at_the_edge_of_a_narrow_place_are_told():
    """Samples of a funnel have gradients of lognormal norms; refused moves do not."""
    for width in (0.5, 1.0, 3.0):
        energy, walkers = funnel(width)
        walkers = walkers.reweighted(energy)
        assert float(gradient_pareto_k(walkers)) < 0.6
    deep = jnp.linspace(-12.0, -2.0, 32)[:, None]
    stuck = walkers.positions.at[:32].set(jnp.hstack([deep, jnp.ones((32, 4))]))
    stuck = dataclasses.replace(walkers, positions=stuck).reweighted(energy)
    stuck = dataclasses.replace(stuck, log_weights=jnp.zeros(1024))
    with pytest.warns(eg.RunWarning, match="too narrow for the moves"):
        density = ebm.NormalizedEnergy.from_walkers(energy, stuck)
    assert float(density.gradient_pareto_k) > 1


def test_gradients_that_are_zero_or_not_finite_have_the_last_of_shapes():
    walkers = ebm.Walkers.from_gaussian(jax.random.key(0), 512, (3,))
    flat = dataclasses.replace(walkers, gradients=jnp.zeros((512, 3)))
    assert float(gradient_pareto_k(flat)) == -jnp.inf
    steep = dataclasses.replace(walkers, gradients=jnp.full((512, 3), jnp.inf))
    assert float(gradient_pareto_k(steep)) == jnp.inf


def test_errors_of_masses_are_from_the_walkers_own_blocks():
    """Of 24 independent blocks, each in one mode, the bar is that of 24 tosses."""
    rng, num = np.random.default_rng(0), 24 * 42
    classify = lambda x: x[:, 0].astype(int)
    held, bars = 0, []
    for _ in range(200):
        x = jnp.asarray(np.repeat(rng.integers(2, size=24), 42)[:, None], jnp.float32)
        found = ebm.mode_masses(x, jnp.ones(num), classify, 2, num_blocks=24)
        held += bool(abs(found.value[1] - 0.5) < 2 * found.standard_error[1])
        bars.append(float(found.standard_error[1]))
    assert np.median(bars) == pytest.approx(0.5 / np.sqrt(24), rel=0.1)
    assert 0.9 * 200 <= held <= 0.99 * 200
    for wrong in (1, 5, 2.0):
        with pytest.raises((ValueError, TypeError), match="`num_blocks` is"):
            ebm.mode_masses(x, jnp.ones(num), classify, 2, num_blocks=wrong)
