"""Guesses and easier problems that lead to the one asked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import effgen as eg
from effgen import collocation as co
from effgen.collocation.states.solution import prolonged
from tests.collocation.descent.test_shooting import decaying


KEY = jax.random.key(0)


def test_windows_grow_to_the_problem():
    problem = decaying()
    found = co.windows(problem, (0.3, 0.6, 1.0))
    assert [len(p.data[0].ts) for p in found] == [4, 6, 9]
    np.testing.assert_allclose([p.data[1].span[1] for p in found], [0.375, 0.625, 1.0])
    assert all(p.data[0].span[1] == p.data[0].ts[-1] for p in found)
    np.testing.assert_array_equal(found[0].scale, problem.scale)


def test_windows_cut_sampled_inputs():
    ts = np.linspace(0, 1, 5)
    trajectory = co.Trajectory(ts, np.ones(5), np.arange(5.0))
    problem = co.Problem(lambda t, x, u, p, nets: u, trajectory)
    assert co.windows(problem, (0.5, 1.0))[0].data[0].inputs.shape == (3, 1)


@pytest.mark.parametrize(
    "shares", [(), (0.5,), (0.5, 0.2, 1.0), (0.0, 1.0), (1.0, 2.0)]
)
def test_windows_that_do_not_grow_to_the_whole(shares):
    with pytest.raises(ValueError, match="`shares` is"):
        co.windows(decaying(), shares)


@pytest.mark.slow
def test_a_run_through_windows_ends_where_one_solve_does():
    problem = decaying()
    levels = [co.transcribe(p, intervals=6) for p in co.windows(problem)]
    trainer = co.CollocationTrainer(tol=1e-10)
    model = co.Model(jnp.asarray(0.2), None)
    state = trainer.init(model, levels[0].guess())
    state, history = eg.fit(trainer, state, levels, key=KEY)
    np.testing.assert_array_equal(history["status"], 0)
    once = trainer.init(model, levels[-1].guess())
    once, _ = eg.fit(trainer, once, levels[-1:], key=KEY)
    np.testing.assert_allclose(state.model.parameters, once.model.parameters, rtol=1e-8)
    np.testing.assert_allclose(
        state.memory.positions, once.memory.positions, rtol=1e-7, atol=1e-9
    )


def test_a_solution_is_kept_where_it_is_and_guessed_past_its_end():
    problem = decaying()
    short, whole = (
        co.transcribe(p, intervals=5) for p in co.windows(problem, (0.5, 1.0))
    )
    solution = short.guess()
    solution = co.Solution(solution.edges, 0 * solution.positions, solution.stages)
    found = prolonged(solution, whole.mesh, whole.guess)
    times = whole.mesh.times[0]
    values = found.positions[: len(times), 0]
    assert np.all(values[times <= 1.0] == 0)
    there = whole.guess().positions[: len(times), 0]
    np.testing.assert_array_equal(values[times > 1.0], there[times > 1.0])


@pytest.mark.slow
def test_the_model_s_own_simulation_is_a_guess():
    problem = decaying()
    level = co.transcribe(problem, intervals=6)
    guess = level.simulated(co.Model(jnp.asarray(0.7), None))
    for i, first in enumerate((1.0, 3.0)):
        ts = level.mesh.times[i]
        np.testing.assert_allclose(
            guess(ts, i)[:, 0], first * np.exp(-0.7 * ts), rtol=2e-2
        )


@pytest.mark.slow
def test_what_a_simulation_does_not_reach_is_from_the_data():
    problem = decaying()
    level = co.transcribe(problem, intervals=6)
    wild = co.Problem(lambda t, x, u, p, nets: x**2 * 1e3, problem.data)
    guess = co.transcribe(wild, intervals=6).simulated(co.Model({}, None))
    np.testing.assert_array_equal(guess.positions, level.guess().positions)


def test_smoothness_is_the_mean_square_of_second_derivatives():
    points = np.linspace(-1, 1, 7)[:, None]
    np.testing.assert_allclose(co.smoothness(lambda x: x[0] ** 2, points), 4.0)
    mixed = lambda x: jnp.stack([x[0] * x[1], 3 * x[0]])
    np.testing.assert_allclose(co.smoothness(mixed, np.ones((3, 2))), 2.0)
    with pytest.raises(ValueError, match="`points` has shape"):
        co.smoothness(mixed, np.ones(2))
