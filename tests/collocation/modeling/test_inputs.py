"""Inputs that jump: limits from both sides, edges at jumps, the order that is kept."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import effgen as eg
from effgen import collocation as co
from effgen.collocation.modeling.inputs import inputs_at, jumps, knots


KEY = jax.random.key(0)
TS = np.linspace(0, 4, 41)
ON = (TS >= 1 - 1e-9) & (TS < 2 - 1e-9)


def exact(t):
    """`x' = u - x` from 0, `u` one on [1, 2) and zero else."""
    up, top = 1 - np.exp(-(t - 1)), 1 - np.exp(-1)
    return np.where(t < 1, 0, np.where(t < 2, up, top * np.exp(-(t - 2))))[:, None]


def driven(t, x, u, p, nets):
    return p["g"] * u - x


def gain(problem, intervals, stages=4):
    trainer = co.CollocationTrainer(tol=1e-11)
    level = co.transcribe(problem, intervals=intervals, stages=stages)
    state = trainer.init(co.Model({"g": 0.5}, None), level.guess())
    state, _ = eg.fit(trainer, state, [level], key=KEY)
    return level, state


def pulse(t):
    return np.where((t >= 1) & (t < 2), 1.0, 0.0)[None]


def traced(t):
    return jnp.where((t > 1) & (t <= 2), 1.0, 0.0)[None]


def twice():
    ts = np.sort(np.concatenate([TS, [1.0, 2.0]]))
    on = (ts >= 1) & (ts <= 2)
    on[[np.flatnonzero(ts == 1)[0], np.flatnonzero(ts == 2)[1]]] = False
    return co.Trajectory(ts, exact(ts), on * 1.0)


KINDS = {
    "function of numpy": lambda: co.Trajectory(TS, exact(TS), pulse),
    "function of jax": lambda: co.Trajectory(TS, exact(TS), traced),
    "held": lambda: co.Trajectory(TS, exact(TS), ON * 1.0, hold="previous"),
    "twice": twice,
}


@pytest.mark.one_case("held-40")
@pytest.mark.parametrize("intervals", [7, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_a_pulse_has_its_exact_response(kind, intervals):
    level, state = gain(co.Problem(driven, KINDS[kind]()), intervals)
    np.testing.assert_allclose(jumps(level.problem.data[0]), [1, 2], rtol=1e-9)
    assert np.isin(jumps(level.problem.data[0]), level.mesh.edges[0]).all()
    rtol = 1e-5 if intervals == 7 else 1e-9
    np.testing.assert_allclose(state.model.parameters["g"], 1, rtol=rtol)


def test_hold_of_the_problem_is_that_of_all_trajectories():
    problem = co.Problem(driven, (TS, exact(TS), ON * 1.0), hold="previous")
    assert problem.data[0].hold == "previous"
    _, state = gain(problem, 40)
    np.testing.assert_allclose(state.model.parameters["g"], 1, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the mesh is too coarse")
def test_the_order_is_kept_across_jumps():
    """Two stages: order three at the ends."""
    errors = []
    for intervals in (8, 16, 32):
        bounds = ({"g": 1.0}, {"g": 1.0})
        problem = co.Problem(
            driven,
            KINDS["function of numpy"](),
            parameter_bounds=bounds,
            initial=co.Initial([0.0]),
        )
        level, state = gain(problem, intervals, stages=2)
        error = np.asarray(state.memory.positions)[:: level.mesh.stages]
        errors.append(np.abs(error - exact(level.mesh.edges[0])).max())
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert np.all(orders > 2.8)


def test_limits_differ_at_jumps_and_nowhere_else():
    for kind in KINDS:
        trajectory = co.Problem(driven, KINDS[kind]()).data[0]
        at = np.array([0.5, 1.0, 1.5, 2.0, 3.0])
        left, right = (inputs_at(trajectory, at, s)[:, 0] for s in ("left", "right"))
        np.testing.assert_array_equal(left, [0, 0, 1, 1, 0])
        np.testing.assert_array_equal(right, [0, 1, 1, 0, 0])
        times, values = knots(trajectory)
        np.testing.assert_allclose(np.interp(1.5, times, values[:, 0]), 1)


def test_smooth_inputs_have_no_jumps_however_steep():
    for function in (np.sin, lambda t: np.tanh(1e4 * (t - 1.234)), np.abs):
        trajectory = co.Trajectory(TS, exact(TS), lambda t, f=function: f(t)[None])
        assert len(jumps(co.Problem(driven, trajectory).data[0])) == 0


@pytest.mark.slow
def test_a_law_that_switches_at_a_time_is_exact_with_its_jump_named():
    """An inhibitor from 2.05 on, which is no edge of the mesh."""
    law = lambda t, x, u, p, nets: -p["a"] * x - jnp.where(t >= 2.05, p["k"] * x, 0.0)
    ts = np.linspace(0, 6, 61)
    ys = 3 * np.exp(-0.1 * ts - 0.6 * np.maximum(ts - 2.05, 0))
    problem = co.Problem(law, co.Trajectory(ts, ys, jumps=[2.05]))
    level = co.transcribe(problem, intervals=40, stages=4)
    trainer = co.CollocationTrainer(tol=1e-11)
    state = trainer.init(co.Model({"a": 0.3, "k": 0.1}, None), level.guess())
    state, _ = eg.fit(trainer, state, [level], key=KEY)
    np.testing.assert_allclose(state.model.parameters["a"], 0.1, rtol=1e-8)
    np.testing.assert_allclose(state.model.parameters["k"], 0.6, rtol=1e-8)


RATE = 0.8


def pumped(ts):
    """Return `x` and `y` of `x' = -y`, `0 = y - RATE x - u`, at jumps of before."""
    fall = lambda t: np.exp(-RATE * t)
    top = (fall(1) + 1 / RATE) * fall(1) - 1 / RATE
    during = (fall(1) + 1 / RATE) * fall(ts - 1) - 1 / RATE
    x = np.where(ts <= 1, fall(ts), np.where(ts <= 2, during, top * fall(ts - 2)))
    return np.stack([x, RATE * x + ((ts > 1) & (ts <= 2))], 1)


def test_algebraic_outputs_after_a_jump_are_exact():
    """The output is the state that jumps, at samples between nodes."""

    def law(t, x, u, p, nets):
        return jnp.stack([-x[1], x[1] - p["g"] * x[0] - u[0]])

    problem = co.Problem(
        law,
        co.Trajectory(TS, pumped(TS)[:, 1], pulse),
        observe=lambda t, x, u, p, nets: x[1:],
        num_states=2,
        num_algebraic=1,
        # From 0.5 and unbounded, rounding decides whether Ipopt goes to a rate of zero,
        # where `x` grows without end: a local minimum at a loss of 0.25.
        parameter_bounds=(0.05, 20.0),
    )
    level = co.transcribe(problem, intervals=5, stages=5)
    after = (TS > 1.01) & (TS < 1.55)
    assert np.isin(TS[after], level.mesh.edges[0]).all()
    model = co.Model({"g": 0.5}, None)
    trainer = co.CollocationTrainer(tol=1e-11)
    state = trainer.init(model, level.guess(model))
    state, history = eg.fit(trainer, state, [level], key=KEY)
    assert history["status"][-1] == 0
    np.testing.assert_allclose(state.model.parameters["g"], RATE, rtol=1e-6)
    at = np.linspace(0, 4, 501)
    np.testing.assert_allclose(state.memory(at), pumped(at), atol=1e-5)


def test_steps_that_would_be_ramps_are_refused():
    with pytest.raises(ValueError, match="input 0 of trajectory 0 moves in steps"):
        co.Problem(driven, (TS, exact(TS), ON * 1.0))
    co.Problem(driven, (TS, exact(TS), ON * 1.0), hold="linear")
    co.Problem(driven, (TS, exact(TS), np.maximum(TS - 2, 0)))
    with pytest.raises(ValueError, match="`hold` of trajectory 0 is 'next'"):
        co.Problem(driven, (TS, exact(TS), ON * 1.0), hold="next")


def test_jumps_outside_of_the_span_are_refused_by_name():
    early = co.Trajectory(TS, exact(TS), jumps=[-0.5, 1.0])
    with pytest.raises(ValueError, match=r"`jumps` of trajectory 0 has t = -0\.5"):
        co.Problem(driven, early)
    late = co.Trajectory(TS, exact(TS), jumps=[1.0, 4.5])
    with pytest.raises(ValueError, match=r"t = 4\.5, outside of its span from 0 to 4"):
        co.Problem(driven, late)
    ends = co.Problem(driven, co.Trajectory(TS, exact(TS), jumps=[0.0, 4.0]))
    assert len(jumps(ends.data[0])) == 0
    longer = co.Problem(driven, late._replace(span=(0.0, 5.0)))
    np.testing.assert_array_equal(jumps(longer.data[0]), [1.0, 4.5])
    window = co.windows(longer, (0.5, 1.0))[0]
    np.testing.assert_array_equal(window.data[0].jumps, [1.0])
    co.Problem(driven, window.data)  # of which all jumps are in the span


def test_a_hold_of_inputs_that_are_functions_is_refused():
    own = co.Trajectory(TS, exact(TS), pulse, hold="previous")
    with pytest.raises(ValueError, match="`hold` of trajectory 0 is 'previous' and"):
        co.Problem(driven, own)
    with pytest.raises(ValueError, match="`hold` is 'linear' and all `inputs` are"):
        co.Problem(driven, (TS, exact(TS), pulse), hold="linear")
    both = [(TS, exact(TS), pulse), (TS, exact(TS), ON * 1.0)]
    problem = co.Problem(driven, both, hold="previous")
    assert [t.hold for t in problem.data] == [None, "previous"]
    again = co.Problem(driven, co.numbered(both, hold="previous"))
    assert [t.hold for t in again.data] == [None, "previous"]


def test_simulations_take_functions_of_numpy_and_held_samples():
    for kind in ("function of numpy", "held"):
        problem = co.Problem(driven, KINDS[kind](), initial=co.Initial([0.0]))
        _, state = gain(problem, 40)
        found = co.extrapolation(
            problem, state.model, state.memory, solver=diffrax.Tsit5()
        )
        assert found.errors[0, 0] < 1e-3


@pytest.mark.slow
def test_a_simulation_from_rest_does_not_pass_over_a_pulse():
    problem = co.Problem(driven, KINDS["held"]())
    model = co.Model({"g": 1.0}, None)
    found = co.simulate(problem, model, np.zeros(1), TS, traced)
    np.testing.assert_allclose(found, exact(TS), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_simulation_takes_the_inputs_of_a_trajectory(kind):
    given = KINDS[kind]()
    problem, model = co.Problem(driven, given), co.Model({"g": 1.0}, None)
    ts = np.array([0.0, 0.95, 1.0, 1.05, 2.0, 3.3])  # an end at a jump, and none
    found = co.simulate(problem, model, np.zeros(1), ts, given)
    np.testing.assert_allclose(found, exact(ts), atol=1e-7)
    with pytest.raises(ValueError, match=r"known from t = 0 to 4, and .* to 4\.5"):
        co.simulate(problem, model, np.zeros(1), [0.0, 4.5], given)


def test_an_algebraic_simulation_ends_at_a_jump_with_the_limit_from_the_left():
    field = lambda t, x, u, p, nets: jnp.stack([x[1] - x[0], x[1] - p["g"] * u[0]])
    given = KINDS["held"]()
    ys = np.concatenate([exact(TS), ON[:, None] * 1.0], axis=1)
    given = given._replace(ys=ys)
    problem = co.Problem(field, given, num_algebraic=1)
    model = co.Model({"g": 1.0}, None)
    ts = np.array([0.0, 0.3, 1.0, 1.7, 2.0, 4.0])
    found = co.simulate(problem, model, np.zeros(2), ts, given)
    np.testing.assert_allclose(found[:, :1], exact(ts), atol=1e-8)
    np.testing.assert_allclose(found[:, 1], [0, 0, 0, 1, 1, 0], atol=1e-12)


def test_inputs_that_are_missing_or_more_than_the_data_have_are_refused():
    problem, model = co.Problem(driven, KINDS["held"]()), co.Model({"g": 1.0}, None)
    for verb in (co.simulate, co.integrate):
        with pytest.raises(ValueError, match="`inputs` is missing, and the data have"):
            verb(problem, model, np.zeros(1), TS)
        with pytest.raises(ValueError, match="has 2 values for each time"):
            verb(problem, model, np.zeros(1), TS, lambda t: jnp.ones(2) * t)
    bare = co.Trajectory(TS, exact(TS))
    dosed = KINDS["held"]()._replace(doses=[(1.0, [1.0])])
    with pytest.raises(ValueError, match="with doses, which are no inputs"):
        co.simulate(problem, model, np.zeros(1), TS, dosed)
    with pytest.raises(ValueError, match="`inputs` is missing"):
        co.simulate(problem, model, np.zeros(1), TS, bare)
    with pytest.raises(ValueError, match=r"has 1 values .* the data have 0"):
        co.simulate(co.Problem(driven, bare), model, np.zeros(1), TS, traced)


def test_a_long_record_of_held_inputs_is_simulated_to_its_end():
    """Steps end at each of 3,000 jumps, so there are more than a solver's own."""
    days = np.arange(3_001.0)
    u = np.random.default_rng(0).gamma(0.5, size=len(days))
    given = co.Trajectory(days, np.ones((len(days), 1)), u, hold="previous")
    law = lambda t, x, u, p, nets: p["g"] * (u - x)
    found = co.simulate(
        co.Problem(law, given), co.Model({"g": 2.0}, None), [0.0], days, given
    )
    ends, decay = [0.0], np.exp(-2.0)
    for value in u[:-1]:
        ends.append(value + (ends[-1] - value) * decay)
    np.testing.assert_allclose(found[:, 0], ends, atol=1e-6)


