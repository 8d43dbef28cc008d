"""Phases and switches at unknown times against closed forms."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import effgen as eg
from effgen import collocation as co


KEY = jax.random.key(0)
GRAVITY, RESTITUTION, RATE, LATER, ON = 9.81, 0.8, 0.1, 0.6, 2.13
TS = np.linspace(0, 6, 31)


def fall(t, x, u, p, nets):
    return jnp.stack([x[1], -p["g"]])


def decay(t, x, u, p, nets):
    return -p["a"] * x - jnp.where(t > p["on"], p["k"] * x, 0.0)


contact = co.LinkConstraint(
    lambda end, start, p, nets: jnp.stack(
        [end[0], start[0], start[1] + p["e"] * end[1]]
    ),
    0.0,
    0.0,
    "contact",
)


def bounces():
    """Return a ball's fall from 1 m, two bounces, and their times."""
    first = np.sqrt(2 / GRAVITY)
    up = RESTITUTION * GRAVITY * first
    times = np.array([first, first + 2 * up / GRAVITY])
    ts = np.linspace(0, 1.5, 31)
    since = ts - np.where(ts > times[1], times[1], np.where(ts > first, first, 0.0))
    speed = np.where(ts > times[1], RESTITUTION * up, np.where(ts > first, up, 0.0))
    height = np.where(ts > first, 0.0, 1.0) + speed * since - GRAVITY * since**2 / 2
    return ts, np.stack([height, speed - GRAVITY * since], 1), times


def phases(near):
    ts, ys, _ = bounces()
    cut = np.searchsorted(ts, near)
    spans = [(0.0, near[0]), (near[0], near[1]), (near[1], 1.5)]
    parts = zip(np.split(ts, cut), np.split(ys, cut), spans, strict=True)
    return [
        co.Trajectory(t, y, span=span, follows=i > 0)
        for i, (t, y, span) in enumerate(parts)
    ]


def solved(problem, parameters, **mesh):
    level = co.transcribe(problem, **mesh)
    trainer = co.CollocationTrainer(tol=1e-12)
    state = trainer.init(co.Model(parameters, None), level.guess())
    return eg.fit(trainer, state, [level], key=KEY)


def test_a_bouncing_ball_tells_its_contacts():
    near = (0.46, 1.18)
    switches = [co.Switch(lambda p, i=i: p["t"][i], near[i]) for i in (0, 1)]
    problem = co.Problem(fall, phases(near), constraints=[contact], switches=switches)
    state, history = solved(
        problem, {"g": 9.0, "e": 0.6, "t": np.array(near)}, intervals=6
    )
    found = state.model.parameters
    assert history["status"][-1] == 0
    np.testing.assert_allclose(found["g"], GRAVITY, atol=1e-8)
    np.testing.assert_allclose(found["e"], RESTITUTION, atol=1e-8)
    np.testing.assert_allclose(found["t"], bounces()[2], atol=1e-8)
    # Each phase ends where its contact is, not where that stands on the mesh.
    first, _ = np.asarray(found["t"])
    speed = GRAVITY * first
    np.testing.assert_allclose(state.memory(first), [[0, -speed]], atol=1e-7)
    after = state.memory(first, 1)
    np.testing.assert_allclose(after, [[0, RESTITUTION * speed]], atol=1e-7)
    for i in (0, 1):
        slopes = state.memory.derivative(first, i)
        wanted = state.memory(first, i)[0, 1]
        np.testing.assert_allclose(slopes, [[wanted, -GRAVITY]], atol=1e-6)
    for call in (state.memory, state.memory.derivative):
        with pytest.raises(
            ValueError, match=r"leaves the trajectory, from 0.0 to 0.45"
        ):
            call(0.46)
        with pytest.raises(ValueError, match="leaves the trajectory"):
            call(-0.1)


def switching(near):
    ys = 3 * np.exp(-RATE * TS - LATER * np.maximum(TS - ON, 0))
    switch = co.Switch(lambda p: p["on"], near)
    problem = co.Problem(decay, (TS, ys), switches=[switch])
    return solved(problem, {"a": 0.3, "k": 0.1, "on": near}, intervals=10, stages=5)


def test_a_switch_time_is_found():
    state, history = switching(2.1)
    found = state.model.parameters
    assert history["status"][-1] == 0
    wanted = {"a": RATE, "k": LATER, "on": ON}
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, atol=1e-8)
    ts = np.concatenate([np.linspace(0, 6, 601), state.memory.nodes()])
    exact = 3 * np.exp(-RATE * ts - LATER * np.maximum(ts - ON, 0))
    np.testing.assert_allclose(state.memory(ts)[:, 0], exact, atol=1e-6)
    ts = ts[np.abs(ts - ON) > 1e-6]
    exact = 3 * np.exp(-RATE * ts - LATER * np.maximum(ts - ON, 0))
    slopes = -(RATE + LATER * (ts > ON)) * exact
    np.testing.assert_allclose(state.memory.derivative(ts)[:, 0], slopes, atol=1e-4)
    problem = co.Problem(decay, (TS, TS), switches=[co.Switch(lambda p: p["on"], 2.1)])
    found = co.residuals(problem, state.model, state.memory, ts)
    np.testing.assert_allclose(found, 0, atol=1e-4)
    mesh = co.transcribe(problem, intervals=10, stages=5).mesh
    rows = co.slopes_of(state.memory, mesh)
    given = (state.model.parameters, None)
    law = jax.vmap(lambda t, x, u: decay(t, x, u, *given))
    wanted = law(rows.ts, rows.states, rows.inputs)
    np.testing.assert_allclose(rows.slopes, wanted, atol=1e-4)
    assert np.any((rows.ts > 2.1) & (rows.ts < ON))  # between the samples as well
    with pytest.raises(ValueError, match="`solution` is of another mesh"):
        co.slopes_of(state.memory, co.transcribe(problem, intervals=9).mesh)


