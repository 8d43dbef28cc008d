"""Likelihoods against scipy's in float64, and their models against sums on a grid."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from effgen import neural_sde as ns


KEY = jax.random.key(0)
MEANS = np.array([0.01, 3.0, 1e4, 1e6])
COUNTS = np.array([0, 1, 2, 16, 17, 50, 1e4, 1e6 + 1_000])


def off(found, exact):
    return np.max(np.abs(np.asarray(found) - exact) / (1 + np.abs(exact)))


@pytest.mark.one_case("False-0.0001")
@pytest.mark.parametrize(("x64", "good"), [(False, 1e-4), (True, 1e-8)])
def test_counts_of_any_size_have_scipys_density(x64, good):
    with jax.enable_x64(x64):
        p, y = (
            jnp.asarray(x.astype(float)) for x in np.meshgrid(np.log(MEANS), COUNTS)
        )
        means = np.exp(np.asarray(p, np.float64))
        exact = scipy.stats.poisson.logpmf(np.asarray(y, np.float64), means)
        assert off(ns.Poisson().log_prob(p, y), exact) < good
        for r in (0.05, 1.0, 1e3, 1e6):
            likelihood = ns.NegativeBinomial(r)
            r = np.exp(np.float64(likelihood.log_concentration))
            exact = scipy.stats.nbinom.logpmf(np.asarray(y, float), r, r / (r + means))
            assert off(likelihood.log_prob(p, y), exact) < good
        assert ns.Poisson().log_prob(jnp.zeros(()), jnp.asarray(1.5)) == -jnp.inf


@pytest.mark.parametrize(("x64", "good"), [(False, 1e-5), (True, 1e-12)])
def test_students_density_is_scipys(x64, good):
    y = np.array([-1e3, 0.0, 0.1, 5.0])
    with jax.enable_x64(x64):
        for degrees in (1.5, 4.0, 31.0, 33.0, 1e6):
            likelihood = ns.Student(2.0, degrees)
            degrees = 1 + np.exp(np.float64(likelihood.log_more))
            found = likelihood.log_prob(jnp.full(4, 0.3), jnp.asarray(y))
            exact = scipy.stats.t.logpdf(y, degrees, 0.3, 2.0)
            assert off(found, exact) < good


def test_draws_and_information_are_of_the_density():
    p = jnp.linspace(-1.0, 2.0, 4)
    many = jnp.broadcast_to(p, (40_000, 4))

    @eqx.filter_jit
    def drawn(likelihood):
        y = likelihood.sample(many, key=KEY)
        scores = jax.grad(lambda p: jnp.sum(likelihood.log_prob(p, y)))(many)
        return y, likelihood.mean(p), scores, likelihood.information(p)

    for likelihood in (ns.NegativeBinomial(3.0), ns.Student(0.5, 9.0)):
        y, mean, scores, information = map(np.asarray, drawn(likelihood))
        error = 5 * y.std(0) / np.sqrt(len(y))
        assert np.all(np.abs(y.mean(0) - mean) < error)
        assert np.all(np.abs(scores.mean(0)) < 5 * scores.std(0) / np.sqrt(len(y)))
        np.testing.assert_allclose((scores**2).mean(0), information, rtol=0.05)


def grid_filter(ts, ys, log_prob):
    """`log p(y)` of an Ornstein-Uhlenbeck process, and its last law, by sums."""
    x = np.linspace(-6, 6, 1_201)
    p, total = scipy.stats.norm.pdf(x), 0.0
    for i, (t, y) in enumerate(zip(ts, ys, strict=True)):
        if i:
            decay = np.exp(-(t - ts[i - 1]))
            spread = np.sqrt(1 - decay**2)
            step = scipy.stats.norm.pdf(x[:, None], decay * x[None], spread)
            p = step @ p * (x[1] - x[0])
        if not np.isnan(y):
            p = p * np.exp(log_prob(y, x))
            total += np.log(p.sum() * (x[1] - x[0]))
            p = p / (p.sum() * (x[1] - x[0]))
    return total, x, p


CASES = {
    "counts": (
        ns.NegativeBinomial(2.0),
        np.array([3.0, 0.0, 1.0, np.nan, 9.0, 4.0, 25.0, 2.0]),
        lambda y, x: scipy.stats.nbinom.logpmf(y, 2.0, 2 / (2 + np.exp(x + 1))),
    ),
    "outliers": (
        ns.Student(0.3, 3.0),
        np.array([1.2, 0.7, 9.0, np.nan, 0.9, 1.4, -6.0, 1.0]),
        lambda y, x: scipy.stats.t.logpdf(y, 3.0, x + 1, 0.3),
    ),
}


@pytest.mark.one_case("outliers")
@pytest.mark.parametrize("name", CASES)
def test_a_likelihoods_filter_is_that_of_a_grid(name):
    likelihood, ys, log_prob = CASES[name]
    ts = np.arange(8) * 0.3
    law = ns.Gaussian.independent(np.zeros(1), 1.0)
    linear = ns.DiagonalSDE(1.0, 0.0, np.sqrt(2.0), law)
    decoder = ns.Decoder(ns.Readout(np.eye(1), 1.0), likelihood)
    found = ns.posterior(ns.LatentSDE(linear, decoder, dt=0.3), ts, ys)
    exact, x, p = grid_filter(ts, ys, log_prob)
    filtered = found.filter(key=KEY, num_paths=4_000)
    apart = abs(filtered.evidence.value - exact)
    assert apart < 5 * filtered.evidence.standard_error + 1e-3
    state = x[np.searchsorted(np.cumsum(p / p.sum()), [0.25, 0.5, 0.75])]
    last = filtered.positions[-1, :, 0]
    np.testing.assert_allclose(np.quantile(last, [0.25, 0.5, 0.75]), state, atol=0.08)


def test_what_a_likelihood_cannot_give_is_refused():
    law = ns.Gaussian.independent(np.zeros(1), 1.0)
    linear = ns.DiagonalSDE(1.0, 0.0, 1.0, law)
    for likelihood, y in ((ns.NegativeBinomial(), 1.5), (ns.Bernoulli(), 2.0)):
        model = ns.LatentSDE(linear, ns.Decoder(ns.Readout(np.eye(1)), likelihood))
        with pytest.raises(ValueError, match=rf"`ys` is {y} at"):
            ns.posterior(model, np.arange(3.0), np.array([0.0, y, 1.0]))
    with pytest.raises(ValueError, match=r"`degrees` are 1.0"):
        ns.Student(1.0, 1.0)
    with pytest.raises(ValueError, match=r"`concentration` is 0.0"):
        ns.NegativeBinomial(0.0)


def test_structures_of_counts_begin_at_the_logarithm_of_their_mean():
    ts, rng = np.arange(200.0), np.random.default_rng(0)
    counts = rng.poisson(20 * np.exp(0.5 * np.sin(2 * np.pi * ts / 7)))
    parts = ns.level() + ns.season(7.0)
    model = ns.structural(parts, ts, counts, likelihood=ns.NegativeBinomial())
    np.testing.assert_allclose(model.decoder.network.offset, np.log(20), atol=0.15)
    assert model.trainable()[0].decoder.network.offset is None


@pytest.mark.parametrize("mean", [10.0, 1e6, 1e8, 3e9, 1e12])
def test_counts_of_any_size_are_drawn(mean):
    """Past 2^31 JAX's sampler has no counts."""
    drawn = ns.Poisson().sample(jnp.full(20_000, np.log(mean)), key=KEY)
    found = np.asarray(drawn, np.float64)
    assert abs(found.mean() - mean) < 4 * np.sqrt(mean / 20_000) + 1e-5 * mean
    np.testing.assert_allclose(found.std(), np.sqrt(mean), rtol=0.03)


