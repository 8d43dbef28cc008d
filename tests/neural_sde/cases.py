"""Linear models and series that several test files share."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from effgen import neural_sde as ns
from tests.neural_sde.dense import Dense


class Problem(NamedTuple):
    """A linear model in both forms, and one irregular, partly missing series."""

    linear: ns.LinearSDE
    decoder: ns.LinearDecoder
    dense: Dense
    ts: np.ndarray
    ys: np.ndarray
    mask: np.ndarray
    observe: np.ndarray
    noise: np.ndarray

    def log_prob(self):
        return self.dense.log_prob(
            self.ts, self.ys, self.observe, self.noise, self.mask
        )

    def model(self, **settings):
        return ns.LatentSDE(self.linear, self.decoder, **({"t0": 0.0} | settings))

    def values(self):
        """The values, NaN where missing."""
        return np.where(self.mask, self.ys, np.nan)


def problem(columns=3, seed=0, num=7, correlated=True):
    """Three states, noise of `columns` directions, two sensors."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(3, 3)) - 1.2 * np.eye(3)
    bias, diffusion = rng.normal(size=3), rng.normal(size=(3, columns))
    mean, root = rng.normal(size=3), rng.normal(size=(3, 3))
    observe = rng.normal(size=(2, 3))
    scale = np.array([[0.3, 0.0], [0.2, 0.4]]) if correlated else np.diag([0.3, 0.4])
    ts = np.sort(rng.uniform(0, 2.5, num))
    ts[3] = ts[2]
    mask = rng.uniform(size=(num, 2)) > 0.3
    mask[4] = False
    linear = ns.LinearSDE(matrix, bias, diffusion, ns.Gaussian(mean, root))
    return Problem(
        linear,
        ns.LinearDecoder(observe, scale),
        Dense(matrix, bias, diffusion, mean, root @ root.T),
        ts,
        rng.normal(size=(num, 2)),
        mask,
        observe,
        scale @ scale.T,
    )


def double_well(**settings):
    """`drift = 4 x (1 - x^2)`, noise 0.7, ten observations of noise 0.1 on (0, 2]."""
    linear = ns.DiagonalSDE(1.0, 0.0, 0.7, ns.Gaussian.independent(np.zeros(1), 0.5))
    return ns.LatentSDE(
        linear,
        ns.LinearDecoder(np.eye(1), 0.1),
        **({"drift": well, "t0": 0.0} | settings),
    )


def well(t, x):
    return 4 * x * (1 - x**2) + x


def grid_filter(model, ts, ys, dt, limit=3.5, num=1_401):
    """`log p(y)` of a scalar model's chain of exponential Euler steps, by sums."""
    x = np.linspace(-limit, limit, num)
    area = x[1] - x[0]
    step = model.linear.transition(jnp.zeros(()), jnp.asarray(dt))
    force = jax.vmap(lambda x: model.nonlinear_drift(jnp.zeros(()), x[None], None)[0])(
        jnp.asarray(x)
    )
    kept = step.matrix, step.offset, step.root, step.push
    phi, mu, root, push = (np.asarray(a).ravel()[0] for a in kept)
    mean, spread = phi * x + mu + push * np.asarray(force), root
    if model.diffusion is not None:
        sigma = jax.vmap(lambda x: model.diffusion(0.0, x[None])[0])(jnp.asarray(x))
        spread = root * np.asarray(sigma) / float(model.linear.scale[0])
    z = (x[:, None] - mean[None]) / spread
    kernel = np.exp(-0.5 * z**2) / (np.sqrt(2 * np.pi) * spread) * area
    kernel = scipy.sparse.csr_array(np.where(np.abs(z) < 12, kernel, 0))
    law = model.linear.initial
    m, s = float(law.mean[0]), float(law.scale[0])
    p = np.exp(-0.5 * ((x - m) / s) ** 2) / np.sqrt(2 * np.pi) / s
    noise = float(model.decoder.scale[0])
    total, t = 0.0, 0.0
    for time, y in zip(ts, ys, strict=True):
        for _ in range(round((time - t) / dt)):
            p = kernel @ p
        p = p * np.exp(-0.5 * ((y - x) / noise) ** 2) / np.sqrt(2 * np.pi) / noise
        total, t = total + np.log(p.sum() * area), time
        p = p / (p.sum() * area)
    return total
