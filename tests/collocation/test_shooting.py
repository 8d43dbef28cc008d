"""The baselines with a solver in the loop, and simulation of what was trained."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import collocation as co


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
