"""After training: marginals, paths, forecasts, evidence, and samples of the prior."""

import dataclasses
import warnings

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from benchmarks.double_well import data as double_well_data
from effgen import neural_sde as ns
from tests.neural_sde.cases import double_well, grid_filter, problem


KEY = jax.random.key(0)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_marginals_of_a_linear_model_are_exact_between_and_after_observations():
    case = problem(3)
    found = ns.posterior(case.model(dt=0.2), case.ts, case.values())
    np.testing.assert_allclose(found.log_evidence, case.log_prob(), rtol=1e-9)
    times = np.array([0.05, 1.1, 2.0, 3.5])
    law = found.marginals(times)
    both = np.concatenate([case.ts, times])
    mask = np.concatenate([case.mask, np.zeros((4, 2), bool)])
    ys = np.concatenate([case.ys, np.zeros((4, 2))])
    order = np.argsort(both, kind="stable")
    exact = case.dense.posterior(
        both[order], ys[order], case.observe, case.noise, mask[order]
    )
    where = np.argsort(order, kind="stable")[len(case.ts) :]
    np.testing.assert_allclose(law.mean, exact[0][where], rtol=1e-7, atol=1e-8)
    variance = np.diagonal(exact[1][where], axis1=1, axis2=2)
    np.testing.assert_allclose(law.scale**2, variance, rtol=1e-6)
    # The last state has a deviation of 2: 0.05 are seven errors of the mean.
    draws = found.paths(80_000, key=KEY, times=times)
    np.testing.assert_allclose(draws.positions.mean(0), law.mean, atol=0.05)
    np.testing.assert_allclose(draws.positions.std(0), law.scale, rtol=0.05)
    np.testing.assert_allclose(draws.log_weights, case.log_prob(), rtol=1e-9)


@pytest.mark.slow
def test_a_batch_is_its_series_one_by_one():
    case = problem(2, correlated=False)
    one = np.random.default_rng(0).normal(size=(1, 2))
    rows = [(case.ts, case.values()), (np.array([1.0]), one)]
    ts, ys, mask = ns.pad_series(rows)
    times = np.array([0.5, 2.9])
    whole = ns.posterior(case.model(dt=0.5), ts, ys, mask)
    evidence, law = whole.log_evidence, whole.marginals(times)
    for i, (t, y) in enumerate(rows):
        there = ~np.isnan(y)
        given = (case.observe, case.noise)
        exact = case.dense.log_prob(t, y, *given, there)
        np.testing.assert_allclose(evidence[i], exact, rtol=2e-4)
        both = np.concatenate([t, times])
        order = np.argsort(both, kind="stable")
        mean, _ = case.dense.posterior(
            both[order],
            np.concatenate([y, np.zeros((2, 2))])[order],
            *given,
            np.concatenate([there, np.zeros((2, 2), bool)])[order],
        )
        asked = mean[np.argsort(order)[len(t) :]]
        np.testing.assert_allclose(law.mean[i], asked, rtol=2e-3, atol=2e-3)


ts, ys = double_well_data()


@pytest.fixture(scope="module")
def trained():
    linear = double_well().linear
    model = double_well(
        residual=ns.residual_network(linear, key=KEY),
        anchor=ns.RelinearizedAnchor(2),
        frozen=("linear", "decoder"),
    )
    trainer = ns.LatentSDETrainer(optax.adam(3e-2), dt=0.02, num_paths=32)
    data = eg.Minibatches((jnp.asarray(ts)[None], jnp.asarray(ys)[None]), 1)
    state, _ = eg.fit(trainer, trainer.init(model), data, key=KEY, num_steps=100)
    return state.model


@pytest.mark.slow
@pytest.mark.optimized
def test_half_a_step_halves_the_chain_s_error(trained):
    exact = grid_filter(double_well(), ts, ys, 0.002)
    values = [
        ns.posterior(trained, ts, ys, dt=dt)
        .smoother(key=KEY, num_paths=20_000)
        .evidence.value
        for dt in (0.02, 0.01)
    ]
    assert abs(2 * values[1] - values[0] - exact) < 0.1


@pytest.mark.slow
@pytest.mark.optimized
def test_a_trained_double_well_is_near_its_evidence(trained):
    found = ns.posterior(trained, ts, ys)
    evidence = found.evidence(key=KEY, num_paths=4_000)
    exact = grid_filter(double_well(), ts, ys, 0.002)
    # The prior's chain is of first order: 0.14 nats off, and half of it at half the dt.
    assert abs(evidence.evidence.value - exact) < 0.2
    assert evidence.elbo.value > exact - 0.25
    assert 0 <= evidence.gap.value < 0.15
    assert evidence.ess > 2_000
    filtered = found.filter(key=KEY, num_paths=2_000)
    apart = abs(filtered.evidence.value - evidence.evidence.value)
    assert apart < 5 * np.hypot(
        filtered.evidence.standard_error, evidence.evidence.standard_error
    )


