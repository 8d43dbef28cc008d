"""Hold-out, extrapolation and ensembles."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import effgen as eg
from effgen import collocation as co
from effgen.collocation.modeling.problem import in_double
from tests.collocation.descent.test_shooting import decaying


KEY = jax.random.key(0)


def test_trajectories_and_what_is_known_of_their_starts_are_held_out():
    problem = decaying()
    starts = co.Initial(np.array([[1.0], [3.0]]))
    problem = co.Problem(problem.vector_field, problem.data, initial=starts)
    rest, out = co.held_out(problem, [0])
    assert len(rest.data) == len(out.data) == 1
    np.testing.assert_array_equal(out.initial.values, [[1.0]])
    np.testing.assert_array_equal(rest.initial.values, [[3.0]])
    np.testing.assert_array_equal(rest.scale, problem.scale)


@pytest.mark.parametrize("indices", [[], [0, 1]])
def test_some_and_not_all_are_held_out(indices):
    with pytest.raises(ValueError, match="hold out some, not all"):
        co.held_out(decaying(), indices)
    with pytest.raises(IndexError, match="of 2 trajectories"):
        co.held_out(decaying(), [2])


def test_extrapolation_of_the_truth_has_no_error_and_tells_what_is_new():
    problem = decaying()
    rest, out = co.held_out(problem, [1])
    level = co.transcribe(rest, intervals=6)
    model = co.Model(jnp.asarray(0.7), None)
    found = co.extrapolation(out, model, level.guess(), starts=[[3.0]])
    np.testing.assert_allclose(found.errors, 0, atol=1e-5)
    # From 3 on, where training began at 1.
    nodes = level.guess().positions
    np.testing.assert_allclose(found.distances, (3 - nodes.max()) / nodes.std())
    wrong = co.extrapolation(out, co.Model(jnp.asarray(0.3), None), level.guess())
    assert wrong.errors[0, 0] > 0.3


@pytest.mark.slow
def test_an_ensemble_is_in_order():
    problem = decaying()
    field = lambda t, x, u, p, nets: -nets(x)
    problem = co.Problem(field, problem.data, weight_decay=1e-4)
    level = co.transcribe(problem, intervals=6)
    trainer = co.CollocationTrainer()
    nets = [
        in_double(eqx.nn.MLP(1, 1, 3, 1, jax.nn.tanh, key=jax.random.key(i)))
        for i in range(2)
    ]
    states = co.ensemble(trainer, nets, [level], key=KEY)
    losses = []
    for state in states:
        again = trainer.init(state.model, state.memory)
        _, history = eg.fit(trainer, again, [level], key=KEY)
        losses.append(float(history["loss"][-1]))
    assert len(losses) == 2
    assert losses == sorted(losses)


def test_an_ensemble_begins_where_each_model_puts_what_is_not_measured():
    """A velocity is the slope of the measured position, times what a model says."""
    ts = np.linspace(0, 2, 21)
    law = lambda t, x, u, p, nets: jnp.stack([p["gear"] * x[1], -x[0]])
    problem = co.Problem(
        law,
        (ts, np.sin(ts)),
        observe=lambda t, x, u, p, nets: x[0],
        num_states=2,
        nominal=1.0,
    )
    level = co.transcribe(problem, intervals=10)
    models = [co.Model({"gear": gear}, None) for gear in (1.0, 2.0)]
    trainer = co.CollocationTrainer(max_iter=0)
    with pytest.warns(eg.RunWarning, match="Ipopt ended with status -1"):
        states = co.ensemble(trainer, models, [level], key=KEY)
    found = {float(s.model.parameters["gear"]): s.memory.positions for s in states}
    nodes = level.mesh.ts
    for gear, positions in found.items():
        guess = np.asarray(level.guess(co.Model({"gear": gear}, None)).positions)
        np.testing.assert_allclose(positions, guess, rtol=1e-12)
        inner = (nodes > 0.2) & (nodes < 1.8)
        rate = np.cos(nodes[inner]) / gear
        np.testing.assert_allclose(np.asarray(positions)[inner, 1], rate, atol=0.02)


def test_an_ensemble_goes_on_without_what_fails():
    """The first model has nothing to train and cannot end where it must."""
    problem = co.Problem(
        lambda t, x, u, p, nets: -(0.3 if p is None else p) * x,
        decaying().data[:1],
        initial=co.Initial([1.0]),
        constraints=[
            co.BoundaryConstraint(lambda first, last, p, nets: last, 0.2, 0.3, "end")
        ],
    )
    level = co.transcribe(problem, intervals=6)
    models = [co.Model(None, None), co.Model(jnp.asarray(0.5), None)]
    trainer = co.CollocationTrainer(max_iter=300)
    with (
        pytest.warns(eg.RunWarning, match="model 0 of the ensemble is left out"),
        pytest.warns(eg.RunWarning, match="of 'end' of trajectory 0"),
    ):
        states = co.ensemble(trainer, models, [level], key=KEY)
    assert len(states) == 1
    with (
        pytest.warns(eg.RunWarning, match="is left out"),
        pytest.warns(eg.RunWarning, match="of 'end' of trajectory 0"),
        pytest.raises(eg.TrainingError),
    ):
        co.ensemble(trainer, models[:1], [level], key=KEY)


def turning(t, x, u, p, nets):
    return jnp.stack([x[1], -x[0]])


def extrapolated(problem, model=None, **settings):
    model = co.Model({}, None) if model is None else model
    guess = co.transcribe(problem, intervals=40).guess()
    return co.extrapolation(problem, model, guess, **settings)


def test_errors_do_not_depend_on_the_unit_of_the_states():
    ts = np.linspace(0, 20, 101)
    ys = np.stack([np.cos(ts), -np.sin(ts)], axis=1)
    for unit in (1.0, 1e-8, 1e8):
        problem = co.Problem(turning, (ts, unit * ys))
        assert extrapolated(problem).errors.max() < 1e-3
        found = co.simulate(problem, co.Model({}, None), unit * ys[0], ts)
        np.testing.assert_allclose(found, unit * ys, atol=1e-6 * unit)


def test_a_start_that_is_not_measured_is_inferred_or_asked_for():
    ts = np.linspace(0, 20, 101)
    first = lambda t, x, u, p, nets: x[:1]
    seen = (ts, 3 * np.cos(ts)[:, None])
    found = extrapolated(co.Problem(turning, seen, observe=first, num_states=2))
    np.testing.assert_allclose(found.states[0][0], [3, 0], atol=0.3)
    alone = lambda t, x, u, p, nets: jnp.stack([x[1], -x[0], -x[2]])
    problem = co.Problem(alone, seen, observe=first, num_states=3)
    with pytest.raises(ValueError, match="state 2 of trajectory 0 is not measured"):
        extrapolated(problem)
    found = extrapolated(problem, starts=[[3.0, 0.0, 1.0]])
    assert found.errors.max() < 1e-3


def test_a_simulation_that_fails_is_infinitely_far():
    ts = np.linspace(0, 2, 21)
    problem = co.Problem(lambda t, x, u, p, nets: x**2, (ts, np.ones((21, 1))))
    found = extrapolated(problem)
    assert np.isnan(found.errors).all()
    assert np.isinf(found.distances).all()


def test_samples_of_a_time_that_stands_twice_have_their_own_inputs():
    ts = np.array([0.0, 1.0, 1.0, 2.0])
    u = np.array([0.0, 0.0, 1.0, 1.0])[:, None]
    observe = lambda t, x, u, p, nets: u
    law = lambda t, x, u, p, nets: -x
    initial = co.Initial([1.0])
    problem = co.Problem(
        law, (ts, u, u), observe=observe, num_states=1, initial=initial
    )
    np.testing.assert_allclose(extrapolated(problem).errors, 0, atol=1e-12)
