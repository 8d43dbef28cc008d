"""The baselines with a solver in the loop, and simulation of what was trained."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import collocation as co
from effgen.collocation.states.integration import Sampled


KEY = jax.random.key(0)


def decaying():
    data = []
    for first, last in ((1.0, 2.0), (3.0, 1.0)):
        ts = np.linspace(0, last, 9)
        data.append((ts, first * np.exp(-0.7 * ts)))
    return co.Problem(lambda t, x, u, p, nets: -p * x, data)


@pytest.mark.slow
@pytest.mark.parametrize("per_trajectory", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_shooting_finds_the_rate_that_collocation_finds(per_trajectory):
    problem = decaying()
    segments = co.segments_of(problem, per_trajectory)
    guess = co.transcribe(problem).guess()
    trainer = co.ShootingTrainer(optax.adam(3e-2), problem, continuity=10.0)
    model = co.Model(jnp.asarray(0.2), None)
    state = trainer.init(model, (segments, guess))
    data = eg.Minibatches(segments, 2 * per_trajectory)
    state, history = eg.fit(trainer, state, data, key=KEY, num_steps=600, every=300)
    np.testing.assert_allclose(state.model.model.parameters, 0.7, atol=1e-3)
    assert history["gap"][-1] < 1e-3


def test_fixed_starts_stay_and_inputs_drive():
    ts = np.linspace(0, 4, 40)
    exact = 1.5 / 2 * (np.exp(-ts) - np.cos(ts) + np.sin(ts))
    problem = co.Problem(
        lambda t, x, u, p, nets: -x + p * u,
        co.Trajectory(ts, exact, np.sin),
        initial=co.Initial([0.0]),
    )
    segments = co.segments_of(problem)
    trainer = co.ShootingTrainer(optax.adam(5e-2), problem)
    guess = co.transcribe(problem).guess()
    state = trainer.init(co.Model(jnp.asarray(0.1), None), (segments, guess))
    data = eg.Minibatches(segments, 1)
    state, _ = eg.fit(trainer, state, data, key=KEY, num_steps=300, every=300)
    np.testing.assert_allclose(state.model.model.parameters, 1.5, atol=1e-3)
    again = co.simulate(
        problem, state.model.model, [0.0], ts, lambda t: jnp.sin(t)[None]
    )
    np.testing.assert_allclose(again[:, 0], exact, atol=3e-3)


@pytest.mark.slow
def test_a_simulation_that_explodes_says_so():
    problem = co.Problem(lambda t, x, u, p, nets: x**2, (np.arange(2.0), np.ones(2)))
    with pytest.raises(RuntimeError, match="could not reach t = 2"):
        co.simulate(problem, co.Model({}, None), [1.0], [0.0, 2.0])


def test_algebraic_states_are_refused():
    field = lambda t, x, u, p, nets: jnp.stack([-x[1], x[1] - x[0]])
    problem = co.Problem(field, (np.arange(3.0), np.ones((3, 2))), num_algebraic=1)
    with pytest.raises(ValueError, match="algebraic states"):
        co.segments_of(problem)
    with pytest.raises(ValueError, match=r"algebraic states .* `simulate` takes"):
        co.integrate(problem, co.Model({}, None), [1.0, 1.0], [0.0, 1.0])


def test_segments_of_another_cut_are_refused():
    problem = decaying()
    guess = co.transcribe(problem).guess()
    trainer = co.ShootingTrainer(optax.adam(3e-2), problem)
    model = co.Model(jnp.asarray(0.2), None)
    state = trainer.init(model, (co.segments_of(problem, 3), guess))
    with pytest.raises(ValueError, match="a batch has 2 segments and the state 6"):
        eg.fit(trainer, state, [co.segments_of(problem)] * 2, key=KEY)


TIMES = np.linspace(0, 2, 9)


def free(t, x, u, p, nets):
    return -p["k"] * x


def costly(**settings):
    """Return one trajectory's problem, and how `settings` are added to it."""
    return co.Problem(free, (TIMES, np.exp(-0.7 * TIMES)), scale=0.1, **settings)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (
            {"constraints": [co.ModelConstraint(lambda p, n: p["k"], 0, 1)]},
            "constraints",
        ),
        ({"switches": [co.Switch(lambda p: p["on"], 1.1)]}, "switches"),
        ({"state_bounds": (0.0, np.inf)}, "state_bounds"),
        ({"lagrange": lambda t, x, u, p, nets: x[0]}, "lagrange"),
        ({"mayer": lambda first, last, p, nets: last[0]}, "mayer"),
        ({"priors": co.Prior(lambda p, n: p["k"], 1.0)}, "priors"),
    ],
)
def test_what_a_baseline_would_leave_out_is_refused_by_name(settings, name):
    problem, sgd = costly(**settings), optax.sgd(1.0)
    message = rf"the problem has `{name}`, which `.*` does not keep to: .*, or solve"
    if name in ("constraints", "switches", "state_bounds"):
        with pytest.raises(ValueError, match=message):
            co.ShootingTrainer(sgd, problem)
    if name != "state_bounds":  # no trajectory is solved
        with pytest.raises(ValueError, match=message):
            co.DerivativeMatchingTrainer(sgd, problem, scale=(1.0,))