@pytest.mark.slow
def test_a_forecast_is_the_prior_from_the_last_state(trained):
    found = ns.posterior(trained, ts, ys)
    bands = found.forecast(np.array([2.5, 4.0]), key=KEY, num_paths=4_000)
    assert bands.quantiles.shape == (5, 2, 1)
    assert np.all(np.diff(bands.quantiles, axis=0) > 0)
    # The paths' last states, carried on by the prior's own chain.
    rng = np.random.default_rng(0)
    last = found.paths(4_000, key=jax.random.key(1), times=np.array([2.0, 4.0]))
    x = np.asarray(last.positions[:, 0, 0], np.float64)
    for _ in range(2_000):
        x = x + 4 * x * (1 - x**2) * 1e-3 + 0.7 * np.sqrt(1e-3) * rng.normal(size=4_000)
    y = x + 0.1 * rng.normal(size=4_000)
    np.testing.assert_allclose(
        np.quantile(y, [0.25, 0.5, 0.75]), bands.quantiles[1:4, 1, 0], atol=0.06
    )
    with pytest.raises(ValueError, match="before the last observation"):
        found.forecast(np.array([1.0]), key=KEY)


@pytest.mark.slow
def test_missing_values_are_imputed(trained):
    gaps = ys.copy()
    gaps[[3, 6]] = np.nan
    found = ns.posterior(trained, ts, gaps).impute(key=KEY)
    assert found.shape == (10, 1)
    kept = ~np.isnan(gaps)
    np.testing.assert_allclose(found[kept, 0], ys[kept], rtol=1e-6)
    assert np.all(np.abs(found[~kept, 0] - ys[~kept]) < 0.6)


@pytest.mark.one_case("of noise that needs areas")
@pytest.mark.parametrize(
    ("solver", "dt"),
    [(None, 0.05), (diffrax.ShARK(), 0.1)],
    ids=["Euler's", "of noise that needs areas"],
)
def test_samples_of_the_prior_have_its_law(solver, dt):
    law = ns.Gaussian.independent(np.array([1.0]), 0.1)
    linear = ns.DiagonalSDE(1.0, 0.5, 0.6, law)
    model = ns.LatentSDE(linear, ns.LinearDecoder(np.eye(1), 0.1))
    times = np.array([0.0, 0.5, 2.0])
    decay = np.exp(-times)
    mean = decay + 0.5 * (1 - decay)
    variance = 0.01 * decay**2 + 0.36 * (1 - decay**2) / 2
    x = np.asarray(ns.sample_prior(model, times, 3_000, key=KEY, dt=dt, solver=solver))
    assert x.shape == (3_000, 3, 1)
    np.testing.assert_allclose(x.mean(0)[:, 0], mean, atol=0.03)
    np.testing.assert_allclose(x.var(0)[:, 0], variance, rtol=0.1)


@pytest.mark.slow
def test_the_prior_s_terms_are_diffrax_s():
    model = double_well()
    tree = diffrax.VirtualBrownianTree(0.0, 1.0, 0.01, (1,), key=KEY)
    solution = diffrax.diffeqsolve(
        ns.prior_terms(model, tree),
        diffrax.EulerHeun(),
        t0=0.0,
        t1=1.0,
        dt0=0.02,
        y0=jnp.array([0.3]),
    )
    assert np.all(np.isfinite(solution.ys))


def test_a_step_too_long_for_the_drift_is_reported():
    stiff = double_well(drift=lambda t, x: 40 * x * (1 - x**2), dt=0.1)
    found = ns.posterior(stiff, ts, ys)
    with pytest.warns(eg.RunWarning):
        found.evidence(key=KEY, num_paths=4_000)


@pytest.mark.slow
def test_a_linear_model_is_not_reported():
    case = problem(3, correlated=False)
    found = ns.posterior(case.model(dt=0.3), case.ts, case.values())
    with warnings.catch_warnings():
        warnings.simplefilter("error", eg.RunWarning)
        evidence = found.evidence(key=KEY)
    assert evidence.gap.value == pytest.approx(0, abs=1e-3)
    assert evidence.ess == pytest.approx(1_000, rel=1e-3)


def test_times_asked_for_must_be_sorted_and_not_too_early():
    found = ns.posterior(double_well(), ts, ys)
    with pytest.raises(ValueError, match="`times` must be sorted"):
        found.paths(3, key=KEY, times=np.array([1.0, 0.5]))
    with pytest.raises(ValueError, match="`times` must be sorted"):
        found.paths(3, key=KEY, times=np.array([-1.0]))


