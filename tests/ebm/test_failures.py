"""What can go wrong with an energy or its walkers, and what is said of it."""

import dataclasses
import itertools
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import ebm
from effgen.ebm.contract.data_checks import check_batch, check_columns
from effgen.ebm.evaluation.reliability import _by_weights, told_by
from tests.ebm.gaussians import LOG_PARTITION, SIZE, Shifted, data, populations


OPTIM = optax.sgd(0.05)  # one for all, so that they share programs


def trainer(**settings):
    return ebm.JarzynskiTrainer(OPTIM, kernel=ebm.ULA(0.1), **settings)


def started(model, num=64):
    return trainer().init(model, populations(jax.random.key(0), num))


def test_an_energy_that_changes_its_mind_is_refused():
    counter = itertools.count()

    def noisy(x):
        return 0.5 * jnp.sum(x**2) + next(counter)

    with pytest.raises(ValueError, match="other energies the second time"):
        started(noisy)


def test_an_energy_that_looks_at_the_rest_of_the_batch_is_refused():
    def normalized(x):
        assert x.ndim == 2
        return 0.5 * jnp.sum((x - x.mean(0, keepdims=True)) ** 2, axis=1)

    with pytest.raises(ValueError, match="no batch normalization"):
        started(normalized)


@pytest.mark.parametrize(
    "energy",
    [
        lambda x: jnp.sum(jnp.sin(x)),
        lambda x: -0.1 * jnp.sum(x**2),
        lambda x: 2.0 * jnp.log1p(jnp.sum(x**2)),  # falls, but too slowly for 8 axes
        eqx.nn.MLP(SIZE, "scalar", 8, 1, key=jax.random.key(0)),
    ],
    ids=["bounded", "upside down", "heavy tails", "a bare network"],
)
def test_an_energy_that_does_not_confine_is_refused(energy):
    with pytest.raises(ValueError, match=r"does not confine.*ebm.ConfinedEnergy"):
        started(energy)


@pytest.mark.parametrize(
    "energy",
    [
        lambda x: 6.0 * jnp.log1p(jnp.sum(x**2)),
        lambda x: jnp.sum(jnp.abs(x)),
        lambda x: jnp.where(jnp.sum(x**2) < 100.0, jnp.sum(x**2), jnp.inf),
    ],
    ids=["student", "laplace", "a box"],
)
def test_an_energy_that_does_is_not(energy):
    started(energy)


def test_walkers_where_the_energy_is_not_finite_are_refused():
    with pytest.raises(ValueError, match="of 64 walkers an energy that is not finite"):
        started(lambda x: jnp.log(x[0]) + jnp.sum(x**2))


@pytest.mark.slow
def test_divergence_stops_with_its_own_name():
    # A move of h * curvature = 4 overshoots; the quartic then sends walkers away.
    def quartic(x):
        return jnp.sum(x**4)

    steep = ebm.JarzynskiTrainer(optax.sgd(0.0), kernel=ebm.ULA(4.0))
    state = steep.init(quartic, populations(jax.random.key(0), 256))
    with pytest.raises(eg.TrainingError, match=r"walkers|weights") as caught:
        eg.fit(
            steep,
            state,
            eg.Minibatches(data(), 64),
            key=jax.random.key(1),
            num_steps=50,
        )
    names = {"walkers_lost": "steepest", "weights_collapsed": "radius"}
    assert any(word in str(caught.value) for word in names.values())
    assert bool(jnp.isfinite(caught.value.state.memory.positions).all())


@pytest.mark.slow
def test_more_than_a_hundredth_of_the_walkers_lost_stops_the_run():
    def cliff(x):
        return jnp.where(jnp.max(jnp.abs(x)) > 4.0, jnp.inf, 0.5 * jnp.sum(x**2))

    state = trainer().init(cliff, populations(jax.random.key(0), 4096))
    x = eg.Minibatches(jnp.clip(data(), -3.0, 3.0), 64)
    wide = ebm.JarzynskiTrainer(optax.sgd(0.0), kernel=ebm.ULA(1.0))
    with pytest.raises(eg.TrainingError, match="`steepest` the largest gradient"):
        eg.fit(wide, state, x, key=jax.random.key(1), num_steps=9)
    adjusted = ebm.JarzynskiTrainer(optax.sgd(0.0), kernel=ebm.MALA(1.0))
    _, history = eg.fit(adjusted, state, x, key=jax.random.key(1), num_steps=9)
    assert history["lost"].max() == 0


