"""What users may make themselves, and answers by the names of their types."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from effgen import neural_sde as ns


KEY = jax.random.key(0)
LAW = ns.Gaussian.independent(np.zeros(1), 1.0)
LINEAR = ns.DiagonalSDE(0.5, 0.2, 0.8, LAW)
TS = np.array([0.0, 0.7, 1.1])
YS = np.array([0.3, -0.4, 0.9])


class Drifting(ns.AbstractLinearSDE):
    """A Brownian motion with a drift, its step written by hand."""

    bias: jax.Array
    initial: ns.Gaussian
    input_matrix: None = None
    time_invariant: ClassVar[bool] = True

    def coefficients(self, t):
        return ns.DiagonalSDE(0.0, self.bias, 1.0, self.initial).coefficients(t)

    def transition(self, t, dt, inputs=None):
        root = jnp.sqrt(dt)
        eye = jnp.eye(1)
        return ns.Transition(eye, dt * self.bias, root * eye, root * eye, dt * eye)


class Waiting(ns.AbstractLikelihood):
    """An exponential law whose mean is `exp(parameter)`."""

    def log_prob(self, parameter, y):
        return -parameter - y * jnp.exp(-parameter)

    def mean(self, parameter):
        return jnp.exp(parameter)

    def sample(self, parameter, *, key):
        return jnp.exp(parameter) * jax.random.exponential(key, parameter.shape)

    def information(self, parameter):
        return jnp.ones_like(parameter)


class Unit(ns.AbstractSites):
    """Factors of unit precision at the logarithm of each value."""

    def __call__(self, network, likelihood, series, smoother):
        num = len(series.ts)
        shift = jnp.log(jnp.maximum(series.ys, 1e-3)).reshape(num, 1)
        return ns.Site(jnp.ones((num, 1, 1)), shift, jnp.zeros(num))


class Same(ns.AbstractAnchor):
    """The prior's anchor, by another name."""

    def __call__(self, model, series, grid, *, parallel):
        return ns.PriorAnchor()(model, series, grid, parallel=parallel)


class Tighter(ns.AbstractObjective):
    """The anchored bound of the mean weight of all paths, as importance weights say."""

    def __call__(self, model, series, **settings):
        found = ns.AnchoredELBO()(model, series, **settings)
        logs = found.log_weights
        whole = jax.nn.logsumexp(logs) - jnp.log(len(logs))
        return found._replace(values=jnp.full_like(found.values, whole))


def model(**settings):
    return ns.LatentSDE(LINEAR, ns.LinearDecoder(np.eye(1), 0.3), **settings)


def test_a_linear_sde_of_one_s_own_is_the_ready_one():
    own = ns.LatentSDE(Drifting(jnp.array([0.4]), LAW), model().decoder)
    ready = ns.LatentSDE(ns.DiagonalSDE(0.0, 0.4, 1.0, LAW), model().decoder)
    own, ready = (ns.posterior(m, TS, YS).log_evidence for m in (own, ready))
    np.testing.assert_allclose(own, ready, rtol=1e-5)


def test_an_sde_is_conditioned_by_hand():
    steps = jax.vmap(lambda dt: LINEAR.transition(jnp.zeros(()), dt))(
        jnp.asarray(np.diff(TS), jnp.float32)
    )
    assert isinstance(steps, ns.Transition)
    there = jnp.ones(1, bool)
    sites = jax.vmap(lambda y: model().decoder.site(y, there))(
        jnp.asarray(YS[:, None], jnp.float32)
    )
    assert isinstance(sites, ns.Site)
    found = ns.condition(LINEAR.initial, steps, sites)
    assert isinstance(found, ns.Guided)
    assert isinstance(found.steps, ns.Guide)
    whole = ns.posterior(model(), TS, YS)
    np.testing.assert_allclose(found.log_evidence, whole.log_evidence, rtol=1e-5)
    means, covariances = ns.marginals(found)
    law = whole.marginals()
    assert isinstance(law, ns.Marginals)
    np.testing.assert_allclose(means, law.mean, rtol=1e-4)
    np.testing.assert_allclose(covariances[:, 0, 0], law.scale[:, 0] ** 2, rtol=1e-4)


def test_a_likelihood_and_sites_of_one_s_own_have_their_evidence():
    decoder = ns.Decoder(lambda x: x, Waiting(), Unit())
    assert isinstance(decoder, ns.AbstractDecoder)
    own = ns.LatentSDE(LINEAR, decoder, anchor=Same(), dt=1.0)
    found = ns.posterior(own, [0.0], [2.0]).evidence(key=KEY, num_paths=4_000)
    assert isinstance(found, ns.Evidence)
    density = lambda x: (
        scipy.stats.norm.pdf(x) * scipy.stats.expon.pdf(2.0, scale=np.exp(x))
    )
    exact = np.log(scipy.integrate.quad(density, -8, 8)[0])
    error = found.evidence.standard_error
    assert error < 0.02
    assert abs(found.evidence.value - exact) < 5 * error


def test_a_bound_of_one_s_own_is_one():
    drifting = model(drift=lambda t, x: -(x**3), dt=0.2)
    series = ns.Series(
        jnp.asarray(TS, jnp.float32),
        jnp.asarray(YS[:, None], jnp.float32),
        jnp.ones((3, 1), bool),
        None,
    )

    @eqx.filter_jit
    def bound(objective):
        settings = {"num_steps": 8, "num_paths": 500, "parallel": False}
        return objective(drifting, series, **settings, key=KEY)

    plain, tight = bound(ns.AnchoredELBO()), bound(Tighter())
    assert tight.values.mean() >= plain.values.mean()


def test_networks_of_a_control_see_what_they_say():
    size = ns.num_features(1)
    layers = ns.zero_at_first(size, 1, 4, 1, key=KEY)
    own = model(residual=ns.Residual(layers))
    found = ns.posterior(own, TS, YS, dt=0.5).evidence(key=KEY, num_paths=8)
    exact = ns.posterior(model(), TS, YS).log_evidence
    np.testing.assert_allclose(found.elbo.value, exact, rtol=1e-4)


@pytest.mark.slow
def test_answers_have_public_types():
    ts, ys = np.arange(20.0), np.sin(np.arange(20.0))
    fitted = ns.fit_linear(ns.structural(ns.level(), ts, ys), ts, ys)
    assert isinstance(fitted, ns.Fitted)
    whole = ns.posterior(fitted.model, ts, ys)
    assert isinstance(whole, ns.Posterior)
    settings = {"key": KEY, "num_paths": 8}
    assert isinstance(whole.filter(**settings), ns.Filtered)
    assert isinstance(whole.smoother(**settings), ns.Smoothed)
    assert isinstance(whole.predictions(), ns.Predictions)
    assert isinstance(whole.components(), ns.Components)
    assert isinstance(whole.forecast([20.0], **settings), ns.Bands)
    found = ns.compare({"level": fitted.model}, ts, ys, since=15.0)
    assert isinstance(found, ns.Comparison)
