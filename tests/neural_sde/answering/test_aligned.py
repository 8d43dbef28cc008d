"""Frames of other times, values that float32 rounds, and zones: refused by name."""

import warnings

import jax
import numpy as np
import pandas as pd
import pytest

import effgen as eg
from effgen import neural_sde as ns


KEY = jax.random.key(0)


LAW = ns.Gaussian.independent(np.zeros(1), 1.0)
DAYS = pd.date_range("2020", periods=24, freq="D")
VALUES = np.cumsum(np.random.default_rng(0).normal(size=24))


def driven():
    linear = ns.DiagonalSDE(0.5, 0.0, 0.3, LAW, input_matrix=[[1.0]])
    return ns.LatentSDE(linear, ns.LinearDecoder([[1.0]], 0.2), dt=1.0)


@pytest.mark.parametrize("name", ["mask", "inputs", "errors"])
def test_frames_of_other_times_are_refused(name):
    ys = pd.DataFrame({"y": VALUES}, index=DAYS)
    given = {"inputs": pd.DataFrame({"u": np.arange(24.0)}, index=DAYS)}
    frames = given | {
        "mask": pd.DataFrame({"y": np.ones(24, bool)}, index=DAYS),
        "errors": pd.DataFrame({"y": np.ones(24)}, index=DAYS),
    }
    for other in (frames[name].iloc[::-1], frames[name].shift(7, freq="D")):
        with pytest.raises(ValueError, match=f"index of `{name}` are not the same"):
            ns.posterior(driven(), DAYS, ys, **(given | {name: other}), unit="D")


def test_inputs_of_later_times_are_by_their_own_names_and_times():
    linear = ns.DiagonalSDE(0.5, 0.0, 0.3, LAW, input_matrix=[[1.0, -2.0]])
    model = ns.LatentSDE(linear, ns.LinearDecoder([[1.0]], 0.2), dt=1.0)
    wide = lambda days: pd.DataFrame(
        {"heat": np.arange(len(days)) / 9, "price": np.ones(len(days))}, index=days
    )
    found = ns.posterior(model, DAYS, VALUES, inputs=wide(DAYS), unit="D")
    later = pd.date_range(DAYS[-1], periods=4, freq="D")[1:]
    given = wide(later)

    def means(times, inputs):
        return found.forecast(times, key=KEY, inputs=inputs).mean

    right = means(later, given.to_numpy())
    np.testing.assert_array_equal(means(later, given), right)
    np.testing.assert_array_equal(means(later.to_numpy(), given), right)
    for other in (given.iloc[::-1], given.shift(7, freq="D")):
        for times in (later, later.to_numpy()):
            with pytest.raises(ValueError, match="`times` and the index of `inputs`"):
                means(times, other)
    with pytest.raises(ValueError, match=r"\['price', 'heat'\], and those of the rec"):
        means(later, given[["price", "heat"]])
    given = given.where(given != 1 / 9)
    with pytest.raises(ValueError, match="`inputs` have entries that are not finite"):
        means(later, given)


@pytest.mark.parametrize(
    ("ts", "since"),
    [
        (DAYS.to_numpy().astype("M8[D]"), np.datetime64("2020-01-20T12")),
        (DAYS.to_numpy().astype("M8[D]"), "2020-01-20T12"),
        (DAYS, pd.Timestamp("2020-01-20T12")),
        (pd.Index(np.arange(24)), 19.5),
        (np.arange(24), 19.5),
        (np.arange(24.0), 19.5),
    ],
)
def test_no_value_before_since_is_held_out(ts, since):
    linear = ns.DiagonalSDE(0.5, 0.0, 0.3, LAW)
    model = ns.LatentSDE(linear, ns.LinearDecoder([[1.0]], 0.2), dt=1.0)
    found = ns.compare({"model": model}, ts, VALUES, since=since, unit="D")
    assert found.scores.shape == (1, 4)


def test_fits_refuse_frames_of_other_times():
    ys = pd.DataFrame({"y": VALUES}, index=DAYS)
    with pytest.raises(ValueError, match="index of `ys` are not the same"):
        ns.structural(ns.level(), DAYS, ys.iloc[::-1], unit="D")
    model = ns.structural(ns.level(), DAYS, ys, unit="D")
    with pytest.raises(ValueError, match="index of `ys` are not the same"):
        ns.fit_linear(model, DAYS, ys.iloc[::-1], unit="D")


