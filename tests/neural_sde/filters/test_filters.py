"""Filters, smoothers and forecasts against a grid of states and closed forms."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import effgen as eg
from effgen import neural_sde as ns
from effgen.neural_sde.answering.draws import draws_of, is_future
from effgen.neural_sde.answering.exact import num_steps_of
from effgen.neural_sde.filters.twisted import twisted_filter, twisted_futures
from tests.neural_sde.cases import double_well, problem


KEY = jax.random.key(0)
DT = 0.05


def wells(num=60):
    """A record that goes from well to well, and its model."""
    rng = np.random.default_rng(0)
    ts = np.arange(1, num + 1) * 0.2
    ys = np.sign(np.sin(ts / 3)) + 0.1 * rng.normal(size=num)
    return ns.posterior(double_well(), ts, ys, dt=DT), ts, ys


def grid_laws(ys, ahead=0):
    """Filtered, smoothed and predicted means of the wells' record, on 401 states.

    The chain of exponential Euler steps of 0.05, four to a gap; `ahead` gaps more.
    """
    grid = np.linspace(-2.5, 2.5, 801)
    decay = np.exp(-DT)
    mean = decay * grid + (1 - decay) * (4 * grid * (1 - grid**2) + grid)
    scale = 0.7 * np.sqrt((1 - decay**2) / 2)
    step = scipy.stats.norm.pdf(grid[None], mean[:, None], scale)
    gap = np.linalg.matrix_power(step / step.sum(1, keepdims=True), 4)
    like = [scipy.stats.norm.pdf(y, grid, 0.1) for y in ys]
    p = scipy.stats.norm.pdf(grid, 0, 0.5)
    filtered, predicted = [], []
    for each in like:
        p = p @ gap
        predicted.append(p / p.sum())
        p = p * each
        p = p / p.sum()
        filtered.append(p)
    beta, smoothed = np.ones(len(grid)), []
    for law, each in zip(filtered[::-1], like[::-1], strict=True):
        smoothed.append(law * beta / (law @ beta))
        beta = gap @ (each * beta)
        beta = beta / beta.max()
    later = [p @ np.linalg.matrix_power(gap, k) for k in range(1, ahead + 1)]
    return grid, filtered, smoothed[::-1], predicted, later


def moments(grid, laws):
    mean = np.array([law @ grid for law in laws])
    second = np.array([law @ grid**2 for law in laws])
    return mean, np.sqrt(second - mean**2)


def test_a_smoother_keeps_distinct_paths_and_their_law():
    found, _ts, ys = wells()
    grid, _, laws, *_ = grid_laws(ys)
    mean, scale = moments(grid, laws)
    law = found.marginals(key=KEY, num_paths=1_000)
    error = scale / np.sqrt(law.ess)
    assert np.all(np.abs(law.mean[:, 0] - mean) < 6 * error)
    np.testing.assert_allclose(law.scale[:, 0], scale, rtol=0.25)
    paths = found.smoother(key=KEY, num_paths=1_000)
    assert len(np.unique(np.asarray(paths.positions[0]))) > 300
    assert np.min(paths.ess) > 100


@pytest.mark.slow
def test_paths_of_the_posterior_count_alike():
    draws = wells()[0].paths(500, key=KEY)
    assert np.all(draws.log_weights == draws.log_weights[0])


def test_a_filter_knows_nothing_of_the_future():
    found, _ts, ys = wells(20)
    grid, laws, _, predicted, _ = grid_laws(ys)
    mean, scale = moments(grid, laws)
    filtered = found.filter(key=KEY, num_paths=4_000)
    positions = np.asarray(filtered.positions[4 : 4 * 20 + 1 : 4, :, 0])
    error = scale / np.sqrt(np.asarray(filtered.ess))
    assert np.all(np.abs(positions.mean(1) - mean) < 6 * error)
    ahead = found.predictions(key=KEY, num_paths=4_000)
    mean, scale = moments(grid, predicted)
    np.testing.assert_allclose(ahead.mean[:, 0], mean, atol=0.06)
    np.testing.assert_allclose(ahead.scale[:, 0], np.hypot(scale, 0.1), rtol=0.1)
    # The value's place in the predictive law is the normal score's probability.
    cdf = [
        law @ scipy.stats.norm.cdf(y, grid, 0.1)
        for law, y in zip(predicted, ys, strict=True)
    ]
    np.testing.assert_allclose(
        scipy.stats.norm.cdf(ahead.residuals[:, 0]), cdf, atol=0.04
    )
    total = np.sum(np.log([
        law @ scipy.stats.norm.pdf(y, grid, 0.1)
        for law, y in zip(predicted, ys, strict=True)
    ]))  # fmt: skip
    apart = abs(filtered.evidence.value - total)
    assert apart < 5 * filtered.evidence.standard_error + 0.02
    np.testing.assert_allclose(ahead.scores.sum(), total, atol=0.3)


@pytest.mark.slow
def test_forecasts_go_on_from_the_filter_s_end():
    found, ts, ys = wells()
    times = ts[-1] + 0.2 * np.arange(1, 6)
    grid, *_, later = grid_laws(ys, ahead=5)
    mean, scale = moments(grid, later)
    bands = found.forecast(times, key=KEY, num_paths=4_000)
    error = np.hypot(scale, 0.1) / np.sqrt(np.asarray(bands.ess))
    assert np.all(np.abs(bands.mean[:, 0] - mean) < 6 * error)
    assert np.min(bands.ess) > 400


@pytest.mark.usefixtures("x64")
def test_a_linear_model_s_filter_is_kalman_s():
    case = problem(3, correlated=False)
    found = ns.posterior(case.model(dt=0.2), case.ts, case.values())
    filtered = found.filter(key=KEY, num_paths=20_000)
    ahead = found.predictions()
    np.testing.assert_allclose(filtered.evidence.value, case.log_prob(), rtol=1e-9)
    np.testing.assert_allclose(ahead.scores.sum(), case.log_prob(), rtol=1e-9)
    # What was known at a time is the posterior of the record cut there.
    for last in (2, 5):
        cut = ns.posterior(
            case.model(dt=0.2), case.ts[:last], case.values()[:last]
        ).marginals([case.ts[last - 1]])
        grid = np.concatenate([[0.0], case.ts])
        counts = np.ceil(np.diff(grid) / 0.2 - 1e-4).astype(int)
        node = np.cumsum(counts)[last - 1]
        x = filtered.positions[node]
        np.testing.assert_allclose(x.mean(0), cut.mean[0], atol=0.05)
        np.testing.assert_allclose(x.std(0), cut.scale[0], rtol=0.05)
        after = ns.posterior(
            case.model(dt=0.2), case.ts[:last], case.values()[:last]
        ).marginals([case.ts[last]])
        np.testing.assert_allclose(
            ahead.mean[last], case.observe @ after.mean[0], rtol=1e-7
        )


@pytest.mark.slow
def test_linear_forecasts_are_closed_forms():
    linear = ns.DiagonalSDE(1.0, 0.0, 0.5, ns.Gaussian.independent(np.zeros(1), 0.5))
    ts = np.arange(20.0) * 0.3
    residual = ns.residual_network(linear, key=KEY, width_size=8)
    model = ns.LatentSDE(linear, ns.LinearDecoder([[2.0]], 0.1), residual=residual)
    found = ns.posterior(model, ts, np.sin(ts), dt=0.3)
    law = found.marginals([7.0])
    bands = [
        found.forecast([7.0], key=key, num_paths=n)
        for key, n in ((KEY, 10), (jax.random.key(1), 2_000))
    ]
    mean, scale = 2 * law.mean[0, 0], np.hypot(2 * law.scale[0, 0], 0.1)
    for band in bands:
        np.testing.assert_allclose(band.mean[0, 0], mean, rtol=1e-5)
        exact = scipy.stats.norm.ppf(band.levels, mean, scale)
        np.testing.assert_allclose(band.quantiles[:, 0, 0], exact, rtol=1e-4)
        assert np.isinf(band.ess[0])
    np.testing.assert_allclose(bands[1].samples[:, 0, 0].std(), scale, rtol=0.06)


def test_an_explosion_is_named_with_the_step_that_holds():
    model = double_well(drift=lambda t, x: 40 * x * (1 - x**2) + x)
    found = ns.posterior(model, np.array([1.0]), np.array([0.9]), dt=0.25)
    with pytest.warns(eg.RunWarning, match=r"0\.25 are too long.*none is with `dt` 0"):
        found.forecast([4.0], key=KEY, num_paths=500)


@pytest.mark.slow
def test_a_root_of_a_negative_state_is_cut_off():
    """`dX = (0.2 - X) dt + 0.6 sqrt(X) dW`, seen near zero, by exact transitions."""
    m, s, noise = 0.2, 0.6, 0.05
    ts, ys = np.array([0.5, 1.0, 1.5, 2.0]), np.array([0.15, 0.05, 0.02, 0.1])
    rng, num, exact = np.random.default_rng(1), 40_000, 0.0
    x = np.abs(0.2 + 0.05 * rng.normal(size=num))
    c, decay = s * s * -np.expm1(-0.5) / 4, np.exp(-0.5)
    for y in ys:
        x = c * scipy.stats.ncx2.rvs(4 * m / s**2, x * decay / c, random_state=rng)
        w = scipy.stats.norm.pdf(y, x, noise)
        exact += np.log(w.mean())
        x = x[rng.choice(num, num, p=w / w.sum())]
    law = ns.Gaussian.independent(np.full(1, 0.2), 0.05)
    linear = ns.DiagonalSDE(1.0, m, s * np.sqrt(m), law)
    model = ns.LatentSDE(
        linear,
        ns.LinearDecoder(np.eye(1), noise),
        diffusion=lambda t, x: s * jnp.sqrt(x),
        t0=0.0,
    )
    found = ns.posterior(model, ts, ys, dt=0.05).evidence(key=KEY, num_paths=2_000)
    assert abs(found.evidence.value - exact) < 0.4


@pytest.mark.slow
@pytest.mark.parametrize("dt", [0.5, 0.1])
def test_a_likelihood_integrates_to_one(dt):
    """One observation of the wells at 1: `exp(evidence(y))` over all `y`."""
    ys = np.linspace(-4, 4, 41)
    model = double_well(anchor=ns.RelinearizedAnchor())
    model = dataclasses.replace(model, decoder=ns.LinearDecoder(np.eye(1), 0.3))
    found = ns.posterior(model, np.ones((41, 1)), ys[:, None, None], dt=dt)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", eg.RunWarning)  # half of `dt` 0.5 is too long
        evidence = found.evidence(key=KEY, num_paths=4_000).evidence
    mass = np.trapezoid(np.exp(evidence.value), ys)
    errors = np.exp(evidence.value) * evidence.standard_error * (ys[1] - ys[0])
    # The chain's own mass there, from its paths: of long steps some go far.
    rng, decay = np.random.default_rng(0), np.exp(-dt)
    x = 0.5 * rng.normal(size=400_000)
    for _ in range(round(1 / dt)):
        force = 4 * x * (1 - x**2) + x
        x = decay * x + (1 - decay) * force
        x = x + 0.7 * np.sqrt((1 - decay**2) / 2) * rng.normal(size=len(x))
    ends = scipy.stats.norm.cdf((4 - x) / 0.3) - scipy.stats.norm.cdf((-4 - x) / 0.3)
    assert abs(mass - ends.mean()) < 0.03 + 5 * np.sqrt(np.sum(errors**2))


def test_futures_are_the_smoothed_paths_from_the_last_value_on():
    rows = [(np.arange(4.0), np.array([[0.9], [1.1], [-0.8], [np.nan]]))]
    rows.append((np.array([0.5]), np.array([[1.0]])))
    found = ns.posterior(double_well(dt=0.25), *ns.pad_series(rows))
    times = np.array([[2.0, 2.5, 3.0, 4.0], [0.5, 1.0, 1.0, 2.0]])
    series, index = found.record.merged(times, None, 0.0)
    assert is_future(series, index)
    earlier = found.record.merged([0.5, 2.5], None, 0.0)
    assert not is_future(*earlier)
    keys = jax.random.split(KEY, 2)
    steps = num_steps_of(found.model, series)
    smoothed, futures = (
        draws_of(found.model, series, index, steps, 50, keys, run=run)
        for run in (twisted_filter, twisted_futures)
    )
    np.testing.assert_array_equal(futures.positions, smoothed.positions)
    np.testing.assert_array_equal(futures.ess, smoothed.ess)
    np.testing.assert_array_equal(futures.log_weights, smoothed.log_weights)
    apart = np.asarray(futures.positions[0, :, 1:] - futures.positions[0, :, :-1])
    assert np.all(apart.std(axis=0) > 0.1)


def test_a_forecast_is_a_function_of_values_under_transformations():
    ts = np.arange(4.0)

    def level(ys):
        found = ns.posterior(double_well(dt=0.5), ts, ys)
        return found.forecast([4.0, 5.0], key=KEY, num_paths=50).mean[1, 0]

    ys = jnp.array([[0.9, 1.1, 0.8, 1.0], [-0.9, 0.2, 1.2, 0.7]])
    slope, value = jax.jit(
        jax.vmap(jax.jacfwd(lambda y: (level(y),) * 2, has_aux=True))
    )(ys)
    assert np.all(np.isfinite(slope))
    assert np.any(slope != 0)
    np.testing.assert_allclose(value[0], level(ys[0]), atol=1e-4)
