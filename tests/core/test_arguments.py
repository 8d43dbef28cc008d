"""Arguments of the wrong kind are named, with what to pass instead."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from tests.cases import KEY, regression
from tests.core.tiny import Total, ones


ROWS = np.ones((8, 2), np.float32)
WRONG: Any = 1e-3
NONE: Any = None
TWO: Any = [0.0, 0.0]


class Frame:
    """Has what pandas has: its items are columns, and it has as many as rows."""

    columns = ("a", "b")

    def __len__(self):
        return 8

    def __getitem__(self, name):
        raise KeyError(name)


@pytest.mark.parametrize("data", [Frame(), {"x": ROWS}, "rows", ROWS, (ROWS, ROWS)])
def test_one_batch_is_no_source(data):
    case = regression()
    with pytest.raises(TypeError, match=r"`data` is a .*Minibatches"):
        eg.fit(case.trainer(), case.state, data, key=KEY, num_steps=1)


def test_a_learning_rate_is_no_optimizer():
    with pytest.raises(TypeError, match="`optim` is a float: pass an optax"):
        eg.init_opt_state(WRONG, {"w": jnp.zeros(2)})


def test_a_model_without_arrays_has_nothing_to_train():
    with pytest.raises(ValueError, match="`model` has no array of real or complex"):
        eg.init_opt_state(optax.sgd(0.1), {"w": 0.5, "n": jnp.zeros(2, int)})


@pytest.mark.parametrize(
    ("trainer", "match"),
    [(Total, "`trainer` is 'Total'"), (optax.sgd(0.1), "`trainer` is 'Gradient")],
)
def test_what_is_no_trainer_is_named(trainer, match):
    with pytest.raises(TypeError, match=match):
        eg.fit(trainer, Total().init(), ones, key=KEY, num_steps=1)
    with pytest.raises(TypeError, match=match):
        eg.continued(trainer, Total().init())


def test_what_is_no_run_or_no_state_is_named():
    with pytest.raises(TypeError, match="`run` is a list"):
        eg.drain(TWO)
    with pytest.raises(TypeError, match="`state` is a list"):
        eg.continued(Total(), TWO)
    with pytest.raises(TypeError, match="`state` is a list"):
        eg.replay(Total(), TWO, ones, key=KEY)
    several = jax.vmap(Total().init)(jnp.zeros(3))
    with pytest.raises(ValueError, match=r"`state.step` has shape \(3,\)"):
        eg.fit(Total(), several, ones, key=KEY, num_steps=1)


@pytest.mark.parametrize("patience", ["10", None, float("nan"), -1.0, True])
def test_patience_is_a_number_of_seconds(patience):
    with pytest.raises(ValueError, match=f"`patience` is {patience!r}"):
        eg.train(Total(), Total().init(), ones, key=KEY, num_steps=1, patience=patience)


@pytest.mark.parametrize("count", [2.0, "3", True, 0])
def test_counts_are_whole_numbers(count, tmp_path):
    run = eg.train(Total(), Total().init(), ones, key=KEY, num_steps=1)
    for name, call in {
        "every": lambda: eg.checkpointed(run, tmp_path, every=count),
        "keep": lambda: eg.checkpointed(run, tmp_path, keep=count),
        "at_most": lambda: eg.Skip(count),
        "model": lambda: eg.make_mesh(model=count),
        "groups": lambda: eg.make_mesh(groups=count),
        "num": lambda: eg.resample(jnp.zeros(3), count, key=KEY),
    }.items():
        with pytest.raises(ValueError, match=f"`{name}` is {count!r}: pass a positive"):
            call()
    with pytest.raises(ValueError, match=f"`keep` is {count!r}"):
        eg.save(tmp_path, Total().init(), keep=count)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [np.zeros(2, np.uint32), jnp.zeros(5, jnp.uint32)])
def test_words_that_make_no_key_are_named(words):
    with pytest.raises(TypeError, match="pass one random key"):
        eg.fit(Total(), Total().init(), ones, key=words, num_steps=1)


def test_a_mesh_is_made_of_devices():
    with pytest.raises(TypeError, match="`devices` is 4: pass several"):
        eg.make_mesh(4)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`devices` has none"):
        eg.make_mesh([])


def test_shard_asks_for_a_state_and_a_mesh():
    state = eg.TrainState.start({"w": jnp.zeros(2)}, optax.EmptyState(), None)
    with pytest.raises(TypeError, match="`state` is a dict"):
        eg.shard(state.model, eg.make_mesh())
    with pytest.raises(TypeError, match="`mesh` is a NoneType"):
        eg.shard(state, NONE)


def test_a_metric_that_is_not_there_is_named_with_those_that_are():
    case = regression()
    _, history = eg.fit(case.trainer(), case.state, case.data, key=KEY, num_steps=1)
    with pytest.raises(KeyError, match=r"`accuracy` is no metric: there are \['loss'"):
        history["accuracy"]


def test_weights_may_be_a_list_and_must_be_some():
    assert float(eg.effective_sample_size(TWO)) == 2
    assert float(eg.conditional_ess(TWO, TWO)) == 2
    assert float(eg.log_mean_exp(TWO).value) == 0
    assert sorted(eg.resample(TWO, 2, key=KEY).tolist()) == [0, 1]
    with pytest.raises(ValueError, match="has no walkers"):
        eg.log_mean_exp(jnp.zeros(0))


@pytest.mark.parametrize(
    "call",
    [
        eg.effective_sample_size,
        eg.log_mean_exp,
        lambda x: eg.conditional_ess(x, x),
        lambda x: eg.resample(x, 2, key=KEY),
    ],
)
def test_weights_are_one_row(call):
    # Of several rows the walkers would be mixed up, or one row's weights spread.
    with pytest.raises(ValueError, match=r"`log_weights` has shape \(2, 3\)"):
        call(jnp.zeros((2, 3)))


def test_one_walker_tells_no_error():
    value, error = eg.log_mean_exp(jnp.full(1, -3.0))
    assert float(value) == -3
    assert np.isnan(error)


def test_increments_are_as_many_as_weights():
    with pytest.raises(ValueError, match="`log_increments` has 1 numbers for 3"):
        eg.conditional_ess(jnp.zeros(3), jnp.zeros(1))


@pytest.mark.parametrize("bad", [-np.inf, np.nan, np.inf])
def test_weights_that_are_all_zero_draw_nobody(bad):
    with pytest.raises(ValueError, match="the largest of `log_weights` is"):
        eg.resample(jnp.full(3, bad), 2, key=KEY)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (-1.0968913, 0.04708963, "-1.097 ± 0.047"),
        (1234.5, 67.0, "1234 ± 67"),
        (0.25, 0.0, "0.25 ± 0"),
        (np.nan, np.inf, "nan ± inf"),
    ],
)
def test_an_estimate_prints_two_digits_of_its_error(value, error, text):
    estimate = eg.Estimate(jnp.float32(value), jnp.float32(error))
    assert str(estimate) == text
    assert jax.jit(lambda e: jnp.float32(len(str(e))))(estimate) > 0