def test_scales_that_do_not_fit_the_slopes_are_refused():
    for scale in ((1.0, 1.0), (0.0,), (np.nan,)):
        with pytest.raises(ValueError, match="pass 1 positive numbers"):
            co.DerivativeMatchingTrainer(optax.sgd(1.0), costly(), scale=scale)


def test_shooting_has_all_costs_of_the_problem_and_keeps_to_its_bounds():
    problem = costly(
        initial=co.Initial([1.3], 0.2),
        lagrange=lambda t, x, u, p, nets: x[0] ** 2,
        mayer=lambda first, last, p, nets: first[0] * last[0],
        penalty=lambda p, nets: 3 * p["k"],
        parameter_bounds=(0.0, 0.6),
        misfit=co.Huber(0.5),
        priors=co.Prior(lambda p, nets: p["k"], 0.5, 0.4),
    )
    segments = co.segments_of(problem, 2)
    trainer = co.ShootingTrainer(optax.sgd(1.0), problem, rtol=1e-8, atol=1e-10)
    guess = co.transcribe(problem).guess()
    # The start is outside of the bounds, and is moved inside.
    state = trainer.init(co.Model({"k": 0.9}, None), (segments, guess))
    assert float(state.model.model.parameters["k"]) == pytest.approx(0.6)
    x, y = np.asarray(state.model.starts)[:, 0] * problem.nominal[0]
    after, metrics = eqx.filter_jit(trainer.step)(state, segments, key=KEY)
    share = (1 - np.exp(-1.2)) / 1.2  # of a squared start, integrated over a segment
    ends = x * np.exp(-0.6 * TIMES), y * np.exp(-0.6 * (TIMES - 1))
    far = np.abs(np.where(TIMES <= 1, *ends) - np.exp(-0.7 * TIMES)) / 0.1
    misfit = np.where(far < 0.5, far**2 / 2, 0.5 * far - 0.125)
    wanted = np.sum(misfit) / 9 + ((x - 1.3) / 0.2) ** 2 / 2 / 9 + 0.4**2 / 2 / 9
    wanted += (x**2 + y**2) * share + x * y * np.exp(-0.6) + 3 * 0.6
    gap = (x * np.exp(-0.6) - y) / problem.nominal[0]
    np.testing.assert_allclose(metrics["loss"], wanted + gap**2, rtol=1e-5)
    assert 0 <= after.model.model.parameters["k"] <= np.float32(0.6)


