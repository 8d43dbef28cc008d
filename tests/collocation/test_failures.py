"""Bad problems: named before any compute, or stopped with their own name."""

import signal
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import effgen as eg
from effgen import collocation as co
from effgen.collocation.program.evaluator import Evaluator


KEY = jax.random.key(0)
TS = np.linspace(0, 1, 6)
DATA = (TS, np.exp(-TS))


def decay(t, x, u, p, nets):
    return -p * x


def solve(problem, model=None, **settings):
    trainer = co.CollocationTrainer(**settings)
    transcription = co.transcribe(problem, intervals=4)
    model = co.Model(jnp.asarray(0.5), None) if model is None else model
    state = trainer.init(model, transcription.guess())
    return eg.fit(trainer, state, [transcription], key=KEY)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((TS[::-1], TS), "`ts` is 0.8 in trajectory 0 at index 1: .* sorted"),
        ((np.array([0.0, np.nan]), np.zeros(2)), "index 1: times must be finite"),
        ((TS, TS[:3]), "`ts` of shape .* and `ys` of"),
        ([DATA, (TS, np.full(6, np.inf))], "`ys` of trajectory 1 is infinite"),
        ((np.zeros(1), np.zeros(1)), "no time"),
        (co.Trajectory(TS, TS, None, (0.5, 1.0)), "lie in the `span`"),
        (co.Trajectory(TS, TS, TS[:2]), "`inputs` of trajectory 0"),
        ([], "`data` is empty"),
        ((TS, np.ones((6, 2, 1))), r"`ys` of \(6, 2, 1\)"),
        (
            (TS, TS, np.ones((6, 2, 1))),
            r"`inputs` of trajectory 0 has shape \(6, 2, 1\)",
        ),
        (co.Trajectory(TS, TS, span=(0.0, np.inf)), "`span` of trajectory 0 is"),
        (co.Trajectory(TS, TS, span=1.0), "`span` of trajectory 0 is 1.0: pass its"),
        (co.Trajectory(TS, TS, lambda t: np.array([1 / (t - 0.4)])), "`inputs` is"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_data_that_cannot_be(data, message):
    with pytest.raises(ValueError, match=message):
        co.Problem(decay, data)


def test_masked_samples_are_missing():
    ys = np.ma.masked_greater(np.exp(-TS), 0.7)
    found = co.Problem(decay, (TS, ys)).data[0].ys[:, 0]
    np.testing.assert_array_equal(np.isnan(found), np.exp(-TS) > 0.7)


def test_what_is_of_another_type_is_named():
    for follows in (0, "before"):
        with pytest.raises(TypeError, match="`follows` of trajectory 0"):
            co.Problem(decay, co.Trajectory(TS, TS, follows=follows))
    with pytest.raises(TypeError, match="`inputs` of trajectory 0 is no array of real"):
        co.Problem(decay, (TS, TS, TS * 1j))
    with pytest.raises(
        TypeError, match=r"`initial` is a list: pass `Initial\(values\)`"
    ):
        co.Problem(decay, DATA, initial=[1.0])
    with pytest.raises(TypeError, match="trajectory 0 has 9 parts"):
        co.Problem(decay, (TS, TS, *[None] * 7))


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match="`state_bounds` crosses"):
        co.Problem(decay, DATA, state_bounds=(1, 0))
    path = co.PathConstraint(lambda *_: 0.0, 1, 0, "low")
    with pytest.raises(ValueError, match="constraint 'low' crosses"):
        co.Problem(decay, DATA, constraints=[path])
    with pytest.raises(ValueError, match="pass `num_states`"):
        co.Problem(decay, DATA, observe=lambda *_: 0.0)
    with pytest.raises(ValueError, match="pass `observe`"):
        co.Problem(decay, DATA, num_states=2)
    with pytest.raises(ValueError, match="`nominal` is 0"):
        co.Problem(decay, DATA, nominal=0.0)
    with pytest.raises(ValueError, match="`intervals` is 0"):
        co.transcribe(co.Problem(decay, DATA), intervals=0)
    with pytest.raises(ValueError, match="must rise from"):
        co.transcribe(co.Problem(decay, DATA), edges=[np.array([0.0, 0.5])])
    with pytest.raises(ValueError, match="`parameter_bounds` crosses"):
        solve(co.Problem(decay, DATA, parameter_bounds=(2.0, 1.0)))
    with pytest.raises(ValueError, match="`linear_solver` is 'magic'"):
        solve(co.Problem(decay, DATA), solver=co.Ipopt(linear_solver="magic"))
    with pytest.raises(ValueError, match="no option 'hue'"):
        solve(co.Problem(decay, DATA), solver=co.Ipopt(options={"hue": 1}))
    with pytest.raises(ValueError, match="`mu_strategy` is 'quick'"):
        co.Ipopt(mu_strategy="quick")
    with pytest.raises(ValueError, match="set `max_iter` of the trainer"):
        co.Ipopt(options={"max_iter": 3})
    with pytest.raises(TypeError, match="pass `collocation"):
        co.CollocationTrainer(solver="mumps")  # pyright: ignore[reportArgumentType]


