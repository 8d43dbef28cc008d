"""Parameters that differ by series, against one dense Gaussian in float64."""

import warnings

import numpy as np
import pytest
import scipy.optimize

import effgen as eg
from effgen import neural_sde as ns
from effgen.neural_sde.fits.hierarchies import _names, _values, _with


def records(num=12, length=6):
    rng = np.random.default_rng(0)
    ts = np.cumsum(rng.uniform(0.3, 1.0, (num, length)), axis=1)
    cov = covariance(ts)
    noise = np.einsum("nij,nj->ni", np.linalg.cholesky(cov), rng.normal(size=ts.shape))
    ys = 2.0 + 1.5 * rng.normal(size=(num, 1)) + noise
    ys[3, 4:] = np.nan
    return ts, ys


def covariance(ts):
    return 0.25 * np.exp(-np.abs(ts[:, :, None] - ts[:, None])) + 0.01 * np.eye(
        ts.shape[1]
    )


def exact(p, ts, ys):
    """`log p(y)` where offsets are `N(p[0], exp(2 p[1]))`."""
    total = 0.0
    for cov, y in zip(covariance(ts), ys, strict=True):
        there = ~np.isnan(y)
        both = cov[np.ix_(there, there)] + np.exp(2 * p[1])
        error = y[there] - p[0]
        total -= 0.5 * error @ np.linalg.solve(both, error)
        total -= 0.5 * np.linalg.slogdet(2 * np.pi * both)[1]
    return total


def model(offset=0.0, unit=1.0):
    law = ns.Gaussian.independent(np.zeros(1), 0.5 * unit)
    linear = ns.DiagonalSDE(1.0, 0.0, 0.5 * np.sqrt(2) * unit, law)
    decoder = ns.LinearDecoder(np.eye(1), 0.1 * unit, offset=offset)
    return ns.LatentSDE(linear, decoder)


def test_offsets_have_the_law_of_largest_evidence():
    ts, ys = records()
    found = ns.fit_hierarchy(model(), ts, ys, varies=["decoder.offset"])
    best = scipy.optimize.minimize(lambda p: -exact(p, ts, ys), [0.0, 0.0], tol=1e-10)
    assert found.converged
    assert found.names == ("decoder.offset",)
    np.testing.assert_allclose(found.mean[0], best.x[0], rtol=1e-3)
    np.testing.assert_allclose(found.scale[0], np.exp(best.x[1]), rtol=1e-3)
    np.testing.assert_allclose(found.log_evidence, -best.fun, rtol=1e-5)
    # A series' own offset is between its mean and the others'.
    cov = covariance(ts)[3][:4, :4]
    weight = np.linalg.solve(cov, np.ones(4))
    precision = weight.sum() + 1 / found.scale[0] ** 2
    right = (weight @ ys[3, :4] + found.mean[0] / found.scale[0] ** 2) / precision
    np.testing.assert_allclose(found.each[3, 0], right, rtol=1e-6)
    # Its deviation is larger than if the shared law were known.
    assert 1 < found.each_scale[3, 0] * precision**0.5 < 1.2
    np.testing.assert_allclose(found.of(3).decoder.offset[0], right, rtol=1e-5)
    # In any unit.
    for unit in (1e-6, 1e6):
        other = ns.fit_hierarchy(
            model(unit=unit), ts, ys * unit, varies=["decoder.offset"]
        )
        assert other.converged
        for name in ("mean", "scale", "each", "each_scale"):
            sizes = getattr(other, name) / unit, getattr(found, name)
            np.testing.assert_allclose(*sizes, rtol=1e-3)
    # Dates are times in the unit that is named.
    days = np.datetime64("2024-01-01", "ns") + (ts * 86_400e9).astype(int)
    dated = ns.fit_hierarchy(model(), days, ys, varies=["decoder.offset"], unit="D")
    np.testing.assert_allclose(dated.log_evidence, found.log_evidence, rtol=1e-8)


def test_inputs_of_series_move_their_states():
    ts, ys = records(4, 5)
    law = ns.Gaussian.independent(np.zeros(1), 0.5)
    make = lambda c: ns.LatentSDE(
        ns.DiagonalSDE(1.0, 0.0, 0.5 * np.sqrt(2), law, input_matrix=[[c]]),
        ns.LinearDecoder(np.eye(1), 0.1),
    )
    force = np.ones((4, 5, 1))
    found = ns.fit_hierarchy(
        make(1.0), ts, ys, None, force, varies=["linear.bias"], max_rounds=1_000
    )
    bare = ns.fit_hierarchy(
        make(0.0), ts, ys, None, force, varies=["linear.bias"], max_rounds=1_000
    )
    np.testing.assert_allclose(found.each, bare.each - 1, rtol=1e-4)
    with pytest.raises(ValueError, match="has an `input_matrix` and the series no"):
        ns.fit_hierarchy(make(1.0), ts, ys, varies=["linear.bias"])


