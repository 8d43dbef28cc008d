"""Noise by output, degrees of freedom, bounds that are active, and coverage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import effgen as eg
from effgen import collocation as co


KEY = jax.random.key(0)
TS = np.linspace(0, 4, 41)


def decay(t, x, u, p, nets):
    return -p["k"] * x


def solved(problem, model, **settings):
    trainer = co.CollocationTrainer(tol=1e-10)
    level = co.transcribe(problem, **settings)
    state = trainer.init(model, level.guess())
    state, _ = eg.fit(trainer, state, [level], key=KEY)
    return level, state


@pytest.mark.one_case("0.0001")
@pytest.mark.parametrize("unit", [1.0, 1e-2, 1e-4])
def test_a_small_parameter_inside_of_its_bound_varies(unit):
    """Seconds in the place of hours: the deviation is scipy's, in any unit."""
    ys = 3 * np.exp(-0.5 * TS) + 0.03 * np.random.default_rng(0).normal(size=41)
    left = lambda q: q[0] * np.exp(-q[1] * TS) - ys
    best = scipy.optimize.least_squares(left, [1, 1.0], xtol=1e-15, gtol=1e-15)
    noise = np.sqrt(2 * best.cost / 39)
    deviation = noise * np.sqrt(np.linalg.inv(best.jac.T @ best.jac)[1, 1])
    problem = co.Problem(decay, (TS / unit, ys), parameter_bounds=(0.0, np.inf))
    found = co.covariance(*solved(problem, co.Model({"k": unit}, None), intervals=20))
    np.testing.assert_allclose(found.model[0, 0] ** 0.5, deviation * unit, rtol=1e-4)
    np.testing.assert_allclose(found.noise * problem.scale[0], noise, rtol=1e-5)
    assert found.names == ("k",)


@pytest.mark.slow
def test_bounds_that_hold_a_solution_back_do_not_vary_in_any_unit():
    """A concentration at zero from half time on, and a rate at its bound."""
    ys = np.stack([np.exp(-0.5 * TS), np.where(TS < 2, 0.01, -0.01)], 1)
    field = lambda t, x, u, p, nets: jnp.stack([-p["k"] * x[0], -p["r"] * x[1]])
    problem = co.Problem(
        field,
        (TS, ys + 0.01 * np.random.default_rng(0).normal(size=ys.shape)),
        scale=1.0,
        initial=co.Initial([np.nan, 0.0]),
        parameter_bounds=({"k": 0.6, "r": 1.0}, {"k": 2.0, "r": 1.0}),
        state_bounds=(0.0, np.inf),
    )
    level, state = solved(problem, co.Model({"k": 1.0, "r": 1.0}, None), intervals=8)
    found = co.covariance(level, state)
    np.testing.assert_array_equal(found.model, np.zeros((2, 2)))
    assert found.states[0, 0] > 1e-3
    np.testing.assert_allclose(found.states[:, 1], 0, atol=1e-12)


@pytest.mark.slow
def test_free_starts_count_as_degrees_of_freedom():
    rng = np.random.default_rng(1)
    ts = np.linspace(0, 2, 5)
    clean = [a * np.exp(-0.7 * ts) for a in rng.uniform(1, 3, 20)]
    data = [(ts, y + 0.05 * rng.normal(size=5)) for y in clean]
    problem = co.Problem(decay, data, scale=0.05)
    level, state = solved(problem, co.Model({"k": 0.5}, None), intervals=8)
    found = co.covariance(level, state)
    pairs = enumerate(data)
    squares = sum(np.sum((state.memory(ts, i)[:, 0] - y) ** 2) for i, (_, y) in pairs)
    np.testing.assert_allclose(found.effective, [21], rtol=1e-9)
    exact = np.sqrt(squares / (100 - 21)) / 0.05
    np.testing.assert_allclose(found.noise, exact, rtol=1e-9)


