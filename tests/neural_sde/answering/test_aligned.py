"""Frames of other times, values that float32 rounds, and zones: refused by name."""

import numpy as np
import pandas as pd
import pytest

import effgen as eg
from effgen import neural_sde as ns


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
