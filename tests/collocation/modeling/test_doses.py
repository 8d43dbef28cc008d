"""Doses: impulses at known times, exact across them, and refused where they cannot."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import effgen as eg
from effgen import collocation as co


KEY = jax.random.key(0)
TS = np.array([0.0, 0.5, 1.0, 1.7, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0])
DOSES = [(2.0, [1.0, 0.0]), (0.0, [3.0, 0.0])]  # in no order, one at the start


def oral(t, x, u, p, nets):
    """A depot that empties into blood."""
    gone = p["ka"] * x[0]
    return jnp.stack([gone, gone]) * jnp.array([-1.0, 1.0]) - jnp.stack(
        [0.0 * x[0], p["ke"] * x[1]]
    )


def exact(ts, ka=1.5, ke=0.4):
    """The sum of the doses' responses; at a dose's time of just before."""
    found = np.zeros((len(ts), 2))
    for time, (amount, _) in DOSES:
        s = np.maximum(ts - time, 0)
        depot = amount * np.exp(-ka * s) * (ts > time)
        blood = amount * ka / (ka - ke) * (np.exp(-ke * s) - np.exp(-ka * s))
        found += np.stack([depot, blood * (ts > time)], 1)
    return found


def problem(**more):
    data = co.Trajectory(TS, exact(TS)[:, 1], doses=DOSES)
    return co.Problem(
        oral,
        data,
        observe=lambda t, x, u, p, nets: x[1],
        num_states=2,
        initial=co.Initial([0.0, 0.0]),
        **more,
    )


@pytest.fixture(scope="module")
def solved():
    with jax.enable_x64(True):
        level = co.transcribe(problem(), intervals=24, stages=4)
        trainer = co.CollocationTrainer(tol=1e-11)
        model = co.Model({"ka": 1.0, "ke": 1.0}, None)
        state = trainer.init(model, level.guess(model))
        state, _ = eg.fit(trainer, state, [level], key=jax.random.key(0))
        return level, state


def test_rates_are_exact_from_blood_alone(solved):
    _, state = solved
    np.testing.assert_allclose(state.model.parameters["ka"], 1.5, rtol=1e-7)
    np.testing.assert_allclose(state.model.parameters["ke"], 0.4, rtol=1e-7)


@pytest.mark.parametrize("start", [(1.2, 0.8), (0.3, 3.0)])
def test_guesses_by_the_law_need_few_iterations_from_any_start(solved, start):
    """Depots at zero instead, as `guess()` has them, end elsewhere or nowhere."""
    level, _ = solved
    trainer = co.CollocationTrainer(tol=1e-11, max_iter=12)
    model = co.Model(dict(zip(("ka", "ke"), start)), None)
    with jax.enable_x64(True):
        state = trainer.init(model, level.guess(model))
        state, _ = eg.fit(trainer, state, [level], key=jax.random.key(0))
    np.testing.assert_allclose(state.model.parameters["ka"], 1.5, rtol=1e-7)
    np.testing.assert_allclose(state.model.parameters["ke"], 0.4, rtol=1e-7)


def test_states_are_those_before_a_dose_at_its_time(solved):
    _, state = solved
    at = np.array([0.0, 1e-9, 1.3, 2.0, 2.0 + 1e-9, 3.3])
    np.testing.assert_allclose(state.memory(at), exact(at), atol=1e-6)


@pytest.mark.slow
def test_the_mesh_s_error_is_small_and_the_covariance_is_there(solved):
    level, state = solved
    assert co.accuracy(level, state).share.max() < 1e-6
    found = co.covariance(level, state, noise=0.1)
    assert np.all(np.isfinite(found.model))


def test_simulations_have_doses(solved):
    _, state = solved
    found = co.simulate(
        problem(), state.model, np.zeros(2), TS, doses=DOSES, rtol=1e-10, atol=1e-10
    )
    np.testing.assert_allclose(found, exact(TS), atol=1e-6)
    checked = co.extrapolation(problem(), state.model, state.memory)
    assert checked.errors.max() < 1e-4


def test_a_finer_mesh_goes_on_from_a_coarser_one(solved):
    _, state = solved
    finer = co.transcribe(problem(), intervals=31, stages=4)
    trainer = co.CollocationTrainer(tol=1e-11)
    state, history = eg.fit(trainer, state, [finer], key=jax.random.key(0))
    assert history["iterations"][0] < 8
    np.testing.assert_allclose(state.model.parameters["ke"], 0.4, rtol=1e-7)


@pytest.mark.parametrize(
    ("doses", "words"),
    [
        ([(7.0, [1.0, 0.0])], "are at .7.0.: pass times from 0.0 on and before 6.0"),
        ([(1.0, [1.0])], "at t = 1 is 1 numbers: pass one for each of the 2 states"),
        ([(1.0, [np.nan, 0.0])], "an amount that is not finite"),
        ([1.0], "pass pairs of a time and an amount"),
        ([(1.0, [1.0, 0.0]), (1.0, [1.0, 0.0])], "has a time twice"),
    ],
)
def test_doses_that_cannot_be_are_named(doses, words):
    with pytest.raises(ValueError, match=words):
        co.Problem(oral, co.Trajectory(TS, exact(TS), doses=doses))


def test_doses_of_algebraic_states_are_refused():
    law = lambda t, x, u, p, nets: jnp.stack([-x[1], x[1] - x[0]])
    data = co.Trajectory(TS, exact(TS), doses=[(1.0, [0.0, 1.0])])
    with pytest.raises(ValueError, match="of which an algebraic state would have a"):
        co.Problem(law, data, num_algebraic=1)
    problem = co.Problem(law, (TS, exact(TS)), num_algebraic=1)
    given = (problem, co.Model({}, None), [1.0, 1.0], [0.0, 2.0])
    with pytest.raises(ValueError, match="of which an algebraic state would have a"):
        co.simulate(*given, doses=[(1.0, [0.0, 1.0])])


def test_shooting_refuses_them():
    with pytest.raises(ValueError, match="shooting knows no impulses"):
        co.segments_of(problem())


def dosed(amount, ts, **settings):
    """`x' = r - k x` with `r = k = 1` from zero, and a dose at the start."""
    ys = np.where(ts == 0, 0.0, 1 + (amount - 1) * np.exp(-ts))[:, None]
    return co.Trajectory(ts, ys, doses=[(0.0, [amount])], span=(0.0, 2.0), **settings)


def grown(t, x, u, p, nets):
    return p["r"] - p["k"] * x


def test_slopes_at_a_dose_are_of_the_state_after_it():
    ts = np.linspace(0, 2, 9)
    problem = co.Problem(grown, [dosed(a, ts) for a in (3.0, 4.0, 6.0)], scale=0.01)
    level = co.transcribe(problem, intervals=8)
    trainer = co.CollocationTrainer(tol=1e-10)
    state = trainer.init(co.Model({"k": 0.7, "r": 0.5}, None), level.guess())
    state, _ = eg.fit(trainer, state, [level], key=KEY)
    rows = co.slopes_of(state.memory, level.mesh)
    np.testing.assert_allclose(rows.slopes, 1 - rows.states, atol=3e-3)
    first = np.asarray(rows.states)[level.mesh.starts, 0]
    np.testing.assert_allclose(first, [3, 4, 6], rtol=1e-5)
    found = co.residuals(problem, state.model, state.memory, [0.0, 0.01])
    np.testing.assert_allclose(found, 0, atol=3e-4)
    guessed = co.pretrain(co.Model({"k": 0.7, "r": 0.5}, None), level, key=KEY)
    for name in ("k", "r"):
        np.testing.assert_allclose(guessed.parameters[name], 1, atol=0.1)


@pytest.mark.parametrize("observe", [None, lambda t, x, u, p, nets: x])
def test_a_start_before_a_dose_is_what_a_sample_there_says(observe):
    ts, model = np.linspace(0, 2, 21), co.Model({"k": 1.0, "r": 1.0}, None)
    more = {} if observe is None else {"observe": observe, "num_states": 1}
    seen, unseen = (
        co.Problem(grown, dosed(5.0, times), scale=0.01, **more)
        for times in (ts, ts[1:])
    )
    visited = co.transcribe(seen, intervals=10).guess(model)
    assert co.extrapolation(seen, model, visited).errors.max() < 0.1
    with pytest.raises(ValueError, match="no sample before it tells where it starts"):
        co.extrapolation(unseen, model, visited)
    found = co.extrapolation(unseen, model, visited, starts=[[0.0]])
    assert found.errors.max() < 0.1
