"""What a program depends on, what a step may return, and what frees both."""

import functools
import gc
import weakref
from collections import OrderedDict
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen.core.contract.static import Static
from effgen.core.running.program import compiled_program
from tests.cases import KEY
from tests.core.tiny import Total, ones


class Stepping(eg.AbstractTrainer):
    """Its model is what a function makes of it."""

    change: Any

    def init(self, model, memory=None):
        return eg.TrainState.start(model, None, memory)

    def step(self, state, batch, *, key):
        return state.advance(self.change(state.model), None, None), {"loss": 0.0}


class Scaled(eqx.Module):
    weight: jax.Array
    scale: Any = 1.0
    mode: str = eqx.field(static=True, default="train")


def fit(trainer, state, data=ones, num_steps=3):
    return eg.fit(trainer, state, data, key=KEY, num_steps=num_steps)


@pytest.mark.parametrize(
    ("model", "change", "match"),
    [
        (
            OrderedDict(a=jnp.ones(()), b=jnp.zeros(())),
            lambda m: OrderedDict(b=m["b"], a=m["a"]),
            r"state.model: the keys \['a', 'b'\] became \['b', 'a'\]",
        ),
        (
            {"a": jnp.ones(())},
            lambda m: OrderedDict(m),
            "state.model: a dict became a OrderedDict",
        ),
        (
            Scaled(jnp.ones(())),
            lambda m: Scaled(m.weight, m.scale / 2, "eval"),
            r"state.model.scale: 1.0 became 0.5; state.model.mode: 'train' became",
        ),
        (
            Scaled(jnp.ones(()), jnp.tanh),
            lambda m: Scaled(m.weight, jnp.sin),
            "state.model.scale: .* became ",
        ),
        (
            Scaled(jnp.ones(()), (1, 2)),
            lambda m: Scaled(m.weight, (1, 3)),
            r"state.model.scale\[1\]: 2 became 3",
        ),
        (
            Scaled(jnp.ones(())),
            lambda m: Scaled(m.weight, jnp.ones(())),
            r"state.model.scale: nothing became float32\[\]",
        ),
        (
            (jnp.ones(2), jnp.ones(2)),
            lambda m: [*m],
            "state.model: a tuple became a list",
        ),
        ([jnp.ones(2)], lambda m: [*m, m[0]], "state.model: 1 items became 2"),
    ],
)
def test_a_step_that_returns_another_tree_is_refused_by_name(model, change, match):
    trainer = Stepping(change)
    with pytest.raises(ValueError, match=match):
        fit(trainer, trainer.init(model))


def test_the_order_of_a_plain_dict_is_none():
    trainer = Stepping(lambda m: {"b": m["b"], "a": m["a"] + 1})
    state, _ = fit(trainer, trainer.init({"a": jnp.zeros(()), "b": jnp.ones(())}))
    assert (float(state.model["a"]), float(state.model["b"])) == (3, 1)


def test_what_stays_the_same_is_taken():
    model = Scaled(jnp.ones(()), (jnp.tanh, 1, "a", None, float("nan")))
    trainer = Stepping(lambda m: Scaled(m.weight + 1, m.scale))
    state, _ = fit(trainer, trainer.init(model))
    assert float(state.model.weight) == 4


@pytest.mark.parametrize(
    ("metrics", "match"),
    [
        (None, "metrics that are a NoneType"),
        ({"loss": {"a": 1.0}}, r"metrics\['loss'\] is a dict"),
        ({"x": "hi"}, r"metrics\['x'\] is a str"),
        ({"x": {"y": "hi"}}, r"metrics\['x'\]\['y'\] is a str"),
        ({"x": jax.random.key(0)}, r"metrics\['x'\] is a key<fry>"),
    ],
)
def test_metrics_that_are_no_numbers_are_named(metrics, match):
    class Reporting(Total):
        def step(self, state, batch, *, key):
            return Total.step(self, state, batch, key=key)[0], metrics

    with pytest.raises(TypeError, match=match):
        fit(Reporting(), Reporting().init())


