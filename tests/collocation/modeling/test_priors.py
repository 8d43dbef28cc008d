"""Priors of parameters against closed forms of linear laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import effgen as eg
from effgen import collocation as co
from effgen.collocation.modeling.inputs import inputs_at


KEY = jax.random.key(0)
TS = np.linspace(0, 2, 11)
NOISE = 0.05


def solved(problem, parameters, **mesh):
    level = co.transcribe(problem, **mesh)
    trainer = co.CollocationTrainer(tol=1e-12)
    state = trainer.init(co.Model(parameters, None), level.guess())
    state, history = eg.fit(trainer, state, [level], key=KEY)
    assert history["status"][-1] == 0
    return level, state


def test_rates_of_trajectories_share_a_prior():
    """Slopes from zero: the normal equations of all slopes and their mean."""
    rng = np.random.default_rng(0)
    ys = [slope * TS + NOISE * rng.normal(size=11) for slope in (0.5, 1.0, 1.6)]
    problem = co.Problem(
        lambda t, x, u, p, nets: p["rate"][u[-1].astype(int)][None],
        co.numbered([(TS, y) for y in ys]),
        scale=NOISE,
        initial=co.Initial([0.0]),
        priors=co.Prior(lambda p, nets: p["rate"] - p["mean"], 0.3, name="alike"),
    )
    start = {"rate": np.ones(3), "mean": 0.0}
    level, state = solved(problem, start, intervals=2)
    curvature, right = np.zeros((4, 4)), np.zeros(4)
    for i, y in enumerate(ys):
        design = np.zeros((12, 4))
        design[:11, i] = TS / NOISE
        design[11, [i, 3]] = np.array([1, -1]) / 0.3
        curvature += design.T @ design
        right += design[:11].T @ y / NOISE
    wanted = np.linalg.solve(curvature, right)
    found = state.model.parameters
    np.testing.assert_allclose(found["rate"], wanted[:3], rtol=1e-8)
    np.testing.assert_allclose(found["mean"], wanted[3], rtol=1e-8)
    exact = np.linalg.inv(curvature)
    model = co.covariance(level, state, noise=1.0).model
    order = [3, 0, 1, 2]  # "mean" is before "rate"
    np.testing.assert_allclose(model, exact[np.ix_(order, order)], rtol=1e-6)


def test_a_free_input_is_a_smoothed_random_walk():
    """`x' = w(t)` from zero: ridge regression on integrals of hats."""
    rng = np.random.default_rng(1)
    ys = 1 - np.cos(2 * TS) + NOISE * rng.normal(size=11)
    problem = co.Problem(
        lambda t, x, u, p, nets: p["w"](t)[None],
        (TS, ys),
        scale=NOISE,
        initial=co.Initial([0.0]),
        priors=[co.Prior(lambda p, nets: p["w"].steps(), 2.0)],
    )
    _, state = solved(problem, {"w": co.FreeInput(TS)}, stages=2)
    gap = TS[1]
    areas = np.tril(np.full((11, 11), gap)) - gap / 2 * np.eye(11)
    areas[:, 0], areas[0] = gap / 2, 0.0
    steps = np.diff(np.eye(11), axis=0) / np.sqrt(gap) / 2.0
    curvature = areas.T @ areas / NOISE**2 + steps.T @ steps
    wanted = np.linalg.solve(curvature, areas.T @ ys / NOISE**2)
    found = state.model.parameters["w"]
    np.testing.assert_allclose(found.values, wanted, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(found(0.5 * gap), wanted[:2].mean(), rtol=1e-6)
    np.testing.assert_allclose(found(9.0), wanted[-1], rtol=1e-6)


def test_free_inputs_have_the_steps_and_bends_of_their_values():
    knots = np.array([0.0, 1.0, 3.0])
    free = co.FreeInput(knots, [1.0, 2.0, 6.0])
    np.testing.assert_allclose(free.steps(), [1.0, 4 / np.sqrt(2)])
    np.testing.assert_allclose(free.bends(), [1 / np.sqrt(1.5)])
    for knots, values in (([1.0], 0.0), ([0.0, 0.0], 0.0), ([0.0, np.inf], 0.0)):
        with pytest.raises(ValueError, match="`knots` is"):
            co.FreeInput(knots, values)
    with pytest.raises(ValueError, match="`values` is"):
        co.FreeInput([0.0, 1.0], [1.0, 2.0, 3.0])


def test_numbers_of_trajectories_are_whole_and_last():
    ts = np.linspace(0, 1, 7)
    given = [(ts, ts, ts), co.Trajectory(ts, ts, lambda t: jnp.sin(t)[None])]
    found = co.numbered([*given, *given])
    grid = np.linspace(0, 1, 1_001)
    for i, trajectory in enumerate(found):
        values = inputs_at(trajectory, grid)
        assert values.shape == (1_001, 2)
        np.testing.assert_array_equal(values[:, 1], i)
    assert co.numbered((ts, ts))[0].inputs.shape == (7, 1)


def test_priors_that_cannot_be_are_refused_by_name():
    law, data = lambda t, x, u, p, nets: -jnp.sum(p["k"]) * x, (TS, np.exp(-TS))
    rate = lambda p, nets: p["k"]
    for prior, message in (
        (co.Prior(rate, 0.0), "`scale` of 'prior' is 0"),
        (co.Prior(rate, 1.0, np.nan, "rate"), "`values` of 'rate' is nan"),
    ):
        with pytest.raises(ValueError, match=message):
            co.Problem(law, data, priors=prior)
    with pytest.raises(TypeError, match="`priors` has"):
        co.Problem(law, data, priors=[rate])
    wrong = co.Prior(rate, [1.0, 2.0])
    level = co.transcribe(co.Problem(law, data, priors=wrong), intervals=2)
    trainer = co.CollocationTrainer()
    state = trainer.init(co.Model({"k": np.ones(3)}, None), level.guess())
    with pytest.raises(ValueError, match=r"'prior' is of shape \(3,\)"):
        eg.fit(trainer, state, [level], key=KEY)


def test_a_prior_beside_a_scale_that_is_no_noise_is_told():
    law = lambda t, x, u, p, nets: p["rate"][None]
    prior = co.Prior(lambda p, nets: p["rate"], 0.1, 1.0)
    ts = np.linspace(0, 2, 41)
    problem = co.Problem(law, (ts, ts), scale=9.0, priors=prior)
    with pytest.warns(eg.RunWarning, match="the scale of 'prior' acts as"):
        solved(problem, {"rate": 0.5}, intervals=2)
