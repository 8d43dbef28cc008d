"""Solves against answers known exactly."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

import effgen as eg
from effgen import collocation as co


KEY = jax.random.key(0)


def solve(problem, model, *, trainer=None, **settings):
    trainer = co.CollocationTrainer(tol=1e-10) if trainer is None else trainer
    transcription = co.transcribe(problem, **settings)
    state = trainer.init(model, transcription.guess())
    return eg.fit(trainer, state, [transcription], key=KEY)


@pytest.mark.slow
def test_a_linear_ode_s_parameters_are_recovered():
    matrix = np.array([[0.0, 1.0], [-4.0, -0.6]])
    ts = np.linspace(0, 3, 25)
    exact = scipy.integrate.solve_ivp(
        lambda t, x: matrix @ x, (0, 3), [1.0, 0.0], t_eval=ts, rtol=1e-13, atol=1e-13
    ).y.T
    field = lambda t, x, u, p, nets: jnp.stack(
        [x[1], -p["spring"] * x[0] - p["damping"] * x[1]]
    )
    problem = co.Problem(field, (ts, exact))
    model = co.Model({"spring": 2.0, "damping": 0.1}, None)
    state, history = solve(problem, model, intervals=24, stages=6)
    assert history["status"][-1] == 0
    np.testing.assert_allclose(state.model.parameters["spring"], 4.0, atol=1e-8)
    np.testing.assert_allclose(state.model.parameters["damping"], 0.6, atol=1e-8)
    np.testing.assert_allclose(state.memory(ts), exact, atol=1e-8)
    between = np.linspace(0, 3, 101)
    slopes = state.memory(between) @ matrix.T
    np.testing.assert_allclose(state.memory.derivative(between), slopes, atol=1e-5)


@pytest.mark.slow
def test_missing_samples_and_two_trajectories_share_a_rate():
    data = []
    for first, last in ((1.0, 2.0), (3.0, 1.0)):
        ts = np.linspace(0, last, 9)
        ys = first * np.exp(-0.7 * ts)
        ys[3:5] = np.nan
        data.append((ts, ys))
    problem = co.Problem(lambda t, x, u, p, nets: -p * x, data)
    model = co.Model(jnp.asarray(0.2), None)
    state, _ = solve(problem, model, intervals=8, stages=5)
    np.testing.assert_allclose(state.model.parameters, 0.7, atol=1e-8)
    np.testing.assert_allclose(state.memory(1.0, 1), 3 * np.exp(-0.7), atol=1e-8)


@pytest.mark.slow
def test_inputs_drive_and_outputs_are_observed():
    """`x' = -x + gain sin t`, seen as twice its value: a closed form."""
    ts = np.linspace(0, 4, 40)
    exact = 1.5 / 2 * (np.exp(-ts) - np.cos(ts) + np.sin(ts))
    field = lambda t, x, u, p, nets: -x + p * u
    trajectory = co.Trajectory(ts, 2 * exact, np.sin)
    problem = co.Problem(
        field,
        trajectory,
        observe=lambda t, x, u, p, nets: 2 * x,
        num_states=1,
        initial=co.Initial([0.0]),
    )
    state, _ = solve(problem, co.Model(jnp.asarray(0.1), None), intervals=10, stages=6)
    np.testing.assert_allclose(state.model.parameters, 1.5, atol=1e-8)
    assert float(state.memory.positions[0, 0]) == 0


@pytest.mark.slow
def test_a_differential_algebraic_equation_is_solved_with_it():
    """`x' = -z`, `0 = z - rate x`: `x = exp(-rate t)`."""
    field = lambda t, x, u, p, nets: jnp.stack([-x[1], x[1] - p * x[0]])
    ts = np.linspace(0, 2, 15)
    problem = co.Problem(
        field,
        (ts, np.exp(-1.2 * ts)),
        observe=lambda t, x, u, p, nets: x[:1],
        num_states=2,
        num_algebraic=1,
    )
    state, _ = solve(problem, co.Model(jnp.asarray(0.5), None), intervals=10, stages=5)
    np.testing.assert_allclose(state.model.parameters, 1.2, atol=1e-8)
    x, z = state.memory.positions.T
    np.testing.assert_allclose(z, 1.2 * x, atol=1e-8)


def noisy():
    ts = np.linspace(0, 3, 30)
    rng = np.random.default_rng(0)
    return ts, np.exp(-ts) + 0.1 * rng.normal(size=len(ts))


@pytest.mark.slow
def test_constraints_hold_at_every_node():
    field = lambda t, x, u, p, nets: nets(x)
    net = eqx.nn.MLP(1, 1, 5, 1, jax.nn.tanh, key=KEY)
    lower = co.PathConstraint(lambda t, x, u, p, nets: x, 0.15, np.inf, "stays up")
    end = co.BoundaryConstraint(lambda a, b, p, nets: b - 0.2, 0, 0, "end")
    still = co.ModelConstraint(lambda p, nets: nets(jnp.zeros(1)), 0, 0, "origin")
    problem = co.Problem(
        field, noisy(), constraints=[lower, end, still], weight_decay=1e-4
    )
    state, history = solve(problem, net, intervals=10, stages=3)
    assert history["status"][-1] == 0
    x = np.asarray(state.memory.positions)
    assert x.min() >= 0.15 - 1e-7
    np.testing.assert_allclose(x[-1], 0.2, atol=1e-8)
    origin = state.model.networks(jnp.zeros(1))
    np.testing.assert_allclose(origin, 0, atol=1e-8)


@pytest.mark.slow
def test_bounds_of_states_and_parameters_hold():
    problem = co.Problem(
        lambda t, x, u, p, nets: -p["rate"] * x,
        noisy(),
        state_bounds=(0.1, 0.9),
        parameter_bounds=({"rate": 0.2}, {"rate": 0.8}),
    )
    state, _ = solve(problem, co.Model({"rate": 0.5}, None), intervals=10, stages=3)
    assert 0.2 <= float(state.model.parameters["rate"]) <= 0.8
    assert state.memory.positions.min() >= 0.1 - 1e-8
    assert state.memory.positions.max() <= 0.9 + 1e-8


@pytest.mark.slow
def test_multipliers_are_the_slope_of_the_optimum():
    """The envelope theorem: d loss / d value, by the end's multiplier."""

    def found(value):
        end = co.BoundaryConstraint(lambda a, b, p, nets: b, value, value, "end")
        problem = co.Problem(
            lambda t, x, u, p, nets: -p * x, noisy(), constraints=[end]
        )
        model = co.Model(jnp.asarray(1.0), None)
        state, history = solve(problem, model, intervals=10, stages=4)
        return float(history["loss"][-1]), float(state.opt_state.boundary[0, 0])

    (ahead, _), (behind, _), (_, multiplier) = (
        found(0.2 + d) for d in (1e-4, -1e-4, 0)
    )
    np.testing.assert_allclose(-multiplier, (ahead - behind) / 2e-4, rtol=1e-5)


