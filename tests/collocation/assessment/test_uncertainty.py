"""Covariances and residuals against closed forms."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import effgen as eg
from effgen import collocation as co


KEY = jax.random.key(0)


def solved(problem, model, **settings):
    trainer = co.CollocationTrainer(tol=1e-10)
    transcription = co.transcribe(problem, **settings)
    state = trainer.init(model, transcription.guess())
    state, _ = eg.fit(trainer, state, [transcription], key=KEY)
    return transcription, state


@pytest.mark.one_case("curvature1")
@pytest.mark.parametrize("curvature", [co.ExactHessian(), co.GaussNewton()])
def test_a_straight_line_has_the_covariance_of_least_squares(curvature):
    """`x' = slope`, the start free: ordinary regression on one and time."""
    ts = np.sort(np.random.default_rng(0).uniform(0, 3, 40))
    ys = 2 + 0.5 * ts + 0.3 * np.random.default_rng(1).normal(size=40)
    problem = co.Problem(lambda t, x, u, p, nets: p[None], (ts, ys), scale=1.0)
    transcription, state = solved(
        problem, co.Model(jnp.asarray(1.0), None), intervals=4
    )
    found = co.covariance(transcription, state, noise=0.3, curvature=curvature)
    design = np.stack([np.ones(40), ts - ts[0]], axis=1)
    exact = 0.3**2 * np.linalg.inv(design.T @ design)
    np.testing.assert_allclose(found.model, exact[1:, 1:], rtol=1e-8)
    nodes = state.memory.nodes() - ts[0]
    rows = np.stack([np.ones(len(nodes)), nodes], axis=1)
    bands = np.sqrt(np.einsum("ti,ij,tj->t", rows, exact, rows))
    np.testing.assert_allclose(found.states[:, 0], bands, rtol=1e-8)
    for noise in (-0.3, 0.0, np.nan, [0.3, 0.3]):
        with pytest.raises(ValueError, match="`noise` "):
            co.covariance(transcription, state, noise=noise)
    free = co.covariance(transcription, state)
    left = ys - design @ np.linalg.lstsq(design, ys, rcond=None)[0]
    np.testing.assert_allclose(free.noise, np.sqrt(left @ left / 38), rtol=1e-8)


def test_a_prior_of_the_start_counts_like_one_more_measured_value():
    """`x' = slope`: Bayesian regression, whose prior is of the start's deviation."""
    ts, noise, prior = np.linspace(0, 3, 12), 0.3, 0.2
    ys = 2 + 0.5 * ts + noise * np.random.default_rng(1).normal(size=12)
    problem = co.Problem(
        lambda t, x, u, p, nets: p[None],
        (ts, ys),
        scale=noise,
        initial=co.Initial([1.5], prior),
    )
    level, state = solved(problem, co.Model(jnp.asarray(1.0), None), intervals=4)
    design = np.stack([np.ones(12), ts], axis=1) / noise
    precision = design.T @ design + np.diag([1 / prior**2, 0])
    right = design.T @ ys / noise + np.array([1.5 / prior**2, 0])
    mean, moments = np.linalg.solve(precision, right), np.linalg.inv(precision)
    np.testing.assert_allclose(state.memory(0.0)[0, 0], mean[0], rtol=1e-7)
    np.testing.assert_allclose(state.model.parameters, mean[1], rtol=1e-7)
    found = co.covariance(level, state, noise=1.0)
    np.testing.assert_allclose(found.model, moments[1:, 1:], rtol=1e-7)
    np.testing.assert_allclose(found.states[0, 0], np.sqrt(moments[0, 0]), rtol=1e-7)


def test_a_prior_beside_a_scale_that_is_not_the_noise_is_warned_of():
    ts = np.linspace(0, 3, 40)
    ys = 2 + 0.5 * ts + 0.01 * np.random.default_rng(1).normal(size=40)
    initial = co.Initial([2.0], 0.2)
    problem = co.Problem(lambda t, x, u, p, nets: p[None], (ts, ys), initial=initial)
    with pytest.warns(eg.RunWarning, match="`initial.scale` acts as a .* of 0.02"):
        solved(problem, co.Model(jnp.asarray(1.0), None), intervals=4)