@pytest.mark.slow
def test_penalized_weights_count_by_as_much_as_the_data_decide():
    """`x' = w_0 + w_1 t + w_2 t^2` from 0: ridge regression, in closed form."""
    ys = np.sin(TS) + 0.1 * np.random.default_rng(0).normal(size=41)
    problem = co.Problem(
        lambda t, x, u, p, nets: (nets[0] + nets[1] * t + nets[2] * t**2)[None],
        (TS, ys),
        scale=0.1,
        initial=co.Initial([0.0]),
        weight_decay=0.5,
    )
    level, state = solved(problem, co.Model({}, jnp.ones(3)), intervals=4)
    found = co.covariance(level, state)
    design = np.stack([TS, TS**2 / 2, TS**3 / 3], 1) / 0.1
    inverse = np.linalg.inv(design.T @ design + 41 * 0.5 * np.eye(3))
    left = ys / 0.1 - design @ inverse @ design.T @ (ys / 0.1)
    effective = np.trace(design @ inverse @ design.T)
    noise = np.sqrt(left @ left / (41 - effective))
    np.testing.assert_allclose(found.effective, [effective], rtol=1e-8)
    np.testing.assert_allclose(found.noise, noise, rtol=1e-8)
    np.testing.assert_allclose(found.model, noise**2 * inverse, rtol=1e-7)


FORMS = {
    "product": (lambda p, x: -p["a"] * p["b"] * x, {"a": 1.0, "b": 1.0}),
    "sum": (lambda p, x: -(p["a"] + p["b"]) * x, {"a": 0.1, "b": 0.1}),
    "rate": (
        lambda p, x: -p["a"] * jnp.exp(-p["b"] / 300) * x,
        {"a": 1.0, "b": 100.0},
    ),
    "unused": (lambda p, x: -p["k"] * x + 0 * p["a"] * p["b"], {"a": 1.0, "b": 2.0}),
}


# The solve warns already; what is asked of its solution is refused.
@pytest.mark.one_case("sum-bounds1")
@pytest.mark.filterwarnings("ignore:the data do not tell")
@pytest.mark.parametrize("bounds", [(-np.inf, np.inf), (0.0, 1e4)])
@pytest.mark.parametrize("form", FORMS)
def test_open_directions_are_named_by_what_they_move(form, bounds):
    field, start = FORMS[form]
    ys = np.exp(-0.5 * TS) + 0.01 * np.random.default_rng(0).normal(size=41)
    problem = co.Problem(
        lambda t, x, u, p, nets: field(p, x), (TS, ys), parameter_bounds=bounds
    )
    with pytest.raises(ValueError, match="open: a, b can move together"):
        co.covariance(*solved(problem, co.Model({**start, "k": 0.4}, None))) if (
            form == "unused"
        ) else co.covariance(*solved(problem, co.Model(start, None)))


@pytest.mark.filterwarnings("ignore:the data do not tell")
def test_a_state_that_no_output_follows_is_named():
    field = lambda t, x, u, p, nets: jnp.stack([-p["k"] * x[0], -x[1]])
    problem = co.Problem(
        field,
        (TS, np.exp(-0.5 * TS)),
        observe=lambda t, x, u, p, nets: x[:1],
        num_states=2,
    )
    level, state = solved(problem, co.Model({"k": 0.4}, None), intervals=8)
    with pytest.raises(ValueError, match="state 1 at the start of trajectory 0"):
        co.covariance(level, state)


def test_a_noise_that_cannot_be_estimated_is_refused():
    problem = co.Problem(decay, (np.array([0.0, 1.0]), np.array([1.0, 0.5])))
    level, state = solved(problem, co.Model({"k": 0.4}, None))
    with pytest.raises(ValueError, match=r"2 samples and the estimate takes 2\.0"):
        co.covariance(level, state)
    assert np.isfinite(co.covariance(level, state, noise=0.1).model).all()


def opposite(t, x, u, p, nets):
    return jnp.stack([-p["k"] * x[0], p["k"] * x[0]])


