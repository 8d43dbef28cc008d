"""Decoders and their sites, linear, Poisson and of images."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import effgen as eg
from effgen import neural_sde as ns
from effgen.neural_sde.bounds.objectives import anchored_on_grid
from effgen.neural_sde.data.series import as_series


KEY = jax.random.key(0)


def test_correlated_noise_with_missing_sensors():
    rng = np.random.default_rng(0)
    observe, root = rng.normal(size=(3, 2)), np.tril(rng.normal(size=(3, 3)))
    x, y = rng.normal(size=2), rng.normal(size=3)
    with jax.enable_x64(True):
        decoder = ns.LinearDecoder(observe, root, offset=[0.1, 0.2, 0.3])
        for mask in ([True, False, True], [True] * 3, [False] * 3):
            there = np.array(mask)
            found = decoder.log_prob(jnp.asarray(x), jnp.asarray(y), jnp.asarray(there))
            mean = (observe @ x + [0.1, 0.2, 0.3])[there]
            noise = (root @ root.T)[np.ix_(there, there)]
            exact = (
                scipy.stats.multivariate_normal(mean, noise).logpdf(y[there])
                if there.any()
                else 0.0
            )
            np.testing.assert_allclose(found, exact, rtol=1e-9, atol=1e-12)


def counts():
    linear = ns.DiagonalSDE(1.0, 0.0, 1.0, ns.Gaussian.independent(jnp.zeros(1), 1.0))
    ts = np.linspace(0, 3, 30)
    rng = np.random.default_rng(2)
    ys = rng.poisson(np.exp(1 + np.sin(2 * ts))).astype(float)[:, None]
    ys[4:8] = np.nan
    return linear, lambda x: x + 1.0, ts, ys


def poisson_filter(ts, ys):
    """`log p(y)` of the counts' model on a fine grid."""
    x = np.linspace(-6, 6, 1_201)
    area = x[1] - x[0]
    p = scipy.stats.norm.pdf(x)
    total = 0.0
    for i, (t, y) in enumerate(zip(ts, ys[:, 0], strict=True)):
        if i:
            decay = np.exp(-(t - ts[i - 1]))
            spread = np.sqrt((1 - decay**2) / 2)
            z = (x[:, None] - decay * x[None]) / spread
            p = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi) / spread * area @ p
        if not np.isnan(y):
            p = p * scipy.stats.poisson.pmf(y, np.exp(x + 1))
            total += np.log(p.sum() * area)
            p = p / (p.sum() * area)
    return total


class Line(eqx.Module):
    parameters: jax.Array

    def __call__(self, x):
        return self.parameters[0] * x + self.parameters[1]


def test_gradients_through_the_mode_are_exact():
    """Of the linear model's evidence, against central differences in float64."""
    with jax.enable_x64(True):
        _, _, ts, ys = counts()
        linear = ns.DiagonalSDE(
            1.0, 0.0, 1.0, ns.Gaussian.independent(np.zeros(1), 1.0)
        )
        series = as_series((ts[:10], ys[:10]))

        @jax.jit
        def evidence(parameters):
            decoder = ns.Decoder(Line(parameters), ns.Poisson())
            model = ns.LatentSDE(linear, decoder, dt=0.2)
            anchored, _ = anchored_on_grid(model, series, num_steps=16, parallel=False)
            return anchored.guided.log_evidence

        at, eps = jnp.array([1.2, 0.7]), 1e-4
        found = jax.grad(evidence)(at)
        right = [
            (evidence(at + eps * e) - evidence(at - eps * e)) / (2 * eps)
            for e in np.eye(2)
        ]
        np.testing.assert_allclose(found, right, rtol=1e-5)


@pytest.mark.slow
def test_counts_by_linearized_sites_have_their_exact_evidence():
    linear, network, ts, ys = counts()
    decoder = ns.Decoder(network, ns.Poisson(), ns.LinearizedSites())
    found = ns.posterior(ns.LatentSDE(linear, decoder, dt=0.2), ts, ys)
    evidence = found.evidence(key=KEY, num_paths=20_000)
    exact = poisson_filter(ts, ys)
    assert evidence.ess > 2_000
    assert evidence.elbo.value < exact + 4 * evidence.elbo.standard_error
    apart = abs(evidence.evidence.value - exact)
    assert apart < 5 * evidence.evidence.standard_error + 1e-3
    filtered = found.filter(key=KEY, num_paths=5_000)
    apart = abs(filtered.evidence.value - exact)
    assert apart < 5 * filtered.evidence.standard_error + 1e-3
    assert evidence.elbo.value > exact - 1.0


@pytest.mark.slow
def test_counts_by_an_encoder_train_towards_the_evidence():
    linear, network, ts, ys = counts()
    encoder = eqx.nn.MLP(1, 2, 32, 1, key=KEY)
    decoder = ns.Decoder(network, ns.Poisson(), ns.EncodedSites(encoder))
    model = ns.LatentSDE(linear, decoder, frozen=("linear",))
    trainer = ns.LatentSDETrainer(optax.adam(1e-2), dt=0.2, num_paths=16)
    data = eg.Minibatches((jnp.asarray(ts)[None], jnp.asarray(ys)[None]), 1)
    _, history = eg.fit(trainer, trainer.init(model), data, key=KEY, num_steps=400)
    exact = poisson_filter(ts, ys)
    assert np.mean(history["elbo"][:5]) < exact - 5
    assert exact - 2.0 < np.mean(history["elbo"][-100:]) < exact + 0.5