def test_a_whole_number_may_be_of_a_real_option():
    own = co.Ipopt(
        mu_strategy="adaptive", options={"mu_target": 0, "mu_max": np.int64(9)}
    )
    _, history = solve(co.Problem(decay, DATA), solver=own)
    assert history["status"][-1] == 0


def test_single_precision_is_refused_before_any_compute():
    with (
        jax.enable_x64(False),
        pytest.raises(RuntimeError, match="jax_enable_x64"),
    ):
        co.CollocationTrainer().init(co.Model(0.5, None), None)
    level = co.transcribe(co.Problem(decay, DATA), intervals=4)
    trainer, model = co.CollocationTrainer(), co.Model(0.5, {"w": np.ones(2)})
    with jax.enable_x64(False):
        with pytest.raises(RuntimeError, match="jax_enable_x64"):
            co.ensemble(trainer, [model], [level], key=KEY)
        with pytest.raises(RuntimeError, match="jax_enable_x64"):
            co.choose(trainer, model, level, key=KEY)


def test_numbers_of_a_model_that_are_not_finite_are_named():
    level = co.transcribe(co.Problem(decay, DATA), intervals=4)
    wrong = co.Model({"a": 1.0, "k": np.array([1.0, np.nan])}, None)
    with pytest.raises(ValueError, match=r"k\[1\] of the model is nan"):
        co.CollocationTrainer().init(wrong, level.guess())


def test_a_vector_field_of_the_wrong_shape_or_with_nan_is_named():
    wrong = lambda t, x, u, p, nets: jnp.zeros(3)
    with pytest.raises(ValueError, match=r"returns shape \(3,\)"):
        solve(co.Problem(wrong, DATA))
    nan = lambda t, x, u, p, nets: jnp.sqrt(x - 0.9)
    with pytest.raises(ValueError, match="component 0 of `vector_field` is nan"):
        solve(co.Problem(nan, DATA))


@pytest.mark.slow
def test_nan_on_the_way_shortens_the_step():
    """`sqrt(p)` is NaN below zero, where the first steps would lead."""
    field = lambda t, x, u, p, nets: -jnp.sqrt(p) * x
    model = co.Model(jnp.asarray(30.0), None)
    state, history = solve(co.Problem(field, DATA), model)
    assert history["status"][-1] == 0
    np.testing.assert_allclose(state.model.parameters, 1.0, rtol=1e-4)


@pytest.mark.slow
def test_an_infeasible_problem_says_which_constraint():
    high = co.PathConstraint(lambda t, x, u, p, nets: x, 2, 3, "stays high")
    problem = co.Problem(
        decay,
        DATA,
        constraints=[high],
        state_bounds=(0.0, 1.5),
    )
    with (
        pytest.warns(eg.RunWarning, match="'stays high' in trajectory 0 at t ="),
        pytest.raises(eg.TrainingError) as error,
    ):
        solve(problem)
    assert error.value.result in (
        eg.RESULTS.infeasible,
        eg.RESULTS.restoration_failed,
    )
    assert error.value.metrics["iterations"] > 0


def test_what_is_no_transcription_is_refused():
    problem = co.Problem(decay, DATA)
    trainer = co.CollocationTrainer()
    guess = co.transcribe(problem).guess()
    state = trainer.init(co.Model(jnp.asarray(1.0), None), guess)
    with pytest.raises(TypeError, match="transcribe"):
        eg.fit(trainer, state, [DATA], key=KEY)
    with pytest.raises(TypeError, match="pass a guess"):
        trainer.init(co.Model(1.0, None))
    two = co.transcribe(co.Problem(decay, [DATA, DATA]))
    with pytest.raises(ValueError, match="1 trajectories and the transcription 2"):
        eg.fit(trainer, state, [two], key=KEY)


