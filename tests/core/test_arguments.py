"""Arguments of the wrong kind are named, with what to pass instead."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from tests.cases import KEY, regression


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
    with pytest.raises(ValueError, match="has no walkers"):
        eg.log_mean_exp(jnp.zeros(0))


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
