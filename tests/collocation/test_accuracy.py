"""The mesh's own error: estimated, told by name, and made small."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import effgen as eg
from effgen import collocation as co
from effgen.collocation.assessment.switches import switches


KEY = jax.random.key(0)
TS = np.linspace(0, 6, 61)
SWITCH = 2.33


def inhibited(t, x, u, p, nets):
    return -p["a"] * x - jnp.where(t >= SWITCH, p["k"] * x, 0.0)


def response(ts, a=0.1, k=0.6):
    return (3 * np.exp(-a * ts - k * np.maximum(ts - SWITCH, 0)))[:, None]


NOISY = response(TS) + 0.01 * np.random.default_rng(0).normal(size=(61, 1))


@pytest.fixture(scope="module")
def coarse():
    """A law that switches inside of an interval, on a mesh that does not know."""
    with jax.enable_x64(True):
        problem = co.Problem(inhibited, (TS, NOISY))
        level = co.transcribe(problem, intervals=20)
        trainer = co.CollocationTrainer()
        state = trainer.init(co.Model({"a": 0.3, "k": 0.1}, None), level.guess())
        with pytest.warns(eg.RunWarning) as told:
            state, _ = eg.fit(trainer, state, [level], key=KEY)
        return trainer, level, state, str(told[0].message)


def test_a_switch_inside_of_an_interval_is_told_with_its_time(coarse):
    words = coarse[-1]
    assert "the mesh is too coarse" in words
    assert "in trajectory 0 from t = 2.1 to 2.4" in words
    assert "jumps=[2.33]" in words


def test_the_error_is_that_of_a_solver(coarse):
    _, level, state, _ = coarse
    model = {k: float(v) for k, v in state.model.parameters.items()}
    exact = response(TS, **model) * float(state.memory(0.0)[0, 0]) / 3
    error = np.sqrt(np.mean((state.memory(TS) - exact) ** 2)) / NOISY.std()
    np.testing.assert_allclose(co.accuracy(level, state).share, error, rtol=0.5)


def test_refinement_finds_the_switch_and_the_bias_is_gone(coarse):
    trainer, level, state, _ = coarse
    assert abs(float(state.model.parameters["a"]) - 0.1) > 0.005
    state, finer = co.fit_refined(trainer, state, level, key=KEY)
    np.testing.assert_allclose(
        np.min(np.abs(finer.mesh.edges[0] - SWITCH)), 0, atol=1e-9
    )
    assert len(finer.mesh.lengths) < 30
    assert co.accuracy(finer, state).excess <= 1
    np.testing.assert_allclose(state.model.parameters["a"], 0.1, atol=0.004)
    np.testing.assert_allclose(state.model.parameters["k"], 0.6, atol=0.01)


def test_switches_are_found_in_time_and_by_state():
    """A ball on a stiff ground: where it touches, the way of the state tells."""
    law = lambda t, x, u, p, nets: jnp.stack(
        [x[1], -9.81 - jnp.where(x[0] < 0, 2e3 * x[0] + 8 * x[1], 0.0)]
    )
    ts = np.linspace(0, 0.6, 31)
    fall = np.stack([1 - 9.81 * ts**2 / 2, -9.81 * ts], 1)
    problem = co.Problem(law, (ts, fall))
    level = co.transcribe(problem, intervals=4)
    solution = eqx.tree_at(
        lambda s: s.positions,
        level.guess(),
        np.stack([1 - 9.81 * level.mesh.ts**2 / 2, -9.81 * level.mesh.ts], 1),
    )
    found = switches(problem, co.Model({}, None), solution, 0, np.arange(4))
    np.testing.assert_allclose(found.ts, [np.sqrt(2 / 9.81)], rtol=1e-6)
    assert found.timed.tolist() == [False]


@pytest.mark.slow
def test_smooth_laws_on_sound_meshes_are_silent():
    law = lambda t, x: [1.3 * x[0] - 0.9 * x[0] * x[1], 0.8 * x[0] * x[1] - 1.8 * x[1]]
    ts = np.linspace(0, 8, 41)
    clean = solve_ivp(law, (0, 8), [2.0, 1.0], t_eval=ts, rtol=1e-10, atol=1e-10).y.T
    ys = clean * (1 + 0.02 * np.random.default_rng(0).normal(size=clean.shape))
    problem = co.Problem(
        lambda t, x, u, p, nets: jnp.stack(
            [p[0] * x[0] - p[1] * x[0] * x[1], p[2] * x[0] * x[1] - p[3] * x[1]]
        ),
        (ts, ys),
    )
    level = co.transcribe(problem, intervals=13)
    trainer = co.CollocationTrainer()
    state = trainer.init(co.Model(jnp.ones(4), None), level.guess())
    state, _ = eg.fit(trainer, state, [level], key=KEY)
    found = co.accuracy(level, state)
    a, b, c, d = np.asarray(state.model.parameters)
    own = lambda t, x: [a * x[0] - b * x[0] * x[1], c * x[0] * x[1] - d * x[1]]
    start = state.memory(0.0)[0]
    exact = solve_ivp(own, (0, 8), start, t_eval=ts, rtol=1e-10, atol=1e-10).y.T
    error = np.sqrt(np.mean((exact - state.memory(ts)) ** 2, 0)) / problem.spread
    np.testing.assert_allclose(found.share, error, rtol=0.5)
    assert co.refine(level, state).mesh.num_nodes == level.mesh.num_nodes


def test_what_nothing_moves_and_what_the_data_leave_open_are_named():
    ts = np.linspace(0, 3, 13)
    data = (ts, 2 * np.exp(-0.5 * ts))
    compared = lambda t, x, u, p, nets: -p["k"] * x * jnp.where(t > p["on"], 1.0, 0.9)
    twice = lambda t, x, u, p, nets: -p["k"] * p["l"] * x
    trainer = co.CollocationTrainer(tol=1e-6)
    for law, parameters, words in (
        (compared, {"k": 1.0, "on": -1.0}, "no output has a derivative by on: they"),
        (twice, {"k": 1.0, "l": 1.0}, "the data do not tell k, l"),
    ):
        level = co.transcribe(co.Problem(law, data))
        state = trainer.init(co.Model(parameters, None), level.guess())
        with pytest.warns(eg.RunWarning, match=words):
            eg.fit(trainer, state, [level], key=KEY)


def test_a_pulse_between_nodes_is_told_and_refined_to():
    """`dx/dt = -k x + u`, `u` a triangle of area one and width .02 between samples."""
    k, at, width, ts = 0.5, 4.21, 0.02, np.linspace(0, 10, 21)
    pulse = lambda t: 2 / width * np.maximum(0, 1 - np.abs(2 * (t - at) / width - 1))
    fine = np.linspace(at, at + width, 4_001)
    area = np.trapezoid(pulse(fine) * np.exp(-k * (at + width - fine)), fine)
    late = np.where(ts > at, area * np.exp(-k * (ts - at - width)), 0)
    noise = 0.01 * np.random.default_rng(0).normal(size=21)
    every = np.unique([*ts, at, at + width / 2, at + width])
    ys = np.full((len(every), 1), np.nan)
    ys[np.isin(every, ts), 0] = np.exp(-k * ts) + late + noise
    data = co.Trajectory(every, ys, pulse(every)[:, None], hold="linear")
    problem = co.Problem(lambda t, x, u, p, nets: -p["k"] * x + u[:1], data)
    level = co.transcribe(problem, intervals=20)
    trainer = co.CollocationTrainer()
    state = trainer.init(co.Model({"k": 0.4}, None), level.guess())
    with pytest.warns(eg.RunWarning, match="the mesh is too coarse"):
        state, _ = eg.fit(trainer, state, [level], key=KEY)
    assert co.accuracy(level, state).ratio[0] > 1
    state, _ = co.fit_refined(trainer, state, level, key=KEY)
    np.testing.assert_allclose(state.model.parameters["k"], k, atol=0.01)


def test_an_input_that_is_a_fast_function_refuses_no_fit():
    ts = np.linspace(0, 1, 21)
    fast = lambda t: np.array([np.sin(3e5 * float(t))])
    data = co.Trajectory(ts, np.exp(-ts)[:, None], fast)
    law = lambda t, x, u, p, nets: -p["k"] * x + 1e-3 * u[:1]
    problem = co.Problem(law, data, scale=0.01)
    level = co.transcribe(problem, intervals=10)
    trainer = co.CollocationTrainer()
    state = trainer.init(co.Model({"k": 0.4}, None), level.guess())
    with pytest.warns(eg.RunWarning, match="the mesh is too coarse"):
        state, _ = eg.fit(trainer, state, [level], key=KEY)
    np.testing.assert_allclose(state.model.parameters["k"], 1, atol=1e-3)
    assert np.isfinite(co.accuracy(level, state).ratio).all()


def test_algebraic_states_between_nodes_have_their_error():
    """`0 = z - x sin(6 t)` at samples that are no nodes: the error is known exactly."""
    rng, k = np.random.default_rng(1), 0.2
    ts = np.sort(rng.uniform(0, 10, 80))
    ys = (2 * np.exp(-k * ts) * np.sin(6 * ts) + 0.01 * rng.normal(size=80))[:, None]

    def law(t, x, u, p, nets):
        return jnp.stack([-p["k"] * x[0], x[1] - x[0] * jnp.sin(6 * t)])

    seen = lambda t, x, u, p, nets: x[1:]
    problem = co.Problem(law, (ts, ys), observe=seen, num_states=2, num_algebraic=1)
    level = co.transcribe(problem, intervals=16)
    trainer = co.CollocationTrainer()
    state = trainer.init(co.Model({"k": 0.3}, None), level.guess())
    with pytest.warns(eg.RunWarning, match="the mesh is too coarse"):
        state, _ = eg.fit(trainer, state, [level], key=KEY)
    x = np.asarray(state.memory(ts))
    error, residual = x[:, 1] - x[:, 0] * np.sin(6 * ts), x[:, 1] - ys[:, 0]
    wanted = np.sqrt(np.mean(error**2) / np.mean(residual**2))
    np.testing.assert_allclose(co.accuracy(level, state).ratio, [wanted], rtol=1e-2)
    refined, finer = co.fit_refined(trainer, state, level, key=KEY)
    assert len(finer.mesh.edges[0]) > 2 * len(level.mesh.edges[0])
    np.testing.assert_allclose(refined.model.parameters["k"], k, atol=0.003)


@pytest.mark.parametrize("algebraic", [0, 1])
def test_small_states_are_integrated_as_well_as_large_ones(algebraic):
    """A damped oscillation by `observe`, in units of one and of a millionth."""
    ts, found = np.linspace(0, 20, 5), []
    for size in (1.0, 1e-6):

        def law(t, x, u, p, nets):
            slopes = jnp.stack([x[1], -4 * x[0] - 0.1 * x[1]])
            return jnp.concatenate([slopes, x[2:] - x[:1]]) if algebraic else slopes

        seen = lambda t, x, u, p, nets, size=size: x[:1] / size
        ys = np.zeros((5, 1))
        problem = co.Problem(
            law,
            (ts, ys),
            observe=seen,
            num_states=2 + algebraic,
            num_algebraic=algebraic,
        )
        start = size * np.array([1.0, 0.0, 1.0][: 2 + algebraic])
        model = co.Model({}, None)
        found.append(np.asarray(co.simulate(problem, model, start, ts)) / size)
        if not algebraic:
            same = co.integrate(problem, model, start, ts)
            np.testing.assert_allclose(same / size, found[-1], atol=1e-6)
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)
    turn = np.sqrt(4 - 0.05**2)
    exact = np.exp(-0.05 * ts) * (np.cos(turn * ts) + 0.05 / turn * np.sin(turn * ts))
    np.testing.assert_allclose(found[0][:, 0], exact, atol=1e-5)


def test_a_problem_with_a_switch_has_the_law_in_time():
    def law(t, x, u, p, nets):
        return jnp.where(t < p["s"], p["a"], p["b"])[None]

    ys = np.zeros((26, 1))
    switch = co.Switch(lambda p: p["s"], near=2.25)
    problem = co.Problem(law, (np.linspace(0, 5, 26), ys), switches=[switch])
    p = {"a": 1.0, "b": -0.5, "s": 2.294}
    for t in (2.1, 2.22, 2.29, 2.3, 2.39, 2.5):
        found = problem.vector_field(jnp.asarray(t), jnp.ones(1), None, p, None)
        np.testing.assert_array_equal(found, law(t, None, None, p, None))
