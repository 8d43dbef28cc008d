"""Bounds against exact evidence: linear models, and nonlinear ones on a grid."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from benchmarks.double_well import data as double_well_data
from effgen import neural_sde as ns
from effgen.core.weights import log_mean_exp
from effgen.neural_sde.bounds.objectives import anchored_on_grid
from effgen.neural_sde.bounds.trainer import bounds
from effgen.neural_sde.data.grid import steps_needed
from effgen.neural_sde.data.series import as_series, share_times, times_are_shared
from tests.neural_sde.cases import double_well, grid_filter, problem


pytestmark = pytest.mark.usefixtures("x64")

KEY = jax.random.key(3)


@eqx.filter_jit
def bound_of(model, series, objective, steps, num_paths, key):
    return objective(
        model, series, num_steps=steps, num_paths=num_paths, parallel=False, key=key
    )


def bound(model, ts, ys, *, dt, objective=None, num_paths=64, key=KEY):
    objective = ns.AnchoredELBO() if objective is None else objective
    model = dataclasses.replace(model, dt=dt)
    steps = steps_needed(np.asarray(ts), dt=dt, t0=model.t0)
    return bound_of(model, as_series((ts, ys)), objective, steps, num_paths, key)


def mean_and_error(values):
    return float(values.mean()), float(values.std() / np.sqrt(len(values) - 1))


@pytest.mark.one_case("3-0.1")
@pytest.mark.parametrize(
    ("columns", "dt"),
    [
        (1, 5.0),
        (3, 0.1),
        pytest.param(1, 0.1, marks=pytest.mark.slow),
        pytest.param(3, 5.0, marks=pytest.mark.slow),
    ],
)
def test_a_linear_model_s_bound_is_exact_on_any_grid(columns, dt):
    case = problem(columns, correlated=False)
    model = case.model(residual=ns.residual_network(case.linear, key=KEY))
    found = bound(model, case.ts, case.values(), dt=dt)
    # Long steps of noise in one direction are sums over nodes, good to 1e-7.
    exact, tolerance = case.log_prob(), 1e-9 if columns == 3 or dt < 1 else 1e-7
    np.testing.assert_allclose(found.values, exact, rtol=tolerance)
    assert float(found.values.std()) <= 1e-9
    assert float(found.log_weights.std()) <= 1e-9


@pytest.mark.slow
def test_a_linear_model_s_bound_by_another_anchor_still_bounds():
    case = problem(3, correlated=False)
    anchor = ns.GivenAnchor(-np.eye(3), np.zeros(3))
    found = bound(
        case.model(anchor=anchor), case.ts, case.values(), dt=0.01, num_paths=4_000
    )
    value, error = mean_and_error(found.values)
    evidence = log_mean_exp(found.log_weights)
    exact = case.log_prob()
    assert value < exact + 4 * error
    assert abs(evidence.value - exact) < 5 * evidence.standard_error + 0.05


@pytest.mark.slow
def test_relinearizing_a_linear_model_gives_it_back():
    case = problem(3, correlated=False)
    one = bound(case.model(), case.ts, case.values(), dt=0.1)
    anchor = ns.RelinearizedAnchor(2)
    other = bound(case.model(anchor=anchor), case.ts, case.values(), dt=0.1)
    np.testing.assert_allclose(other.values, one.values, rtol=1e-9)


def test_the_paper_s_bound_tends_to_the_truth_as_the_root_of_the_step():
    """Its log-weights' spread falls as `sqrt(dt)`, for they have `sum u . dW`."""
    linear = ns.DiagonalSDE(1.0, 0.3, 0.7, ns.Gaussian.independent(np.zeros(1), 1.0))
    model = ns.LatentSDE(linear, ns.LinearDecoder(np.eye(1), 0.2), t0=0.0)
    ts = np.linspace(0.2, 2, 10)
    ys = np.sin(3 * ts)
    exact = float(bound(model, ts, ys, dt=0.2).log_evidence)
    spreads = []
    for dt in (0.02, 0.005, 0.00125):
        found = bound(model, ts, ys, dt=dt, objective=ns.PathELBO(), num_paths=2_000)
        spreads.append(float(found.log_weights.std()))
    slopes = np.diff(np.log(spreads)) / np.log(0.25)
    np.testing.assert_allclose(slopes, 0.5, atol=0.12)
    value, error = mean_and_error(found.log_weights)
    assert abs(value - exact) < 0.06 + 4 * error
    assert found.values.std() > 5 * found.log_weights.std()


