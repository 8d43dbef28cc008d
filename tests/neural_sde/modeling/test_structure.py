"""Ready parts against their covariances, and fits against closed forms and a peer."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import scipy.special
import scipy.stats
import statsmodels.api as sm

import effgen as eg
from effgen import neural_sde as ns
from effgen.neural_sde.fits.peak import step_of


NILE = sm.datasets.nile.load_pandas().data
YEARS = NILE["year"].to_numpy() - 1871.0
FLOW = NILE["volume"].to_numpy()


def covariance(structure, lags):
    """`cov(y(t), y(0))` of the first law, by `scipy.linalg.expm` in float64."""
    matrix = np.asarray(structure.coefficients(0.0).matrix, np.float64)
    first = np.asarray(structure.initial.covariance, np.float64)
    reads = np.asarray(structure.reads, np.float64)
    return np.array(
        [reads @ scipy.linalg.expm(matrix * t) @ first @ reads for t in lags]
    )


# Each smoothness at one length; the others are in `make slow`.
LENGTHS = {(0.5, 1e-3), (1.5, 2.0), (2.5, 1e5)}


@pytest.mark.parametrize(
    ("smoothness", "length"),
    [
        pytest.param(s, t, marks=[] if (s, t) in LENGTHS else [pytest.mark.slow])
        for s in (0.5, 1.5, 2.5)
        for t in (1e-3, 2.0, 1e5)
    ],
)
def test_matern_has_its_covariance(smoothness, length):
    part = ns.matern(smoothness, length=length, scale=3.0)
    lags = length * np.array([0.0, 0.1, 0.7, 2.5])
    z = np.sqrt(2 * smoothness) * np.maximum(lags / length, 1e-9)
    exact = z**smoothness * scipy.special.kv(smoothness, z)
    exact *= 9 * 2 ** (1 - smoothness) / scipy.special.gamma(smoothness)
    np.testing.assert_allclose(covariance(part, lags), exact, rtol=2e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ns.matern(1.5, length=1e4, scale=2.0),
        lambda: ns.cycle(11.0, damping=0.2, scale=1.5),
        *(lambda order=order: ns.car(order, scale=0.4) for order in (1, 3, 8)),
        *[
            pytest.param(make, marks=pytest.mark.slow)
            for make in (
                lambda: ns.matern(0.5, length=0.3, scale=2.0),
                lambda: ns.matern(2.5, length=1e-4, scale=2.0),
                *(lambda order=order: ns.car(order, scale=0.4) for order in (2, 4, 5)),
            )
        ],
    ],
)
def test_stationary_parts_begin_in_their_own_law(make):
    """`A P + P A^T + sigma sigma^T = 0`, each entry in its own units."""
    part = make()
    found = part.coefficients(0.0)
    matrix, noise = (np.asarray(x, np.float64) for x in (found.matrix, found.diffusion))
    first = np.asarray(part.initial.covariance, np.float64)
    left = matrix @ first + first @ matrix.T + noise @ noise.T
    sizes, roots = np.sqrt(np.diag(first)), np.linalg.eigvals(matrix)
    assert np.all(np.abs(left) < 1e-4 * np.outer(sizes, sizes) * np.max(np.abs(roots)))
    assert np.all(roots.real < 0)
    reads = np.asarray(part.reads, np.float64)
    names = part.parameters
    scale = next(value for name, value in names.items() if name.endswith("scale"))
    np.testing.assert_allclose(reads @ first @ reads, scale**2, rtol=1e-4)


def test_seasons_return_and_sums_stand_side_by_side():
    whole = ns.trend() + ns.season(2.0, 3) + ns.cycle(11.0) + ns.cycle(5.5)
    assert whole.names == ("trend", "season", "cycle_1", "cycle_2")
    assert whole.slices["season"] == slice(2, 8)
    turn = scipy.linalg.expm(2.0 * np.asarray(whole.coefficients(0.0).matrix[2:8, 2:8]))
    np.testing.assert_allclose(turn, np.eye(6), atol=1e-5)
    assert whole.parameters["cycle_2.period"] == pytest.approx(5.5)
    np.testing.assert_array_equal(whole.reads, [1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0])
    decoder = whole.decoder(0.1, offset=2.0, loadings=[1.0, -0.5])
    assert decoder.matrix.shape == (2, 12)


@pytest.mark.slow
def test_a_local_level_is_that_of_statsmodels():
    model = ns.structural(ns.level(), YEARS, FLOW)
    found = ns.fit_linear(model, YEARS, FLOW, prior_scale=1e6)
    peer = sm.tsa.UnobservedComponents(FLOW, "llevel").fit(disp=0)
    scales = np.sqrt(peer.params)
    assert found.converged
    # Its first level is diffuse, ours of three deviations.
    np.testing.assert_allclose(
        found.parameters["observation.scale"], scales[:1], rtol=0.01
    )
    np.testing.assert_allclose(found.parameters["level.noise"], scales[1], rtol=0.01)

    def negative(logs):
        gaps = np.minimum(YEARS[:, None], YEARS)
        first = 9 * np.std(FLOW) ** 2
        cov = first + np.exp(2 * logs[0]) * gaps + np.exp(2 * logs[1]) * np.eye(100)
        error = FLOW - FLOW.mean()
        return 0.5 * (
            error @ np.linalg.solve(cov, error) + np.linalg.slogdet(2 * np.pi * cov)[1]
        )

    best = np.log(
        [found.parameters["level.noise"], *found.parameters["observation.scale"]]
    )
    np.testing.assert_allclose(-found.log_evidence, negative(best), rtol=1e-8)
    h, eye = 1e-3, np.eye(2)
    up, down = (
        np.stack([eye[0] + eye, eye[1] + eye]),
        np.stack([eye[0] - eye, eye[1] - eye]),
    )
    at = np.vectorize(lambda step: negative(best + h * step), signature="(n)->()")
    hessian = (at(up) - at(down) - at(-down) + at(-up)) / (4 * h * h)
    errors = np.exp(best) * np.sqrt(np.diag(np.linalg.inv(hessian)))
    np.testing.assert_allclose(
        found.standard_errors["level.noise"], errors[0], rtol=1e-3
    )
    np.testing.assert_allclose(
        found.standard_errors["observation.scale"], errors[1:], rtol=1e-3
    )
    bands = ns.posterior(found.model, YEARS, FLOW).forecast(
        YEARS[-1] + np.array([1.0, 5.0]), key=jax.random.key(0), num_paths=10
    )
    peer_mean = peer.get_forecast(5).summary_frame()
    np.testing.assert_allclose(
        bands.mean[:, 0], peer_mean["mean"].to_numpy()[[0, 4]], rtol=2e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_fits_are_the_same_in_any_unit(unit):
    fit = lambda ts, ys: ns.fit_linear(
        ns.structural(ns.level() + ns.ou(), ts, ys), ts, ys, max_steps=500
    )
    one, other = fit(YEARS, FLOW), fit(YEARS / unit, FLOW * unit)
    shift = -len(FLOW) * np.log(unit)
    np.testing.assert_allclose(other.log_evidence - shift, one.log_evidence, atol=1e-3)
    scaled = {
        "level.noise": unit**1.5,
        "matern.length": 1 / unit,
        "matern.scale": unit,
        "observation.scale": unit,
    }
    for name, by in scaled.items():
        found = other.parameters[name] / by
        np.testing.assert_allclose(found, one.parameters[name], rtol=2e-3)


@pytest.mark.slow
def test_dates_and_errors_are_fitted():
    rng = np.random.default_rng(0)
    index = pd.date_range("2020-01-01", periods=200, freq="D")
    days = np.arange(200.0)
    errors = rng.uniform(0.1, 1.0, 200)
    ys = np.sin(2 * np.pi * days / 25) + errors * rng.normal(size=200)
    model = ns.structural(ns.cycle(20.0), days, ys)
    found = ns.fit_linear(model, index, ys, errors=errors, unit="D")
    assert abs(found.parameters["cycle.period"] - 25) < 0.5
    assert abs(found.parameters["observation.scale"][0] - 1) < 0.15
    assert np.all(np.isfinite(found.standard_errors["cycle.period"]))


def test_an_unstable_drift_keeps_its_digits():
    """`dX = 1.5 X dt + 0.5 dW` over 6, values up to 2,000, noise 0.1, in float32."""
    rng, rate = np.random.default_rng(0), 1.5
    ts = np.linspace(0, 6, 13)
    x = 0.5 * rng.normal()
    ys = [x + 0.1 * rng.normal()]
    growth, noise = np.exp(rate * 0.5), 0.25 * np.expm1(rate) / (2 * rate)
    for _ in ts[1:]:
        x = growth * x + np.sqrt(noise) * rng.normal()
        ys.append(x + 0.1 * rng.normal())
    mean, variance, exact = 0.0, 0.25, 0.0
    for i, y in enumerate(ys):
        if i:
            mean, variance = growth * mean, growth**2 * variance + noise
        total = variance + 0.01
        exact -= 0.5 * ((y - mean) ** 2 / total + np.log(2 * np.pi * total))
        mean += variance / total * (y - mean)
        variance *= 0.01 / total
    law = ns.Gaussian.independent(jnp.zeros(1), 0.5)
    linear = ns.LinearSDE([[rate]], [0.0], [[0.5]], law)
    model = ns.LatentSDE(linear, ns.LinearDecoder(np.eye(1), 0.1))
    with pytest.warns(eg.RunWarning, match="deviations of the noise"):
        found = ns.posterior(model, ts, np.array(ys), dt=0.5)
    assert abs(found.log_evidence - exact) < 1e-3


def test_what_is_no_linear_model_is_refused():
    model = ns.structural(ns.level(), YEARS, FLOW)
    bent = ns.LatentSDE(model.linear, model.decoder, drift=lambda t, x: -(x**3))
    with pytest.raises(ValueError, match="must be a `LatentSDE` that is linear"):
        ns.fit_linear(bent, YEARS, FLOW)
    with pytest.raises(ValueError, match="`prior_scale` is"):
        ns.fit_linear(model, YEARS, FLOW, prior_scale=0.0)
    with pytest.raises(ValueError, match="`period` of `cycle` is"):
        ns.cycle(-1.0)
    with pytest.raises(ValueError, match="`smoothness` is"):
        ns.matern(2.0)
    with pytest.raises(ValueError, match="`order` is"):
        ns.car(0)
    with pytest.raises(TypeError, match="a structure is the sum"):
        ns.level() + 1.0  # pyright: ignore[reportOperatorIssue]
    with pytest.raises(ValueError, match="fewer than two values"):
        ns.structural(ns.level(), YEARS, FLOW * np.nan)
    with pytest.raises(ValueError, match="`period` is 1, and times are whole"):
        ns.structural(ns.level() + ns.season(3.0, 3), YEARS, FLOW)
    ns.structural(ns.level() + ns.season(2.0), YEARS, FLOW)
    with pytest.raises(ValueError, match=r"`ys` is infinite at \(2, 0\)"):
        ns.structural(ns.level(), YEARS, np.where(YEARS == 2, np.inf, FLOW))


def test_each_sensor_starts_at_its_own_noise():
    ys = np.stack([FLOW, 1e6 * FLOW, 0 * FLOW + 5], axis=1)
    own = FLOW.std() * np.array([1, 1e6])
    model = ns.structural(ns.level(), YEARS, ys, loadings=[1.0, 1e6, 1.0])
    right = 0.3 * np.array([*own, 2 * own[0] / 3])
    np.testing.assert_allclose(model.decoder.scale, right, rtol=1e-5)
    alone = ns.structural(ns.level(), YEARS, FLOW).linear.parameters["level.noise"]
    found = model.linear.parameters["level.noise"]
    np.testing.assert_allclose(found, 2 * alone / 3, rtol=1e-5)
    with pytest.warns(eg.RunWarning, match="pass `loadings`"):
        ns.structural(ns.level(), YEARS, ys)
    with pytest.raises(ValueError, match="`loadings` are"):
        ns.structural(ns.level(), YEARS, ys, loadings=[1.0, 2.0])


def test_steps_are_the_model_s_own_where_one_is_not_exact():
    model = ns.structural(ns.level(), YEARS, FLOW)
    assert step_of(model, YEARS, "s") == pytest.approx(1, rel=2e-3)
    law = ns.Gaussian.independent(np.zeros(1), 1.0)
    linear = ns.VaryingSDE(
        lambda t: (-jnp.eye(1), jnp.cos(20 * t)[None], jnp.eye(1)), law
    )
    varying = ns.LatentSDE(linear, ns.LinearDecoder(np.eye(1), 0.1), dt=0.02)
    assert step_of(varying, YEARS, "s") == 0.02


def test_start_values_change_no_program_and_stay_with_the_part():
    """A period that was static gave each record its own compilation of every fit."""
    one, other = (
        ns.structural(ns.cycle(p) + ns.ou(scale=2.0), YEARS, FLOW) for p in (9.8, 11.0)
    )
    assert jax.tree.structure(one) == jax.tree.structure(other)
    trained = jax.tree.leaves(one.trainable()[0].linear.parts[0].start_given)
    assert not trained
    again = ns.structural(one.linear, YEARS, 3 * FLOW).linear.parameters
    np.testing.assert_allclose(again["cycle.period"], 9.8, rtol=1e-6)
    np.testing.assert_allclose(again["matern.scale"], 2.0, rtol=1e-6)


def flow_fit():
    parts = ns.cycle(11.0) + ns.level()
    return ns.fit_linear(ns.structural(parts, YEARS, FLOW), YEARS, FLOW)


@pytest.mark.slow
def test_drawn_models_differ_by_the_standard_errors():
    fit = flow_fit()
    drawn = fit.drawn(8, key=jax.random.key(1))
    logs = np.log([float(m.linear.parameters["cycle.scale"]) for m in drawn])
    error = fit.standard_errors["cycle.scale"] / fit.parameters["cycle.scale"]
    assert 0.3 * error < np.std(logs) < 3 * error
    with pytest.raises(ValueError, match="`num` is 0"):
        fit.drawn(0, key=jax.random.key(1))


def test_a_network_begins_at_the_fit_and_moves_what_it_may():
    fitted = flow_fit().model
    model = ns.with_network(
        fitted, YEARS, FLOW, key=jax.random.key(0), sees=["cycle"], moves=["cycle"]
    )
    found = ns.posterior(model, YEARS, FLOW, dt=1.0).evidence(
        key=jax.random.key(0), num_paths=50
    )
    exact = ns.posterior(fitted, YEARS, FLOW).log_evidence
    np.testing.assert_allclose(found.elbo.value, exact, atol=0.05)
    layers = jax.tree.map(
        lambda x: x + 0.1, eqx.filter(model.drift.layers, eqx.is_array)
    )
    layers = eqx.combine(layers, model.drift.layers)
    bent = eqx.tree_at(lambda m: m.drift.layers, model, layers)
    x = jnp.asarray([1.0, -2.0, 3.0])
    drift = bent.drift(0.0, x)
    assert drift[2] == 0
    assert np.all(drift[:2] != 0)
    np.testing.assert_array_equal(bent.drift(0.0, x.at[2].add(5.0)), drift)
    trained, _ = model.trainable()
    assert trained.drift.sigma is None
    for wrong in (["season"], "cycle", []):
        with pytest.raises(ValueError, match="`sees` is"):
            ns.with_network(fitted, YEARS, FLOW, key=jax.random.key(0), sees=wrong)
    with pytest.raises(ValueError, match="a linear fit"):
        ns.with_network(model, YEARS, FLOW, key=jax.random.key(0))


def test_a_network_begins_at_a_fit_with_inputs():
    linear = ns.Structure(ns.ou(length=5.0, scale=1.0).parts, input_matrix=[[1.0]])
    fitted = ns.LatentSDE(linear, linear.decoder(0.3))
    ts, ys, key = np.arange(6.0), np.sin(np.arange(6.0)), jax.random.key(0)
    found = ns.with_network(fitted, ts, ys, None, np.ones((6, 2))[:, :1], key=key)
    assert found.residual.layers.in_size == ns.num_features(1, 1)
    moved = ns.with_network(fitted, ts, ys, None, np.zeros((6, 1)), key=key)
    assert not np.allclose(found.drift.center, moved.drift.center)
    with pytest.raises(ValueError, match="has an `input_matrix` and the series no"):
        ns.with_network(fitted, ts, ys, key=key)


def test_a_periodic_part_is_a_gaussian_process_with_a_periodic_kernel():
    ts = np.cumsum(np.random.default_rng(0).uniform(0.2, 2.0, 30))
    ys = np.sin(2 * np.pi * ts / 5.0) + 0.3 * np.sin(4 * np.pi * ts / 5.0 + 1)
    part, scale, noise = ns.periodic(5.1, 3, scale=0.8), 0.8, 0.2
    model = ns.LatentSDE(part, part.decoder(noise), dt=100.0)
    found = ns.posterior(model, ts, ys).log_evidence
    k = np.arange(1, 4)
    away = 2 * np.pi * np.subtract.outer(ts, ts)[..., None] * k / 5.1
    kernel = np.sum((scale / k**2) ** 2 * np.cos(away), axis=-1)
    law = scipy.stats.multivariate_normal(cov=kernel + noise**2 * np.eye(len(ts)))
    np.testing.assert_allclose(found, law.logpdf(ys), rtol=1e-4)


def test_the_period_of_a_periodic_part_is_found_and_its_phase_kept():
    rng, ts = np.random.default_rng(1), np.arange(60.0)
    shape = lambda t: (
        2 * np.sin(2 * np.pi * t / 7.3) + 0.5 * np.cos(4 * np.pi * t / 7.3)
    )
    ys = 40 + shape(ts) + 0.3 * rng.normal(size=60)
    fitted = ns.fit_linear(ns.structural(ns.periodic(7.4), ts, ys), ts, ys)
    error = fitted.standard_errors["periodic.period"]
    assert abs(fitted.parameters["periodic.period"] - 7.3) < 3 * error < 0.1
    held = dataclasses.replace(fitted.model, frozen=("periodic.period",))
    assert held.trainable()[0].linear.parts[0].log_stretch is None
    later = np.arange(90.0, 104.0)
    law = ns.posterior(fitted.model, ts, ys).forecast(later, key=jax.random.key(0))
    np.testing.assert_allclose(law.mean[:, 0], 40 + shape(later), atol=0.5)
    with pytest.raises(ValueError, match=r"`harmonics` is 1\.5"):
        ns.periodic(3.0, 1.5)
    with pytest.raises(ValueError, match="`period` of `periodic` is -1"):
        ns.periodic(-1.0)
