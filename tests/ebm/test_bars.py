"""Error bars hold as often as they say, and what cannot be believed is said."""

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import ebm
from tests.ebm.gaussians import LOG_PARTITION, SIZE, Scaled, Shifted, data, populations


WIDE = Scaled(jnp.asarray(np.full(SIZE, 1 / 9, np.float32)))
NARROW = Scaled(jnp.asarray(np.geomspace(0.5, 10.0, SIZE), jnp.float32))
TRUTH = LOG_PARTITION - 0.5 * np.sum(np.log(NARROW.precisions))


def followed(seed, num=512, **settings):
    keys = jax.random.split(jax.random.key(seed))
    walkers = ebm.Walkers.from_gaussian(keys[0], num, (SIZE,), scale=3.0)
    kernel = ebm.MALA(ebm.TargetAcceptance())
    return ebm.annealed([WIDE, NARROW], walkers, kernel=kernel, key=keys[1], **settings)


def test_two_bars_of_annealing_hold_the_truth():
    # `benchmarks/coverage.py` does so 100 times, for a dozen problems.
    estimates = [followed(seed, radius=0.1).estimate() for seed in range(24)]
    off = np.array(
        [(float(e.value) - TRUTH) / float(e.standard_error) for e in estimates]
    )
    assert np.mean(np.abs(off) < 2) > 0.8
    assert 0.6 < np.sqrt(np.mean(off**2)) < 1.5


@pytest.mark.slow
def test_annealing_is_in_islands_and_steps_by_what_it_costs():
    walkers = followed(0, num=256)
    assert walkers.num_blocks == 16
    assert float(walkers.least_share) > 0.9
    assert 0.3 < float(walkers.acceptance) < 0.8
    with pytest.raises(ValueError, match="`radius` is 0"):
        followed(0, radius=0.0)


@pytest.mark.slow
def test_models_of_any_two_kinds_are_ends_of_a_path():
    walkers = ebm.Walkers.from_gaussian(jax.random.key(0), 1024, (SIZE,))
    end = lambda x: 0.5 * jnp.sum((x - 0.5) ** 2) + 1.0
    walkers = ebm.annealed(
        [Shifted(jnp.zeros(SIZE)), end],
        walkers,
        kernel=ebm.MALA(0.3),
        key=jax.random.key(1),
        radius=0.2,
    )
    density = ebm.NormalizedEnergy.from_walkers(end, walkers)
    off = float(density.log_partition) - (LOG_PARTITION - 1.0)
    assert abs(off) < 4 * float(density.standard_error) < 0.4


@pytest.mark.slow
def test_walkers_of_another_energy_are_carried_or_warned_of():
    walkers = ebm.Walkers.from_gaussian(jax.random.key(0), 4096, (SIZE,))
    near = ebm.NormalizedEnergy.from_walkers(Shifted(jnp.full(SIZE, 0.1)), walkers)
    off = float(near.log_partition) - LOG_PARTITION
    assert abs(off) < 4 * float(near.standard_error) < 0.1
    with pytest.warns(eg.RunWarning, match="one update left a share of 0.0"):
        ebm.NormalizedEnergy.from_walkers(Shifted(jnp.full(SIZE, 2.0)), walkers)
    few = walkers.arranged(lambda x: x[:16])
    with pytest.warns(eg.RunWarning, match="16 walkers are too few"):
        ebm.NormalizedEnergy.from_walkers(Shifted(jnp.zeros(SIZE)), few)


def test_all_answers_are_of_the_population_that_is_asked():
    trainer = ebm.PCDTrainer(optax.sgd(0.01), kernel=ebm.MALA(0.3))
    memory = populations(jax.random.key(0), 128, audit=256)
    state = trainer.init(Shifted(jnp.zeros(SIZE)), memory)
    assert state.memory.audit.num_blocks == 16
    chains = state.memory.walkers
    assert len(ebm.weighted_samples(state)[0]) == 256
    assert len(ebm.weighted_samples(state, chains)[0]) == 128
    rows = {tuple(np.asarray(x).tolist()) for x in chains.positions}
    for own, population in ((False, None), (True, chains)):
        drawn = ebm.sample(state, 8, key=jax.random.key(1), population=population)
        assert all((tuple(np.asarray(x).tolist()) in rows) == own for x in drawn)
    with pytest.raises(ValueError, match="does not know `log Z`"):
        ebm.NormalizedEnergy.from_state(state, chains)
    with pytest.raises(TypeError, match="`population` is a int"):
        ebm.sample(state, 8, key=jax.random.key(1), population=3)


class Curved(eqx.Module):
    """A Gaussian whose precision may become negative."""

    precision: jax.Array

    def __call__(self, x):
        return 0.5 * self.precision * jnp.sum(x**2)


def started(trainer, model):
    if isinstance(trainer, ebm.CDTrainer | ebm.ScoreMatchingTrainer):
        return trainer.init(model)
    return trainer.init(model, populations(jax.random.key(0), 64))


@pytest.mark.one_case("ScoreMatchingTrainer")
@pytest.mark.parametrize(
    "kind", [ebm.PCDTrainer, ebm.CDTrainer, ebm.ScoreMatchingTrainer]
)
def test_a_model_that_loses_its_density_stops_every_trainer(kind):
    kernel = ebm.MALA(0.1)
    sign = {"learning_rate": 1.0}
    trainer = kind(optax.sgd(**sign), kernel=kernel)
    with pytest.raises(eg.TrainingError, match="no longer confines"):
        eg.fit(
            trainer,
            started(trainer, Curved(jnp.array(0.05))),
            eg.Minibatches(4.0 * data(shift=0.0), 64),
            key=jax.random.key(1),
            num_steps=64,
        )