def test_inputs_of_segments_stay_at_their_last_value():
    """Of records of unequal length, cut in two, and past the last sample."""
    long, short = np.linspace(0, 4, 21), np.linspace(0, 2, 5)
    data = [
        co.Trajectory(long, np.cos(long), np.cos(long)),
        co.Trajectory(short, np.cos(short), np.cos(short), span=(0.0, 3.0)),
    ]
    segments = co.segments_of(co.Problem(lambda t, x, u, p, nets: u, data), 2)
    assert np.all(np.diff(segments.grid, axis=1) >= 0)
    for grid, inputs, i in zip(
        segments.grid, segments.inputs, segments.trajectory, strict=True
    ):
        known = data[int(i)]
        at = np.linspace(0, known.ts[-1], 50)
        found = [Sampled(grid, inputs)(t)[0] for t in (*at, 2.5 + 2 * (1 - int(i)))]
        wanted = np.interp([*at, 9.0], known.ts, known.inputs)
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_matching_has_the_penalty_and_keeps_to_bounds():
    ts = np.linspace(0, 1, 4)
    problem = co.Problem(
        free,
        (ts, np.exp(-ts)),
        parameter_bounds=({"k": 0.2}, {"k": 3.0}),
        penalty=lambda p, nets: 100 * p["k"],
    )
    trainer = co.DerivativeMatchingTrainer(optax.sgd(1.0), problem, scale=(1.0,))
    x = jnp.exp(-jnp.asarray(ts))[:, None]
    rows = co.Slopes(jnp.asarray(ts), x, jnp.zeros((4, 0)), -x)
    state, metrics = trainer.step(trainer.init(co.Model({"k": 1}, None)), rows, key=KEY)
    np.testing.assert_allclose(metrics["loss"], 100.0)
    np.testing.assert_allclose(state.model.parameters["k"], 0.2)
    with pytest.raises(ValueError, match="two pytrees like"):
        trainer.init(co.Model({"other": 1}, None))


def test_a_pulse_between_two_samples_is_not_stepped_over():
    """The loss at the truth is zero, of a state at rest until the pulse."""
    rate, ts = 0.3, np.linspace(0, 20, 41)
    pulse = np.where((ts >= 10) & (ts < 10.5), 1.0, 0.0)
    risen = (1 - np.exp(-rate * np.clip(ts - 10, 0, 0.5))) / rate
    ys = risen * np.exp(-rate * np.clip(ts - 10.5, 0, None))
    problem = co.Problem(
        lambda t, x, u, p, nets: -p["k"] * x + u,
        co.Trajectory(ts, ys, pulse, hold="previous"),
        scale=0.01,
        initial=co.Initial([0.0]),
    )
    segments = co.segments_of(problem)
    trainer = co.ShootingTrainer(optax.adam(1e-2), problem)
    solution = co.transcribe(problem, intervals=40)
    model = co.Model({"k": rate}, None)
    guess = solution.guess(model)
    state = trainer.init(model, (segments, guess))
    _, metrics = trainer.step(state, segments, key=jax.random.key(0))
    assert metrics["loss"] < 1e-6


def test_the_last_sample_is_observed_with_its_own_input():
    """As by collocation: `y = x + u` with a held input that jumps there."""
    ts, inputs = np.linspace(0, 2, 5), np.array([0, 0, 1, 1, 3.0])
    problem = co.Problem(
        lambda t, x, u, p, nets: p["k"] * x,
        co.Trajectory(ts, 1 + inputs, inputs, hold="previous"),
        observe=lambda t, x, u, p, nets: x + u,
        num_states=1,
        scale=0.1,
        initial=co.Initial([1.0]),
    )
    segments = co.segments_of(problem)
    trainer = co.ShootingTrainer(optax.adam(1e-2), problem)
    guess = co.transcribe(problem, intervals=8).guess()
    state = trainer.init(co.Model({"k": 0.0}, None), (segments, guess))
    _, metrics = trainer.step(state, segments, key=jax.random.key(0))
    assert metrics["loss"] < 1e-12