class Picture(eqx.Module):
    """Two numbers to a picture of twelve pixels a side, by transposed convolutions."""

    linear: eqx.nn.Linear
    wider: eqx.nn.ConvTranspose2d
    last: eqx.nn.ConvTranspose2d

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.linear = eqx.nn.Linear(2, 8 * 9, key=keys[0])
        self.wider = eqx.nn.ConvTranspose2d(8, 8, 2, 2, key=keys[1])
        self.last = eqx.nn.ConvTranspose2d(8, 1, 2, 2, key=keys[2])

    def __call__(self, x):
        hidden = jax.nn.silu(self.linear(x)).reshape(8, 3, 3)
        return self.last(jax.nn.silu(self.wider(hidden)))[0]


def pictures(num=4, length=6):
    """A bright spot that goes round."""
    rng = np.random.default_rng(0)
    ts = np.cumsum(rng.uniform(0.1, 0.4, (num, length)), axis=1)
    angle = ts + rng.uniform(0, 6, (num, 1))
    grid = np.arange(12) - 5.5
    row, column = 3 * np.sin(angle), 3 * np.cos(angle)
    distance = (grid[:, None] - row[..., None, None]) ** 2
    distance = distance + (grid[None] - column[..., None, None]) ** 2
    return ts, np.exp(-distance / 4)


@pytest.mark.slow
@pytest.mark.parametrize("proposal", ["linearized", "encoded"])
def test_pictures_train_end_to_end(proposal):
    ts, ys = pictures()
    linear = ns.LinearSDE(
        np.array([[0.0, -1.0], [1.0, 0.0]]),
        np.zeros(2),
        0.3 * np.eye(2),
        ns.Gaussian.independent(np.zeros(2), 1.0),
    )
    encoder = eqx.nn.Sequential(
        [eqx.nn.Lambda(jnp.ravel), eqx.nn.MLP(144, 4, 32, 1, key=KEY)]
    )
    sites = {
        "linearized": ns.LinearizedSites(num_sweeps=2),
        "encoded": ns.EncodedSites(encoder, most=100.0),
    }
    decoder = ns.Decoder(Picture(KEY), ns.Normal(0.2), sites[proposal])
    trainer = ns.LatentSDETrainer(optax.adam(1e-2), dt=0.5, num_paths=4)
    data = eg.Minibatches((jnp.asarray(ts), jnp.asarray(ys)), 4)
    state = trainer.init(ns.LatentSDE(linear, decoder))
    state, history = eg.fit(trainer, state, data, key=KEY, num_steps=60)
    assert np.mean(history["elbo"][-10:]) > np.mean(history["elbo"][:10]) + 50
    bands = ns.posterior(state.model, ts, ys).observations(key=KEY, num_paths=8)
    assert bands.mean.shape == (4, 6, 12, 12)


def test_linearized_sites_of_a_linear_network_are_the_likelihood():
    rng = np.random.default_rng(1)
    observe = jnp.asarray(rng.normal(size=(2, 2)), jnp.float32)
    series = as_series((np.arange(3.0), rng.normal(size=(3, 2)).astype(np.float32)))
    exact = ns.LinearDecoder(observe, 0.4)
    general = ns.Decoder(lambda x: observe @ x, ns.Normal(0.4), ns.LinearizedSites(1))
    smoother = lambda sites: (jnp.ones((3, 2)), jnp.ones((3, 2, 2)))
    sites = eqx.filter_jit(lambda decoder: decoder.sites(series, smoother))
    for a, b in zip(sites(exact), sites(general), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("likelihood", "law"),
    [
        (ns.Normal(0.7), lambda p: scipy.stats.norm(p, 0.7).logpdf),
        (ns.Poisson(), lambda p: scipy.stats.poisson(np.exp(p)).logpmf),
        (
            ns.Bernoulli(),
            lambda p: scipy.stats.bernoulli(1 / (1 + np.exp(-p))).logpmf,
        ),
    ],
)
def test_likelihoods(likelihood, law):
    parameter = jnp.array([-1.0, 0.0, 1.3])
    y = np.array([1.0, 0.0, 1.0])
    logs = likelihood.log_prob(parameter, jnp.asarray(y))
    np.testing.assert_allclose(logs, law(np.asarray(parameter))(y), rtol=1e-5)
    sample = jax.jit(jax.vmap(lambda k: likelihood.sample(parameter, key=k)))
    draws = sample(jax.random.split(KEY, 40_000))
    spread = draws.std(0) / 200
    mean = likelihood.mean(parameter)
    np.testing.assert_array_less(jnp.abs(draws.mean(0) - mean), 5 * spread)
    # Fisher's information is the mean square of the score.
    score = jax.grad(lambda p, y: likelihood.log_prob(p, y).sum())
    squares = jax.jit(jax.vmap(lambda y: score(parameter, y) ** 2))(draws)
    np.testing.assert_allclose(
        squares.mean(0), likelihood.information(parameter), rtol=0.05
    )


def test_sites_that_are_not_the_likelihood_are_corrected_for():
    linear, network, ts, ys = counts()
    poor = ns.Decoder(
        network,
        ns.Poisson(),
        ns.EncodedSites(lambda y: jnp.concatenate([0.3 * y - 1, jnp.ones(1)])),
    )
    model = ns.LatentSDE(linear, poor, dt=0.2)
    found = ns.posterior(model, ts, ys)
    evidence = found.evidence(key=KEY, num_paths=40_000).evidence
    assert abs(evidence.value - poisson_filter(ts, ys)) < 6 * evidence.standard_error
    assert dataclasses.replace(model, dt=0.1).dt == 0.1
