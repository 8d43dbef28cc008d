"""`JarzynskiTrainer` and `PCDTrainer`: exact answers, honest meters, bad input."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import ebm
from effgen.core.contract.state import TrainState
from effgen.ebm.training.learning import change_of, contrast, learned
from tests.ebm.gaussians import LOG_PARTITION, SIZE, Shifted, data, populations


@pytest.mark.slow
def test_training_fits_and_the_density_is_normalized():
    trainer = ebm.JarzynskiTrainer(optax.sgd(0.05), kernel=ebm.ULA(0.1))
    state = trainer.init(Shifted(jnp.zeros(SIZE)), populations(jax.random.key(0), 2048))
    x = data()
    state, history = eg.fit(
        trainer, state, eg.Minibatches(x, 256), key=jax.random.key(1), num_steps=400
    )
    np.testing.assert_allclose(state.model.mean, x.mean(0), atol=0.1)
    with pytest.warns(eg.RunWarning, match=r"trained the model.*`ebm.Audited"):
        density = ebm.NormalizedEnergy.from_state(state)
    assert abs(density.log_partition - LOG_PARTITION) < 0.3
    truth = -0.5 * jnp.sum((x - x.mean(0)[None]) ** 2, axis=1) - LOG_PARTITION
    np.testing.assert_allclose(density.log_prob(x).mean(), truth.mean(), atol=0.35)
    drawn = ebm.sample(state, 1000, key=jax.random.key(2))
    np.testing.assert_allclose(drawn.mean(0), x.mean(0), atol=0.2)
    assert history["ess"].min() > 0.3


@pytest.mark.slow
def test_training_walkers_flatter_as_predicted_and_the_audit_does_not():
    # To first order the training walkers' log Z drifts by minus the sum over the steps
    # of learning rate times the trace of the gradient's covariance, over their number;
    # here the trace is the dimension. Independent replicates give the error bars.
    rate, num_steps, num = 0.05, 200, 128
    trainer = ebm.JarzynskiTrainer(optax.sgd(rate), kernel=ebm.ULA(0.3))
    x = data(256, shift=0.5)

    @eqx.filter_jit
    @eqx.filter_vmap
    def replicate(key):
        start, run = jax.random.split(key)
        memory = populations(start, num, audit=num)
        model = Shifted(jnp.zeros(SIZE))
        memory = ebm.Audited(
            memory.walkers.reweighted(model), memory.audit.reweighted(model)
        )
        opt_state = eg.init_opt_state(trainer.optim, model)
        state = eg.TrainState.start(model, opt_state, memory)

        def body(state, key):
            return trainer.step(state, x, key=key)[0], None

        state, _ = jax.lax.scan(body, state, jax.random.split(run, num_steps))
        return (
            state.memory.walkers.estimate().value,
            state.memory.audit.estimate().value,
        )

    training, audit = replicate(jax.random.split(jax.random.key(3), 64))
    gap = np.asarray(training - LOG_PARTITION)
    predicted = -rate * num_steps * SIZE / num
    np.testing.assert_allclose(gap.mean(), predicted, rtol=0.3)
    # The audit's Z, not its log, is unbiased.
    ratio = np.exp(np.asarray(audit, np.float64) - LOG_PARTITION)
    assert abs(ratio.mean() - 1) < 4 * ratio.std(ddof=1) / np.sqrt(ratio.size)


@pytest.mark.slow
def test_several_moves_cross_to_the_new_model_once():
    # With the model fixed by a zero learning rate, and with it moving, Z stays exact.
    trainer = ebm.JarzynskiTrainer(optax.sgd(0.02), kernel=ebm.ULA(0.2), num_moves=4)
    memory = populations(jax.random.key(0), 2048, audit=2048)
    state = trainer.init(Shifted(jnp.zeros(SIZE)), memory)
    state, _ = eg.fit(
        trainer, state, eg.Minibatches(data(), 64), key=jax.random.key(1), num_steps=100
    )
    value, error = state.memory.audit.estimate()
    assert abs(value - LOG_PARTITION) < 5 * error


@pytest.mark.slow
def test_pcd_is_the_same_step_with_the_weights_off():
    kernel, key = ebm.ULA(0.1), jax.random.key(1)
    model, x = Shifted(jnp.full(SIZE, 0.3)), data()[:64]
    weighted = ebm.JarzynskiTrainer(optax.sgd(0.1), kernel=kernel)
    plain = ebm.PCDTrainer(optax.sgd(0.1), kernel=kernel)
    walkers = populations(jax.random.key(0), 256)
    a = weighted.init(model, walkers)
    b = plain.init(model, walkers)
    # With equal weights the first update is the same, and so are the moves after it.
    a = eqx.tree_at(lambda s: s.memory.log_weights, a, jnp.zeros(256))
    a, _ = eqx.filter_jit(weighted.step)(a, x, key=key)
    b, metrics = eqx.filter_jit(plain.step)(b, x, key=key)
    np.testing.assert_array_equal(a.model.mean, b.model.mean)
    np.testing.assert_array_equal(a.memory.positions, b.memory.positions)
    assert bool((b.memory.log_weights == 0).all())
    assert metrics["loss"] == metrics["energy_gap"]


@pytest.mark.slow
def test_an_audit_tells_pcd_s_likelihood():
    trainer = ebm.PCDTrainer(optax.sgd(0.05), kernel=ebm.ULA(0.1))
    memory = populations(jax.random.key(0), 256, audit=4096)
    state = trainer.init(Shifted(jnp.zeros(SIZE)), memory)
    state, _ = eg.fit(
        trainer, state, eg.Minibatches(data(), 64), key=jax.random.key(1), num_steps=100
    )
    density = ebm.NormalizedEnergy.from_state(state)
    assert abs(density.log_partition - LOG_PARTITION) < 5 * density.standard_error


def test_the_gradient_is_that_of_the_cross_entropy():
    model = Shifted(jnp.full(SIZE, 0.3))
    walkers = populations(jax.random.key(0), 64).reweighted(model)
    x = data()[:32]
    weights = jax.nn.softmax(walkers.log_weights)
    (gap, data_energy, _), gradient = contrast(model, x, walkers.positions, weights)
    mean = model.mean[None]
    expected = (mean - x).mean(0) - weights @ (mean - walkers.positions)
    np.testing.assert_allclose(gradient.mean, expected, rtol=1e-4, atol=1e-5)
    energies = jax.vmap(model)(walkers.positions)
    np.testing.assert_allclose(gap, data_energy - weights @ energies, rtol=1e-4)


@pytest.mark.slow
def test_a_start_of_known_density_is_exact_for_any_energy():
    # Importance weights make up for walkers that are not the model's own.
    model = Shifted(jnp.full(SIZE, 0.2))
    trainer = ebm.JarzynskiTrainer(optax.sgd(0.1), kernel=ebm.ULA(0.1))
    walkers = ebm.Walkers.from_gaussian(jax.random.key(0), 50_000, (SIZE,), scale=1.1)
    value, error = trainer.init(model, walkers).memory.estimate()
    assert abs(value - LOG_PARTITION) < 4 * error < 0.1
    positions = jax.random.normal(jax.random.key(1), (50_000, SIZE))
    density = -0.5 * jnp.sum(positions**2, axis=1) - LOG_PARTITION
    walkers = ebm.Walkers.from_samples(positions, density)
    value, error = trainer.init(model, walkers).memory.estimate()
    assert abs(value - LOG_PARTITION) < 4 * error < 0.1


@pytest.mark.slow
def test_collapsed_weights_stop_the_run():
    trainer = ebm.JarzynskiTrainer(optax.sgd(100.0), kernel=ebm.ULA(0.1))
    state = trainer.init(Shifted(jnp.zeros(SIZE)), populations(jax.random.key(0), 256))
    with pytest.raises(eg.TrainingError, match="weights collapsed") as caught:
        eg.fit(
            trainer,
            state,
            eg.Minibatches(data(), 64),
            key=jax.random.key(1),
            num_steps=9,
        )
    assert bool(jnp.isfinite(caught.value.state.model.mean).all())


def trainer():
    return ebm.JarzynskiTrainer(optax.sgd(0.1), kernel=ebm.ULA(0.1))


def test_bad_memory_is_named():
    with pytest.raises(TypeError, match="`memory` is a NoneType"):
        trainer().init(Shifted(jnp.zeros(SIZE)))
    walkers = ebm.Walkers.from_samples(data()[:16])
    with pytest.raises(ValueError, match="unknown density"):
        trainer().init(Shifted(jnp.zeros(SIZE)), walkers)
    plain = ebm.PCDTrainer(optax.sgd(0.1), kernel=ebm.ULA(0.1))
    state = plain.init(Shifted(jnp.zeros(SIZE)), walkers)
    with pytest.raises(ValueError, match="does not know `log Z`"):
        ebm.NormalizedEnergy.from_state(state)
    with pytest.raises(ValueError, match="at least 2 walkers"):
        ebm.Walkers.from_gaussian(jax.random.key(0), 1, (2,))
    with pytest.raises(ValueError, match="`scale` is 0"):
        ebm.Walkers.from_gaussian(jax.random.key(0), 8, (2,), scale=0.0)


def test_an_energy_that_is_no_scalar_is_named():
    with pytest.raises(ValueError, match="an energy is one floating-point number"):
        trainer().init(lambda x: x**2, populations(jax.random.key(0), 16))


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        (np.zeros((64, SIZE), np.uint8), TypeError, "uint8"),
        (np.zeros((64, SIZE + 1), np.float32), ValueError, r"rows of shape \(9,\)"),
        (np.full((64, SIZE), np.nan, np.float32), ValueError, "8 column"),
        (np.zeros((64, SIZE), np.float32), ValueError, "constant in 8 column"),
    ],
)
def test_bad_data_is_named_before_any_compute(x, error, match):
    state = trainer().init(Shifted(jnp.zeros(SIZE)), populations(jax.random.key(0), 16))
    run = eg.train(
        trainer(), state, eg.Minibatches(x, 8), key=jax.random.key(0), num_steps=1
    )
    with pytest.raises(error, match=match):
        next(run)
    assert run.ledger.seconds["compile"] == 0


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"resample_below": 1.5}, "`resample_below` is 1.5"),
        ({"num_moves": 0}, "`num_moves` is 0"),
    ],
)
def test_bad_settings_are_named(arguments, match):
    with pytest.raises(ValueError, match=match):
        ebm.JarzynskiTrainer(optax.sgd(0.1), kernel=ebm.ULA(0.1), **arguments)


def test_a_lost_walker_may_be_where_the_energy_is_infinite():
    def cliff(mean, x):
        return jnp.where(x[0] > 9, jnp.inf, 0.5 * jnp.sum((x - mean) ** 2))

    x = jax.random.normal(jax.random.key(0), (4, 2))
    positions = x.at[0, 0].set(10.0)
    weights = jnp.array([0.0, 0.2, 0.3, 0.5])
    model = ebm.FunctionEnergy(cliff, jnp.ones(2))
    (gap, _, added), found = contrast(model, x, positions, weights, 0.1)
    assert bool(jnp.isfinite(gap) & jnp.isfinite(added))
    few = contrast(model, x, positions[1:], weights[1:], 0.1)
    np.testing.assert_allclose(gap, few[0][0], rtol=1e-4)
    np.testing.assert_allclose(found.parameters, few[1].parameters, rtol=1e-4)


def test_an_optimizer_that_asks_for_the_loss_is_told_what_a_penalty_adds():
    told = []

    def update(updates, state, params=None, *, value, value_fn, **others):
        told.extend([value, value_fn(params), value_fn(Shifted(params.mean + 1))])
        return updates, state

    empty = lambda params: optax.EmptyState()
    optim = optax.GradientTransformationExtraArgs(empty, update)
    model, walkers = Shifted(jnp.ones(SIZE)), populations(jax.random.key(0), 16)
    walkers = walkers.reweighted(model)
    weights, x = jax.nn.softmax(jnp.linspace(-1, 1, 16)), data(32)
    state = TrainState(model, optax.EmptyState(), walkers, jnp.array(0))
    metrics = learned(optim, state, x, walkers, weights, penalty=0.3).metrics

    def added(model):
        there, here = jax.vmap(model)(x), jax.vmap(model)(walkers.positions)
        return 0.5 * 0.3 * (jnp.mean(there**2) + jnp.sum(weights * here**2))

    expected = metrics["energy_gap"] + added(model)
    np.testing.assert_allclose(told[:2], [expected] * 2, rtol=1e-4)
    further = Shifted(model.mean + 1)
    change = jnp.mean(jax.vmap(further)(x)) - metrics["data_energy"]
    change += change_of(further, walkers, weights)
    expected = metrics["energy_gap"] + change + added(further)
    np.testing.assert_allclose(told[2], expected, rtol=1e-4)


@pytest.mark.slow
def test_a_penalty_is_of_the_energies_and_leaves_log_z_exact():
    model = Shifted(jnp.ones(SIZE))
    walkers = populations(jax.random.key(0), 64)
    x, weights = data(32), jax.nn.softmax(jnp.linspace(-1, 1, 64))

    def objective(model):
        there, here = jax.vmap(model)(x), jax.vmap(model)(walkers.positions)
        gap = jnp.mean(there) - jnp.sum(weights * here)
        return gap + 0.5 * 0.3 * (jnp.mean(there**2) + jnp.sum(weights * here**2))

    expected = jax.grad(objective)(model)
    _, found = contrast(model, x, walkers.positions, weights, 0.3)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-4)
    kernel, optim = ebm.MALA(ebm.TargetAcceptance()), optax.sgd(0.05)
    trainer = ebm.JarzynskiTrainer(optim, kernel=kernel, penalty=0.05, radius=0.2)
    state = trainer.init(
        Shifted(jnp.zeros(SIZE)), populations(jax.random.key(1), 512, audit=2048)
    )
    state, _ = eg.fit(
        trainer, state, eg.Minibatches(x, 32), key=jax.random.key(2), num_steps=50
    )
    density = ebm.NormalizedEnergy.from_state(state)
    assert abs(density.log_partition - LOG_PARTITION) < 3 * density.standard_error
    for kind in (ebm.JarzynskiTrainer, ebm.PCDTrainer, ebm.CDTrainer):
        with pytest.raises(ValueError, match="`penalty` is -1"):
            kind(optim, kernel=kernel, penalty=-1.0)
