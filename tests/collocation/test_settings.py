"""What could do nothing without a word: it works, or is refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import collocation as co
from effgen.collocation.modeling.model import as_trained


KEY = jax.random.key(0)
TS = np.linspace(0, 4, 21)
DATA = (TS, 2 * np.exp(-0.7 * TS))


def decay(t, x, u, p, nets):
    return -p["k"] * x


def solve(problem, model, num=10):
    trainer = co.CollocationTrainer()
    level = co.transcribe(problem, intervals=num)
    state = trainer.init(model, level.guess())
    return (level, *eg.fit(trainer, state, [level], key=KEY))


@pytest.mark.one_case("start4")
@pytest.mark.parametrize(
    "start", [1, np.int64(1), np.float32(1), jnp.array(1), np.array(1), np.float64(1)]
)
def test_a_parameter_that_is_any_number_is_trained(start):
    _, state, _ = solve(co.Problem(decay, DATA), co.Model({"k": start}, None))
    np.testing.assert_allclose(state.model.parameters["k"], 0.7, rtol=1e-4)
    assert state.model.parameters["k"].dtype == np.float64


@pytest.mark.slow
def test_baselines_train_what_is_given_as_a_number():
    problem = co.Problem(decay, DATA)
    level = co.transcribe(problem, intervals=10)
    segments = co.segments_of(problem)
    shooting = co.ShootingTrainer(optax.adam(0.05), problem)
    state = shooting.init(co.Model({"k": 1}, None), (segments, level.guess()))
    state, _ = eg.fit(shooting, state, [segments] * 5, key=KEY)
    assert state.model.model.parameters["k"] < 0.9
    matching = co.DerivativeMatchingTrainer(optax.adam(0.05), problem, scale=(1.0,))
    rows = co.slopes_of(level.guess(), level.mesh)
    state = matching.init(co.Model({"k": 1}, None))
    state, _ = eg.fit(matching, state, [rows] * 5, key=KEY)
    assert state.model.parameters["k"] < 0.9


def test_flags_and_sizes_stay_what_they_are():
    model = co.Model({"k": 1, "on": True}, {"size": 3, "slope": 0.5})
    found = as_trained(model)
    assert found.parameters["on"] is True
    assert found.networks["size"] == 3
    assert found.networks["slope"].dtype == np.float64
    with pytest.raises(TypeError, match="real and imaginary"):
        as_trained(co.Model({"k": 1j}, None))


def test_a_list_of_new_levels_is_taken_in_turn_and_a_finished_one_says_so():
    problem = co.Problem(decay, DATA)
    coarse, state, _ = solve(problem, co.Model({"k": 0.5}, None))
    trainer = co.CollocationTrainer()
    fine, finest = (co.transcribe(problem, intervals=n) for n in (20, 40))
    state, history = eg.fit(trainer, state, [fine, finest], key=KEY)
    assert len(history["loss"]) == 2
    assert len(state.memory.edges[0]) == 41
    # In the midst of a list, the rest of it.
    level, state, _ = solve(problem, co.Model({"k": 0.5}, None))
    _, history = eg.fit(trainer, state, [level, fine], key=KEY)
    assert len(history["loss"]) == 1
    with pytest.warns(eg.RunWarning, match="1 batches.* step 1.*`iter"):
        eg.fit(trainer, state, [coarse], key=KEY)


@pytest.mark.slow
def test_an_output_that_is_not_measured_has_no_error():
    field = lambda t, x, u, p, nets: jnp.stack([-p["k"] * x[0], x[0] - x[1]])
    ys = np.stack([DATA[1], np.full(21, np.nan)], 1)
    problem = co.Problem(field, (TS, ys), initial=co.Initial([np.nan, 0.0]))
    _, state, _ = solve(problem, co.Model({"k": 0.5}, None))
    errors = co.extrapolation(problem, state.model, state.memory).errors
    assert errors[0, 0] < 1e-3
    assert np.isnan(errors[0, 1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"initial": co.Initial([1.0, 2.0])}, r"`initial.values` has shape \(2,\)"),
        ({"initial": co.Initial([1.0], [1.0, 2.0])}, "`initial.scale` has shape"),
        ({"initial": co.Initial([1.0], 0.0)}, "`initial.scale` is 0.0"),
        (
            {"initial": co.Initial([2.0]), "state_bounds": (3, 9)},
            "state 0 is outside of its bounds, 3.0 to 9.0",
        ),
        ({"state_bounds": (None, None)}, "pass -inf or inf where"),
        ({"state_bounds": ([0, 0], 1)}, "`state_bounds` has shapes"),
        ({"weight_decay": -1.0}, "`weight_decay` is -1.0"),
        ({"weight_decay": np.nan}, "`weight_decay` is nan"),
        ({"num_algebraic": 2}, "`num_algebraic` is 2 of 1 states"),
        ({"num_algebraic": 0.5}, "`num_algebraic` is 0.5 of 1 states"),
        ({"parameter_nominal": 0.0}, "`parameter_nominal` has 0.0"),
        ({"parameter_nominal": {"k": -1.0}}, "`parameter_nominal` has -1.0"),
        ({"parameter_nominal": np.nan}, "`parameter_nominal` has nan"),
        ({"weight_decay": {"w": None, "v": -1.0}}, "`weight_decay` is -1.0"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        co.Problem(decay, DATA, **settings)


def test_trajectories_with_and_without_inputs_are_refused():
    with pytest.raises(ValueError, match=r"have \[0, 1\] inputs"):
        co.Problem(decay, [DATA, (*DATA, TS)])


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_edges_at_no_number_of_samples_are_refused(every):
    with pytest.raises(ValueError, match=r"`every` is .*: pass a positive integer"):
        co.aligned_edges(co.Problem(decay, DATA), every)


def test_numpy_integers_count_intervals():
    level = co.transcribe(co.Problem(decay, DATA), intervals=np.int64(7))
    assert len(level.mesh.lengths) == 7


def test_counts_and_shapes_that_cannot_be_are_refused_by_name():
    problem, key = co.Problem(decay, DATA), KEY
    level, model = co.transcribe(problem, intervals=4), co.Model({"k": 0.5}, None)
    network = co.Model({"k": 0.5}, {"w": jnp.ones(2)})
    trainer, sgd = co.CollocationTrainer(), optax.sgd(1.0)
    rate = lambda model: model.parameters["k"]
    cases = {
        "`per_trajectory` is 1.5": lambda: co.segments_of(problem, 1.5),
        "`continuity` is nan": lambda: co.ShootingTrainer(
            sgd, problem, continuity=np.nan
        ),
        "`rtol` is -1": lambda: co.ShootingTrainer(sgd, problem, rtol=-1),
        "`max_steps` is 0": lambda: co.ShootingTrainer(sgd, problem, max_steps=0),
        "`num_steps` is 0": lambda: co.pretrain(model, level, key=key, num_steps=0),
        "`rate` is -1": lambda: co.pretrain(model, level, key=key, rate=-1),
        "`num_solves` is 0": lambda: co.choose(
            trainer, network, level, key=key, num_solves=0
        ),
        "`models` is empty": lambda: co.ensemble(trainer, [], [level], key=key),
        "`levels` is empty": lambda: co.ensemble(trainer, [model], [], key=key),
        "`num_rounds` is 1.5": lambda: co.fit_refined(
            trainer, None, level, key=key, num_rounds=1.5
        ),
        "`trajectory` is 1": lambda: co.interval_errors(
            problem, model, level.guess(), 1
        ),
        "`starts` has shape": lambda: co.extrapolation(
            problem, model, level.guess(), [1.0]
        ),
        "`weight_decay` is None": lambda: co.Problem(decay, DATA, weight_decay=None),
        "`start` has shape": lambda: co.integrate(problem, model, [1.0, 2.0], TS),
        "`ts` is": lambda: co.integrate(problem, model, [1.0], TS[::-1]),
        "`rtol` is 0": lambda: co.integrate(problem, model, [1.0], TS, rtol=0.0),
        "`atol` is nan": lambda: co.simulate(problem, model, [1.0], TS, atol=np.nan),
        r"nan .*: pass two or more": lambda: co.simulate(
            problem, model, [1.0], np.array([0.0, np.nan, 1.0])
        ),
        "a finite number for each": lambda: co.simulate(problem, model, [np.nan], TS),
        "`ts` has shape": lambda: level.guess()(np.ones((2, 2))),
        "`covariance` has shape": lambda: co.propagated(rate, model, np.eye(3)),
        "`covariance` has variances": lambda: co.propagated(rate, model, -np.eye(1)),
    }
    for message, call in cases.items():
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="`curvature` is"):
        co.CollocationTrainer(curvature=co.GaussNewton)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="`levels` is a Transcription"):
        co.ensemble(trainer, [model], level, key=key)  # pyright: ignore[reportArgumentType]
    for wrong in ([True], [0.0], ["a"]):
        with pytest.raises(IndexError, match="`indices` is"):
            co.held_out(problem, wrong)  # pyright: ignore[reportArgumentType]


def test_a_guess_of_other_states_is_refused():
    law = lambda t, x, u, p, nets: -p["k"] * x
    level = co.transcribe(co.Problem(law, (TS, np.ones((21, 2)))), intervals=4)
    guess = co.transcribe(co.Problem(decay, DATA), intervals=4).guess()
    trainer = co.CollocationTrainer()
    state = trainer.init(co.Model({"k": 1.0}, None), guess)
    with pytest.raises(ValueError, match=r"`positions` of shape \(13, 1\)"):
        eg.fit(trainer, state, [level], key=KEY)


def test_constraints_and_bounds_of_another_shape_are_refused_by_name():
    square = co.PathConstraint(
        lambda t, x, u, p, nets: jnp.ones((2, 2)), 0, 1, "square"
    )
    model = co.Model({"k": jnp.ones(2)}, None)
    with pytest.raises(ValueError, match=r"'square' returns shape \(2, 2\)"):
        solve(co.Problem(decay, DATA, constraints=[square]), co.Model({"k": 1.0}, None))
    law = lambda t, x, u, p, nets: -p["k"][:1] * x
    bounds = ({"k": np.zeros(3)}, np.inf)
    with pytest.raises(ValueError, match="a bound of another shape than its parameter"):
        solve(co.Problem(law, DATA, parameter_bounds=bounds), model)