def test_a_simulation_continues_samples_as_the_data_do():
    ts = np.arange(11.0)
    u = np.random.default_rng(0).normal(size=(11, 1))
    ys = np.concatenate([[0], np.cumsum(u[:-1, 0])])[:, None]
    problem = co.Problem(lambda t, x, u, p, nets: u, (ts, ys, u), hold="previous")
    given = co.Trajectory(ts, np.full((11, 1), np.nan), u)
    found = co.simulate(problem, co.Model({}, None), [0.0], ts, given)
    np.testing.assert_allclose(found, ys, atol=1e-7)
    linear = given._replace(hold="linear")
    found = co.simulate(problem, co.Model({}, None), [0.0], ts, linear)[-1, 0]
    np.testing.assert_allclose(found, np.trapezoid(u[:, 0], ts), atol=1e-7)
    with pytest.raises(TypeError, match="is a `Trajectory`: `simulate` takes it"):
        co.integrate(problem, co.Model({}, None), [0.0], ts, given)


def test_inputs_that_move_faster_than_a_grid_are_resolved_or_refused():
    fast = lambda t: np.array([np.sin(2 * np.pi * 50 * np.asarray(t)) ** 2])
    ts = np.linspace(0, 2, 201)
    given = co.Trajectory(ts, (ts / 2)[:, None], fast)
    problem = co.Problem(lambda t, x, u, p, nets: u, given)
    model = co.Model({}, None)
    found = co.simulate(problem, model, [0.0], ts, given)[-1, 0]
    np.testing.assert_allclose(found, 1, rtol=3e-3)  # half of 2 units of time
    _, values = knots(problem.data[0])
    assert values.max() > 0.98
    level = co.transcribe(problem, intervals=10)
    states = co.extrapolation(problem, model, level.guess()).states[0]
    np.testing.assert_allclose(states[-1, 0], 1, rtol=1e-2)
    faster = given._replace(inputs=lambda t: fast(np.asarray(t) * 1e4))
    with pytest.raises(ValueError, match="pass samples at the times where it turns"):
        co.simulate(problem, model, [0.0], ts, faster)