def test_a_posterior_by_students_law_is_that_of_a_grid():
    """An outlier, whose tail no Gaussian factor covers; bars of the evidence hold."""
    law = ns.Gaussian.independent(np.zeros(1), 1.0)
    decoder = ns.Decoder(ns.Readout([[1.0]]), ns.Student(0.3, 2.0))
    model = ns.LatentSDE(ns.DiagonalSDE(0.5, 0.0, 1.0, law), decoder, dt=0.5)
    ts = np.array([0.0, 3.0])
    posterior = ns.posterior(model, ts, np.array([0.0, 2.0]))
    grid = np.linspace(-8, 8, 1601)
    gap, seen = (
        grid[1] - grid[0],
        lambda y: scipy.stats.t.pdf((y - grid) / 0.3, 2) / 0.3,
    )
    moved = scipy.stats.norm.pdf(
        grid[:, None], grid * np.exp(-1.5), np.sqrt(1 - np.exp(-3))
    )
    density = moved @ (scipy.stats.norm.pdf(grid) * seen(0.0)) * gap * seen(2.0)
    whole = density.sum() * gap
    mean = (density * grid).sum() * gap / whole
    scale = np.sqrt((density * (grid - mean) ** 2).sum() * gap / whole)
    found = posterior.marginals(ts[-1:], key=KEY, num_paths=8_000)
    np.testing.assert_allclose(found.mean[0, 0], mean, atol=0.1)
    np.testing.assert_allclose(found.scale[0, 0], scale, rtol=0.1)
    evidence = posterior.evidence(key=KEY, num_paths=8_000).evidence
    assert abs(evidence.value - np.log(whole)) < 3 * evidence.standard_error
