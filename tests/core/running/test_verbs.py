"""`train`, `fit`, `drain`: what they return, and what they refuse."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from tests.cases import KEY, arrays, regression, regression_data
from tests.conftest import both_drivers


def test_a_yield_has_the_metrics_of_its_steps():
    case = regression()
    run = eg.train(
        case.trainer(), case.state, case.data, key=KEY, num_steps=25, every=10
    )
    assert len(run) == 3
    seen = [(int(state.step), metrics["loss"].shape) for state, metrics in run]
    assert seen == [(10, (10,)), (20, (10,)), (25, (5,))]
    assert run.result == eg.RESULTS.successful
    assert int(run.state.step) == 25


def test_fit_is_train_drained():
    case = regression()
    state, history = eg.fit(
        case.trainer(), case.state, case.data, key=KEY, num_steps=30, every=4
    )
    losses = [
        metrics["loss"]
        for _, metrics in eg.train(
            case.trainer(), case.state, case.data, key=KEY, num_steps=30, every=7
        )
    ]
    np.testing.assert_array_equal(history["loss"], np.concatenate(losses))
    assert history.steps.tolist() == list(range(1, 31))
    assert int(state.step) == 30
    assert set(history) == {"loss"}


def test_no_steps_is_a_run_of_nothing():
    case = regression()
    state, history = eg.fit(case.trainer(), case.state, case.data, key=KEY, num_steps=0)
    assert eg.state_digest(state) == eg.state_digest(case.state)
    assert len(history) == 0


def test_yielded_states_stay_valid():
    case = regression()
    run = eg.train(case.trainer(), case.state, case.data, key=KEY, num_steps=3)
    states = [state for state, _ in run]
    assert len({eg.state_digest(state) for state in states}) == 3


def test_aliased_and_tied_arrays_stay_usable():
    shared = jnp.ones((3, 3))
    model = {"a": shared, "b": shared, "c": np.ones((3, 3), np.float32)}

    class Sum(eg.AbstractTrainer):
        optim: optax.GradientTransformation

        def init(self, model, memory=None):
            opt_state = eg.init_opt_state(self.optim, model)
            return eg.TrainState.start(model, opt_state, memory)

        def step(self, state, batch, *, key):
            loss, gradients = eqx.filter_value_and_grad(
                lambda m: sum(jnp.sum(x**2) for x in jax.tree.leaves(m))
            )(state.model)
            model, opt_state = eg.apply_gradients(
                self.optim, gradients, state.opt_state, state.model
            )
            return state.advance(model, opt_state, None), {"loss": loss}

    trainer = Sum(optax.adam(0.1))
    aliased = jax.device_put(shared, jax.devices()[0])
    state, history = eg.fit(
        trainer, trainer.init(model), lambda key: jnp.zeros(1), key=KEY, num_steps=20
    )
    assert history["loss"][-1] < history["loss"][0]
    for array in (shared, aliased, model["c"]):
        np.testing.assert_array_equal(array, np.ones((3, 3)))
    assert not np.array_equal(state.model["a"], shared)


@functools.cache
def nan_at(step, where):
    """Return a trainer whose step `step` goes bad, in the place named by `where`."""

    class Bad(eg.AbstractTrainer):
        optim: optax.GradientTransformation

        def init(self, model, memory=None):
            opt_state = eg.init_opt_state(self.optim, model)
            return eg.TrainState.start(model, opt_state, memory)

        def step(self, state, batch, *, key):
            bad = jnp.where(state.step == step, jnp.nan, 0.0)
            inf = jnp.where(state.step == step, jnp.inf, 1.0)
            x, y = batch
            loss, gradients = eqx.filter_value_and_grad(
                lambda m: jnp.mean((jax.vmap(m)(x) - y) ** 2)
            )(state.model)
            if where == "gradient":
                gradients = jax.tree.map(lambda g: g * inf, gradients)
            metrics = {"loss": loss + (bad if where == "loss" else 0.0)}
            if where == "gradient":
                metrics["grad_norm"] = optax.tree.norm(gradients)
            if where == "result":
                metrics["result"] = eg.RESULTS.where(
                    state.step == step,
                    eg.RESULTS.weights_collapsed,
                    eg.RESULTS.successful,
                )
            model, opt_state = eg.apply_gradients(
                self.optim, gradients, state.opt_state, state.model
            )
            if where == "parameter":
                model = jax.tree.map(
                    lambda p: p + bad if eqx.is_inexact_array(p) else p, model
                )
            return state.advance(model, opt_state, None), metrics

    return Bad(optax.adam(1e-2))


def start(trainer):
    return trainer.init(eqx.nn.MLP(3, 1, 8, 1, key=KEY))


def batches():
    return eg.Minibatches(regression_data(), 16)


@both_drivers
@pytest.mark.parametrize("num_steps", [24, 60])
@pytest.mark.parametrize("where", ["loss", "gradient", "parameter", "result"])
def test_a_bad_step_is_refused_and_named(where, num_steps, driver):
    trainer = nan_at(23, where)
    with pytest.raises(eg.TrainingError) as caught:
        eg.fit(trainer, start(trainer), batches(), key=KEY, num_steps=num_steps)
    error = caught.value
    assert error.step == 23
    assert int(error.state.step) == 23
    before, _ = eg.fit(trainer, start(trainer), batches(), key=KEY, num_steps=23)
    assert eg.state_digest(error.state) == eg.state_digest(before)
    message = str(error)
    assert "step 23 failed" in message
    if where == "result":
        assert error.result == eg.RESULTS.weights_collapsed
        assert "use more walkers" in message
        return
    assert error.result == eg.RESULTS.nonfinite
    expected = {
        "loss": "metrics['loss'] is nan",
        "gradient": "metrics['grad_norm'] is ",
        "parameter": "state.model.layers[0].weight is nan",
    }[where]
    assert expected in message
    assert "Lower the learning rate" in message


@both_drivers
def test_skip_leaves_a_bad_step_out(driver):
    trainer = nan_at(5, "loss")
    run = eg.train(trainer, start(trainer), batches(), key=KEY, num_steps=12, every=3)
    run = eg.guarded(run, eg.Skip())
    state, history = eg.drain(run)
    assert run.num_skipped == 1
    assert int(state.step) == 12
    assert np.flatnonzero(np.isnan(history["loss"])).tolist() == [5]
    # The state after the skipped step is the one before it, but for the counter.
    before, _ = eg.fit(trainer, start(trainer), batches(), key=KEY, num_steps=5)
    skipping = eg.train(trainer, start(trainer), batches(), key=KEY, num_steps=6)
    after, _ = eg.drain(eg.guarded(skipping, eg.Skip()))
    for a, b in zip(arrays(before)[:-1], arrays(after)[:-1], strict=True):
        np.testing.assert_array_equal(a, b)


def always_bad():
    def data(key):
        x, y = regression_data()
        return jnp.full_like(x, jnp.nan), y

    return data


def test_skip_has_a_limit():
    case = regression()
    run = eg.train(case.trainer(), case.state, always_bad(), key=KEY, num_steps=50)
    run = eg.guarded(run, eg.Skip(at_most=4))
    with pytest.raises(eg.TrainingError, match="more steps in a row") as caught:
        eg.drain(run)
    assert caught.value.result == eg.RESULTS.too_many_skips
    assert run.num_skipped == 4


class Unlucky(eg.AbstractTrainer):
    """Fails where the noise is large: once in about twenty steps."""

    def init(self, model, memory=None):
        return eg.TrainState.start(model, None, memory)

    def step(self, state, batch, *, key):
        noise = jax.random.normal(key)
        loss = jnp.where(jnp.abs(noise) > 2.0, jnp.nan, noise)
        return state.advance(state.model + noise, None, None), {"loss": loss}


@pytest.mark.parametrize("every", [1, 10])
def test_rollback_takes_fresh_noise(every):
    trainer = Unlucky()
    state = trainer.init(jnp.zeros(()))

    def rolled(chunk_seconds, monkeypatch):
        from effgen.core.running import pace

        monkeypatch.setattr(pace, "_CHUNK_SECONDS", chunk_seconds)
        run = eg.train(
            trainer,
            state,
            lambda key: jnp.zeros(1),
            key=KEY,
            num_steps=100,
            every=every,
        )
        run = eg.guarded(run, eg.Rollback(at_most=9))
        return run, *eg.drain(run)

    with pytest.MonkeyPatch.context() as monkeypatch:
        run, last, history = rolled(0.5, monkeypatch)
        _, again, _ = rolled(0.0, monkeypatch)
    assert run.num_rollbacks > 0
    assert history.steps.tolist() == list(range(1, 101))
    assert np.isfinite(history["loss"]).all()
    np.testing.assert_allclose(last.model, history["loss"].sum(), rtol=1e-5)
    # What is done again depends on steps, never on the clock.
    assert eg.state_digest(last) == eg.state_digest(again)


class Failing(eg.AbstractTrainer):
    """Adds a step's noise and keeps it; step 77's usual noise is no number."""

    def init(self, model, memory=None):
        return eg.TrainState.start(model, None, memory)

    def step(self, state, batch, *, key):
        _, noise_key = jax.random.split(KEY)
        usual = jax.random.fold_in(noise_key, 77)
        same = jax.random.key_data(key) == jax.random.key_data(usual)
        noise = jax.random.normal(key) + jnp.sum(batch)
        loss = jnp.where(jnp.all(same), jnp.nan, noise)
        memory = state.memory.at[state.step].set(noise)
        return state.advance(state.model + noise, None, memory), {"loss": loss}


ZEROS = [np.full(4, i, np.float32) for i in range(150)]


@pytest.mark.parametrize("every", [None, 50, 100])
def test_rollback_goes_back_past_the_batches_read_at_once(every):
    trainer = Failing()
    state = trainer.init(jnp.zeros(()), jnp.zeros(150))

    def trained(data, state=state, num_steps=150):
        run = eg.train(trainer, state, data, key=KEY, num_steps=num_steps, every=every)
        run = eg.guarded(run, eg.Rollback())
        last, history = eg.drain(run)
        return last, history, run.num_rollbacks

    whole, history, num = trained(ZEROS)
    assert num == 1
    assert history.steps.tolist() == list(range(1, 151))
    np.testing.assert_array_equal(history["loss"], whole.memory)
    _, noise_key = jax.random.split(KEY)
    keys = jax.vmap(lambda i: jax.random.fold_in(noise_key, i))(jnp.arange(150))
    usual = jax.vmap(jax.random.normal)(keys) + 4.0 * jnp.arange(150)
    again = np.flatnonzero(~np.isclose(usual, whole.memory, atol=1e-4))
    start = {None: 0, 50: 50, 100: 0}[every]
    assert again.tolist() == list(range(start, 100))
    for data in (iter(ZEROS), (x for x in ZEROS)):
        found, _, _ = trained(data)
        assert eg.state_digest(found) == eg.state_digest(whole)
    first, _, _ = trained(ZEROS, num_steps=100 if every != 50 else 50)
    rest, _, _ = trained(ZEROS, first, 150 - int(first.step))
    assert eg.state_digest(rest) == eg.state_digest(whole)


def test_a_rollback_that_runs_out_of_data_keeps_what_was_sound():
    trainer = Failing()
    state = trainer.init(jnp.zeros(()), jnp.zeros(150))

    def broken():
        yield from ZEROS[:90]
        raise OSError("gone")

    run = eg.train(trainer, state, broken(), key=KEY, num_steps=150, every=100)
    with pytest.raises(eg.TrainingError, match="gone") as caught:
        eg.drain(eg.guarded(run, eg.Rollback()))
    assert int(caught.value.state.step) == 90
    assert caught.value.history.steps.tolist() == list(range(1, 91))


def test_rollback_has_a_limit():
    case = regression()
    run = eg.train(case.trainer(), case.state, always_bad(), key=KEY, num_steps=50)
    run = eg.guarded(run, eg.Rollback(at_most=2))
    with pytest.raises(eg.TrainingError, match="after every rollback"):
        eg.drain(run)
    assert run.num_rollbacks == 2


def test_replay_finds_the_operation():
    case = regression()
    data = [regression_data()] * 3 + [(jnp.full((96, 3), jnp.nan), jnp.zeros((96, 1)))]
    with pytest.raises(eg.TrainingError) as caught:
        eg.fit(case.trainer(), case.state, data, key=KEY)
    with pytest.raises(FloatingPointError):
        eg.replay(case.trainer(), caught.value.state, data, key=KEY)
    # From an earlier state it first trains up to the step; a good step just runs.
    with pytest.raises(FloatingPointError):
        eg.replay(case.trainer(), case.state, data, key=KEY, step=3)
    state, metrics = eg.replay(case.trainer(), case.state, data, key=KEY, step=2)
    trained, history = eg.fit(case.trainer(), case.state, data[:3], key=KEY)
    np.testing.assert_allclose(metrics["loss"], history["loss"][2], rtol=1e-5)
    for a, b in zip(arrays(state.model), arrays(trained.model), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="`step` is 1, before the state's 3"):
        eg.replay(case.trainer(), trained, data, key=KEY, step=1)


class Changing(eg.AbstractTrainer):
    """Returns something other than it was given."""

    change: str = eqx.field(static=True)

    def init(self, model, memory=None):
        return eg.TrainState.start(model, None, memory)

    def step(self, state, batch, *, key):
        model = {
            "dtype": state.model.astype(jnp.int32),
            "shape": state.model[None],
            "structure": (state.model, state.model),
        }.get(self.change, state.model)
        metrics = {"loss": jnp.zeros(())}
        if self.change == "result":
            metrics["result"] = jnp.zeros(())
        if self.change == "state":
            return {"model": model}, metrics
        return state.advance(model, None, None), metrics


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ("dtype", ValueError, r"state.model: float32\[2\] became int32\[2\]"),
        ("shape", ValueError, r"became float32\[1, 2\]"),
        ("structure", ValueError, r"state.model\[0\]: nothing became"),
        ("result", TypeError, "reserved for an item of `effgen.RESULTS`"),
        ("state", TypeError, "`step` returned a dict"),
    ],
)
def test_a_step_that_breaks_the_contract_is_named(change, error, match):
    trainer = Changing(change)
    with pytest.raises(error, match=match):
        eg.fit(
            trainer,
            trainer.init(jnp.zeros(2)),
            lambda key: jnp.zeros(1),
            key=KEY,
            num_steps=1,
        )


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"num_steps": None}, ValueError, "`num_steps` is needed"),
        ({"num_steps": -1}, ValueError, "`num_steps` is -1"),
        ({"num_steps": 1.5}, TypeError, "`num_steps` is 1.5"),
        ({"every": 0}, ValueError, "`every` is 0"),
        ({"key": 0}, TypeError, "`key` is 0"),
        ({"key": jax.random.split(KEY)}, TypeError, "pass one random key"),
        ({"state": None}, TypeError, "`state` is a NoneType"),
        ({"data": jnp.zeros((4, 2))}, TypeError, "one batch and not"),
        ({"data": {"x": 1}}, TypeError, "one batch and not"),
        ({"data": 3}, TypeError, "`data` is a int"),
    ],
)
def test_bad_arguments_are_named_at_once(arguments, error, match):
    case = regression()
    given = {"state": case.state, "data": case.data, "key": KEY, "num_steps": 3}
    given |= arguments
    state, data = given.pop("state"), given.pop("data")
    with pytest.raises(error, match=match):
        eg.train(case.trainer(), state, data, **given)


def test_old_style_keys_work():
    case = regression()
    old = jax.random.PRNGKey(0)
    a, _ = eg.fit(case.trainer(), case.state, case.data, key=old, num_steps=3)
    new = jax.random.wrap_key_data(old)
    b, _ = eg.fit(case.trainer(), case.state, case.data, key=new, num_steps=3)
    assert eg.state_digest(a) == eg.state_digest(b)


def test_a_deleted_state_is_named():
    case = regression()
    case.state.memory.delete()
    with pytest.raises(ValueError, match=r"`state.memory` was deleted"):
        eg.train(case.trainer(), case.state, case.data, key=KEY, num_steps=1)


class OnHost(eg.AbstractHostTrainer):
    """Counts on the host; fails at a given step."""

    fails_at: int = 99

    def init(self, model, memory=None):
        return eg.TrainState.start(model, None, memory)

    def step(self, state, batch, *, key):
        assert not isinstance(state.model, jax.core.Tracer)
        failed = int(state.step) == self.fails_at
        result = eg.RESULTS.nonfinite if failed else eg.RESULTS.successful
        metrics = {"batch": jnp.asarray(batch), "result": result}
        return state.advance(state.model + batch, None, None), metrics


def test_a_host_trainer_steps_through_its_data():
    trainer = OnHost()
    state, history = eg.fit(
        trainer, trainer.init(jnp.zeros(())), [1.0, 2.0, 3.0], key=KEY
    )
    assert float(state.model) == 6.0
    assert history["batch"].tolist() == [1.0, 2.0, 3.0]
    state, _ = eg.fit(trainer, trainer.init(jnp.zeros(())), iter([1.0, 2.0]), key=KEY)
    assert float(state.model) == 3.0
    # A sequence is indexed by the state's step: what was done is not done again.
    state, _ = eg.fit(trainer, state, [1.0, 2.0, 5.0], key=KEY)
    assert float(state.model) == 8.0


def test_a_host_trainer_s_failure_keeps_the_state():
    trainer = OnHost(fails_at=1)
    with pytest.raises(eg.TrainingError, match="step 1 failed") as caught:
        eg.fit(trainer, trainer.init(jnp.zeros(())), [1.0, 2.0, 3.0], key=KEY)
    assert float(caught.value.state.model) == 1.0