@pytest.mark.slow
def test_a_start_that_is_fixed_and_a_bound_that_is_met_do_not_vary():
    ts = np.linspace(0, 1, 20)
    problem = co.Problem(
        lambda t, x, u, p, nets: -p * x,
        (ts, np.exp(-2 * ts)),
        initial=co.Initial([1.0]),
        parameter_bounds=(0.0, 1.5),
    )
    found = co.covariance(*solved(problem, co.Model(jnp.asarray(1.0), None)))
    assert found.states[0, 0] == 0
    assert found.model[0, 0] == 0


@pytest.mark.filterwarnings("ignore:the data do not tell")
def test_directions_that_the_data_leave_open_are_named():
    ts = np.linspace(0, 1, 9)
    field = lambda t, x, u, p, nets: -(p[0] + p[1]) * x
    problem = co.Problem(field, (ts, np.exp(-ts)))
    transcription, state = solved(problem, co.Model(jnp.ones(2), None))
    with pytest.raises(ValueError, match="leave a direction"):
        co.covariance(transcription, state)
    with pytest.raises(ValueError, match="not solved on this"):
        co.covariance(co.transcribe(problem, intervals=3), state)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the mesh is too coarse")
def test_residuals_vanish_at_nodes_and_refinement_brings_them_below_the_tolerance():
    """A fast start and a slow end: intervals gather where the solution moves."""
    field = lambda t, x, u, p, nets: -p * (x - jnp.cos(t))
    ts = np.linspace(0, 4, 30)
    steady = (144 * np.cos(ts) + 12 * np.sin(ts)) / 145
    exact = steady + (3 - 144 / 145) * np.exp(-12 * ts)
    problem = co.Problem(field, (ts, exact), initial=co.Initial([3.0]))
    transcription, state = solved(
        problem, co.Model(jnp.asarray(12.0), None), intervals=6, stages=3
    )
    trainer = co.CollocationTrainer(tol=1e-10)
    found = co.residuals(problem, state.model, state.memory, state.memory.nodes()[1:])
    np.testing.assert_allclose(found, 0, atol=1e-8)
    before = co.interval_errors(problem, state.model, state.memory)
    for _ in range(6):
        finer = co.refine(transcription, state, tol=1e-4)
        if len(finer.mesh.lengths) == len(transcription.mesh.lengths):
            break
        transcription = finer
        state, _ = eg.fit(trainer, state, [transcription], key=KEY)
    after = co.interval_errors(problem, state.model, state.memory)
    assert before.max() > 1e-2
    assert after.max() <= 1e-4
    lengths = transcription.mesh.lengths
    assert lengths.min() < 0.3 * lengths.max()
    assert lengths.argmin() < len(lengths) // 2
    np.testing.assert_allclose(state.model.parameters, 12.0, rtol=1e-4)
    with pytest.raises(ValueError, match="`tol` is 0"):
        co.refine(transcription, state, tol=0)


def test_bands_of_a_line_are_those_of_least_squares():
    """`x' = p`, `x(0)` fixed: the slope's variance, carried to any time."""
    rng = np.random.default_rng(0)
    ts = np.linspace(0, 2, 21)
    problem = co.Problem(
        lambda t, x, u, p, nets: jnp.broadcast_to(p, (1,)),
        (ts, 0.5 * ts + 0.1 * rng.normal(size=21)),
        scale=0.1,
        initial=co.Initial([0.0]),
    )
    level = co.transcribe(problem, intervals=4)
    trainer = co.CollocationTrainer(tol=1e-10)
    state = trainer.init(co.Model(jnp.asarray(0.3), None), level.guess())
    state, _ = eg.fit(trainer, state, [level], key=jax.random.key(0))
    found = co.covariance(level, state, noise=1.0)
    slope = 0.1 / np.sqrt(np.sum(ts**2))
    times = np.array([0.0, 1.0, 5.0])
    line = lambda model: co.integrate(
        problem, model, [0.0], times, adjoint=diffrax.ForwardMode()
    )
    bands = co.propagated(line, state.model, found.model)
    np.testing.assert_allclose(bands[:, 0], slope * times, rtol=1e-6, atol=1e-12)