class Traced(Total):
    """Reports what JAX's settings said while it was traced."""

    def step(self, state, batch, *, key):
        state, _ = Total.step(self, state, batch, key=key)
        width = jnp.asarray(np.arange(5)).dtype.itemsize
        product = jax.make_jaxpr(jnp.dot)(jnp.ones(2), jnp.ones(2)).eqns[-1]
        precise = "HIGHEST" in str(product.params.get("precision"))
        noise = jax.random.normal(key, (2,)).sum()
        metrics = {"width": width + 0.0, "precise": precise + 0.0, "noise": noise}
        return state, metrics


@pytest.mark.slow
def test_programs_know_jax_s_settings():
    def traced():
        _, history = fit(Traced(), Total().init(), num_steps=1)
        return {name: float(value[0]) for name, value in history.items()}

    first = traced()
    with jax.enable_x64(True):
        assert traced()["width"] == 8
    with jax.default_matmul_precision("highest"):
        assert traced()["precise"] == 1
    with jax.threefry_partitionable(False):
        other = traced()["noise"]
    assert traced() == first
    assert first["width"] == 4
    assert first["precise"] == 0
    assert other != first["noise"]
    with jax.threefry_partitionable(False):
        compiled_program.cache_clear()
        assert traced()["noise"] == other


SCALE = 1.0


def test_a_wrapped_function_is_the_user_s_own():
    def made():
        @functools.wraps(jnp.tanh)
        def activation(x):
            return SCALE * jnp.tanh(x)

        return activation

    assert Static(made()) != Static(made())
    one = made()
    assert Static(one) == Static(one)


def test_a_user_s_class_in_a_static_place_is_told_by_identity():
    class Plain:
        pass

    one = Plain()
    assert Static(Scaled(jnp.ones(2), mode=one)) == Static(
        Scaled(jnp.ones(2), mode=one)
    )
    assert Static(Scaled(jnp.ones(2), mode=one)) != Static(
        Scaled(jnp.ones(2), mode=Plain())
    )


def test_what_a_function_closes_over_goes_with_it():
    compiled_program.cache_clear()

    def once(i):
        array = jnp.full((64, 64), float(i))
        fit(Total(), Total().init(), lambda key: array[0], num_steps=2)
        trainer = Stepping(lambda model: model + array.sum())
        fit(trainer, trainer.init(jnp.zeros(())), num_steps=2)
        return weakref.ref(array)

    arrays = [once(i) for i in range(3)]
    gc.collect()
    assert [array() for array in arrays] == [None] * 3
    assert compiled_program.cache_info().currsize == 0
    assert compiled_program.cache_info().misses == 6


def test_few_programs_are_kept_and_the_last_used_stay():
    from effgen.core.running.program import Programs

    programs = Programs(most=2)
    for value in "aba":
        programs._kept.setdefault(value, value)
    assert programs.cache_info() == (0, 0, 2)


class Spoiling(eg.AbstractTrainer):
    """Spoils one part of the state at a step, and reports nothing of it."""

    optim: optax.GradientTransformation
    part: str = eqx.field(static=True)
    value: float = eqx.field(static=True)

    def init(self, model, memory=None):
        opt_state = eg.init_opt_state(self.optim, model)
        return eg.TrainState.start(model, opt_state, memory)

    def step(self, state, batch, *, key):
        model, opt_state = eg.apply_gradients(
            self.optim, 2 * (state.model - 3), state.opt_state, state.model
        )
        now = state.step == 5
        spoil = lambda x: jnp.where(now, self.value, x) if x.dtype == jnp.float32 else x
        parts = {"opt_state": opt_state, "memory": state.memory}
        parts[self.part] = jax.tree.map(spoil, parts[self.part])
        loss = (state.model - 3) ** 2
        return state.advance(model, parts["opt_state"], parts["memory"]), {"loss": loss}