def test_a_network_too_large_for_an_exact_hessian_is_told_before():
    net = eqx.nn.MLP(1, 1, 300, 3, key=KEY)
    problem = co.Problem(lambda t, x, u, p, nets: nets(x), DATA)
    with pytest.raises(ValueError, match="GiB: use fewer parameters"):
        solve(problem, co.Model({}, net))


def test_a_request_to_end_keeps_the_iterate(monkeypatch):
    asked = iter([False, False] + [True] * 9)
    monkeypatch.setattr(
        "effgen.collocation.training.trainer.requested", lambda: next(asked)
    )
    state, history = solve(co.Problem(decay, DATA), co.Model(jnp.asarray(9.0), None))
    assert history["status"][-1] == 5
    assert history["iterations"][-1] == 2
    assert state.model.parameters != 9.0


def test_without_ipopt_the_commands_that_install_it_are_told(monkeypatch):
    ways = "pip install cyipopt-wheels==.*conda-forge cyipopt.*cyipopt>=1.6"
    monkeypatch.setitem(sys.modules, "cyipopt", None)
    with pytest.raises(ImportError, match=ways):
        solve(co.Problem(decay, DATA))


def infeasible():
    """Starts at 1, and is asked to be at least 2 everywhere."""
    high = co.PathConstraint(lambda t, x, u, p, nets: x, 2.0, 3.0, "high")
    initial = co.Initial(np.array([1.0]))
    return co.Problem(decay, DATA, constraints=[high], initial=initial)


@pytest.mark.slow
def test_a_failed_solve_keeps_its_last_iterate_and_trace():
    with (
        pytest.warns(eg.RunWarning, match="worst violation"),
        pytest.raises(eg.TrainingError, match="no point where all") as caught,
    ):
        solve(infeasible(), max_iter=200)
    error = caught.value
    assert int(error.state.step) == 0
    assert np.isfinite(error.metrics["trace"][0]).all()
    assert isinstance(error.attempt, eg.TrainState)
    # What was reached is where a feasible problem goes on from.
    level = co.transcribe(co.Problem(decay, DATA), intervals=4)
    trainer = co.CollocationTrainer()
    state = trainer.init(error.attempt.model, error.attempt.memory)
    _, history = eg.fit(trainer, state, [level], key=KEY)
    assert history["status"][-1] == 0


def test_a_time_limit_keeps_the_iterate():
    with pytest.warns(eg.RunWarning, match="the iterate is kept"):
        state, history = solve(co.Problem(decay, DATA), max_seconds=1e-9)
    assert history["status"][-1] in (-4, -5)
    assert int(state.step) == 1


def test_control_c_ends_the_solve_at_the_iterate_at_hand(monkeypatch):
    calls = []
    real = Evaluator._hessian

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 3:  # the first is of the check before the solve
            signal.raise_signal(signal.SIGINT)
        return real(self, *args)

    monkeypatch.setattr(Evaluator, "_hessian", interrupted)
    problem = co.Problem(decay, DATA)
    level = co.transcribe(problem, intervals=4)
    trainer = co.CollocationTrainer(tol=1e-14)
    state = trainer.init(co.Model(jnp.asarray(9.0), None), level.guess())
    with pytest.warns(eg.RunWarning, match="Ctrl-C"):
        states = [s for s, _ in eg.train(trainer, state, [level] * 3, key=KEY)]
    assert len(states) == 1
    assert len(calls) == 4  # and the last, of the check after it
    assert float(states[0].model.parameters) != 9.0


def test_the_bar_shows_how_a_solve_is_getting_on(capsys):
    problem = co.Problem(decay, DATA)
    level = co.transcribe(problem, intervals=4)
    trainer = co.CollocationTrainer()
    state = trainer.init(co.Model(jnp.asarray(0.5), None), level.guess())
    eg.drain(eg.progress(eg.train(trainer, state, [level], key=KEY)))
    assert "iteration 0, objective" in capsys.readouterr().err