@pytest.mark.slow
def test_forecasts_follow_their_inputs():
    law = ns.Gaussian.independent(np.zeros(1), 0.1)
    linear = ns.DiagonalSDE(1.0, 0.0, 0.1, law, input_matrix=np.ones((1, 1)))
    model = ns.LatentSDE(linear, ns.LinearDecoder(np.eye(1), 0.1), dt=0.1)
    t = np.arange(4.0)
    found = ns.posterior(model, t, np.zeros(4), inputs=np.zeros((4, 1)))
    with pytest.warns(eg.RunWarning, match="the last known are held"):
        held = found.forecast(np.array([4.0, 12.0]), key=KEY)
    np.testing.assert_allclose(held.mean[1], 0, atol=0.05)
    pushed = found.forecast(
        np.array([4.0, 12.0]), key=KEY, inputs=np.full((1, 2, 1), 3.0)
    )
    np.testing.assert_allclose(pushed.mean[1], 3.0, atol=0.05)


@pytest.mark.slow
def test_a_posterior_needs_no_training_and_no_step():
    model = dataclasses.replace(double_well(), dt=None)
    found = ns.posterior(model, ts, ys)
    assert found.model.dt == pytest.approx(0.01)
    assert found.paths(5, key=KEY).positions.shape == (5, 10, 1)


@pytest.mark.slow
@pytest.mark.optimized
def test_a_likelihood_is_the_same_for_every_anchor():
    chain = lambda anchor: double_well(anchor=anchor, t0=0.0)
    anchors = (ns.PriorAnchor(), ns.RelinearizedAnchor())
    estimates = [
        ns.posterior(chain(anchor), ts, ys, dt=0.1)
        .smoother(key=KEY, num_paths=20_000)
        .evidence
        for anchor in anchors
    ]
    apart = abs(estimates[0].value - estimates[1].value)
    assert apart < 5 * np.hypot(*(e.standard_error for e in estimates))


@pytest.mark.parametrize("kind", [np.int64, float, list])
def test_whole_numbers_past_32_bits_are_the_same_values(kind):
    """JAX's arrays of such integers are wrapped around, where x64 is off."""
    ys = 3_000_000_000 + np.cumsum(np.random.default_rng(0).integers(-9, 9, 40)) * 10**7
    given = [int(y) for y in ys] if kind is list else ys.astype(kind)
    fit = ns.fit_linear(ns.structural(ns.level(), np.arange(40), ys), np.arange(40), ys)
    found = ns.posterior(fit.model, np.arange(40), given)
    np.testing.assert_allclose(
        found.forecast([40.0], key=KEY).mean[0], ys[-1], rtol=0.1
    )
    np.testing.assert_allclose(found.log_evidence, fit.log_evidence, rtol=1e-5)


def test_masked_values_are_missing():
    """As netCDF's readers give them."""
    ts, ys = np.arange(8.0), np.sin(np.arange(8.0))
    masked = np.ma.masked_array(np.where(ts == 3, -9999, ys), ts == 3)
    model = ns.structural(ns.level(), ts, ys)
    found = ns.posterior(model, ts, masked).log_evidence
    wanted = ns.posterior(model, ts, np.where(ts == 3, np.nan, ys)).log_evidence
    assert found == wanted
    with pytest.raises(ValueError, match="times must be finite"):
        ns.posterior(model, np.ma.masked_array(ts, ts == 3), ys)


def test_means_have_no_noise_of_the_observations():
    """Student's tail of 1.2 degrees has no variance, which no number of draws tames."""
    law = ns.Gaussian.independent(np.zeros(1), 0.3)
    decoder = ns.Decoder(ns.Readout([[1.0]]), ns.Student(1.0, 1.2))
    model = ns.LatentSDE(ns.DiagonalSDE(0.05, 0.0, 0.1, law), decoder, dt=1.0)
    ys = np.random.default_rng(0).standard_t(1.2, 60)
    ys[30] = np.nan
    found = ns.posterior(model, np.arange(60.0), ys)
    filled = [found.impute(key=jax.random.key(k))[30, 0] for k in range(4)]
    np.testing.assert_allclose(filled, found.marginals().mean[30, 0], atol=0.1)
    assert np.std(filled) < 0.05


def test_smoothed_answers_are_the_same_inside_a_compiled_program():
    linear = ns.DiagonalSDE(0.5, 0.0, 0.8, ns.Gaussian.independent(np.zeros(1), 1.0))
    decoder = ns.Decoder(ns.Readout([[1.0]]), ns.Student(0.3, 3.0))
    model, ts = ns.LatentSDE(linear, decoder, dt=1.0), np.arange(40.0)
    ys = jnp.asarray(np.random.default_rng(0).normal(size=(40, 1)), jnp.float32)
    plain = ns.posterior(model, ts, ys).marginals()
    inside = jax.jit(lambda y: ns.posterior(model, ts, y).marginals())(ys)
    np.testing.assert_allclose(inside.ess, plain.ess, rtol=0.05)
    np.testing.assert_allclose(inside.scale, plain.scale, rtol=0.02)
    np.testing.assert_allclose(inside.mean, plain.mean, atol=0.02)
