"""The baselines: contrastive divergence of all kinds, and score matching."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import ebm
from tests.ebm.gaussians import LOG_PARTITION, SIZE, Shifted, data, populations


KERNEL = ebm.ULA(0.1)


def fitted(trainer, memory, num_steps=100):
    x = data()
    state = trainer.init(Shifted(jnp.zeros(SIZE)), memory)
    return eg.fit(
        trainer,
        state,
        eg.Minibatches(x, 256),
        key=jax.random.key(1),
        num_steps=num_steps,
    )


@pytest.mark.one_case("score matching")
@pytest.mark.parametrize(
    "trainer",
    [
        ebm.CDTrainer(optax.sgd(0.3), kernel=KERNEL, num_moves=4),
        ebm.ScoreMatchingTrainer(optax.sgd(0.5), kernel=KERNEL, noise_scale=0.3),
    ],
    ids=["cd", "score matching"],
)
def test_the_mean_is_learned_and_the_watching_walkers_are_honest(trainer):
    watching = populations(jax.random.key(0), 1024)
    state, history = fitted(trainer, watching)
    np.testing.assert_allclose(state.model.mean, 1.5, atol=0.1)
    density = ebm.NormalizedEnergy.from_state(state)
    assert abs(density.log_partition - LOG_PARTITION) < 5 * density.standard_error
    entropy = 0.5 * SIZE + LOG_PARTITION
    np.testing.assert_allclose(history["cross_entropy"][-50:].mean(), entropy, atol=0.3)
    assert ebm.sample(state, 7, key=jax.random.key(0)).shape == (7, SIZE)


@pytest.mark.parametrize(
    "trainer",
    [
        ebm.CDTrainer(optax.sgd(0.3), kernel=KERNEL, num_moves=2),
        ebm.ScoreMatchingTrainer(optax.sgd(0.5), kernel=KERNEL, noise_scale=0.3),
    ],
    ids=["cd", "score matching"],
)
def test_walkers_may_be_left_out_and_then_there_is_no_likelihood(trainer):
    state, history = fitted(trainer, None)
    np.testing.assert_allclose(state.model.mean, 1.5, atol=0.1)
    assert "cross_entropy" not in history
    with pytest.raises(ValueError, match="holds no walkers: give"):
        ebm.NormalizedEnergy.from_state(state)
    with pytest.raises(ValueError, match="holds no walkers: give"):
        ebm.sample(state, 7, key=jax.random.key(0))


def test_score_matching_s_gradient_vanishes_at_the_noisy_data_s_density():
    # Of standard normal data with noise s, the best mean is theirs, and the loss there
    # is that of the optimal denoiser, d / 2 * (1 - s^2 + s^4): model of unit variance.
    noise = 0.5
    trainer = ebm.ScoreMatchingTrainer(optax.sgd(0.0), kernel=KERNEL, noise_scale=noise)
    state = trainer.init(Shifted(jnp.zeros(SIZE)))
    x = data(400_000, shift=0.0)
    _, metrics = eqx.filter_jit(trainer.step)(state, x, key=jax.random.key(0))
    expected = 0.5 * SIZE * ((1 - noise**2) ** 2 + noise**2)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=0.01)
    assert metrics["grad_norm"] < 0.02


def test_score_matching_in_coordinates_is_that_of_standard_columns():
    x = data(64)[:, :2] * jnp.array([[100.0, 1e-3]])
    to = ebm.Standardized.of(x)
    settings = {"kernel": KERNEL, "noise_scale": 0.3}
    raw = ebm.ScoreMatchingTrainer(optax.sgd(0.0), coordinates=to, **settings)
    plain = ebm.ScoreMatchingTrainer(optax.sgd(0.0), **settings)
    model = Shifted(jnp.array([0.3, -0.2]))

    in_units = ebm.FunctionEnergy(lambda mean, x: Shifted(mean)(to(x)), model.mean)

    @eqx.filter_jit
    def loss(trainer, energy, rows):
        state = trainer.init(energy)
        return trainer.step(state, rows, key=jax.random.key(0))[1]["loss"]

    expected = loss(plain, model, jax.vmap(to)(x))
    np.testing.assert_allclose(loss(raw, in_units, x), expected, rtol=1e-4)
    source = eg.Minibatches(x, 16)
    with pytest.warns(eg.RunWarning, match="wider than column 1 .*Standardized"):
        plain.check(plain.init(model), x[:16], source)
    raw.check(raw.init(model), x[:16], source)
    narrow = ebm.ScoreMatchingTrainer(
        optax.sgd(0.0), kernel=KERNEL, coordinates=ebm.Standardized.of(x[:, :1])
    )
    with pytest.raises(ValueError, match="`coordinates` are of 1 numbers"):
        narrow.check(narrow.init(model), x[:16], source)


def test_cd_s_chains_start_at_the_batch():
    trainer = ebm.CDTrainer(optax.sgd(0.1), kernel=ebm.ULA(1e-8))
    state = trainer.init(Shifted(jnp.zeros(SIZE)))
    _, metrics = eqx.filter_jit(trainer.step)(state, data()[:64], key=jax.random.key(0))
    # Chains that do not move cancel the data.
    assert abs(metrics["energy_gap"]) < 1e-2
    assert metrics["grad_norm"] < 1e-2


def test_a_scale_without_restarts_is_refused():
    with pytest.raises(ValueError, match="no walker begins anew: pass `restarts`"):
        ebm.PCDTrainer(optax.sgd(0.0), kernel=ebm.ULA(1e-8), restart_scale=0.1)


def test_restarts_put_a_share_of_the_walkers_back():
    trainer = ebm.PCDTrainer(
        optax.sgd(0.0), kernel=ebm.ULA(1e-8), restarts=0.25, restart_scale=0.1
    )
    far = ebm.Walkers.from_samples(data(64, shift=50.0))
    state = trainer.init(Shifted(jnp.zeros(SIZE)), far)
    new, _ = eqx.filter_jit(trainer.step)(state, data()[:8], key=jax.random.key(0))
    near = jnp.abs(new.memory.positions).max(axis=1) < 1
    assert int(near.sum()) == 16
    np.testing.assert_allclose(
        new.memory.energies,
        jax.vmap(new.model)(new.memory.positions),
        rtol=1e-3,
        atol=1e-3,
    )
    with pytest.raises(ValueError, match=r"`restarts` is 1\.5"):
        ebm.PCDTrainer(optax.sgd(0.1), kernel=KERNEL, restarts=1.5)


def test_pcd_forgets_its_partition_function():
    # Its walkers begin with a known log Z, which the first step makes untrue.
    trainer = ebm.PCDTrainer(optax.sgd(0.1), kernel=KERNEL)
    state = trainer.init(Shifted(jnp.zeros(SIZE)), populations(jax.random.key(0), 64))
    with pytest.raises(ValueError, match="does not know `log Z`"):
        ebm.NormalizedEnergy.from_state(state)
    assert ebm.sample(state, 5, key=jax.random.key(0)).shape == (5, SIZE)


def test_cd_begins_with_the_step_size_that_the_watching_walkers_found():
    kernel = ebm.MALA(ebm.TargetAcceptance(1e-3))
    trainer = ebm.CDTrainer(optax.sgd(0.1), kernel=kernel)
    model = Shifted(jnp.zeros(SIZE))
    state = trainer.init(model, populations(jax.random.key(0), 64))
    found = float(state.memory.walkers.step_size)
    assert found == float(state.memory.audit.step_size) > 0.05
    assert float(trainer.init(model).memory.walkers.step_size) == 0.0  # `initial`


def test_cd_keeps_its_state_s_precision_whatever_the_batch_s():
    with jax.enable_x64(True):
        trainer = ebm.CDTrainer(optax.sgd(0.1), kernel=KERNEL)
        state = trainer.init(Shifted(jnp.zeros(SIZE)))
        batch = jnp.zeros((4, SIZE), jnp.float32)
        step = lambda *args: trainer.step(*args, key=jax.random.key(0))[0]
        after = eqx.filter_eval_shape(step, state, batch)
        assert after.memory.walkers.step_size.dtype == jnp.float64


def test_states_of_other_trainers_are_named():
    model, batch = Shifted(jnp.zeros(SIZE)), data(64)[:8]
    source = eg.Minibatches(data(64), 8)
    pcd = ebm.PCDTrainer(optax.sgd(0.1), kernel=KERNEL)
    weighted = ebm.JarzynskiTrainer(optax.sgd(0.1), kernel=KERNEL)
    cd, score, contrasting = (
        kind(optax.sgd(0.1), kernel=KERNEL)
        for kind in (ebm.CDTrainer, ebm.ScoreMatchingTrainer, ebm.NCETrainer)
    )
    unweighted = pcd.init(model, populations(jax.random.key(0), 16))
    for trainer, state, said in (
        (cd, unweighted, "`state` is of another trainer"),
        (score, contrasting.init(model), "`state` is of another trainer"),
        (contrasting, score.init(model), "`state` is of another trainer"),
        (pcd, cd.init(model), "keeps no walkers that train"),
        (weighted, unweighted, "unknown density.*begin anew"),
    ):
        with pytest.raises(ValueError, match=said):
            trainer.check(state, batch, source)
    with pytest.raises(ValueError, match="batches of 1 row"):
        cd.check(cd.init(model), batch[:1], source)


def test_without_walkers_the_energy_is_tried_on_the_data():
    trainer = ebm.CDTrainer(optax.sgd(0.1), kernel=KERNEL)

    def normalized(x):
        return jnp.sum((x - x.mean(0, keepdims=True)) ** 2, axis=1)

    with pytest.raises(ValueError, match="no batch normalization"):
        trainer.check(
            trainer.init(normalized), data(64)[:8], eg.Minibatches(data(64), 8)
        )


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="`noise_scale` is 0"):
        ebm.ScoreMatchingTrainer(optax.sgd(0.1), kernel=KERNEL, noise_scale=0.0)
    for kind in (ebm.CDTrainer, ebm.ScoreMatchingTrainer, ebm.NCETrainer):
        with pytest.raises(ValueError, match="`num_moves` is 0"):
            kind(optax.sgd(0.1), kernel=KERNEL, num_moves=0)
    with pytest.raises(TypeError, match=r"`kernel` is 0\.1"):
        ebm.CDTrainer(optax.sgd(0.1), kernel=0.1)
    trainer = ebm.CDTrainer(optax.sgd(0.1), kernel=KERNEL)
    unknown = ebm.Walkers.from_samples(data(16))
    with pytest.raises(ValueError, match="leave out the memory"):
        trainer.init(Shifted(jnp.zeros(SIZE)), unknown)
    state = trainer.init(Shifted(jnp.zeros(SIZE)))
    run = eg.train(
        trainer,
        state,
        eg.Minibatches(np.zeros((64, SIZE), np.uint8), 8),
        key=jax.random.key(0),
        num_steps=1,
    )
    with pytest.raises(TypeError, match="uint8"):
        next(run)