ts, ys = double_well_data()

ANCHORS = {
    "prior": ns.PriorAnchor(),
    "relinearized": ns.RelinearizedAnchor(2),
    "given": ns.GivenAnchor(-2 * np.eye(1), np.zeros(1)),
}


@pytest.mark.one_case("given")
@pytest.mark.parametrize(
    "name", ["prior", pytest.param("relinearized", marks=pytest.mark.slow), "given"]
)
def test_the_double_well_s_evidence_is_the_grid_filter_s(name):
    found = bound(double_well(anchor=ANCHORS[name]), ts, ys, dt=0.004, num_paths=8_000)
    exact = grid_filter(double_well(), ts, ys, 0.002)
    value, error = mean_and_error(found.values)
    assert value < exact + 4 * error
    evidence = log_mean_exp(found.log_weights)
    assert abs(evidence.value - exact) < 5 * evidence.standard_error + 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    "dt", [0.2, *[pytest.param(dt, marks=pytest.mark.slow) for dt in (0.05, 0.01)]]
)
def test_the_bound_is_one_for_its_own_chain_at_any_step(dt):
    """At coarse steps the chain is another model; its own evidence still bounds."""
    found = bound(double_well(), ts, ys, dt=dt, num_paths=8_000)
    exact = grid_filter(double_well(), ts, ys, dt)
    value, error = mean_and_error(found.values)
    assert value < exact + 4 * error
    pathwise, error = mean_and_error(found.log_weights)
    assert pathwise < exact + 4 * error
    evidence = log_mean_exp(found.log_weights)
    if evidence.standard_error < 0.2:
        assert abs(evidence.value - exact) < 5 * evidence.standard_error


@pytest.mark.slow
def test_expected_log_weights_have_the_log_weights_mean():
    residual = ns.residual_network(double_well().linear, key=KEY)
    last = lambda r: r.layers.layers[-1].weight
    weight = 0.5 * jax.random.normal(KEY, last(residual).shape)
    model = double_well(residual=eqx.tree_at(last, residual, weight))
    found = bound(model, ts, ys, dt=0.02, num_paths=20_000)
    apart, error = mean_and_error(found.values - found.log_weights)
    assert abs(apart) < 4 * error
    exact = grid_filter(model, ts, ys, 0.02)
    evidence = log_mean_exp(found.log_weights)
    assert abs(evidence.value - exact) < 5 * evidence.standard_error


def test_without_simulation_the_bound_is_looser_and_the_chain_the_same():
    anchor = ns.RelinearizedAnchor(2)
    marginal = bound(
        double_well(anchor=anchor),
        ts,
        ys,
        dt=0.01,
        objective=ns.MarginalELBO(200),
        num_paths=2_000,
    )
    exact = grid_filter(double_well(), ts, ys, 0.01)
    value, error = mean_and_error(marginal.values)
    assert exact - 5 < value < exact + 4 * error
    case = problem(3)
    linear = bound(
        case.model(), case.ts, case.values(), dt=0.1, objective=ns.MarginalELBO()
    )
    np.testing.assert_allclose(linear.values, case.log_prob(), rtol=1e-9)


