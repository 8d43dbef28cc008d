"""The audit's moves: by step sizes on which its own walkers have no influence."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import ebm
from effgen.ebm.moves.kernels import followed
from effgen.ebm.moves.step_sizes import has_rule
from effgen.ebm.walkers.particles import KernelState
from tests.ebm.gaussians import SIZE, Scaled, Shifted, data, populations


RULE = ebm.TargetAcceptance(1.0)
NUM_STEPS, NARROWER = 12, 6.0


@eqx.filter_jit
def mean_partitions(key, num):
    """Return `E[Z] / Z` of pairs that lead themselves and of pairs that are led."""
    kernel = ebm.MALA(RULE)

    def replicate(key):
        start, run = jax.random.split(key)
        both = [
            dataclasses.replace(
                ebm.Walkers.from_gaussian(k, 2, (1,)), step_size=jnp.ones(())
            )
            for k in jax.random.split(start)
        ]

        def body(both, inputs):
            i, precision, key = inputs
            keys, model = jax.random.split(key), Scaled(precision)
            own, led = both
            leader = own.kernel_state
            own = followed(kernel, own, model, i, 1, key=keys[0])
            led = followed(kernel, led, model, i, 1, key=keys[1], leader=leader)
            return (own, led), None

        steps = jnp.arange(NUM_STEPS)
        precisions = NARROWER ** ((1.0 + steps) / NUM_STEPS)
        keys = jax.random.split(run, NUM_STEPS)
        both, _ = jax.lax.scan(body, tuple(both), (steps, precisions, keys))
        return jnp.stack([walkers.estimate().value for walkers in both])

    values = jax.vmap(replicate)(jax.random.split(key, num))
    shares = jnp.exp(values - 0.5 * jnp.log(2 * jnp.pi / NARROWER))
    return shares.mean(0), shares.std(0) / jnp.sqrt(num)


def test_walkers_that_are_led_are_unbiased_and_others_are_not():
    means, errors = mean_partitions(jax.random.key(0), 20_000)
    assert float(means[0]) - 1 > 10 * float(errors[0]) > 0.02
    assert abs(float(means[1]) - 1) < 4 * float(errors[1]) < 0.02


def test_each_move_of_walkers_that_are_led_is_the_leader_s():
    walkers = populations(jax.random.key(0), 16)
    leader = KernelState(jnp.array(0.37), jnp.ones(()))
    model, step = Shifted(jnp.full(SIZE, 0.2)), jnp.array(0)
    move = lambda kernel, leader: followed(
        kernel, walkers, model, step, 3, key=jax.random.key(1), leader=leader
    )
    led = move(ebm.MALA(RULE), leader)
    fixed = move(ebm.MALA(0.37), None)
    np.testing.assert_array_equal(led.positions, fixed.positions)
    own = move(ebm.MALA(RULE), None)
    assert bool((own.positions != fixed.positions).any())


@pytest.mark.one_case("NCETrainer")
@pytest.mark.parametrize(
    "kind",
    [
        ebm.JarzynskiTrainer,
        ebm.PCDTrainer,
        ebm.CDTrainer,
        ebm.NCETrainer,
        ebm.ScoreMatchingTrainer,
    ],
)
def test_no_audit_has_a_part_in_its_step_size(kind):
    trainer = kind(optax.sgd(0.1), kernel=ebm.MALA(RULE), num_moves=2)
    memory = populations(jax.random.key(0), 16, audit=64)
    state = trainer.init(Shifted(jnp.zeros(SIZE)), memory)
    other = populations(jax.random.key(1), 64).in_blocks(8).reweighted(state.model)
    other = other.moving(state.memory.audit.kernel_state)
    swapped = eqx.tree_at(lambda s: s.memory.audit, state, other)
    step = eqx.filter_jit(trainer.step)
    for i in range(2):
        key, batch = jax.random.key(i), data(64, shift=0.5)[32 * i : 32 * i + 32]
        (state, _), (swapped, _) = (step(s, batch, key=key) for s in (state, swapped))
    np.testing.assert_array_equal(state.model.mean, swapped.model.mean)
    for mine, its in zip(
        *map(jax.tree.leaves, (state.memory.walkers, swapped.memory.walkers)),
        strict=True,
    ):
        np.testing.assert_array_equal(mine, its)  # NaN, of PCD's `log Z`, are equal
    assert bool((state.memory.audit.positions != swapped.memory.audit.positions).all())


@pytest.mark.parametrize("kind", [ebm.NCETrainer, ebm.ScoreMatchingTrainer])
@pytest.mark.slow
def test_a_step_size_that_data_find_suits_the_walkers(kind):
    trainer = kind(optax.sgd(0.0), kernel=ebm.MALA(ebm.TargetAcceptance(1e-4)))
    memory = populations(jax.random.key(0), 512)
    state = trainer.init(Shifted(jnp.zeros(SIZE)), memory)
    x = eg.Minibatches(data(shift=0.0), 64)
    state, _ = eg.fit(trainer, state, x, key=jax.random.key(1), num_steps=60)
    assert abs(float(state.memory.audit.acceptance) - 0.574) < 0.12


def test_kernels_that_follow_a_rule_are_told():
    assert has_rule(ebm.ULA(ebm.TargetVariance(0.1)))
    assert has_rule(ebm.ReweightFirst(ebm.LabelGibbs(ebm.MALA(RULE))))
    assert not has_rule(ebm.MALA(0.1, scale=jnp.ones(2)))
    assert not has_rule(ebm.BlockGibbs())


def test_a_leader_of_another_precision_changes_none():
    with jax.enable_x64(True):
        walkers = ebm.Walkers.from_bernoulli(jax.random.key(0), 16, jnp.zeros(4))
        single = jnp.ones((), jnp.float32)
        led = lambda walkers, leader: followed(
            ebm.GibbsWithGradients(),
            walkers,
            lambda x: jnp.sum(x),
            jnp.array(0),
            2,
            key=jax.random.key(1),
            leader=leader,
        )
        after = eqx.filter_eval_shape(led, walkers, KernelState(single, single))
        assert walkers.step_size.dtype == jnp.float64
        assert after.step_size.dtype == after.acceptance.dtype == jnp.float64
