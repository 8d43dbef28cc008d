"""What a user would pick for a forecast: statsmodels, or a Gaussian process."""

import itertools
import warnings
from typing import Any

import numpy as np

from effgen.neural_sde.fits.selection import strongest_period

from .origins import Past


NUM_PATHS = 2_000


def statsmodels(past: Past, key: Any) -> dict[str, np.ndarray]:
    """Fit structural models and autoregressions; return draws of the best by AIC."""
    import statsmodels.api as sm

    _, ys = past.until
    seasons: dict[str, Any] = {}
    if past.season is not None:
        period = round(past.season / past.gap)
        seasons = {"freq_seasonal": [{"period": period, "harmonics": 2}]}
    trends = ("local level", "smooth trend", "local linear trend")
    models = [
        sm.tsa.UnobservedComponents(
            ys,
            level=trend,  # pyright: ignore[reportArgumentType]
            autoregressive=order,
            cycle=cycle,
            stochastic_cycle=cycle,
            damped_cycle=cycle,
            **seasons,
        )
        for trend, order, cycle in itertools.product(trends, (None, 1), (False, True))
    ]
    if past.season is None:
        orders = [p for p in (1, 2, 4, 9) if 4 * p <= len(ys)]
        models += [sm.tsa.SARIMAX(ys, order=(p, 0, 0), trend="c") for p in orders]
    found = [fit for model in models if (fit := fitted(model)) is not None]
    best = min(found, key=lambda fit: fit.aic)
    future = best.get_forecast(past.horizon)
    return {"statsmodels": gaussian(future.predicted_mean, future.se_mean)}


def fitted(model: Any) -> Any:
    """Return a fit of statsmodels, or `None` where it fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that it could go further
            found = model.fit(disp=False, maxiter=200)
            sizes = found.get_forecast(2).se_mean
    except (np.linalg.LinAlgError, ValueError, IndexError):
        return None
    return found if np.isfinite(found.aic) and np.all(np.isfinite(sizes)) else None


def gaussian(mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return draws of a normal forecast."""
    noise = np.random.default_rng(0).normal(size=(NUM_PATHS, len(mean)))
    return np.asarray(mean) + np.asarray(scale) * noise


def gaussian_process(past: Past, key: Any) -> dict[str, np.ndarray]:
    """Fit kernels by their marginal likelihood; return draws of the best."""
    from sklearn.gaussian_process import GaussianProcessRegressor, kernels as k

    ts, ys = past.until
    there = np.isfinite(ys)
    x, y = ts[there][:, None], ys[there]
    span = float(ts[-1] - ts[0])
    period = strongest_period(ts, ys, season_period=past.season)
    turns = lambda p: k.RBF(span) * k.ExpSineSquared(1.0, p)
    short = lambda: 1.0 * k.Matern(span / 20, nu=0.5)
    bases = [
        1.0 * k.RBF(span / 10),
        1.0 * k.Matern(span / 10, nu=1.5),
        1.0 * k.RationalQuadratic(span / 10),
        1.0 * turns(period) + short(),
        1.0 * k.RBF(span) + short(),
    ]
    if past.season is not None:
        bases = [base + 1.0 * turns(past.season) for base in bases]
    found = [
        GaussianProcessRegressor(
            base + k.WhiteKernel(0.1),
            normalize_y=True,
            n_restarts_optimizer=0,
            random_state=0,
        )
        for base in bases
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that scales are at their bounds
        found = [process.fit(x, y) for process in found]
    best = max(found, key=lambda gp: gp.log_marginal_likelihood_value_)
    forecast: Any = best.predict(past.times[:, None], return_std=True)
    return {"gaussian process": gaussian(*forecast)}
