"""Data and settings at the edge of what has an answer: right, or refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import effgen as eg
from effgen import collocation as co


KEY = jax.random.key(0)
TS = np.linspace(0, 4, 21)
YS = 2 * np.exp(-0.7 * TS)


def decay(t, x, u, p, nets):
    return -p["k"] * x


def fitted(data, law=decay, model=co.Model({"k": 0.5}, None), **more):
    level = co.transcribe(co.Problem(law, data, **more), intervals=16)
    trainer = co.CollocationTrainer()
    state = trainer.init(model, level.guess(model))
    state, history = eg.fit(trainer, state, [level], key=KEY)
    assert history["status"][-1] == 0
    return level, state


CASES = {
    "times of 1.6e9": (1.6e9 + TS, YS),
    "two equal times": (np.insert(TS, 5, TS[5]), np.insert(YS, 5, YS[5])),
    "a large and a small state": (TS, np.stack([1e6 * YS, 1e-6 * YS**2], 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_rate_is_found(name):
    law = lambda t, x, u, p, nets: -p["k"] * jnp.arange(1, len(x) + 1) * x
    level, state = fitted(CASES[name], law)
    np.testing.assert_allclose(state.model.parameters["k"], 0.7, rtol=1e-5)
    deviation = np.sqrt(co.covariance(level, state).model[0, 0])
    assert 0 < deviation < 1e-3


def test_equal_values_are_divided_by_their_size():
    """Whose standard deviation is not zero, but their rounding."""
    both = np.stack([1e-6 * np.ones(21), 0 * TS], 1)
    assert np.std(both[:, 0]) > 0
    np.testing.assert_array_equal(co.Problem(decay, (TS, both)).scale, [1e-6, 1.0])


def test_bounds_that_are_equal_hold_a_parameter_and_no_parameters_are_some():
    level, state = fitted((TS, YS), parameter_bounds=(0.6, 0.6))
    np.testing.assert_allclose(state.model.parameters["k"], 0.6, rtol=1e-7)
    assert co.covariance(level, state).model[0, 0] == 0
    known = lambda t, x, u, p, nets: -0.7 * x
    level, state = fitted((TS, YS), known, co.Model({}, None))
    assert co.covariance(level, state).model.shape == (0, 0)
    np.testing.assert_allclose(state.memory(2.0), [[2 * np.exp(-1.4)]], rtol=1e-4)


def test_too_few_samples_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"no time\. Pass samples of two times, or"):
        co.Problem(decay, (TS[:1], YS[:1]))
    with pytest.raises(ValueError, match="trajectory 0 has no samples: pass one or"):
        co.Problem(decay, (TS[:0], YS[:0]))
    one = co.Trajectory(TS[5:6], YS[5:6], span=(0.0, 4.0))
    level, state = fitted(one, initial=co.Initial([2.0]))
    np.testing.assert_allclose(state.model.parameters["k"], 0.7, rtol=1e-4)
    with pytest.raises(ValueError, match="no noise can be estimated"):
        co.evidence(level, state)
    with pytest.raises(ValueError, match="no noise can be estimated"):
        co.covariance(level, state)
    with pytest.warns(eg.RunWarning, match="do not tell k: it can move and no"):
        fitted(one)