@pytest.mark.slow
def test_a_second_level_starts_warm_and_refines():
    problem = co.Problem(lambda t, x, u, p, nets: -p * x**2, noisy())
    model = co.Model(jnp.asarray(1.0), None)
    levels = [co.transcribe(problem, intervals=n, stages=3) for n in (5, 20, 20)]
    trainer = co.CollocationTrainer()
    state = trainer.init(model, levels[0].guess())
    state, history = eg.fit(trainer, state, levels, key=KEY)
    assert list(history["status"]) == [0, 0, 0]
    assert history["iterations"][2] <= 2 < history["iterations"][0]
    assert np.isnan(history["trace"][2]).any()
    cold = trainer.init(model, levels[1].guess())
    alone, _ = eg.fit(trainer, cold, levels[1:2], key=KEY)
    np.testing.assert_allclose(
        state.model.parameters, alone.model.parameters, rtol=1e-6
    )


@pytest.mark.one_case("curvature1")
@pytest.mark.parametrize("curvature", [co.GaussNewton(), co.LimitedMemory()])
def test_other_curvatures_end_at_the_same_optimum(curvature):
    problem = co.Problem(lambda t, x, u, p, nets: -p * x, noisy())
    model = co.Model(jnp.asarray(0.5), None)
    exact, _ = solve(problem, model, intervals=6, stages=3)
    trainer = co.CollocationTrainer(tol=1e-9, curvature=curvature)
    other, history = solve(problem, model, trainer=trainer, intervals=6, stages=3)
    assert history["status"][-1] in (0, 1)
    np.testing.assert_allclose(
        exact.model.parameters, other.model.parameters, rtol=1e-6
    )