@pytest.mark.parametrize("driver", ["scan", "dispatch"], indirect=True)
@pytest.mark.parametrize(
    ("part", "value", "named"),
    [
        ("opt_state", jnp.inf, "state.opt_state[0].mu is inf"),
        ("memory", jnp.nan, "state.memory is nan"),
    ],
)
def test_an_optimizer_or_a_memory_that_is_spoiled_is_found(part, value, named, driver):
    trainer = Spoiling(optax.adam(0.1), part, float(value))
    state = trainer.init(jnp.zeros(()), jnp.zeros(()))
    with pytest.raises(eg.TrainingError) as caught:
        fit(trainer, state, num_steps=40)
    assert caught.value.step == 5
    assert named in str(caught.value)
    assert len(caught.value.history["loss"]) == 5
    run = eg.train(trainer, state, ones, key=KEY, num_steps=40)
    last, history = eg.drain(eg.guarded(run, eg.Skip()))
    assert run.num_skipped == 1
    assert np.isfinite(float(last.memory))
    assert len(history["loss"]) == 40


def test_a_line_search_may_say_that_it_left_the_domain():
    """Its error is then infinite: a number beside what is kept of the parameters."""

    class Searching(Total):
        def step(self, state, batch, *, key):
            errors = {"slopes": state.model, "error": jnp.asarray(jnp.inf)}
            return state.advance(state.model + 1, errors, None), {"loss": 0.0}

    errors = {"slopes": jnp.zeros(2), "error": jnp.zeros(())}
    begun = eg.TrainState.start(jnp.zeros(2), errors, None)
    state, _ = fit(Searching(), begun)
    assert np.isposinf(state.opt_state["error"])


def test_what_was_not_finite_before_may_stay_so():
    """A first best value of infinity, log-weights of zero weights."""

    class Kept(Total):
        def step(self, state, batch, *, key):
            new, metrics = Total.step(self, state, batch, key=key)
            return state.advance(new.model, state.opt_state, state.memory), metrics

    begun = eg.TrainState.start(
        jnp.zeros(()), jnp.full(2, jnp.inf), jnp.full(2, -jnp.inf)
    )
    state, _ = fit(Kept(), begun)
    assert np.isposinf(state.opt_state).all()
    assert np.isneginf(state.memory).all()


@pytest.mark.parametrize("mode", ["jax_disable_jit", "jax_debug_nans"])
def test_jax_s_debugging_modes_work(mode):
    def noisy(key):
        return jax.random.normal(key, (2,))

    expected, history = fit(Total(), Total().init(), noisy)
    jax.config.update(mode, True)
    try:
        state, again = fit(Total(), Total().init(), noisy)
        np.testing.assert_allclose(state.model, expected.model, rtol=1e-6)
        np.testing.assert_allclose(again["loss"], history["loss"], rtol=1e-6)
        if mode == "jax_debug_nans":
            with pytest.raises(FloatingPointError):
                fit(Total(), Total().init(), lambda key: jnp.log(-jnp.ones(1)))
            return
        with pytest.raises(eg.TrainingError, match="'loss'] is nan"):
            fit(Total(), Total().init(), lambda key: jnp.log(-jnp.ones(1)))
        trainer = Stepping(lambda m: 2.0)
        state = eg.TrainState(1.0, None, None, jnp.zeros((), jnp.int32))
        with pytest.raises(ValueError, match=r"state\.model: 1\.0 became 2\.0"):
            fit(trainer, state)
    finally:
        jax.config.update(mode, False)


def test_a_key_that_is_used_twice_is_found_in_the_user_s_code():
    with jax.debug_key_reuse(True):
        fit(Traced(), Total().init())


@pytest.mark.parametrize(("start", "num_steps"), [(2**31 - 5, 10), (0, 2**40), (-1, 1)])
def test_steps_past_the_count_are_refused(start, num_steps):
    state = eqx.tree_at(lambda s: s.step, Total().init(), jnp.array(start, jnp.int32))
    with pytest.raises(ValueError, match=f"`num_steps` is {num_steps} from step"):
        fit(Total(), state, num_steps=num_steps)


def test_the_last_step_that_can_be_counted():
    last = 2**31 - 1
    state = eqx.tree_at(
        lambda s: s.step, Total().init(), jnp.array(last - 2, jnp.int32)
    )
    state, history = fit(Total(), state, num_steps=2)
    assert int(state.step) == last
    assert history.steps.tolist() == [last - 1, last]
    with pytest.raises(eg.TrainingError, match="counted in 32 bits"):
        eg.fit(Total(), state, iter([jnp.ones(1)]), key=KEY)
