"""Where a model has a density, and where it has none: boxes, bits, labels, far out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import ebm
from effgen.ebm.contract.energy_checks import check_continuous


KEY = jax.random.key(0)
BOX = ebm.ReflectedMALA(0.1)
BITS = jnp.asarray(np.random.default_rng(0).integers(2, size=(64, 3)), jnp.float32)
MACHINE = ebm.RBM(*(jnp.asarray(np.zeros(n, np.float32)) for n in ((3, 2), 3, 2)))


def flat(x):
    return 0.0 * jnp.sum(x)


def walled_flat(x):
    return jnp.where(jnp.all((x >= 0) & (x <= 1)), 0.0, jnp.inf)


def well(x):
    return 0.5 * jnp.sum(x**2)


def inside(num=256):
    return ebm.Walkers.from_uniform(KEY, num, (2,))


def test_a_density_of_a_box_is_zero_outside_of_it(tmp_path):
    density = ebm.NormalizedEnergy.from_walkers(flat, inside().in_blocks(16))
    x = np.array([[0.5, 1.0], [0.5, 1.5], [-0.1, 0.0]])
    density.save(tmp_path / "density")
    again = ebm.NormalizedEnergy.load(tmp_path / "density", flat)
    for found in (density, again):
        np.testing.assert_array_equal(found.log_prob(x), [0.0, -np.inf, -np.inf])
        assert found.log_prob(x[0]) == 0
        assert bool(jnp.isnan(found.log_prob([np.nan, 1.5])))  # of no row at all
    assert found.log_likelihood(x).value == -np.inf


def test_a_density_of_bits_is_zero_at_other_values(tmp_path):
    walkers = ebm.Walkers.from_bernoulli(KEY, 256, jnp.zeros(3)).in_blocks(16)
    density = ebm.NormalizedEnergy.from_walkers(MACHINE, walkers)
    found = density.log_prob(BITS[:1].at[0, 1].set(0.5))
    assert float(found[0]) == -np.inf
    assert bool(jnp.isfinite(density.log_prob(BITS)).all())
    density.save(tmp_path / "density")
    assert ebm.NormalizedEnergy.load(tmp_path / "density", MACHINE).binary


def test_a_label_that_is_no_integer_has_none():
    energy = ebm.LabeledEnergy(lambda x, label: well(x) + label, (2,), 3)
    rows = jnp.array([[0.0, 0.0, 2.0], [0.0, 0.0, 0.5], [0.0, 0.0, 3.0]])
    np.testing.assert_array_equal(jax.vmap(energy)(rows), [2.0, np.inf, np.inf])
    with pytest.raises(
        ValueError, match=r"`labels` has labels from 0\.5 to 0\.5: pass"
    ):
        ebm.with_labels(jnp.zeros((2, 2)), [0.5, 0.5])


def test_constants_may_be_met_under_a_trace():
    density = ebm.NormalizedEnergy(well, jnp.zeros(()), jnp.zeros(()), (3,))
    x, labels = jnp.ones((4, 2)), jnp.array([0, 1, 1, 0])
    told = jax.jit(lambda: density.log_likelihood(ebm.with_labels(x, labels)))
    np.testing.assert_allclose(told().value, -1.25)


def test_a_density_is_not_made_under_a_trace():
    of_scale = lambda s: ebm.NormalizedEnergy.from_walkers(
        ebm.FunctionEnergy(lambda s, x: s * well(x), s), inside()
    )
    with pytest.raises(TypeError, match="are traced, by `jit` or the like"):
        jax.jit(lambda s: of_scale(s).log_partition)(1.0)


def test_every_label_s_energy_must_confine():
    def loose(x, label):
        return jnp.where(label == 1, 0.0, well(x))

    kernel = ebm.LabelGibbs(ebm.MALA(0.1))
    walkers = ebm.labeled_walkers(KEY, 64, (2,), 2)
    energy = ebm.LabeledEnergy(loose, (2,), 2)
    with pytest.raises(ValueError, match="does not confine"):
        kernel.check(energy, walkers)
    assert not bool(kernel.confined(energy, walkers))
    sound = ebm.LabeledEnergy(lambda x, label: well(x) + label, (2,), 2)
    assert bool(kernel.confined(sound, walkers))


def test_walkers_of_a_box_are_not_moved_out_of_it():
    kernels = ebm.MALA(0.1), ebm.ReweightFirst(ebm.ULA(0.1))
    for kernel in kernels:
        with pytest.raises(ValueError, match=r"walls \(0\.0, 1\.0\), .* `\w+LA`"):
            kernel.check(well, inside())
    # An energy that is infinite outside keeps them there, whatever moves them.
    kernels[0].check(walled_flat, inside())
    with pytest.raises(ValueError, match="nor the energy keeps them"):
        kernels[0].check(lambda x: jnp.where(x[0] <= 1, 0.0, jnp.inf), inside())
    given = ebm.Walkers.from_samples(np.full((2, 2), 0.5), walls=[0, 1])
    assert given.walls == (0.0, 1.0)


def test_long_runs_and_data_are_where_walkers_can_be():
    outside = np.array([[0.5, 0.5], [0.5, 1.5]])
    with pytest.raises(ValueError, match=r"`positions` has 1 row\(s\) of 2 \(row 1 f"):
        ebm.long_run(well, outside, kernel=BOX, key=KEY, num_steps=1)
    with pytest.raises(ValueError, match=r"`data` has 1 row\(s\) of 2 .*`Reflected"):
        ebm.sandwich([flat], inside(), outside, kernel=BOX, key=KEY)
    with pytest.raises(ValueError, match=r"`data` has 1 row\(s\): pass at least 2"):
        ebm.sandwich([flat], inside(), outside[:1], kernel=BOX, key=KEY)


def test_a_sandwich_of_a_box():
    data = np.random.default_rng(0).uniform(size=(64, 2))
    lower, upper = ebm.sandwich([flat], inside(), data, kernel=BOX, key=KEY)
    assert float(lower.value) == float(upper.value) == 0.0


def test_an_energy_without_an_integral_is_doubted():
    walkers = ebm.Walkers.from_gaussian(KEY, 1024, (2,)).in_blocks(16)
    with pytest.warns(eg.RunWarning, match="does not grow fast enough for there to be"):
        ebm.NormalizedEnergy.from_walkers(lambda x: jnp.minimum(well(x), 9.0), walkers)


def test_an_energy_that_is_undefined_at_walkers_is_named():
    walkers = ebm.Walkers.from_gaussian(KEY, 128, (1,))
    with pytest.raises(ValueError, match=r"`energy` is NaN at \d+ of 128 walkers"):
        ebm.NormalizedEnergy.from_walkers(lambda x: jnp.sum(x**2 + x**1.5), walkers)


def test_a_walker_at_the_origin_is_no_fault_of_the_energy():
    check_continuous(well, jnp.zeros((4, 2)).at[1:].set(1.0))


@pytest.mark.parametrize(
    ("trainer", "said"),
    [
        (ebm.NCETrainer, "from a Gaussian's noise, which has 16 row.*`BlockGibbs`"),
        (ebm.ScoreMatchingTrainer, "denoised, but between them are .*`BlockGibbs`"),
    ],
)
def test_bits_are_not_told_from_noise(trainer, said):
    trainer = trainer(optax.sgd(0.1), kernel=ebm.BlockGibbs())
    source = eg.Minibatches(BITS, 16)
    with pytest.raises(ValueError, match=said):
        trainer.check(trainer.init(MACHINE), BITS[:16], source)


def test_restarts_are_where_walkers_can_be():
    trainer = ebm.PCDTrainer(optax.sgd(0.1), kernel=ebm.BlockGibbs(), restarts=0.1)
    walkers = ebm.Walkers.from_samples(BITS)
    with pytest.raises(ValueError, match=r"`restarts` is 0\.1, but a Gaussian draws"):
        trainer.init(MACHINE, walkers)


def test_a_dead_island_has_no_weight():
    walkers = ebm.Walkers.from_gaussian(KEY, 32, (2,)).in_blocks(4)
    lost = jnp.where(jnp.arange(32) < 8, -jnp.inf, walkers.log_weights)
    walkers = dataclasses.replace(walkers, log_weights=lost).resampled(KEY)
    np.testing.assert_allclose(walkers.weights, np.repeat([0.0, 1 / 24], [8, 24]))
    assert float(walkers.ess) == 0.75


def test_rare_bits_are_of_no_scale():
    # No walker has a bit that some of the data have: it may be flipped.
    x = np.zeros((64, 3), np.float32)
    x[::2, 0], x[::3, 1], x[5, 2] = 1, 1, 1
    trainer = ebm.PCDTrainer(optax.sgd(0.1), kernel=ebm.BlockGibbs())
    logits = jnp.array([0.0, -0.5, -30.0])
    state = trainer.init(MACHINE, ebm.Walkers.from_bernoulli(KEY, 64, logits))
    trainer.check(state, x[:16], eg.Minibatches(x, 16))