def test_values_that_are_rounded_are_named():
    rng, ts = np.random.default_rng(0), np.arange(60.0)
    ys = np.cumsum(0.005 * rng.normal(size=60)) + 0.002 * rng.normal(size=60)
    model = ns.structural(ns.level(), ts, ys)
    with pytest.raises(ValueError, match="float32 rounds: subtract the mean"):
        ns.structural(ns.level(), ts, 4_500_000.123 + ys)
    matrix, scale = model.decoder.matrix, model.decoder.scale
    decoder = ns.LinearDecoder(matrix, scale, offset=4_500_000.0)
    with pytest.warns(eg.RunWarning, match="values are rounded"):
        ns.posterior(ns.LatentSDE(model.linear, decoder), ts, 4_500_000.123 + ys)


def test_a_date_without_the_record_s_zone_is_refused():
    zoned = DAYS.tz_localize("Europe/Berlin")
    ys = pd.Series(VALUES, index=zoned)
    models = {"level": ns.structural(ns.level(), zoned, ys, unit="D")}
    for since in ("2020-01-12", pd.Timestamp("2020-01-12")):
        with pytest.raises(TypeError, match="`since` has no time zone"):
            ns.compare(models, zoned, ys, since=since, unit="D")
    found = ns.compare(models, zoned, ys, since=zoned[12], unit="D")
    assert found.scores.shape[1] == 12


def linear_model():
    return ns.LatentSDE(
        ns.DiagonalSDE(0.5, 0.0, 1.0, ns.Gaussian.independent(np.zeros(1), 1.0)),
        ns.LinearDecoder(np.eye(1), 0.3),
    )


def test_masked_entries_are_missing_wherever_values_are_taken():
    rng, ts = np.random.default_rng(0), np.arange(20.0)
    ys = np.cumsum(rng.normal(size=20))
    ys[5] = 9.0
    masked = np.ma.masked_array(ys, np.arange(20) == 5)
    missing = np.where(np.arange(20) == 5, np.nan, ys)
    model = linear_model()
    kinds = ns.Switching({"one": model, "two": model}, 0.3)
    fits = {
        "fit": lambda y: ns.fit_linear(model, ts, y).log_evidence,
        "regimes": lambda y: ns.fit_regimes(kinds, ts, y, max_steps=1)[1],
        "held out": lambda y: ns.held_out_evidence(model, ts, y, since=10.0, key=KEY)[
            0
        ],
        "hierarchy": lambda y: (
            ns.fit_hierarchy(
                model,
                np.stack([ts, ts]),
                np.ma.stack([y, y + 1])
                if isinstance(y, np.ma.MaskedArray)
                else np.stack([y, y + 1]),
                varies=["decoder.offset"],
            ).mean
        ),
    }
    for name, found in fits.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", eg.RunWarning)
            both = found(masked), found(missing)
        np.testing.assert_allclose(*both, rtol=1e-6, err_msg=name)


def test_values_of_other_periods_are_refused():
    ts = pd.period_range("2020-01", periods=12, freq="M")
    ys = pd.Series(np.arange(12.0), index=ts)
    ns.posterior(linear_model(), ts, ys, unit="D")
    for call in (ns.posterior, ns.fit_linear):
        with pytest.raises(ValueError, match="are not the same times"):
            call(linear_model(), ts, ys[::-1], unit="D")
    kinds = ns.Switching({"one": linear_model(), "two": linear_model()}, 0.3)
    with pytest.raises(ValueError, match="are not the same times"):
        ns.fit_regimes(kinds, ts, ys[::-1], unit="D")


def test_times_between_those_of_the_record_keep_their_own_unit():
    ts = pd.Index(np.arange(20).astype("datetime64[s]"))
    found = ns.posterior(linear_model(), ts, pd.Series(np.ones(20), index=ts))
    asked = pd.to_datetime([3.0, 3.25, 3.5], unit="s")
    index = found.observations(asked, key=KEY).to_pandas().index
    assert (index == asked).all()
    own = found.observations(key=KEY).to_pandas().index
    assert own.equals(ts)
    months = pd.period_range("2020-01", periods=12, freq="M")
    found = ns.posterior(linear_model(), months, np.ones(12), unit="D")
    days = pd.to_datetime(["2020-03-01", "2020-03-11"])
    assert (found.observations(days, key=KEY).to_pandas().index == days).all()
    assert found.observations(key=KEY).to_pandas().index.equals(months)