@pytest.mark.slow
def test_a_free_offset_costs_nothing_but_is_booked():
    class Offset(eqx.Module):
        mean: jax.Array
        offset: jax.Array

        def __call__(self, x):
            return 0.5 * jnp.sum((x - self.mean) ** 2) + self.offset

    memory = populations(jax.random.key(0), 512, audit=512)
    model = Offset(jnp.zeros(SIZE), jnp.array(-300.0))
    state = trainer().init(model, memory)
    x = eg.Minibatches(data(), 64)
    state, history = eg.fit(trainer(), state, x, key=jax.random.key(1), num_steps=50)
    plain = trainer().init(Offset(jnp.zeros(SIZE), jnp.zeros(())), memory)
    plain, plain_history = eg.fit(
        trainer(), plain, x, key=jax.random.key(1), num_steps=50
    )
    np.testing.assert_allclose(state.model.offset, -300.0, atol=1e-4)
    np.testing.assert_allclose(history["loss"], plain_history["loss"], atol=2e-2)
    np.testing.assert_allclose(
        history["log_partition"] - 300.0, plain_history["log_partition"], atol=2e-2
    )


def test_weights_that_cannot_be_relied_on_are_marked():
    walkers = populations(jax.random.key(0), 2048)
    heavy = dataclasses.replace(
        walkers,
        log_weights=-1.5 * jnp.log(jax.random.uniform(jax.random.key(1), (2048,))),
    )
    with pytest.warns(eg.RunWarning, match=r"unreliable.*`ebm.annealed`"):
        density = ebm.NormalizedEnergy.from_walkers(Shifted(jnp.zeros(SIZE)), heavy)
    assert density.pareto_k > 0.7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        density = ebm.NormalizedEnergy.from_walkers(Shifted(jnp.zeros(SIZE)), walkers)
    assert density.ess == 1


@pytest.mark.parametrize(
    ("lineages", "spread", "doubted"),
    [(3, 1.0, True), (3, 0.3, False), (9, 1.0, False)],
)
def test_islands_of_few_lineages_that_differ_are_doubted(lineages, spread, doubted):
    walkers = populations(jax.random.key(0), 1024).in_blocks(16)
    values = np.linspace(-1, 1, 16)
    walkers = dataclasses.replace(
        walkers,
        roots=walkers.roots % lineages,
        log_partition=walkers.log_partition
        + jnp.asarray(spread * values / values.std(ddof=1), jnp.float32),
    )
    said = _by_weights(told_by(walkers), walkers)
    assert any("first walkers an island" in text for text in said) == doubted
    assert len(said) == doubted


@pytest.mark.slow
def test_another_model_put_into_the_state_is_weighed_too():
    # Walkers carry what they last saw: a model changed by hand is caught up with.
    state = started(Shifted(jnp.zeros(SIZE)), num=20_000)
    moved = dataclasses.replace(state, model=Shifted(jnp.full(SIZE, 0.2)))
    density = ebm.NormalizedEnergy.from_state(moved)
    assert abs(density.log_partition - LOG_PARTITION) < 4 * density.standard_error
    assert density.standard_error > 0


def test_a_checkpoint_of_another_number_of_walkers_is_named(tmp_path):
    state = started(Shifted(jnp.zeros(SIZE)), num=64)
    eg.save(tmp_path / "run", state)
    with pytest.raises(ValueError, match="positions"):
        eg.restore(tmp_path / "run", started(Shifted(jnp.zeros(SIZE)), num=32))


def test_training_can_be_set_up_under_a_transformation():
    # The self-test looks at numbers; where there are none yet it stands aside.
    @eqx.filter_vmap
    def energies(key):
        state = trainer().init(
            Shifted(jnp.zeros(SIZE)), ebm.Walkers.from_gaussian(key, 4, (SIZE,))
        )
        return state.memory.energies

    assert energies(jax.random.split(jax.random.key(0), 3)).shape == (3, 4)


def test_columns_that_cannot_be_learned_from_are_named():
    x = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    check_columns("x", x)
    bad = x.copy()
    bad[7, 2] = np.nan
    with pytest.raises(ValueError, match=r"x\[:, 2\], in 1 of 50 rows \(row 7 first\)"):
        check_columns("x", bad)
    bad = x.copy()
    bad[:, 1] = 3.0
    with pytest.raises(ValueError, match=r"constant in 1 column\(s\): 1"):
        check_columns("x", bad)
    scalars = np.random.default_rng(1).normal(size=50)
    check_columns("x", scalars)
    with pytest.raises(ValueError, match="constant in 1 column"):
        check_columns("x", np.ones(50))
    many = np.random.default_rng(1).normal(size=(20_000, 1)).astype(np.float32)
    coarse = np.sort(np.round(2 * many[:, 0]) / 2)  # by whose order rows are sorted
    check_columns("x", np.stack([coarse, many[::-1, 0]], axis=1))
    for copied in (np.repeat(many[:4000], 5, 0), np.tile(many[:5000], (4, 1))):
        with pytest.raises(ValueError, match="different rows in"):
            check_columns("x", copied)
    images = x.reshape(50, 2, 2).copy()
    images[:, 0, 0] = 0.0  # a border pixel
    check_columns("x", images)
    images[3, 1, 0] = np.inf
    with pytest.raises(ValueError, match=r"x\[:, 1, 0\]"):
        check_columns("x", images)


def test_batches_without_a_row_are_named():
    with pytest.raises(ValueError, match="gives batches without a row"):
        check_batch(np.zeros((0, 3)), (3,))
    check_batch(np.zeros((1, 3)), (3,))
