"""What a fit leaves open, against quadrature of the parameters in float64."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
import scipy.stats

from effgen import neural_sde as ns
from effgen.neural_sde.fits.curvature import drawn_models, laplace, spectrum, truncated
from effgen.neural_sde.fits.peak import maximum, with_offset


KEY = jax.random.key(0)
AHEAD = np.array([1.0, 4.0, 12.0])


def few(num=14):
    """A short record of an Ornstein-Uhlenbeck process about 5, with noise."""
    rng = np.random.default_rng(3)
    ts = np.cumsum(rng.uniform(0.5, 1.5, num))
    cov = np.exp(-np.abs(ts[:, None] - ts) / 3) + 0.09 * np.eye(num)
    return ts, 5 + np.linalg.cholesky(cov) @ rng.normal(size=num)


def solved(ts, length, scale, noise):
    """Kriging of many parameters: `K^-1`, and covariances with times ahead."""
    length, scale, noise = (
        np.asarray(x)[:, None, None] for x in (length, scale, noise)
    )
    gaps = np.abs(ts[:, None] - ts)
    cov = scale**2 * np.exp(-gaps / length) + noise**2 * np.eye(len(ts))
    later = (ts[-1] + AHEAD)[:, None] - ts
    return (
        np.linalg.inv(cov),
        scale**2 * np.exp(-later / length),
        np.linalg.slogdet(cov)[1],
    )


def quadrature(ts, ys, start, prior_scale=1.5):
    """Normal laws of what is observed ahead, with weights, of all parameters.

    Of three logarithms by a grid, and of the mean, with a flat prior, in closed form.
    """
    line = np.linspace(-6, 6, 37)
    away = np.stack(np.meshgrid(line, line, line, indexing="ij"), -1).reshape(-1, 3)
    length, scale, noise = np.exp(np.log(start) + away).T
    inverse, later, logdet = solved(ts, length, scale, noise)
    sums, ends = inverse.sum((1, 2)), inverse @ ys
    center = ends.sum(1) / sums
    left = np.einsum("i,ni->n", ys, ends) - sums * center**2
    logs = -0.5 * (logdet + np.log(sums) + left + np.sum((away / prior_scale) ** 2, 1))
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    error = ends - center[:, None] * inverse.sum(2)
    mean = center[:, None] + np.einsum("nhi,ni->nh", later, error)
    lack = 1 - np.einsum("nhi,nij->nh", later, inverse)
    known = np.einsum("nhi,nij,nhj->nh", later, inverse, later)
    variance = (scale**2 + noise**2)[:, None] - known + lack**2 / sums[:, None]
    return weights, mean, np.sqrt(variance)


def mixed(ts, ys, models):
    """The same, of models that count alike, without weights."""
    found = [model.linear.parameters for model in models]
    length, scale = (
        np.array([float(x[f"matern.{name}"]) for x in found])
        for name in ("length", "scale")
    )
    noise = np.array([float(model.decoder.scale[0]) for model in models])
    offset = np.array([float(model.decoder.offset[0]) for model in models])
    inverse, later, _ = solved(ts, length, scale, noise)
    error = np.einsum("nij,nj->ni", inverse, ys - offset[:, None])
    mean = offset[:, None] + np.einsum("nhi,ni->nh", later, error)
    known = np.einsum("nhi,nij,nhj->nh", later, inverse, later)
    variance = (scale**2 + noise**2)[:, None] - known
    return mean, np.sqrt(variance)


def below(y, mean, scale, weights=None):
    """The probability of less than `y` under the mixture, at each time ahead."""
    return np.average(scipy.stats.norm.cdf((y - mean) / scale), axis=0, weights=weights)


def quantile(level, weights, mean, scale):
    low, high = np.full(3, -50.0), np.full(3, 60.0)
    for _ in range(60):
        middle = (low + high) / 2
        less = below(middle, mean, scale, weights) < level
        low, high = np.where(less, middle, low), np.where(less, high, middle)
    return low


@pytest.mark.slow
def test_models_that_are_drawn_say_what_parameters_leave_open():
    ts, ys = few()
    model = ns.structural(ns.ou(), ts, ys)
    peak = maximum(model, ts, ys)
    parameters = model.linear.parameters
    start = [float(parameters[f"matern.{name}"]) for name in ("length", "scale")]
    exact = quadrature(ts, ys, [*start, float(model.decoder.scale[0])])
    drawn = mixed(ts, ys, drawn_models(with_offset(peak), 1_000, key=KEY))
    ends = [quantile(level, *exact) for level in (0.05, 0.5, 0.95)]
    for level, end in zip((0.05, 0.5, 0.95), ends, strict=True):
        np.testing.assert_allclose(below(end, *drawn), level, atol=0.015)
    # Bands of 90 % of the fit alone hold less at the last time.
    alone = mixed(ts, ys, [peak.model])
    band = [quantile(level, np.ones(1), *alone) for level in (0.05, 0.95)]
    held = below(band[1], exact[1], exact[2], exact[0])
    held = held - below(band[0], exact[1], exact[2], exact[0])
    assert held[-1] < 0.8


@pytest.mark.slow
def test_an_offset_of_millions_is_found():
    ts, ys = few()
    first = ns.structural(ns.ou(), ts, ys)

    def fitted(unit, origin):
        decoder = ns.LinearDecoder(
            first.decoder.matrix,
            first.decoder.scale * unit,
            offset=origin,
            learned=("offset",),
        )
        linear = ns.structural(ns.ou(), ts, ys * unit).linear
        return ns.fit_linear(ns.LatentSDE(linear, decoder), ts, ys * unit)

    one, many = fitted(1.0, 0.0), fitted(1e6, 0.0)
    np.testing.assert_allclose(
        many.model.decoder.offset, 1e6 * one.model.decoder.offset, rtol=1e-3
    )
    np.testing.assert_allclose(
        many.log_evidence + len(ys) * np.log(1e6), one.log_evidence, atol=1e-3
    )
    errors = many.standard_errors
    for name, error in one.standard_errors.items():
        by = 1.0 if name == "matern.length" else 1e6
        np.testing.assert_allclose(errors[name] / by, error, rtol=1e-2)


def test_a_spectrum_is_free_of_units():
    rng = np.random.default_rng(0)
    half = rng.normal(size=(3, 3))
    hessian, units = half @ half.T + np.eye(3), np.array([1.0, 1e6, 1e-6])
    is_log = np.array([1.0, 0.0, 0.0])
    one = spectrum(hessian, is_log, 1.5)
    other = spectrum(hessian / units[:, None] / units, is_log, 1.5)
    np.testing.assert_allclose(other.sizes, one.sizes, rtol=1e-9)
    np.testing.assert_allclose(other.units, one.units * units, rtol=1e-9)
    root = one.units[:, None] * one.vectors / np.sqrt(one.sizes)
    np.testing.assert_allclose(root @ root.T, np.linalg.inv(hessian), rtol=1e-9)


def test_weights_are_truncated_and_never_all_lost():
    logs = truncated(np.array([0.0, 50.0, np.nan, -np.inf]))
    np.testing.assert_allclose(logs[1], 50 - np.log(4) + 0.5 * np.log(4))
    assert logs[0] == 0
    assert np.all(np.isneginf(logs[2:]))
    np.testing.assert_array_equal(truncated(np.full(3, np.nan)), np.zeros(3))


def test_a_flat_direction_is_as_the_prior_allows():
    problem = SimpleNamespace(is_log=np.ones(2), prior_scale=1.5)
    peak = SimpleNamespace(problem=problem, x=np.zeros(2))
    hessian = np.diag([4.0, -1.0])
    mean, root = laplace(peak, np.array([2.0, 0.0]), hessian)
    np.testing.assert_allclose(root @ root.T, np.diag([0.25, 10 * 1.5**2]), atol=1e-12)
    np.testing.assert_allclose(mean, [-0.5, 0])  # a step of Newton's
    assert laplace(peak, np.array([np.nan, 0.0]), hessian) is None


@pytest.mark.slow
def test_models_of_a_density_like_no_normal_one_say_the_same(monkeypatch):
    """Six values hold little: the proposals are moved to the density in stages."""
    monkeypatch.setattr("effgen.neural_sde.fits.curvature._ENOUGH", 2.0)
    ts, ys = few(6)
    model = ns.structural(ns.ou(), ts, ys)
    parameters = model.linear.parameters
    start = [float(parameters[f"matern.{name}"]) for name in ("length", "scale")]
    exact = quadrature(ts, ys, [*start, float(model.decoder.scale[0])])
    peak = with_offset(maximum(model, ts, ys))
    drawn = mixed(ts, ys, drawn_models(peak, 1_000, key=KEY))
    for level in (0.05, 0.5, 0.95):
        end = quantile(level, *exact)
        np.testing.assert_allclose(below(end, *drawn), level, atol=0.02)