def test_simulations_across_a_switch_are_in_time():
    switch = co.Switch(lambda p: p["on"], 2.1)
    problem = co.Problem(decay, (TS, TS), switches=[switch])
    model = co.Model({"a": RATE, "k": LATER, "on": jnp.asarray(ON)}, None)
    ts = np.array([0.0, 1.0, 2.05, ON, 2.19, 3.0])
    exact = 3 * np.exp(-RATE * ts - LATER * np.maximum(ts - ON, 0))
    found = co.simulate(problem, model, [3.0], ts)
    np.testing.assert_allclose(found[:, 0], exact, rtol=1e-7)
    late = co.Model({"a": RATE, "k": LATER, "on": jnp.asarray(2.9)}, None)
    found = co.simulate(problem, late, [3.0], ts)[-1, 0]
    np.testing.assert_allclose(found, 3 * np.exp(-3 * RATE - 0.1 * LATER), rtol=1e-7)

    def ahead(on):
        moved = co.Model({"a": RATE, "k": LATER, "on": on}, None)
        how = dict(adjoint=diffrax.ForwardMode())
        return co.integrate(problem, moved, [3.0], ts, **how)[:, 0]

    value, slope = jax.jvp(ahead, (jnp.asarray(ON),), (jnp.ones(()),))
    np.testing.assert_allclose(value, exact, rtol=1e-7)
    np.testing.assert_allclose(slope[ts < ON], 0, atol=1e-6)
    np.testing.assert_allclose(slope[ts > ON], (LATER * exact)[ts > ON], rtol=1e-5)
    assert np.all(np.isnan(co.integrate(problem, late, [3.0], ts)))


def test_what_would_part_phases_is_refused():
    data = phases((0.46, 1.18))
    problem = co.Problem(fall, data, constraints=[contact])
    model = co.Model({"g": GRAVITY, "e": RESTITUTION}, None)
    with pytest.raises(ValueError, match=r"both sides of t = 0.46, where trajectory 1"):
        co.simulate(problem, model, [1.0, 0.0], [0.0, 1.0])
    with pytest.raises(ValueError, match="`follows=True`: a window of"):
        co.windows(problem)
    for parts in ([0], [1], [2, 1], [0, 2]):
        with pytest.raises(ValueError, match="which `indices` part"):
            co.held_out(problem, parts)
    both = co.Problem(fall, [*data[:2], *data[:2]], constraints=[contact])
    rest, out = co.held_out(both, [2, 3])
    assert [t.follows for t in rest.data] == [t.follows for t in out.data]
    free = co.Problem(fall, [*data[:2], data[0]], constraints=[contact])
    assert co.held_out(free, [2])[1].constraints == ()


def test_what_is_known_of_the_start_is_not_of_where_phases_begin():
    given = {"constraints": [contact], "initial": co.Initial([1.0, 0.0], 0.1)}
    problem = co.Problem(fall, phases((0.46, 1.18)), **given)
    wanted = [[1.0, 0.0], [np.nan, np.nan], [np.nan, np.nan]]
    np.testing.assert_array_equal(problem.initial.values, wanted)
    of_all = co.Initial(np.zeros((3, 2)))
    given["initial"] = of_all
    problem = co.Problem(fall, phases((0.46, 1.18)), **given)
    np.testing.assert_array_equal(problem.initial.values, of_all.values)


def test_a_switch_that_a_sample_holds_back_is_told():
    with pytest.warns(eg.RunWarning, match="ended at the sample"):
        switching(2.5)


def test_switches_of_no_time_are_refused_by_name():
    for time, error, message in (
        (lambda p: p["off"], TypeError, "switch near 2.1 asks for 'off'"),
        (lambda p: jnp.ones(2), ValueError, r"switch near 2.1 returns shape \(2,\)"),
    ):
        problem = co.Problem(decay, (TS, TS), switches=[co.Switch(time, 2.1)])
        with pytest.raises(error, match=message):
            solved(problem, {"a": 0.3, "k": 0.1, "on": 2.1}, intervals=2)
    with pytest.raises(ValueError, match="`switches` has"):
        co.Problem(decay, (TS, TS), switches=co.Switch(lambda p: p["on"], 2.1))


def test_phases_that_cannot_be():
    data = phases((0.46, 1.18))
    with pytest.raises(ValueError, match="has no `LinkConstraint`"):
        co.Problem(fall, data)
    with pytest.raises(ValueError, match="trajectory 0 has `follows=True`"):
        co.Problem(fall, data[1:], constraints=[contact])
    with pytest.raises(ValueError, match="0 trajectories have `follows=True`"):
        co.Problem(fall, data[:1], constraints=[contact])
    apart = [data[0], data[1]._replace(span=(0.47, 1.18))]
    with pytest.raises(ValueError, match="follows one that ends"):
        co.Problem(fall, apart, constraints=[contact])
    at = lambda *near: [co.Switch(lambda p: p["on"], n) for n in near]
    for near, message in (
        ((2.4,), "is at a sample"),
        ((7.0,), "no trajectory goes on"),
        ((2.5, 2.55), "do not tell them apart"),
    ):
        with pytest.raises(ValueError, match=message):
            co.Problem(decay, (TS, TS), switches=at(*near))
    with pytest.raises(ValueError, match="input or a dose changes"):
        co.Problem(decay, (TS, TS, np.sin(TS)), switches=at(2.5))
