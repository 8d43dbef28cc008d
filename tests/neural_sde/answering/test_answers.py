"""Answers as frames and pictures, components, interventions, and comparisons."""

import jax
import numpy as np
import pandas as pd
import pytest
import scipy.linalg

from effgen import neural_sde as ns
from effgen.neural_sde.answering.comparison import _error_of_sum, _held_out
from effgen.neural_sde.data.pictures import autocorrelations


KEY = jax.random.key(0)
DAYS = pd.date_range(
    "2024-03-28", periods=12, freq="D", tz="Europe/Berlin", name="day", unit="s"
)
NEXT = pd.date_range(
    DAYS[-1] + pd.DateOffset(days=1), periods=3, freq="D", tz="Europe/Berlin"
)
FRAME = pd.DataFrame(
    {"north": np.sin(np.arange(12.0)), "south": np.cos(np.arange(12.0))}, index=DAYS
)
FRAME.iloc[3, 0] = np.nan


def model(num=2):
    law = ns.Gaussian.independent(np.zeros(num), 1.0)
    linear = ns.DiagonalSDE(0.1, 0.0, 0.4, law)
    return ns.LatentSDE(linear, ns.LinearDecoder(np.eye(num), 0.3), dt=1.0)


@pytest.fixture(scope="module")
def found():
    return ns.posterior(model(), FRAME.index, FRAME, unit="D")


def test_a_forecast_is_a_frame_on_the_records_index(found):
    bands = found.forecast(NEXT, key=KEY, num_paths=8)
    table = bands.to_pandas()
    assert list(table.index) == list(NEXT)
    assert (table.index.name, str(table.index.tz)) == ("day", "Europe/Berlin")
    assert table.index.unit == DAYS.unit
    assert list(table["south"].columns) == ["mean", "5%", "25%", "50%", "75%", "95%"]
    np.testing.assert_allclose(table["south"]["mean"], bands.mean[:, 1])
    np.testing.assert_allclose(table["north"]["95%"], bands.quantiles[-1, :, 0])
    # The clock goes back an hour on the 31st: days of 23 hours are shorter.
    utc = np.array([(t - DAYS[0]) / pd.Timedelta(days=1) for t in DAYS])
    bare = ns.posterior(model(), utc, FRAME.to_numpy())
    np.testing.assert_allclose(found.log_evidence, bare.log_evidence, rtol=1e-5)
    plain = found.predictions().to_pandas()
    assert plain.index.equals(DAYS)
    assert np.isnan(plain["north"]["residuals"].iloc[3])


@pytest.mark.slow
def test_an_index_of_years_stays_one():
    years = pd.Index([1871, 1872, 1874], name="year")
    found = ns.posterior(model(1), years, pd.Series([0.1, 0.2, 0.3], index=years))
    assert found.predictions().to_pandas().index.equals(years)


def test_a_batch_is_a_frame_of_series_and_times():
    ts = np.tile(np.arange(3.0), (2, 1))
    bands = ns.posterior(model(1), ts, np.ones((2, 3)), dt=1.0).forecast(
        [3.0, 4.0], key=KEY, num_paths=4
    )
    table = bands.to_pandas()
    assert table.index.names == ["series", None]
    np.testing.assert_allclose(table.loc[1, "mean"], bands.mean[1, :, 0])
    with pytest.raises(ValueError, match="one series"):
        bands.plot()


def test_periods_return_as_periods():
    months = pd.period_range("2020-01", periods=6, freq="M")
    values = pd.Series(np.arange(6.0), index=months, name="sales", dtype="Float64")
    values.iloc[2] = pd.NA
    found = ns.posterior(model(1), values.index, values, unit="D", dt=31.0)
    table = found.forecast(
        pd.period_range("2020-07", periods=2, freq="M"), key=KEY, num_paths=4
    ).to_pandas()
    assert list(table.index.astype(str)) == ["2020-07", "2020-08"]
    assert not np.asarray(found.series.mask)[0, 2, 0]


