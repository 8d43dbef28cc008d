"""Rules that find the step size of moves."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import ebm
from effgen.ebm.moves.langevin import Langevin
from tests.ebm.gaussians import LOG_PARTITION, SIZE, Scaled, Shifted, data, populations


PRECISIONS = jnp.array([0.5, 1.0, 2.0, 4.0, 1.0, 1.0, 3.0, 0.2])


def settled(kernel, num_moves):
    """Return walkers at equilibrium after many moves under a fixed Gaussian."""
    energy = Scaled(PRECISIONS)
    walkers = ebm.Walkers.from_gaussian(jax.random.key(0), 1024, (SIZE,))
    positions = walkers.positions / jnp.sqrt(PRECISIONS)[None]
    density = -jax.vmap(energy)(positions)
    walkers = ebm.Walkers.from_samples(positions, density).reweighted(energy)

    def body(walkers, key):
        walkers = kernel.move(walkers, energy, jnp.array(0), key=key)
        return walkers, walkers.acceptance

    keys = jax.random.split(jax.random.key(1), num_moves)
    return jax.lax.scan(body, walkers, keys)


@pytest.mark.one_case("1.0")
@pytest.mark.parametrize("initial", [1e-3, 1.0])
def test_acceptance_reaches_its_target(initial):
    kernel = ebm.MALA(ebm.TargetAcceptance(initial))
    _, acceptance = settled(kernel, 800)
    np.testing.assert_allclose(acceptance[-50:].mean(), 0.574, atol=0.02)


@pytest.mark.parametrize("initial", [1e-3, 0.3])
def test_the_variance_rule_finds_the_step_size_of_a_gaussian(initial):
    kernel = ebm.ULA(ebm.TargetVariance(initial))
    walkers, _ = settled(kernel, 400)
    expected = 0.5 / jnp.sqrt(jnp.sum(PRECISIONS**2))
    # The chain's own stationary law is a little wider than the model.
    np.testing.assert_allclose(walkers.step_size, expected, rtol=0.15)


def test_unadjusted_weights_lose_what_the_rule_says():
    # Var(log_weights) -> h^2 / 4 sum(l^2): with the default rule, 1/16.
    kernel = ebm.ULA(0.5 / float(jnp.sqrt(jnp.sum(PRECISIONS**2))))
    walkers, _ = settled(kernel, 400)
    np.testing.assert_allclose(jnp.var(walkers.log_weights), 0.0625, rtol=0.3)


@pytest.mark.slow
def test_rules_and_a_radius_leave_the_audit_exact():
    trainer = ebm.JarzynskiTrainer(
        optax.sgd(0.3), kernel=ebm.MALA(ebm.TargetAcceptance(0.01)), radius=0.2
    )
    memory = populations(jax.random.key(0), 256, audit=4096)
    state = trainer.init(Shifted(jnp.zeros(SIZE)), memory)
    state, history = eg.fit(
        trainer, state, eg.Minibatches(data(), 64), key=jax.random.key(1), num_steps=200
    )
    assert history["update_share"].min() < 1
    assert 0.5 < history["acceptance"][-50:].mean() < 0.65
    assert state.memory.audit.step_size == pytest.approx(
        float(state.memory.walkers.step_size), rel=0.1
    )
    density = ebm.NormalizedEnergy.from_state(state)
    assert abs(density.log_partition - LOG_PARTITION) < 4 * density.standard_error


def test_a_rule_that_does_not_fit_the_kernel_is_named():
    with pytest.raises(ValueError, match="`ULA` accepts every move"):
        ebm.ULA(ebm.TargetAcceptance(0.1))
    with pytest.raises(ValueError, match="for unadjusted moves"):
        ebm.MALA(ebm.TargetVariance(0.1))
    with pytest.raises(ValueError, match=r"`target` is 1\.5"):
        ebm.TargetAcceptance(0.1, target=1.5)
    with pytest.raises(ValueError, match="`initial` is 0"):
        ebm.TargetVariance(0.0)
    with pytest.raises(TypeError, match="`step_size` is a str"):
        ebm.MALA("large")
    with pytest.raises(ValueError, match="`clip` is -1"):
        ebm.MALA(0.1, clip=-1.0)


def test_a_schedule_that_falls_below_zero_stops_a_training():
    kernel = ebm.MALA(lambda step: 0.1 - 0.1 * step)
    trainer = ebm.PCDTrainer(optax.sgd(0.1), kernel=kernel)
    state = trainer.init(Shifted(jnp.zeros(SIZE)), populations(jax.random.key(0), 8))
    x = eg.Minibatches(data()[:64], 64)
    with pytest.raises(eg.TrainingError, match=r"memory\.step_size"):
        eg.fit(trainer, state, x, key=jax.random.key(1), num_steps=4)


def test_a_preconditioner_of_another_shape_is_named():
    kernel = ebm.ULA(0.1, scale=jnp.ones(3))
    walkers = populations(jax.random.key(0), 8)
    with pytest.raises(ValueError, match=r"`scale` has shape \(3,\)"):
        kernel.follow(walkers, Scaled(PRECISIONS), jnp.array(0), key=jax.random.key(0))


def test_an_infinite_norm_clips_nothing():
    gradients = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    for clip, expected in ((np.inf, [25.0, 0.0]), (None, [25.0, 0.0]), (1, [1.0, 0.0])):
        found = Langevin(clip, None).squares(gradients)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_temperature_scales_the_energy():
    energy = ebm.TemperedEnergy(Scaled(PRECISIONS), 4.0)
    x = jnp.ones(SIZE)
    assert energy(x) == Scaled(PRECISIONS)(x) / 4
    assert eqx.is_array(energy.energy.precisions)
    with pytest.raises(ValueError, match="`temperature` is 0"):
        ebm.TemperedEnergy(Scaled(PRECISIONS), 0.0)
