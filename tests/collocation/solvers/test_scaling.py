"""Parameters in SI units, wide bounds, limits of time, and what is not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

import effgen as eg
from effgen import collocation as co


KEY = jax.random.key(0)
GAS = 8.314


def solve(problem, model, num=20, **settings):
    trainer = co.CollocationTrainer(**settings)
    level = co.transcribe(problem, intervals=num, stages=4)
    state = trainer.init(model, level.guess())
    return eg.fit(trainer, state, [level], key=KEY)


def temperature(t):
    return 320 + 3 * t


def arrhenius(**settings):
    """Cracking at a rising temperature, with 3e9 1/s and 70 kJ/mol."""
    law = lambda t, x: -3e9 * np.exp(-7e4 / (GAS * temperature(t))) * x
    ts = np.linspace(0, 10, 41)
    how = dict(rtol=1e-11, atol=1e-13, t_eval=ts)
    ys = scipy.integrate.solve_ivp(law, (0, 10), [2.0], **how).y.T
    rate = lambda u, p: p["A"] * jnp.exp(-p["E"] / (GAS * u))
    field = lambda t, x, u, p, nets: -rate(u, p) * x
    return co.Problem(field, (ts, ys, temperature(ts)), **settings)


@pytest.mark.one_case("False-start2")
@pytest.mark.parametrize("start", [(1e9, 6.5e4), (2e9, 7e4), (1e10, 7.5e4)])
@pytest.mark.parametrize("bounded", [False, True])
def test_arrhenius_law_in_si_units_is_found(start, bounded):
    ends = ({"A": 1e3, "E": 1e3}, {"A": 1e15, "E": 3e5})
    bounds = ends if bounded else (-np.inf, np.inf)
    model = co.Model(dict(zip("AE", start)), None)
    state, history = solve(arrhenius(parameter_bounds=bounds), model)
    assert history["status"][-1] in (0, 1)
    np.testing.assert_allclose(state.model.parameters["A"], 3e9, rtol=1e-3)
    np.testing.assert_allclose(state.model.parameters["E"], 7e4, rtol=1e-4)


def test_a_parameter_of_a_tiny_gradient_moves():
    """Its derivative is 1e-12 of a misfit: below any tolerance in its own units."""
    ts = np.linspace(0, 4, 21)
    field = lambda t, x, u, p, nets: -p["k"] / 1e12 * x
    problem = co.Problem(field, (ts, 2 * np.exp(-0.7 * ts)))
    state, _ = solve(problem, co.Model({"k": 5e11}, None))
    np.testing.assert_allclose(state.model.parameters["k"], 7e11, rtol=1e-6)
    given = co.Problem(field, problem.data[0], parameter_nominal={"k": 1e12})
    state, _ = solve(given, co.Model({"k": 0.0}, None))
    np.testing.assert_allclose(state.model.parameters["k"], 7e11, rtol=1e-6)


def test_a_constraint_in_tiny_units_holds():
    ts = np.linspace(0, 4, 21)
    field = lambda t, x, u, p, nets: -p["k"] * x
    least = co.ModelConstraint(lambda p, nets: 1e-12 * p["k"], 1e-12, 9e-12, "least")
    problem = co.Problem(field, (ts, 2 * np.exp(-0.7 * ts)), constraints=[least])
    state, _ = solve(problem, co.Model({"k": 0.5}, None))
    np.testing.assert_allclose(state.model.parameters["k"], 1.0, rtol=1e-6)


def test_pretraining_steps_in_units_of_parameters_and_stays_inside_of_bounds():
    ts = np.linspace(0, 2, 81)
    law = lambda t, x: [x[1], -(2e4 * x[0] + 1.5e3 * x[1]) / 400]
    how = dict(rtol=1e-10, atol=1e-12, t_eval=ts)
    ys = scipy.integrate.solve_ivp(law, (0, 2), [0.05, 0.0], **how).y.T
    field = lambda t, x, u, p, nets: jnp.stack(
        [x[1], -(p["k"] * x[0] + p["c"] * x[1]) / 400]
    )
    bounds = ({"k": 0.0, "c": 2e3}, {"k": 1e6, "c": 5e3})
    problem = co.Problem(field, (ts, ys), parameter_bounds=bounds)
    level = co.transcribe(problem, intervals=30)
    start = co.Model({"k": 1e4, "c": 2.5e3}, None)
    found = co.pretrain(start, level, key=KEY).parameters
    assert 2e3 < found["c"] < 2.1e3
    np.testing.assert_allclose(found["k"], 2e4, rtol=0.2)


def test_pretraining_takes_states_from_slopes_and_refuses_what_none_tells():
    """Of `x' = v, v' = -k x` the position is measured, and its slope tells `v`."""
    ts = np.linspace(0, 3, 31)
    law = lambda t, x, u, p, nets: jnp.stack([x[1], -p["k"] * x[0]])
    seen = {"observe": lambda t, x, u, p, nets: x[:1], "num_states": 2}
    level = co.transcribe(co.Problem(law, (ts, np.sin(2 * ts)), **seen), intervals=15)
    start = co.Model({"k": 1.0}, None)
    found = co.pretrain(start, level, key=KEY, num_steps=500, rate=0.05)
    np.testing.assert_allclose(found.parameters["k"], 4.0, rtol=0.05)
    apart = lambda t, x, u, p, nets: jnp.stack([-p["k"] * x[0], -x[1]])
    level = co.transcribe(co.Problem(apart, (ts, np.exp(-ts)), **seen), intervals=4)
    with pytest.raises(ValueError, match="state 1 of trajectory 0 is not measured"):
        co.pretrain(start, level, key=KEY)


def test_pretraining_does_not_leave_where_the_law_is_defined():
    ts = np.linspace(0, 4, 41)
    field = lambda t, x, u, p, nets: jnp.stack([x[1], -x[0] - jnp.sqrt(p["d"]) * x[1]])
    ys = np.stack([np.cos(ts), -np.sin(ts)], 1)
    problem = co.Problem(field, (ts, ys), parameter_bounds=(0.0, 5.0))
    level = co.transcribe(problem, intervals=20)
    found = co.pretrain(co.Model({"d": 0.5}, None), level, key=KEY).parameters
    assert 0 < found["d"] < 0.01


def test_the_limit_of_time_is_of_the_clock_on_the_wall():
    ts = np.linspace(0, 4, 21)
    ys = 2 * np.exp(-0.7 * ts)

    quick = co.Problem(lambda t, x, u, p, nets: -p["k"] * x**3, (ts, ys))
    with pytest.warns(eg.RunWarning, match="The limit of time is reached"):
        solve(quick, co.Model({"k": 0.5}, None), max_seconds=1e-6)
    with pytest.raises(ValueError, match="`max_seconds` is -1"):
        co.CollocationTrainer(max_seconds=-1)


def test_what_is_not_finite_is_told_in_words_of_states_and_bounds():
    ts = np.linspace(0, 4, 21)
    ys = 2 * np.exp(-0.7 * ts)
    model = co.Model({"k": 0.5}, None)
    decay = lambda t, x, u, p, nets: -p["k"] * x
    log = lambda t, x, u, p, nets: jnp.log(x - 5)
    outputs = co.Problem(decay, (ts, ys), observe=log, num_states=1)
    with pytest.raises(
        ValueError, match="output 0 of `observe` is not finite at t = 0"
    ):
        solve(outputs, model)
    ends = co.ModelConstraint(lambda p, nets: jnp.log(p["k"] - 1), 0, 1, "m")
    with pytest.raises(ValueError, match="model constraint or `penalty` is not finite"):
        solve(co.Problem(decay, (ts, ys), constraints=[ends]), model)
    root = lambda t, x, u, p, nets: -jnp.sqrt(p["k"]) * x
    with (
        pytest.warns(eg.RunWarning, match="by k of the model is not finite"),
        pytest.raises(eg.TrainingError, match="bound states and parameters") as error,
    ):
        solve(co.Problem(root, (ts, ys)), co.Model({"k": 0.0}, None))
    assert error.value.result == eg.RESULTS.evaluation_failed
    assert "learning rate" not in str(error.value)