def test_times_that_do_not_fit_the_record_are_refused(found):
    naive = NEXT.tz_localize(None)
    with pytest.raises(TypeError, match="`times` have no time zone"):
        found.forecast(naive, key=KEY)
    with pytest.raises(ValueError, match="not the same times"):
        ns.posterior(model(), FRAME.index + pd.Timedelta(days=1), FRAME, unit="D")
    with pytest.raises(ValueError, match="`ts` are missing at"):
        ns.posterior(model(1), pd.DatetimeIndex(["2020-01-01", None]), np.zeros(2))
    with pytest.raises(ValueError, match="`unit` is 'M'"):
        ns.posterior(model(), FRAME.index, FRAME, unit="M")
    with pytest.raises(ValueError, match="`times` are empty"):
        ns.posterior(model(1), np.arange(3.0), np.zeros(3)).forecast([], key=KEY)
    with pytest.raises(TypeError, match="pass a `LatentSDE`"):
        ns.posterior(FRAME, FRAME.index, FRAME)


@pytest.mark.one_case("9000")
@pytest.mark.parametrize("year", [1, 1500, 2024, 9000])
def test_dates_of_any_year_keep_their_gaps(year):
    dates = np.datetime64(f"{year:04d}-01-01", "s") + np.arange(5) * np.timedelta64(
        1, "D"
    )
    found = ns.posterior(model(1), dates, np.zeros(5), unit="D")
    np.testing.assert_array_equal(found.series.ts[0], np.arange(5.0))
    assert found.record.times(np.array([2.0]))[0] == dates[2]


def structure():
    parts = ns.level(noise=0.2) + ns.cycle(7.0, damping=0.05, scale=1.0)
    return ns.LatentSDE(parts, parts.decoder(0.3), dt=1.0)


def test_components_are_conditional_laws_of_each_part():
    ts, ys = np.arange(8.0), np.sin(np.arange(8.0))
    found = ns.posterior(structure(), ts, ys)
    times = np.array([2.5, 9.0])
    parts = found.components(times)
    assert parts.names == ("level", "cycle")
    turn = 2 * np.pi / 7
    kernels = (
        lambda s, t: 9 + 0.04 * np.minimum(s, t),
        lambda s, t: np.exp(-0.05 * np.abs(s - t)) * np.cos(turn * (s - t)),
    )
    seen = sum(k(ts[:, None], ts[None]) for k in kernels) + 0.09 * np.eye(8)
    for i, kernel in enumerate(kernels):
        across = kernel(times[:, None], ts[None])
        gain = np.linalg.solve(seen, across.T).T
        np.testing.assert_allclose(parts.mean[:, i], gain @ ys, atol=1e-4)
        variance = kernel(times, times) - np.sum(gain * across, axis=1)
        np.testing.assert_allclose(parts.scale[:, i], np.sqrt(variance), rtol=1e-3)
    table = parts.to_pandas()
    np.testing.assert_allclose(table["cycle"]["mean"], parts.mean[:, 1])
    assert len(parts.plot().axes) == 2
    with pytest.raises(ValueError, match="has no parts"):
        ns.posterior(model(1), ts, ys).components()


def test_pictures_are_figures(found):
    bands = found.forecast(NEXT, key=KEY, num_paths=8)
    assert [panel.get_title("left") for panel in bands.plot().axes] == [
        "north",
        "south",
    ]
    assert len(found.predictions().plot(1).axes) == 3
    lags, share = autocorrelations(np.array([1.0, -1.0] * 40))
    np.testing.assert_allclose(share[:2], [-1.0, 1.0])
    assert lags[-1] == 20