def test_parameters_of_a_structure_vary_by_name():
    parts = ns.level(noise=0.5) + ns.cycle(9.0)
    whole = ns.LatentSDE(parts, parts.decoder(0.1))
    varies = ("level.noise", "cycle.period", "observation.scale")
    assert _names(whole, varies) == varies
    np.testing.assert_allclose(
        _values(whole, varies), np.log([0.5, 9.0, 0.1]), rtol=1e-6
    )
    other = _with(whole, varies, np.log([1.0, 7.0, 0.3]))
    found = other.linear.parameters
    np.testing.assert_allclose(found["level.noise"], 1.0)
    np.testing.assert_allclose(found["cycle.period"], 7.0, rtol=1e-6)
    np.testing.assert_allclose(other.decoder.scale, 0.3, rtol=1e-6)


def test_names_of_nothing_are_refused():
    ts, ys = records()
    for wrong, said in (
        (["decoder.nothing"], "which the model has not"),
        (["linear"], "a whole array"),
        ("decoder.offset", "pass names"),
        (["decoder.offset"] * 2, "which are the same"),
        (["observation.scale", "decoder.log_scale"], "which are the same"),
    ):
        with pytest.raises(ValueError, match=said):
            ns.fit_hierarchy(model(), ts, ys, varies=wrong)
    with pytest.raises(ValueError, match="two or more series"):
        ns.fit_hierarchy(model(), ts[0], ys[0], varies=["decoder.offset"])
    for settings, said in (
        ({"scale": 0.0}, r"`scale` is 0\.0"),
        ({"scale": np.nan}, "`scale` is nan"),
        ({"max_rounds": 0}, "`max_rounds` is 0"),
        ({"unit": "M"}, "`unit` is 'M'"),
    ):
        dates = np.datetime64("2024-01-01", "s") + (ts * 86_400).astype(int)
        with pytest.raises(ValueError, match=said):
            ns.fit_hierarchy(model(), dates, ys, varies=["decoder.offset"], **settings)


def test_series_without_values_change_no_bar():
    ts, ys = records()
    found = []
    for num in (1, 11, 40):
        more = np.concatenate([ts, np.tile(ts[:1], (num, 1))])
        empty = np.concatenate([ys, np.full((num, 6), np.nan)])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = ns.fit_hierarchy(model(), more, empty, varies=["decoder.offset"])
        found.append(result.each_scale[:13, 0])
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-3)
    spread = result.scale[0]
    assert spread < found[0][12] < 2 * spread


def test_likelihoods_that_are_not_normal_are_named():
    """Four values tell little of a rate of noise: some likelihoods are not concave."""
    rng = np.random.default_rng(1)
    ts = np.tile(np.arange(4.0), (12, 1))
    noise = np.exp(np.log(0.3) + 0.8 * rng.normal(size=12))
    law = ns.Gaussian.independent(np.zeros(1), 1e-3)
    linear = ns.DiagonalSDE(0.5, 0.0, 0.3, law)
    start = ns.LatentSDE(linear, ns.LinearDecoder([[1.0]], 0.5), dt=1.0)
    apart = np.abs(ts[0][:, None] - ts[0])
    shape = np.exp(-apart / 2) - np.exp(-(ts[0][:, None] + ts[0]) / 2)
    ys = [
        rng.multivariate_normal(np.zeros(4), x**2 * shape + 0.25 * np.eye(4))
        for x in noise
    ]
    with pytest.warns(eg.RunWarning, match=r"linear\.log_scale of \d+ of 12 series"):
        found = ns.fit_hierarchy(start, ts, np.array(ys), varies=["linear.log_scale"])
    assert found.each_scale.max() < 10 * found.scale[0]
    assert found.each_scale.min() > found.scale[0]


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.35, 2.0])
def test_bars_of_series_hold_where_the_shared_law_is_fitted(scale):
    """Sixty groups of eight offsets, each seen eight times with noise of one."""
    law = ns.Gaussian.independent(np.zeros(1), 0.01)
    linear = ns.DiagonalSDE(0.5, 0.0, 0.01, law)
    start = ns.LatentSDE(linear, ns.LinearDecoder([[1.0]], 1.0))
    ts, rng, held = np.tile(np.arange(8.0), (8, 1)), np.random.default_rng(0), []
    for _ in range(60):
        offsets = 3 + scale * rng.normal(size=8)
        ys = offsets[:, None] + rng.normal(size=(8, 8))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = ns.fit_hierarchy(start, ts, ys, varies=["decoder.offset"])
        held.append(abs(found.each[:, 0] - offsets) < 1.96 * found.each_scale[:, 0])
    assert 0.92 < np.mean(held) < 0.98