@pytest.mark.parametrize("initial", [100.0, 1e-4])
def test_contrastive_divergence_keeps_its_step_size(initial):
    rule = ebm.TargetAcceptance(initial)
    trainer = ebm.CDTrainer(optax.sgd(0.01), kernel=ebm.MALA(rule), num_moves=4)
    state = trainer.init(Shifted(jnp.zeros(SIZE)))
    _, history = eg.fit(
        trainer, state, eg.Minibatches(data(), 64), key=jax.random.key(1), num_steps=60
    )
    assert abs(float(np.mean(history["acceptance"][-10:])) - 0.574) < 0.1


def test_any_adjusted_sampler_of_blackjax_moves_walkers():
    walkers = ebm.Walkers.from_gaussian(jax.random.key(0), 1024, (SIZE,))
    ghmc = ebm.BlackJAX(lambda f: blackjax.ghmc(f, 0.3, jnp.ones(SIZE), 0.5, 0.1))
    moved = ebm.annealed(
        [Shifted(jnp.zeros(SIZE)), Shifted(jnp.full(SIZE, 0.5))],
        walkers,
        kernel=ghmc,
        key=jax.random.key(1),
        radius=0.3,
    )
    value, error = moved.estimate()
    assert abs(float(value) - LOG_PARTITION) < 4 * float(error) < 0.4
    free = ebm.BlackJAX(lambda f: blackjax.mclmc(f, L=1.5, step_size=0.5))
    with pytest.raises(TypeError, match="tells of no acceptance"):
        free.check(Shifted(jnp.zeros(SIZE)), walkers)
    with pytest.raises(TypeError, match="tells of no acceptance"):
        ebm.long_run(
            Shifted(jnp.zeros(SIZE)),
            walkers.positions[:4],
            kernel=free,
            key=jax.random.key(0),
            num_steps=1,
        )
    with pytest.raises(TypeError, match="must be a function from a log-density"):
        ebm.BlackJAX(blackjax.hmc).check(Shifted(jnp.zeros(SIZE)), walkers)


@pytest.mark.slow
def test_a_sampler_that_leaves_another_density_invariant_is_refused():
    walkers = ebm.Walkers.from_gaussian(jax.random.key(0), 256, (2,))
    model, draw = Shifted(jnp.zeros(2)), lambda key: 3 * jax.random.normal(key, (2,))
    density = lambda _, reached: -0.5 * jnp.sum(reached.position**2) / 9
    right = ebm.BlackJAX(lambda f: blackjax.irmh(f, draw, density))
    right.check(model, walkers)
    wrong = ebm.BlackJAX(lambda f: blackjax.irmh(f, draw))
    with pytest.raises(ValueError, match=r"as it is.*`proposal_logdensity_fn`"):
        wrong.check(model, walkers)
    cov = jnp.eye(2)
    slices = lambda f: blackjax.elliptical_slice(f, mean=jnp.zeros(2), cov=cov)
    with pytest.raises(ValueError, match=r"elliptical_slice` the log-density less"):
        ebm.BlackJAX(slices).check(model, walkers)
    less = lambda f: slices(lambda x: f(x) + 0.5 * jnp.sum(x**2))
    ebm.BlackJAX(less).check(model, walkers)


def test_samples_that_are_copies_of_few_walkers_are_told():
    walkers = ebm.Walkers.from_gaussian(jax.random.key(0), 1024, (SIZE,))
    model = Shifted(jnp.zeros(SIZE))
    state = ebm.JarzynskiTrainer(optax.sgd(0.01), kernel=ebm.ULA(0.1)).init(
        model, walkers
    )
    assert ebm.sample(state, 8, key=jax.random.key(1)).shape == (8, SIZE)
    few = eqx.tree_at(
        lambda s: s.memory.log_weights,
        state,
        jnp.where(jnp.arange(1024) < 20, 0.0, -50.0),
    )
    with pytest.warns(eg.RunWarning, match="a share of 0.02 of their weights counts"):
        ebm.sample(few, 8, key=jax.random.key(1))
    with pytest.warns(eg.RunWarning, match="2048 samples of 1024 walkers: each is"):
        ebm.sample(state, 2048, key=jax.random.key(1))


@pytest.mark.parametrize("spread", [0.2, 1.0, 2.0])
def test_bars_of_masses_hold_for_blocks_of_unequal_weight(spread):
    """Sixteen islands, each of which finds the two modes' masses by a lognormal."""
    rng, held = np.random.default_rng(0), []
    labels = np.tile(np.arange(64) < 32, 16).astype(int)
    for _ in range(600):
        z = spread * rng.normal(size=(2, 16)) - spread**2 / 2
        first, second = np.array([[0.3], [0.7]]) * np.exp(z)
        weights = np.where(
            labels.reshape(16, 64) == 1, first[:, None], second[:, None]
        ).ravel()
        found = ebm.mode_masses(
            np.zeros((1024, 1), np.float32), weights, lambda x: labels, 2
        )
        held.append(abs(found.value[1] - 0.3) < 2 * found.standard_error[1])
    assert 0.94 < np.mean(held) <= 0.99