@pytest.mark.slow
def test_a_limit_keeps_the_iterate_and_a_restart_goes_on():
    problem = co.Problem(lambda t, x, u, p, nets: -p * x**3, noisy())
    model = co.Model(jnp.asarray(3.0), None)
    short = co.CollocationTrainer(max_iter=2)
    transcription = co.transcribe(problem, intervals=10)
    state = short.init(model, transcription.guess())
    with pytest.warns(eg.RunWarning, match="status -1 .* worst violation"):
        state, history = eg.fit(short, state, [transcription], key=KEY)
    assert history["status"][-1] == -1
    assert history["iterations"][-1] == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error", eg.RunWarning)
        again = [transcription, transcription]
        state, history = eg.fit(co.CollocationTrainer(), state, again, key=KEY)
    assert history["status"][-1] == 0


@pytest.mark.slow
def test_pretraining_on_slopes_leaves_few_iterations_and_the_same_optimum():
    """A Van der Pol oscillator whose damping a network must learn, seen with noise."""
    slope = lambda t, x: [x[1], 2 * (1 - x[0] ** 2) * x[1] - x[0]]
    ts = np.linspace(0, 7, 101)
    exact = scipy.integrate.solve_ivp(slope, (0, 7), [1.0, 0.0], t_eval=ts, rtol=1e-9)
    noise = 0.05 * exact.y.T.std(0) * np.random.default_rng(0).normal(size=(101, 2))
    field = lambda t, x, u, p, nets: jnp.stack([x[1], nets(x) - x[0]])
    problem = co.Problem(field, (ts, exact.y.T + noise), weight_decay=1e-4)
    net = eqx.nn.MLP(2, "scalar", 8, 2, jax.nn.tanh, key=KEY)
    transcription = co.transcribe(problem, intervals=30, stages=4)
    ready = co.pretrain(net, transcription, key=KEY)
    trainer = co.CollocationTrainer()
    state = trainer.init(ready, transcription.guess())
    state, history = eg.fit(trainer, state, [transcription], key=KEY)
    assert history["status"][-1] == 0
    assert history["iterations"][-1] < 40
    error = np.sqrt(np.mean((state.memory(ts) - exact.y.T) ** 2))
    assert error < 0.5 * np.sqrt(np.mean(noise**2))


@pytest.mark.slow
def test_levels_are_saved_and_resumed_to_the_bit(tmp_path):
    """A run that ends after its first mesh goes on with the second as if it had not."""
    problem = co.Problem(lambda t, x, u, p, nets: -p * x**2, noisy())
    levels = [co.transcribe(problem, intervals=n) for n in (5, 11, 20)]
    trainer = co.CollocationTrainer()
    start = trainer.init(co.Model(jnp.asarray(1.0), None), levels[0].guess())
    whole, _ = eg.fit(trainer, start, levels, key=KEY)
    run = eg.train(trainer, start, levels, key=KEY, num_steps=2)
    half, _ = eg.drain(eg.checkpointed(run, tmp_path))
    again = eg.restore(tmp_path, half)
    assert eg.state_digest(again) == eg.state_digest(half)
    end, _ = eg.fit(trainer, again, levels, key=KEY)
    assert eg.state_digest(end) == eg.state_digest(whole)


def test_a_replay_takes_the_level_of_its_step():
    ts = np.linspace(0, 1, 5)
    problem = co.Problem(lambda t, x, u, p, nets: -p * x, (ts, np.exp(-ts)))
    levels = [co.transcribe(problem, intervals=n) for n in (2, 3)]
    trainer = co.CollocationTrainer()
    start = trainer.init(co.Model(jnp.asarray(0.5), None), levels[0].guess())
    first, _ = eg.fit(trainer, start, levels, key=KEY, num_steps=1)
    whole, _ = eg.fit(trainer, first, levels, key=KEY)
    for state, step in ((first, None), (start, 1)):
        again, metrics = eg.replay(trainer, state, levels, key=KEY, step=step)
        assert metrics["status"] == 0
        assert eg.state_digest(again) == eg.state_digest(whole)
    with pytest.raises(ValueError, match="`data` has no batch of step 2"):
        eg.replay(trainer, whole, levels, key=KEY)


@pytest.mark.slow
def test_a_list_s_entry_belongs_to_its_step():
    """`[finer]` is the data of step 0 alone: past it a run would do nothing."""
    problem = co.Problem(lambda t, x, u, p, nets: -p * x**2, noisy())
    level = co.transcribe(problem, intervals=5)
    trainer = co.CollocationTrainer()
    start = trainer.init(co.Model(jnp.asarray(1.0), None), level.guess())
    state, _ = eg.fit(trainer, start, [level], key=KEY)
    again, _ = eg.fit(trainer, state, iter([level]), key=KEY)
    assert int(again.step) == 2