def drawn(rng):
    clean = np.exp(-0.7 * TS)
    noise = rng.normal(size=(41, 2)) * [0.002, 0.2]
    return np.stack([clean, 1 - clean], 1) + noise


@pytest.mark.slow
def test_outputs_weigh_as_their_noise_does_by_default():
    """The fixed point of weighted least squares, by scipy."""
    ys = drawn(np.random.default_rng(3))
    level, state = solved(
        co.Problem(opposite, (TS, ys)), co.Model({"k": 0.5}, None), intervals=20
    )
    scale = np.asarray(state.memory.scale)
    spread = level.problem.scale
    np.testing.assert_allclose(np.prod(scale / spread), 1, rtol=1e-12)

    def curves(q):
        fast = q[0] * np.exp(-q[2] * TS)
        return np.stack([fast, q[1] + q[0] - fast], 1)

    residuals = lambda q: ((curves(q) - ys) / scale).ravel()
    best = scipy.optimize.least_squares(residuals, [1, 0, 0.6], xtol=1e-14, gtol=1e-14)
    np.testing.assert_allclose(state.model.parameters["k"], best.x[2], rtol=1e-6)
    found = co.covariance(level, state)
    noise = np.sqrt(np.sum((curves(best.x) - ys) ** 2, 0) / (41 - found.effective))
    np.testing.assert_allclose(found.noise * spread, noise, rtol=1e-5)
    assert 1 / 1.5 < (noise[0] / scale[0]) / (noise[1] / scale[1]) < 1.5
    np.testing.assert_allclose(noise, [0.002, 0.2], rtol=0.3)
    np.testing.assert_allclose(found.effective.sum(), 3, rtol=1e-6)


@pytest.mark.slow
def test_bands_of_95_percent_hold_in_92_to_98_percent_of_200_data_sets():
    """Four rates of four outputs of unequal noise: 800 bands."""
    rates, noise = np.array([0.5, 0.7, 1.0, 1.4]), np.array([0.002, 0.01, 0.04, 0.1])
    field = lambda t, x, u, p, nets: -p["k"] * x
    clean = np.exp(-rates * TS[:, None])
    rng, rates_in, ends_in = np.random.default_rng(0), [], []
    for _ in range(200):
        ys = clean + noise * rng.normal(size=clean.shape)
        problem = co.Problem(field, (TS, ys), parameter_bounds=(0.0, 9.0))
        level, state = solved(problem, co.Model({"k": np.ones(4)}, None), intervals=4)
        found = co.covariance(level, state)
        error = np.abs(np.asarray(state.model.parameters["k"]) - rates)
        rates_in.append(error < 1.96 * np.sqrt(np.diag(found.model)))
        error = np.abs(np.asarray(state.memory.positions)[-1] - clean[-1])
        ends_in.append(error < 1.96 * found.states[-1])
    assert 0.92 <= np.mean(rates_in) <= 0.98
    assert 0.92 <= np.mean(ends_in) <= 0.98


@pytest.mark.parametrize("unit", [1.0, 1e7, 1e-7])
def test_a_bound_of_zero_holds_in_any_unit_of_its_parameter(unit):
    """A slope that would be a little below zero: nothing says how large it could be."""
    ts = np.linspace(0, 1, 21)
    ys = 1e-6 * ts + 0.01 * (-1.0) ** np.arange(21)
    ys -= 2e-6 * ts + ts * (ts @ (ys - 1e-6 * ts)) / (ts @ ts)
    law = lambda t, x, u, p, nets: p["c"][None] * unit
    problem = co.Problem(
        law,
        (ts, ys[:, None]),
        initial=co.Initial([0.0]),
        parameter_bounds=(0.0, np.inf),
        scale=1.0,
    )
    model = co.Model({"c": 0.5 / unit}, None)
    found = co.covariance(*solved(problem, model, intervals=2, stages=2))
    assert found.model[0, 0] == 0
