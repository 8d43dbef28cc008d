"""The small parts: equality of programs, loops, meshes, weights, updates."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen.core.contract.static import Static
from effgen.core.running.loops import compiler_options, has_convolution, repeat
from tests.cases import KEY, arrays, regression
from tests.core.tiny import OnHost, Total, ones


@pytest.mark.parametrize(
    "make",
    [
        lambda: optax.adam(1e-3),
        lambda: optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 1e-3, 10, 100)),
        lambda: optax.chain(
            optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9)
        ),
        lambda: optax.inject_hyperparams(optax.adam)(learning_rate=1e-3),
        lambda: optax.MultiSteps(optax.adam(1e-3), every_k_schedule=4),
        lambda: eqx.nn.MLP(2, 2, 4, 1, activation=jnp.tanh, key=KEY),
    ],
)
def test_what_is_built_alike_is_equal(make):
    assert Static(make()) == Static(make())
    assert hash(Static(make())) == hash(Static(make()))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: optax.adam(1e-3), lambda: optax.adam(2e-3)),
        (lambda: optax.adam(1e-3), lambda: optax.adam(1e-3, b1=0.5)),
        (
            lambda: optax.linear_schedule(0, 1, 5),
            lambda: optax.linear_schedule(0, 1, 6),
        ),
        (lambda: 1, lambda: 1.0),
        (lambda: 1, lambda: True),
        (lambda: 0.0, lambda: -0.0),
        (lambda: [1, 2], lambda: (1, 2)),
        (
            lambda: eqx.nn.MLP(2, 2, 4, 1, activation=jnp.tanh, key=KEY),
            lambda: eqx.nn.MLP(2, 2, 4, 1, activation=jnp.sin, key=KEY),
        ),
    ],
)
def test_what_differs_is_not_equal(one, other):
    assert Static(one()) != Static(other())


def test_a_schedule_that_was_traced_is_as_before():
    # `cosine_decay_schedule` replaces its count of steps by a float in the first trace.
    schedule = optax.cosine_decay_schedule(1e-3, 100)
    before = Static(optax.adam(schedule))
    jax.jit(schedule)(1)
    after = Static(optax.adam(schedule))
    assert before == after == Static(optax.adam(optax.cosine_decay_schedule(1e-3, 100)))
    assert before != Static(optax.adam(optax.cosine_decay_schedule(1e-3, 101)))


def test_a_user_s_functions_are_equal_to_themselves_alone():
    # They may read globals that change: a stale program would be silently wrong.
    def make():
        return lambda x: x + 1

    function = make()
    assert Static(function) == Static(function)
    assert Static(make()) != Static(make())


@pytest.mark.parametrize(("num", "told"), [(7, 0), (8, 1)])
def test_sums_of_many_axes_are_kept_from_ynnpack(num, told):
    x = jnp.ones((1,) * num)
    jaxpr = jax.make_jaxpr(lambda x: jax.lax.cond(True, jnp.sum, jnp.max, x))(x)
    assert len(compiler_options(jaxpr)) == told


def convolved(x):
    kernel = jnp.ones((1, 1, 3))
    return jax.lax.conv_general_dilated(x, kernel, (1,), "SAME")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda f: f,
        jax.jit,
        jax.checkpoint,
        lambda f: lambda x: jax.lax.scan(lambda c, _: (f(c), None), x, length=2)[0],
        lambda f: lambda x: jax.lax.cond(x.sum() > 0, f, lambda y: y, x),
        lambda f: jax.grad(lambda x: f(x).sum()),
        lambda f: lambda x: jax.lax.while_loop(lambda y: y.sum() < 9, f, x),
    ],
)
def test_convolutions_are_found_at_any_depth(wrap):
    x = jnp.ones((1, 1, 8))
    assert has_convolution(jax.make_jaxpr(wrap(convolved))(x))
    assert not has_convolution(jax.make_jaxpr(wrap(jnp.tanh))(x))


@pytest.mark.parametrize(
    "body", [lambda i, x: convolved(x) + i, lambda i, x: x * i + 1]
)
def test_repeat_is_a_loop(body):
    x = jnp.ones((1, 1, 8))
    expected = x
    for i in range(4):
        expected = body(i, expected)
    np.testing.assert_allclose(repeat(body, x, 4), expected, rtol=1e-6)
    unrolled = jax.make_jaxpr(lambda x: repeat(body, x, 4))(x)
    loops = [e for e in unrolled.eqns if e.primitive.name in ("scan", "while")]
    assert bool(loops) != has_convolution(jax.make_jaxpr(body)(0, x))


class OfImages(eqx.Module):
    """The least model with a convolution."""

    kernel: jax.Array

    def __call__(self, x):
        return jnp.convolve(x, self.kernel)[:1]


def test_images_are_dispatched_on_a_cpu_and_vectors_are_not():
    case = regression()
    for model, driver in (
        (OfImages(jnp.ones(2)), "dispatch"),
        (case.state.model, "scan"),
    ):
        state = case.trainer().init(model)
        run = eg.train(case.trainer(), state, case.data, key=KEY, num_steps=1)
        next(run)
        assert run.job.program is not None
        assert run.job.program.driver == driver


def test_explicit_meshes_are_taken_too():
    case = regression()
    mesh = jax.make_mesh((8,), ("data",))
    state, _ = eg.fit(
        case.trainer(), eg.shard(case.state, mesh), case.data, key=KEY, num_steps=3
    )
    whole, _ = eg.fit(case.trainer(), case.state, case.data, key=KEY, num_steps=3)
    for a, b in zip(arrays(state.model), arrays(whole.model), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.slow
def test_a_model_can_be_split():
    case = regression()
    mesh = eg.make_mesh(model=2)
    split = eg.shard(case.state, mesh)
    assert split.model.layers[0].weight.sharding.spec == jax.P("model", None)
    state, _ = eg.fit(case.trainer(), split, case.data, key=KEY, num_steps=9)
    whole, _ = eg.fit(case.trainer(), case.state, case.data, key=KEY, num_steps=9)
    assert state.model.layers[0].weight.sharding.spec == jax.P("model", None)
    for a, b in zip(arrays(state.model), arrays(whole.model), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_memory_that_does_not_divide_is_named():
    case = regression()
    state = case.trainer().init(case.state.model, jnp.zeros((13, 2)))
    with pytest.raises(ValueError, match=r"`state.memory` has 13 rows.*use 16"):
        eg.shard(state, eg.make_mesh())
    with pytest.raises(ValueError, match="`model` is 3"):
        eg.make_mesh(model=3)


def test_streams_are_split_over_a_mesh():
    case = regression()
    data = [case.data.batch_at(jnp.array(i), key=KEY) for i in range(5)]
    state = eg.shard(case.state, eg.make_mesh())
    split, _ = eg.fit(case.trainer(), state, iter(data), key=KEY)
    whole, _ = eg.fit(case.trainer(), case.state, data, key=KEY)
    for a, b in zip(arrays(split.model), arrays(whole.model), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_effective_sample_size():
    assert eg.effective_sample_size(jnp.zeros(10)) == 10
    assert eg.effective_sample_size(jnp.array([0.0, -jnp.inf, -jnp.inf])) == 1
    assert eg.effective_sample_size(jnp.full(3, -jnp.inf)) == 0
    weights = jnp.array([1.0, 2.0, 5.0])
    expected = weights.sum() ** 2 / (weights**2).sum()
    for shift in (0.0, 1000.0, -1000.0):
        ess = eg.effective_sample_size(jnp.log(weights) + shift)
        np.testing.assert_allclose(ess, expected, rtol=1e-4)


def test_the_conditional_sample_size():
    log_weights = jnp.log(jnp.array([1.0, 2.0, 5.0]))
    np.testing.assert_allclose(eg.conditional_ess(log_weights, jnp.full(3, 7.0)), 3.0)
    only = jnp.array([0.0, -jnp.inf, -jnp.inf])
    np.testing.assert_allclose(eg.conditional_ess(jnp.zeros(3), only), 1.0, rtol=1e-6)
    assert eg.conditional_ess(jnp.zeros(3), jnp.full(3, -jnp.inf)) == 0
    lost = jnp.array([0.0, -200.0]), jnp.array([0.0, 60.0])  # in all but name
    np.testing.assert_allclose(eg.conditional_ess(*lost), 2.0)


def test_the_log_mean_has_an_honest_error():
    # Log-normal weights, whose mean is known: the error bar covers as it should.
    sigma = 0.7
    draws = sigma * jax.random.normal(KEY, (2000, 400)) - sigma**2 / 2
    value, error = jax.vmap(eg.log_mean_exp)(draws)
    covered = float((jnp.abs(value) < 1.96 * error).mean())
    assert 0.91 < covered < 0.97
    np.testing.assert_allclose(error.mean(), value.std(), rtol=0.08)


def test_resampling_is_unbiased_and_steady():
    log_weights = jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4]))
    keys = jax.random.split(KEY, 2000)
    index = jax.vmap(lambda key: eg.resample(log_weights, 6, key=key))(keys)
    counts = np.stack([np.bincount(row, minlength=4) for row in np.asarray(index)])
    expected = 6 * np.array([0.1, 0.2, 0.3, 0.4])
    assert (np.abs(counts - expected) < 1 + 1e-5).all()
    error = counts.std(axis=0) / np.sqrt(len(counts))
    assert (np.abs(counts.mean(axis=0) - expected) < 4 * error + 1e-6).all()
    dead = jnp.array([0.0, -jnp.inf, 0.0])
    assert 1 not in np.asarray(eg.resample(dead, 100, key=KEY))


def test_updates_see_the_parameters_and_keep_dtypes():
    model = {"w": jnp.ones(3, jnp.bfloat16), "n": jnp.arange(2), "f": jnp.tanh}
    optim = optax.adamw(0.1, weight_decay=1.0)
    opt_state = eg.init_opt_state(optim, model)
    gradients = {"w": jnp.zeros(3, jnp.bfloat16), "n": None, "f": None}
    model, _ = eg.apply_gradients(optim, gradients, opt_state, model)
    assert model["w"].dtype == jnp.bfloat16
    assert bool((model["w"] < 1).all())  # decay alone has moved it
    assert model["n"].tolist() == [0, 1]


def test_another_optimizer_s_state_is_named():
    model = {"w": jnp.ones(3)}
    opt_state = eg.init_opt_state(optax.adamw(0.1), model)
    with pytest.raises(ValueError, match="not of the trainer's `optim`"):
        eg.apply_gradients(optax.adam(0.1), model, opt_state, model)
    # What fails for a reason of its own is left as it is.
    failing = optax.GradientTransformation(lambda _: (), lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        eg.apply_gradients(failing, model, (), model)


def test_another_trainer_goes_on():
    """Model and step go on; the memory is new."""
    trainer, key = Total(), jax.random.key(0)
    begun, _ = eg.fit(
        trainer, trainer.init(memory=jnp.ones(2)), ones, key=key, num_steps=3
    )
    state = eg.continued(OnHost(), begun, jnp.zeros(2))
    assert int(state.step) == int(begun.step) == 3
    assert state.memory.tolist() == [0, 0]
    state, _ = eg.fit(OnHost(), state, ones, key=key, num_steps=2)
    assert float(state.model) == 5
    assert float(begun.model) == 3  # it was not donated


def test_another_trainer_needs_the_same_optimizer():
    class Descent(Total):
        optim: optax.GradientTransformation

        def init(self, model=None, memory=None):
            model = jnp.ones(3) if model is None else model
            opt_state = eg.init_opt_state(self.optim, model)
            return eg.TrainState.start(model, opt_state, memory)

    begun = Descent(optax.sgd(0.1)).init()
    with pytest.raises(ValueError, match="another optimizer than the trainer's"):
        eg.continued(Descent(optax.adam(0.1)), begun)


@pytest.mark.parametrize("guard", [eg.Skip, eg.Rollback])
def test_guards_need_a_positive_limit(guard):
    with pytest.raises(ValueError, match="`at_most` is 0"):
        guard(at_most=0)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_weights_in_half_precision_are_summed_in_single(dtype):
    logs = jnp.zeros(70_000, dtype)
    assert float(eg.effective_sample_size(logs)) == 70_000
    assert float(eg.log_mean_exp(logs).standard_error) == 0
    index = eg.resample(logs[:1_000], 1_000, key=jax.random.key(0))
    counts = np.bincount(np.asarray(index), minlength=1_000)
    assert counts.max() <= 2
