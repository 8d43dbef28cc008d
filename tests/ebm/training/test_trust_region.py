"""Updates of the model that cost a given share of the walkers, and no more."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import ebm
from effgen.core.weights import conditional_ess
from effgen.ebm.training.trust_region import bounded
from tests.ebm.gaussians import SIZE, Shifted, data, populations


def many(model, num=1 << 16):
    """Return exact samples of a shifted Gaussian."""
    walkers = populations(jax.random.key(0), num)
    positions = walkers.positions + model.mean[None]
    return dataclasses.replace(walkers, positions=positions)


@pytest.mark.parametrize("length", [1e-6, 0.05, 3.0, 1e6])
def test_an_update_costs_the_fisher_norm_and_is_shortened_to_the_radius(length):
    # d' F d = |d|^2 for the mean of a Gaussian of unit covariance.
    old = Shifted(jnp.zeros(SIZE))
    update = length * jnp.ones(SIZE) / np.sqrt(SIZE)
    kept, metrics = bounded(0.1, old, Shifted(update), many(old))
    expected = min(1.0, 0.1 / length)
    np.testing.assert_allclose(metrics["update_share"], expected, rtol=0.02)
    np.testing.assert_allclose(metrics["update_radius"], expected * length, rtol=0.02)
    np.testing.assert_allclose(kept.mean, metrics["update_share"] * update, rtol=1e-6)


def test_the_cost_is_what_walkers_lose():
    old = Shifted(jnp.zeros(SIZE))
    walkers = many(old)
    kept, _ = bounded(0.1, old, Shifted(jnp.full(SIZE, 5.0)), walkers)
    falls = walkers.energies - walkers.reweighted(kept).energies
    left = conditional_ess(walkers.log_weights, falls) / walkers.num
    np.testing.assert_allclose(1 - left, 0.1**2, rtol=0.05)


def test_a_bound_that_never_acts_changes_nothing():
    old, new = Shifted(jnp.zeros(SIZE)), Shifted(jnp.full(SIZE, 1e-3))
    kept, metrics = bounded(0.1, old, new, many(old, 256))
    np.testing.assert_array_equal(kept.mean, new.mean)
    assert metrics["update_share"] == 1
    untouched, metrics = bounded(float("inf"), old, new, many(old, 256))
    assert untouched is new
    assert not metrics


@pytest.mark.one_case("-1.0")
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_walkers_that_have_waited_make_up_for_all_updates_at_once(sign):
    last_seen, old = Shifted(jnp.zeros(SIZE)), Shifted(jnp.full(SIZE, 0.06))
    walkers = many(last_seen)
    far = Shifted(old.mean + sign * 0.5)
    kept, metrics = bounded(0.2, old, far, walkers, turns=1)
    # Away from what they last saw only the rest is left; back to it there is more.
    waited = 0.06 * np.sqrt(SIZE)
    length = 0.2 - waited if sign > 0 else 0.2
    np.testing.assert_allclose(metrics["update_radius"], length, rtol=0.03)
    crossed = np.linalg.norm(kept.mean)
    assert crossed < 0.2 * 1.03


def test_no_update_is_taken_while_walkers_are_too_far_behind():
    last_seen, old = Shifted(jnp.zeros(SIZE)), Shifted(jnp.full(SIZE, 0.3))
    ahead = Shifted(jnp.full(SIZE, 0.4))
    kept, metrics = bounded(0.2, old, ahead, many(last_seen))
    assert metrics["update_share"] == 0
    np.testing.assert_array_equal(kept.mean, old.mean)
    # One that leads back is taken as far as it helps.
    back = Shifted(jnp.full(SIZE, 0.05))
    kept, metrics = bounded(0.9, old, back, many(last_seen))
    np.testing.assert_allclose(kept.mean, back.mean, rtol=1e-6)


def test_what_is_not_a_number_is_not_hidden():
    old = Shifted(jnp.zeros(SIZE))
    for bad in (jnp.nan, jnp.inf):
        kept, _ = bounded(0.1, old, Shifted(jnp.full(SIZE, bad)), many(old, 64))
        assert not bool(jnp.isfinite(kept.mean).all())


def test_dead_walkers_have_no_say():
    old = Shifted(jnp.zeros(SIZE))
    walkers = many(old)
    dead = jnp.arange(walkers.num) % 2 == 0
    positions = jnp.where(dead[:, None], jnp.inf, walkers.positions)
    walkers = dataclasses.replace(
        walkers,
        positions=positions,
        log_weights=jnp.where(dead, -jnp.inf, 0.0),
    )
    _, metrics = bounded(0.1, old, Shifted(jnp.ones(SIZE)), walkers)
    np.testing.assert_allclose(metrics["update_radius"], 0.1, rtol=1e-5)
    np.testing.assert_allclose(metrics["update_share"], 0.1 / SIZE**0.5, rtol=0.02)


@pytest.mark.slow
def test_a_radius_saves_a_run_whose_updates_are_too_large():
    def run(**settings):
        trainer = ebm.JarzynskiTrainer(optax.sgd(0.8), kernel=ebm.MALA(0.3), **settings)
        memory = populations(jax.random.key(0), 512)
        state = trainer.init(Shifted(jnp.zeros(SIZE)), memory)
        x = eg.Minibatches(data(shift=3.0), 64)
        return eg.fit(trainer, state, x, key=jax.random.key(1), num_steps=60)

    with pytest.raises(eg.TrainingError, match="weights collapsed"):
        run()
    state, history = run(radius=0.5)
    assert history["conditional_ess"].min() > 0.6
    np.testing.assert_allclose(state.model.mean, 3.0, atol=0.8)


@pytest.mark.slow
def test_blocks_that_wait_are_protected():
    trainer = ebm.JarzynskiTrainer(optax.sgd(0.1), kernel=ebm.MALA(0.3), radius=0.3)
    walkers = populations(jax.random.key(0), 16 * 256)
    memory = ebm.Reservoir.from_walkers(walkers, block_size=256)
    state = trainer.init(Shifted(jnp.zeros(SIZE)), memory)
    x = eg.Minibatches(data(shift=3.0), 64)
    state, history = eg.fit(trainer, state, x, key=jax.random.key(1), num_steps=300)
    # 0.91 by the radius; a block of 256 walkers tells it with an error.
    assert history["conditional_ess"].min() > 0.75
    assert float(state.model.mean.min()) > 1.5


def trainers(radius):
    kernel, optim = ebm.MALA(0.1), optax.sgd(0.5)
    return [
        ebm.JarzynskiTrainer(optim, kernel=kernel, radius=radius),
        ebm.PCDTrainer(optim, kernel=kernel, radius=radius),
        ebm.CDTrainer(optim, kernel=kernel, radius=radius),
        ebm.ScoreMatchingTrainer(optim, kernel=kernel, radius=radius),
    ]


@pytest.mark.one_case("ScoreMatchingTrainer")
@pytest.mark.parametrize("trainer", trainers(0.05), ids=lambda t: type(t).__name__)
def test_every_trainer_keeps_to_its_radius(trainer):
    state = trainer.init(Shifted(jnp.zeros(SIZE)), populations(jax.random.key(0), 256))
    x = eg.Minibatches(data(shift=3.0), 64)
    _, history = eg.fit(trainer, state, x, key=jax.random.key(1), num_steps=4)
    assert history["update_radius"].max() < 0.05 * 1.001
    assert history["update_share"].min() < 1


def test_a_radius_out_of_range_is_named():
    for radius in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"`radius` is {radius}"):
            trainers(radius)
    with pytest.raises(TypeError, match=r"`radius` is '0\.1'"):
        trainers("0.1")