def geometric(noise, scale=1e-3):
    """`dX = 0.2 X dt + 0.5 X dW`, about an anchor with constant noise."""
    law = ns.Gaussian.independent(np.ones(1), scale)
    return ns.LatentSDE(
        ns.DiagonalSDE(-0.2, 0.0, noise, law),
        ns.LinearDecoder(np.eye(1), 0.1),
        diffusion=lambda t, x: 0.5 * jnp.abs(x) + 1e-6,
        t0=0.0,
    )


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.6, pytest.param(0.9, marks=pytest.mark.slow)])
def test_noise_that_depends_on_the_state(noise):
    """Geometric Brownian motion seen once: a log-normal integral, by any anchor."""
    y = 1.6
    spread, drift = 0.5, 0.2 - 0.5**2 / 2
    exact = np.log(
        scipy.integrate.quad(
            lambda z: (
                scipy.stats.norm.pdf(z)
                * scipy.stats.norm.pdf(y, np.exp(drift + spread * z), 0.1)
            ),
            -8,
            8,
            epsabs=1e-12,
        )[0]
    )
    model = geometric(noise)
    found = bound(model, np.ones(1), np.full(1, y), dt=0.005, num_paths=20_000)
    value, error = mean_and_error(found.values)
    assert value < exact + 4 * error
    evidence = log_mean_exp(found.log_weights)
    assert evidence.standard_error < 0.1
    assert abs(evidence.value - exact) < 5 * evidence.standard_error + 0.01


def test_noise_that_depends_on_the_state_at_one_step_is_exact():
    model = geometric(0.6, 0.1)
    found = bound(model, np.ones(1), np.full(1, 1.6), dt=1.0, num_paths=20_000)
    exact = grid_filter(model, np.ones(1), np.full(1, 1.6), 1.0)
    evidence = log_mean_exp(found.log_weights)
    assert abs(evidence.value - exact) < 5 * evidence.standard_error + 1e-4


@pytest.mark.slow
def test_state_noise_that_is_constant_is_constant_noise():
    same = double_well(diffusion=lambda t, x: 0.7 * jnp.ones_like(x))
    for name in ("values", "log_weights"):
        np.testing.assert_allclose(
            getattr(bound(same, ts, ys, dt=0.05), name),
            getattr(bound(double_well(), ts, ys, dt=0.05), name),
            rtol=1e-9,
        )


@pytest.mark.slow
def test_two_states_with_noise_on_one():
    """A noisy oscillator in a double well: its velocity alone is driven, and a friction
    acts on its position, where no noise does."""
    matrix = np.array([[0.0, 1.0], [0.0, -0.5]])
    law = ns.Gaussian.independent(np.zeros(2), 0.5)
    linear = ns.LinearSDE(matrix, np.zeros(2), np.array([[0.0], [0.8]]), law)
    model = ns.LatentSDE(
        linear,
        ns.LinearDecoder(np.array([[1.0, 0.0]]), 0.2),
        drift=lambda t, x: jnp.stack(
            [-0.3 * jnp.sin(x[0]), 2 * x[0] * (1 - x[0] ** 2)]
        ),
        t0=0.0,
    )
    times, values = np.array([0.5, 1.0, 2.0]), np.array([0.4, 0.9, 0.7])
    found = bound(model, times, values, dt=0.02, num_paths=8_000)
    evidence = log_mean_exp(found.log_weights)
    assert evidence.standard_error < 0.1
    # A bootstrap filter by Euler's steps, with many particles.
    rng = np.random.default_rng(0)
    num, dt, t, total = 50_000, 0.005, 0.0, 0.0
    x = 0.5 * rng.normal(size=(num, 2))
    for time, y in zip(times, values, strict=True):
        for _ in range(round((time - t) / dt)):
            force = 2 * x[:, 0] * (1 - x[:, 0] ** 2) - 0.5 * x[:, 1]
            noise = 0.8 * np.sqrt(dt) * rng.normal(size=num)
            slip = x[:, 1] - 0.3 * np.sin(x[:, 0])
            x = np.stack([x[:, 0] + slip * dt, x[:, 1] + force * dt + noise], 1)
        weights = scipy.stats.norm.pdf(y, x[:, 0], 0.2)
        total, t = total + np.log(weights.mean()), time
        x = x[rng.choice(num, num, p=weights / weights.sum())]
    assert abs(evidence.value - total) < 5 * evidence.standard_error + 0.03


