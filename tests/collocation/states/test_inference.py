"""States that are not measured, inferred from the slopes of those that are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from effgen import collocation as co


TS = np.linspace(0, 8, 81)


def predation(t, x, u, p, nets):
    prey, predators = x
    return jnp.stack(
        [p["a"] * prey - p["b"] * prey * predators, p["c"] * prey * predators]
    ) - jnp.stack([0 * prey, p["d"] * predators])


MODEL = co.Model({"a": 1.3, "b": 0.9, "c": 0.8, "d": 1.8}, None)


def cycles():
    law = jax.jit(lambda x: predation(0.0, x, None, MODEL.parameters, None))
    solved = scipy.integrate.solve_ivp(
        lambda t, x: np.asarray(law(x)), (0, 8), [2.0, 1.0], t_eval=TS, rtol=1e-9
    )
    return solved.y.T


def test_a_state_is_what_the_slope_of_a_measured_one_asks_for():
    exact = cycles()
    hidden = np.stack([exact[:, 0], np.full(81, np.nan)], 1)
    observed = {"observe": lambda t, x, u, p, nets: x[:1], "num_states": 2}
    for data, settings in ((hidden, {}), (exact[:, 0], observed)):
        problem = co.Problem(predation, (TS, data), **settings)
        guess = co.transcribe(problem, intervals=80).guess(MODEL)
        error = guess(TS) - exact
        assert np.abs(error[2:-2]).max() < 0.05
        assert np.abs(error).max() < 0.3


def test_what_no_slope_tells_stays_nominal():
    ys = np.stack([np.exp(-TS), np.full(81, np.nan)], 1)
    problem = co.Problem(
        lambda t, x, u, p, nets: jnp.stack([-p * x[0], -x[1]]),
        (TS, ys),
        nominal=[1.0, 7.0],
    )
    guess = co.transcribe(problem, intervals=10).guess(co.Model(1.0, None))
    np.testing.assert_array_equal(np.asarray(guess.positions)[:, 1], 7.0)
    for function in (guess, guess.derivative):
        with pytest.raises(ValueError, match="`trajectory` is 1: there are 1"):
            function(TS, 1)