def test_windows_keep_holds_and_jumps():
    problem = co.Problem(driven, KINDS["held"]())
    first = co.windows(problem, (0.5, 1.0))[0].data[0]
    assert first.hold == "previous"
    np.testing.assert_allclose(jumps(first), [1.0], rtol=1e-9)


@pytest.mark.parametrize("end", [2.5, 2.0 + 1e-3])
def test_the_last_held_sample_holds_to_the_end_of_the_span(end):
    """It ramped from the one before, over one unit of time."""
    ts, inputs = np.linspace(0, 2, 21), np.zeros(21)
    inputs[-1] = 1.0
    trajectory = co.Trajectory(ts, ts, inputs, span=(0, end), hold="previous")
    problem = co.Problem(lambda t, x, u, p, nets: u, trajectory, scale=1.0)
    after = 2 + (end - 2) * np.array([1e-3, 0.5, 1.0])
    for side in ("left", "right"):
        np.testing.assert_array_equal(inputs_at(problem.data[0], after, side), 1.0)
    found = inputs_at(problem.data[0], np.array([2.0]), "right")
    np.testing.assert_array_equal(found, 1.0)
    assert inputs_at(problem.data[0], np.array([2.0]), "left") == 0


def test_a_function_of_unix_times_jumps():
    """A part of the span was below the rounding of such times."""
    start = 1.7e9
    shifted = lambda t: pulse(t - start)
    trajectory = co.Trajectory(start + TS, TS, shifted)
    problem = co.Problem(driven, trajectory, scale=1.0)
    at = start + np.array([1.0, 2.0])
    before, after = (inputs_at(problem.data[0], at, s) for s in ("left", "right"))
    np.testing.assert_array_equal(before[:, 0], [0, 1])
    np.testing.assert_array_equal(after[:, 0], [1, 0])