def test_plain_baselines_are_bounds_and_agree():
    control = ns.PlainControl(1, 1, key=KEY)
    model = double_well(control=control)
    few_ts, few_ys = ts[:3], ys[:3]
    exact = grid_filter(double_well(), few_ts, few_ys, 0.002)
    plain = bound(
        model, few_ts, few_ys, dt=0.005, objective=ns.PlainELBO(), num_paths=2_000
    )
    through = bound(
        model, few_ts, few_ys, dt=0.005, objective=ns.DiffraxELBO(), num_paths=500
    )
    one, error = mean_and_error(plain.values)
    other, more = mean_and_error(through.values)
    assert one < exact
    assert abs(one - other) < 5 * np.hypot(error, more)
    evidence = log_mean_exp(plain.log_weights)
    assert evidence.value < exact + 5 * evidence.standard_error + 0.05


@pytest.mark.slow
@pytest.mark.parametrize("anchor", [ns.PriorAnchor(), ns.RelinearizedAnchor(1)])
def test_times_shared_by_all_series_change_no_bound_and_no_gradient(anchor):
    case = problem(3)
    residual = ns.residual_network(case.linear, key=KEY, width_size=4, depth=1)
    drift = lambda t, x: -(x**3)
    model = case.model(drift=drift, residual=residual, anchor=anchor, dt=0.3)
    ys = case.values()[None] * np.linspace(0.5, 1.5, 3)[:, None, None]
    series = as_series((np.tile(case.ts, (3, 1)), ys))
    assert times_are_shared(*series[:3])
    assert not times_are_shared(series.ts, ys, series.mask.at[1, 0].set(False))

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def total(model, series):
        settings = {"num_steps": 16, "num_paths": 2, "parallel": False}
        return bounds(
            model, series, ns.AnchoredELBO(), **settings, key=KEY
        ).values.mean()

    each, once = total(model, series), total(model, share_times(series))
    for a, b in zip(*map(jax.tree.leaves, (each, once)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_times_shared_change_nothing_in_single_precision_and_at_full_size():
    """A batch large enough for compiled code that splits its work."""
    with jax.enable_x64(False):
        law = ns.Gaussian.independent(np.zeros(4), 1.0)
        linear = ns.DiagonalSDE(0.5, 0.0, 1.0, law)
        decoder = ns.LinearDecoder(np.random.default_rng(0).normal(size=(3, 4)), 0.05)
        model = ns.LatentSDE(linear, decoder, dt=0.01)
        ts = np.tile(np.linspace(0, 3, 101), (64, 1))
        ys = np.random.default_rng(1).normal(size=(64, 101, 3))
        whole = as_series((ts.astype(np.float32), ys.astype(np.float32)))

        @eqx.filter_jit
        def guides(series):
            one = lambda s: anchored_on_grid(model, s, num_steps=304, parallel=False)
            return jax.vmap(lambda s: one(s)[0].guided, in_axes=(series.batch_axes,))(
                series
            )

        each, once = guides(whole).steps, guides(share_times(whole)).steps
        for a, b in (
            (each.offset, once.offset),
            (each.control_offset, once.control_offset),
        ):
            np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(a).max()))


@pytest.mark.parametrize("rows", [1, 7])
def test_padding_leaves_the_context_of_plain_inference_as_it_is(rows):
    control = ns.PlainControl(2, 1, num_brownian=2, key=jax.random.key(0))
    rng, ts = np.random.default_rng(0), np.array([0.0, 0.5, 1.5, 2.0])
    ys = rng.normal(size=(4, 1))
    short = as_series((ts, ys))
    for later in (0.0, 3.0):
        padding = np.full((rows, 1), np.nan)
        long = as_series((np.r_[ts, np.full(rows, 2.0 + later)], np.r_[ys, padding]))
        found = control.contexts(long)
        np.testing.assert_allclose(found[:4], control.contexts(short), rtol=1e-6)
        np.testing.assert_array_equal(found[4:], 0)
