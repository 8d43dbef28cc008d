"""A stiff contact as phases: smooth in all unknowns, as `where` of states is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

import effgen as eg
from effgen import collocation as co


STIFFNESS, DAMPING, LAST = 2_000.0, 8.0, 1.0


def fallen(ts):
    """Return height and speed of a mass that falls on a spring, and its contacts."""
    laws = (
        lambda t, x: [x[1], -9.81],
        lambda t, x: [x[1], -9.81 - STIFFNESS * x[0] - DAMPING * x[1]],
    )
    states, times = np.zeros((len(ts), 2)), []
    t, x, inside = 0.0, [1.0, 0.0], False
    while t < LAST:

        def touch(s, y, first=t, sign=-1 if inside else 1):
            return y[0] if s > first + 1e-6 else sign * 1e-3

        touch.terminal, touch.direction = True, 1 if inside else -1
        how = dict(events=touch, rtol=1e-11, atol=1e-12, dense_output=True)
        found = scipy.integrate.solve_ivp(laws[inside], (t, LAST), x, **how)
        mine = (ts >= t) & (ts <= found.t[-1])
        states[mine] = found.sol(ts[mine]).T
        t, x, inside = found.t[-1], [0.0, found.y[1, -1]], not inside
        times += [t] if t < LAST else []
    return states, np.array(times)


def pressed(num):
    """Return the law by time: a spring acts between each contact and its end."""

    def law(t, x, u, p, nets):
        before = [t > p["t"][i] for i in range(num)]
        on = sum(jnp.where(b, (-1.0) ** i, 0.0) for i, b in enumerate(before))
        spring = 1e3 * p["k"] * x[0] + p["c"] * x[1]
        return jnp.stack([x[1], -9.81 - on * spring])

    return law


@pytest.mark.slow
def test_the_spring_of_a_contact_is_found_with_the_times_that_it_acts():
    ts = np.linspace(0, LAST, 41)
    ys, times = fallen(ts)
    assert len(times) >= 2
    near = [(ts[ts < t].max() + ts[ts > t].min()) / 2 for t in times]
    cut, ends = np.searchsorted(ts, near), [0.0, *near, LAST]
    parts = zip(np.split(ts, cut), np.split(ys, cut), ends[:-1], ends[1:], strict=True)
    data = [
        co.Trajectory(t, y, span=(first, last), follows=i > 0)
        for i, (t, y, first, last) in enumerate(parts)
    ]
    link = co.LinkConstraint(
        lambda end, start, p, nets: jnp.stack([end[0], start[0], start[1] - end[1]]),
        0.0,
        0.0,
        "contact",
    )
    switches = [co.Switch(lambda p, i=i: p["t"][i], at) for i, at in enumerate(near)]
    problem = co.Problem(
        pressed(len(times)), data, constraints=[link], switches=switches
    )
    level = co.transcribe(problem, intervals=40, stages=5)
    trainer = co.CollocationTrainer(tol=1e-10, max_iter=200)
    start = co.Model({"k": 1.0, "c": 3.0, "t": np.array(near)}, None)
    state = trainer.init(start, level.guess())
    state, history = eg.fit(trainer, state, [level], key=jax.random.key(0))
    found = state.model.parameters
    assert history["status"][-1] == 0
    np.testing.assert_allclose(1e3 * found["k"], STIFFNESS, rtol=1e-5)
    np.testing.assert_allclose(found["c"], DAMPING, rtol=1e-4)
    np.testing.assert_allclose(found["t"], times, atol=1e-7)
