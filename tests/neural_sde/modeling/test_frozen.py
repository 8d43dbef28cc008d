"""What is fixed stays fixed, and what is saved is what was trained."""

import io

import equinox as eqx
import jax
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import neural_sde as ns


KEY = jax.random.key(0)
ts = np.tile(np.arange(30) * 0.2, (2, 1))
law = ns.Gaussian.independent(np.zeros(2), 1.0)


def oscillator(**settings):
    linear = ns.LinearSDE([[0.0, 1.0], [-1.0, -0.1]], np.zeros(2), [[0.0], [0.3]], law)
    return ns.LatentSDE(linear, ns.LinearDecoder([[1.0, 0.0]], 0.1), **settings)


def fitted(model, optim=None):
    optim = optax.adamw(1e-2, weight_decay=0.1) if optim is None else optim
    trainer = ns.LatentSDETrainer(optim, dt=0.2, num_paths=1)
    ys = np.sin(1.3 * ts) + 0.1 * np.random.default_rng(0).normal(size=ts.shape)
    data = eg.Minibatches((ts, ys[..., None]), 2)
    return eg.fit(trainer, trainer.init(model), data, key=KEY, num_steps=20)[0].model


@pytest.mark.one_case("AdamW")
@pytest.mark.parametrize("optim", [None, optax.lbfgs()], ids=["AdamW", "L-BFGS"])
def test_entries_stay_under_any_optimizer(optim):
    model = oscillator(frozen=("linear.matrix[0]", "linear.lower[0, :]"))
    found = fitted(model, optim).linear
    np.testing.assert_array_equal(found.matrix[0], [0, 1])
    np.testing.assert_array_equal(found.diffusion[0], [0])
    assert not np.allclose(found.matrix[1], [-1.0, -0.1])


@pytest.mark.slow
def test_a_linear_decoder_is_learned_where_it_says_so():
    found = fitted(oscillator()).decoder
    np.testing.assert_array_equal(found.matrix, [[1.0, 0.0]])
    np.testing.assert_array_equal(found.offset, [0.0])
    assert found.scale[0] != pytest.approx(0.1)
    decoder = ns.LinearDecoder([[1.0, 0.0]], 0.1, learned=("matrix",))
    model = ns.LatentSDE(oscillator().linear, decoder)
    found = fitted(model).decoder
    assert not np.allclose(found.matrix, [[1.0, 0.0]])
    np.testing.assert_array_equal(found.offset, [0.0])


@pytest.mark.parametrize(
    "name",
    ["linear.matrix[2]", "linear.matrix[0, 0, 0]", "linear[0]", "a b[", "x[1.5]"],
)
def test_entries_that_are_not_there_are_refused(name):
    with pytest.raises(ValueError, match="`frozen` names"):
        oscillator(frozen=(name,))


def test_one_name_is_no_tuple_of_names():
    with pytest.raises(ValueError, match="pass a tuple"):
        oscillator(frozen="linear")
    with pytest.raises(ValueError, match="`learned` is"):
        ns.LinearDecoder(np.eye(1), 1.0, learned="matrix")


@pytest.mark.slow
def test_a_saved_model_keeps_its_step():
    model = fitted(oscillator())
    buffer = io.BytesIO()
    eqx.tree_serialise_leaves(buffer, model)
    buffer.seek(0)
    loaded = eqx.tree_deserialise_leaves(buffer, oscillator())
    assert loaded.dt == model.dt == 0.2


def test_a_model_without_a_step_says_so():
    control = ns.PlainControl(2, 1, key=KEY, num_brownian=1, learn_start=False)
    with pytest.raises(ValueError, match="no `dt` yet"):
        ns.plain_paths(
            oscillator(control=control), (ts[0], ts[0]), ts[0], num=2, key=KEY
        )


def test_parameters_of_a_structure_are_fixed_by_their_names():
    parts = ns.trend() + ns.cycle(9.0) + ns.car(3)
    frozen = ["cycle.period", "observation.scale", "car.damping_1", "car.rate"]
    model = ns.LatentSDE(parts, parts.decoder(0.1), frozen=frozen)
    trained = model.trainable()[0]
    assert trained.linear.parts[1].log_period is None
    assert trained.decoder.log_scale is None
    found = model.retrained(jax.tree.map(lambda x: x + 1, trained))
    same = {
        name: np.allclose(value, parts.parameters[name])
        for name, value in found.linear.parameters.items()
    }
    kept = {name for name in same if same[name]}
    assert kept == {"cycle.period", "car.damping_1", "car.rate"}
    for name in ("cycle.length", "linear.parts.7.log_noise", "car.damping_2"):
        with pytest.raises(ValueError, match="`frozen` names"):
            ns.LatentSDE(parts, parts.decoder(0.1), frozen=[name])
