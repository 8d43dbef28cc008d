"""Missing values of sensors whose noise is correlated, and errors of missing values."""

import jax
import numpy as np
import pytest

from effgen import neural_sde as ns


KEY = jax.random.key(0)
ROOT = np.array([[1.0, 0.0], [0.95, np.sqrt(1 - 0.95**2)]])


def dense(num, rate=0.5):
    """The covariance of an Ornstein-Uhlenbeck process that begins with variance one."""
    variance = [1.0]
    for _ in range(1, num):
        more = -np.expm1(-2 * rate) / (2 * rate)
        variance.append(variance[-1] * np.exp(-2 * rate) + more)
    rows, columns = np.indices((num, num))
    least = np.minimum(rows, columns)
    return np.asarray(variance)[least] * np.exp(-rate * np.abs(rows - columns))


@pytest.mark.parametrize("errors", [False, True])
@pytest.mark.parametrize("series", [1, 2])
def test_a_sensor_that_is_seen_tells_of_the_noise_of_another(errors, series):
    num, rng = 6, np.random.default_rng(0)
    sizes = rng.uniform(0.5, 2, (num, 2)) if errors else np.ones((num, 2))
    read = np.kron(np.eye(num), np.ones((2, 1)))
    noise = np.kron(np.eye(num), ROOT @ ROOT.T) * np.outer(sizes, sizes)
    whole = read @ dense(num) @ read.T + noise
    ys = (np.linalg.cholesky(whole) @ rng.normal(size=2 * num)).reshape(num, 2)
    ys[3] = 4.0, np.nan
    seen = np.isfinite(ys.ravel())
    right = whole[7, seen] @ np.linalg.solve(
        whole[np.ix_(seen, seen)], ys.ravel()[seen]
    )
    model = ns.LatentSDE(
        ns.DiagonalSDE(0.5, 0.0, 1.0, ns.Gaussian.independent(np.zeros(1), 1.0)),
        ns.LinearDecoder(np.ones((2, 1)), ROOT),
    )
    ts, given = np.arange(float(num)), sizes if errors else None
    if series == 2:
        ts, ys = np.stack([ts, ts]), np.stack([ys, ys])
        given = None if given is None else np.stack([given, given])
    found = ns.posterior(model, ts, ys, errors=given).impute(key=KEY)
    np.testing.assert_allclose(found[..., 3, 1], right, rtol=1e-4)
    np.testing.assert_allclose(found[..., 2, :], ys[..., 2, :], rtol=1e-6)


def test_a_missing_value_has_the_usual_error():
    model = ns.LatentSDE(
        ns.DiagonalSDE(0.5, 0.0, 0.1, ns.Gaussian.independent(np.zeros(1), 0.1)),
        ns.LinearDecoder(np.eye(1), 1.0),
    )
    ts, ys = np.arange(8.0), 0.1 * np.random.default_rng(0).normal(size=8)
    ys[4] = np.nan
    found = ns.posterior(model, ts, ys, errors=np.where(np.isnan(ys), np.nan, 0.01))
    own, asked = (found.observations(at, key=KEY).quantiles for at in (None, [4.0]))
    np.testing.assert_allclose(own[:, 4], asked[:, 0], rtol=1e-5)
    assert found.predictions().scale[4, 0] < 0.1