def test_an_intervention_is_the_response_of_the_linear_part():
    rate, times = 1.3, np.array([3.0, 4.0, 4.5])
    law = ns.Gaussian.independent(np.zeros(1), 0.3)
    linear = ns.DiagonalSDE(rate, 0.0, 0.5, law, input_matrix=[[2.0]])
    whole = ns.LatentSDE(linear, ns.LinearDecoder([[3.0]], 0.1), dt=0.5)
    past = np.array([[1.0], [0.0], [3.0]])
    found = ns.posterior(whole, np.arange(3.0), np.zeros(3), inputs=past)
    planned, instead = np.array([[1.0], [1.0], [0.0]]), np.array([[1.0], [5.0], [0.0]])
    made = ns.intervention(
        found, times, inputs=planned, instead=instead, key=KEY, num_paths=50
    )
    assert isinstance(made, ns.Intervention)
    # Inputs differ by 4 from time 4 on: dX = (-rate X + 2 * 4) dt, seen threefold.
    right = np.array([0.0, 0.0, 3 * 8 * -np.expm1(-0.5 * rate) / rate])
    np.testing.assert_allclose(made.effect.mean[:, 0], right, atol=1e-4)
    np.testing.assert_allclose(made.effect.quantiles[:, 2, 0], right[2], atol=1e-4)
    apart = made.changed.mean - made.planned.mean
    np.testing.assert_allclose(apart[:, 0], right, atol=1e-4)
    with pytest.raises(ValueError, match="for those use `observations`"):
        ns.intervention(found, [1.0], inputs=[[1.0]], instead=[[2.0]], key=KEY)


def test_models_are_compared_by_what_they_were_not_fitted_to():
    rng = np.random.default_rng(0)
    ts = np.sort(rng.uniform(0, 20, 40))
    ys = scipy.linalg.cholesky(np.exp(-np.abs(ts[:, None] - ts)), lower=True)
    ys = ys @ rng.normal(size=40) + 0.1 * rng.normal(size=40)
    ys[30] = np.nan

    def one(scale):
        law = ns.Gaussian.independent(np.zeros(1), scale)
        linear = ns.DiagonalSDE(1.0, 0.0, scale * np.sqrt(2.0), law)
        return ns.LatentSDE(linear, ns.LinearDecoder(np.eye(1), 0.1), dt=20.0)

    found = ns.compare({"wide": one(5.0), "right": one(1.0)}, ts, ys, since=ts[21])
    assert found.names == ("right", "wide")
    assert found.scores.shape == (2, 18)

    def log_prob(scale, num):
        there = ~np.isnan(ys[:num])
        t, y = ts[:num][there], ys[:num][there]
        cov = scale**2 * np.exp(-np.abs(t[:, None] - t)) + 0.01 * np.eye(len(t))
        logs = np.linalg.slogdet(2 * np.pi * cov)[1]
        return -0.5 * (y @ np.linalg.solve(cov, y) + logs)

    right = [log_prob(s, 40) - log_prob(s, 21) for s in (1.0, 5.0)]
    np.testing.assert_allclose(found.log_scores, right, rtol=1e-3)
    np.testing.assert_allclose(found.behind, [0, right[0] - right[1]], rtol=1e-3)
    assert found.to_pandas().loc["right", "standard_errors"] == 0
    with pytest.raises(ValueError, match="fewer than two times"):
        ns.compare({"right": one(1.0)}, ts, ys, since=ts[-1])
    with pytest.raises(TypeError, match="`models` have no names"):
        ns.compare([one(1.0)], ts, ys, since=ts[20])


def test_since_is_a_time_of_the_record():
    days = np.arange("2024-01-01", "2024-01-05", dtype="datetime64[D]")
    seen = np.ones((1, 4), bool)
    kept = _held_out(days, "2024-01-03", seen, None)
    np.testing.assert_array_equal(kept, _held_out(np.arange(4.0), 2, seen, None))
    for ts, since in ((days, 2.0), (np.arange(4.0), days[2])):
        with pytest.raises(TypeError, match="`since` is a"):
            _held_out(ts, since, seen, None)


def test_the_error_of_a_sum_is_that_of_dependent_terms():
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(400, 301))
    values = noise[:, 1:] + 0.6 * noise[:, :-1]  # sums vary by 1.6^2 a term
    told = np.array([_error_of_sum(row) for row in values])
    np.testing.assert_allclose(np.median(told), 1.6 * np.sqrt(300), rtol=0.08)
    np.testing.assert_allclose(np.std(values.sum(1)), 1.6 * np.sqrt(300), rtol=0.1)
