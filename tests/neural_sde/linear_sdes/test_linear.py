"""Transitions of linear SDEs against matrix exponentials, and fractional noise."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.special

from effgen import neural_sde as ns
from effgen.neural_sde.linear_sdes.fractional import optimal_weights
from effgen.neural_sde.linear_sdes.transitions import relative_growth
from tests.neural_sde.cases import problem
from tests.neural_sde.dense import Dense


pytestmark = pytest.mark.usefixtures("x64")

LAW = ns.Gaussian.independent(np.zeros(2), 1.0)
step = eqx.filter_jit(lambda linear, t, dt: linear.transition(t, dt))


def at(linear, dt, t=0.0):
    return step(linear, jnp.asarray(t), jnp.asarray(dt))


@pytest.mark.parametrize("columns", [1, 2, 3])
@pytest.mark.parametrize("dt", [0.0, 1e-6, 0.3, 1.0])
def test_a_step_is_the_matrix_exponential(columns, dt):
    case = problem(columns)
    found = at(case.linear, dt)
    phi, offset, noise = case.dense.flow(dt)
    np.testing.assert_allclose(found.matrix, phi, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.offset, offset, rtol=1e-10, atol=1e-12)
    scale = max(np.abs(noise).max(), 1e-300)
    np.testing.assert_allclose(found.covariance / scale, noise / scale, atol=1e-9)


@pytest.mark.parametrize("columns", [2, 3])
def test_a_held_drift_moves_the_mean_by_its_flow(columns):
    case = problem(columns)
    sigma = np.asarray(case.linear.diffusion)
    drift = sigma @ np.arange(1.0, columns + 1)  # one that the noise can hide
    found = at(case.linear, 0.4)
    moved = Dense(case.dense.matrix, drift, sigma, np.zeros(3), np.eye(3)).flow(0.4)[1]
    push = found.gain @ drift
    np.testing.assert_allclose(found.root @ push, moved, rtol=1e-9)
    # The control energy of a constant control, or less where another does it.
    held = 0.4 * np.sum(np.arange(1.0, columns + 1) ** 2)
    assert push @ push <= held * (1 + 1e-9)


def test_independent_processes_are_the_diagonal_case_of_the_full_one():
    rates, scale = np.array([0.7, 0.0]), np.array([0.5, 2.0])
    one = ns.DiagonalSDE(rates, [0.3, -1.0], scale, LAW)
    other = ns.LinearSDE(np.diag(-rates), [0.3, -1.0], np.diag(scale), LAW)
    for dt in (0.0, 1e-5, 0.2, 3.0):
        for a, b in zip(
            jax.tree.leaves(at(one, dt)), jax.tree.leaves(at(other, dt)), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14)


def test_relative_growth_and_its_slope_at_zero():
    z = jnp.array([-50.0, -1e-3, -9e-4, -1e-9, 0.0, 1e-9, 9e-4, 1.1e-3, 2.0])
    exact = np.where(z == 0, 1.0, np.expm1(z) / np.where(z == 0, 1.0, z))
    np.testing.assert_allclose(relative_growth(z), exact, rtol=1e-13)
    slope = jax.vmap(jax.grad(relative_growth))(z)
    np.testing.assert_allclose(slope[4], 0.5, rtol=1e-12)
    assert np.all(np.isfinite(slope))


@pytest.mark.one_case("0.3")
@pytest.mark.parametrize("dt", [0.0, 0.3])
def test_gradients_of_a_step_are_finite_without_time_or_decay(dt):
    for linear in (
        ns.DiagonalSDE(0.0, 0.0, 1.0, LAW),
        ns.LinearSDE(np.zeros((2, 2)), np.zeros(2), np.eye(2), LAW),
        ns.LinearSDE(np.zeros((2, 2)), np.zeros(2), np.ones((2, 1)), LAW),
    ):
        total = lambda linear: sum(x.sum() for x in jax.tree.leaves(at(linear, dt)))
        for slope in jax.tree.leaves(eqx.filter_grad(total)(linear)):
            assert np.all(np.isfinite(slope))


@pytest.mark.parametrize("columns", [1, 3])
def test_a_varying_sde_with_constant_coefficients_is_the_constant_one(columns):
    case = problem(columns)
    linear = case.linear
    varying = ns.VaryingSDE(
        lambda t: (linear.matrix, linear.bias, linear.diffusion), linear.initial
    )
    for dt in (0.0, 0.25):
        for a, b in zip(
            jax.tree.leaves(at(varying, dt, 0.7)),
            jax.tree.leaves(at(linear, dt)),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-11)


def test_a_varying_sde_follows_its_coefficients():
    """`dX = -2 t X dt + t dW`, whose law is known: `Phi = exp(t0^2 - t^2)`."""
    law = ns.Gaussian.independent(np.zeros(1), 1.0)
    linear = ns.VaryingSDE(
        lambda t: (jnp.array([[-2 * t]]), jnp.array([jnp.cos(t)]), jnp.array([[t]])),
        law,
    )
    t0, dt = 0.5, 0.8
    found = at(linear, dt, t0)
    end = t0 + dt
    flow = lambda s: np.exp(s**2 - end**2)
    np.testing.assert_allclose(found.matrix, flow(t0), rtol=1e-9)
    for value, integrand in (
        (found.offset, lambda s: flow(s) * np.cos(s)),
        (found.covariance, lambda s: (flow(s) * s) ** 2),
    ):
        exact = scipy.integrate.quad(integrand, t0, end, epsabs=1e-13)[0]
        np.testing.assert_allclose(value.ravel()[0], exact, rtol=1e-9)


def fractional(hurst, **settings):
    law = ns.Gaussian(np.zeros(1), np.zeros((1, 1)))
    return ns.FractionalSDE(
        **{"matrix": np.zeros((1, 1)), "bias": 0.0, "scale": 1.0, "initial": law}
        | {"hurst": hurst, "horizon": 2.0}
        | settings
    )


def variance(linear, t):
    covariance = linear.initial.covariance
    for _ in range(20):
        found = at(linear, t / 20)
        covariance = found.matrix @ covariance @ found.matrix.T + found.covariance
    return float(covariance[0, 0])


@pytest.mark.parametrize("hurst", [0.2, 0.5, 0.8])
def test_fractional_noise_has_nearly_its_variance(hurst):
    """Five processes come within 15 %, from a tenth of the horizon on; at one half the
    second type is Brownian motion."""
    linear = fractional(hurst, stationary=False)
    for t in (0.2, 0.7, 2.0):
        exact = ns.fractional_variance(hurst, t, stationary=False)
        np.testing.assert_allclose(variance(linear, t), exact, rtol=0.15)
    brownian = fractional(0.5, stationary=False)
    np.testing.assert_allclose(variance(brownian, 1.0), 1.0, rtol=1e-3)


def test_more_processes_come_nearer_to_fractional_noise_with_a_past():
    exact = float(ns.fractional_variance(0.7, 1.0, stationary=True))
    errors = []
    for num, speed in ((5, 20.0), (8, 200.0), (12, 5e3)):
        linear = fractional(0.7, num_processes=num, largest_speed=speed)
        errors.append(abs(variance(linear, 1.0) / exact - 1))
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.01


@pytest.mark.parametrize("stationary", [True, False])
def test_the_weights_are_optimal(stationary):
    """Against integrals by quadrature, of the noise's kernels themselves."""
    hurst, horizon = 0.3, 1.5
    speeds = np.array([0.5, 2.0, 8.0])
    order = hurst + 0.5
    gamma = scipy.special.gamma(order)

    def both(t, i, j):
        recent = (1 - np.exp(-(i + j) * t)) / (i + j)
        past = (np.exp(-i * t) - 1) * (np.exp(-j * t) - 1) / (i + j)
        return recent + past * stationary

    def with_noise(t, g):
        recent = scipy.integrate.quad(
            lambda s: np.exp(-g * s), 0, t, weight="alg", wvar=(hurst - 0.5, 0)
        )[0]
        past = 0.0
        if stationary:
            kernel = lambda v: (
                ((t + v) ** (hurst - 0.5) - v ** (hurst - 0.5)) * np.exp(-g * v)
            )
            past = (np.exp(-g * t) - 1) * (
                scipy.integrate.quad(kernel, 0, 1, limit=200)[0]
                + scipy.integrate.quad(kernel, 1, np.inf, limit=200)[0]
            )
        return (recent + past) / gamma

    quad = lambda f, *args: scipy.integrate.quad(f, 0, horizon, args, limit=100)[0]
    matrix = [[quad(both, i, j) for j in speeds] for i in speeds]
    right = [quad(with_noise, g) for g in speeds]
    found = jax.jit(
        lambda h: optimal_weights(
            h, jnp.asarray(speeds), horizon, stationary=stationary
        )
    )(jnp.asarray(hurst))
    np.testing.assert_allclose(found, np.linalg.solve(matrix, right), rtol=2e-5)


@pytest.mark.slow
def test_a_fractional_bridge_has_its_closed_form_deviation():
    """A fractional Ornstein-Uhlenbeck process seen at its end: against the covariance
    of the approximation, written out, and that of the process itself."""
    rate, hurst, noise = 1.0, 0.7, 0.1
    linear = fractional(
        hurst, matrix=-rate * np.eye(1), stationary=False, num_processes=6
    )
    model = ns.LatentSDE(linear, ns.LinearDecoder(np.eye(1, 7), noise), dt=0.1)
    times = np.linspace(0.2, 1.8, 9)
    ts = np.array([0.0, 2.0])
    ys = np.array([np.nan, 0.0])
    found = ns.posterior(model, ts, ys).marginals(times)

    grid = np.append(times, 2.0)
    coefficients = linear.coefficients(jnp.zeros(()))
    dense = Dense(*coefficients, np.zeros(7), np.asarray(linear.initial.covariance))
    covariance = dense.joint(grid)[1].reshape(10, 7, 10, 7)[:, 0, :, 0]
    bridged = np.diag(covariance)[:-1] - covariance[:-1, -1] ** 2 / (
        covariance[-1, -1] + noise**2
    )
    np.testing.assert_allclose(found.scale[:, 0] ** 2, bridged, rtol=1e-7)

    # X(t) = int_0^t k(t - s) dW with k the kernel of the noise filtered by the decay.
    order = hurst + 0.5

    def kernel(u):
        whole = scipy.integrate.quad(
            lambda v: np.exp(-rate * (u - v)),
            0,
            u,
            weight="alg",
            wvar=(hurst - 0.5, 0),
        )[0]
        return (u ** (hurst - 0.5) - rate * whole) / scipy.special.gamma(order)

    def exact(s, t):
        return scipy.integrate.quad(
            lambda r: kernel(s - r) * kernel(t - r), 0, min(s, t), limit=100
        )[0]

    for i in (2, 5):
        s = times[i]
        true = exact(s, s) - exact(s, 2.0) ** 2 / (exact(2.0, 2.0) + noise**2)
        np.testing.assert_allclose(found.scale[i, 0], np.sqrt(true), rtol=0.05)


@pytest.mark.slow
def test_the_hurst_index_is_learned_by_gradients():
    linear = fractional(0.4, stationary=False)
    total = lambda linear: at(linear, 0.3).covariance[0, 0]
    slope = eqx.filter_grad(total)(linear).hurst_logit
    ahead, behind = (
        total(fractional(h, stationary=False)) for h in (0.4 + 1e-5, 0.4 - 1e-5)
    )
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-5 * 0.24, rtol=1e-4)


def by_scipy(matrix, diffusion, dt):
    """Return `Phi` and the covariance of a step, by Van Loan's exponential."""
    size = len(matrix)
    noise = diffusion @ diffusion.T
    block = np.block([[-matrix, noise], [np.zeros((size, size)), matrix.T]]) * dt
    found = scipy.linalg.expm(block)
    flow = found[size:, size:].T
    return flow, flow @ found[:size, size:]


@pytest.mark.parametrize("z", [1e-6, 1e-2, 1.0, 50.0, 1e3, 1e6])
@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_slow_beside_fast_and_one_noise_for_two(z, precision):
    rates = np.array([1e-3, 1.0]) * z
    linear = ns.LinearSDE(np.diag(-rates), np.zeros(2), np.eye(2), LAW)
    found = at(jax.tree.map(lambda x: x.astype(precision), linear), precision(1.0))
    rtol = 100 * np.finfo(precision).eps
    np.testing.assert_allclose(
        jnp.diagonal(found.matrix), np.exp(-rates), rtol=1e-3, atol=1e-30
    )
    exact = -np.expm1(-2 * rates) / (2 * rates)
    np.testing.assert_allclose(jnp.diagonal(found.covariance), exact, rtol=rtol)


@pytest.mark.parametrize("z", [1e-2, 1.0, 30.0, 1e3, 1e6])
def test_a_cascade_of_one_noise_reaches_its_stationary_law(z):
    matrix = np.array([[-1.0, 1.0], [0.0, -1.0]]) * z
    found = at(ns.LinearSDE(matrix, np.zeros(2), np.array([[0.0], [1.0]]), LAW), 1.0)
    if z <= 1:
        flow, exact = by_scipy(matrix, np.array([[0.0], [1.0]]), 1.0)
        np.testing.assert_allclose(found.matrix, flow, rtol=1e-9, atol=1e-12)
    else:
        noise = np.diag([0.0, 1.0])
        exact = scipy.linalg.solve_continuous_lyapunov(matrix, -noise)
        np.testing.assert_allclose(found.matrix, 0, atol=1e-11)
    np.testing.assert_allclose(found.covariance, exact, rtol=1e-8)


def test_units_do_not_matter():
    matrix = np.array([[0.0, 1.0, 0.0], [-4.0, -0.4, 0.3], [0.1, 0.0, -2.0]])
    units = np.array([1e-6, 1.0, 1e6])
    diffusion = np.array([[0.2, 0.0], [0.5, 0.1], [0.0, 0.3]])
    law = ns.Gaussian.independent(np.zeros(3), 1.0)
    plain = at(ns.LinearSDE(matrix, np.zeros(3), diffusion, law), 0.7)
    scaled = ns.LinearSDE(
        matrix * units[:, None] / units[None],
        np.zeros(3),
        diffusion * units[:, None],
        law,
    )
    found = at(scaled, 0.7)
    flow, noise = by_scipy(matrix, diffusion, 0.7)
    np.testing.assert_allclose(plain.matrix, flow, rtol=1e-11)
    np.testing.assert_allclose(plain.covariance, noise, rtol=1e-11, atol=1e-13)
    unscaled = found.covariance / units[:, None] / units[None]
    np.testing.assert_allclose(unscaled, noise, rtol=1e-10, atol=1e-12)


def test_components_driven_alike_are_no_fault():
    ones = ns.LinearSDE(-np.eye(2), np.zeros(2), np.ones((2, 1)), LAW)
    exact = -np.expm1(-2.0) / 2
    np.testing.assert_allclose(at(ones, 1.0).covariance, exact, rtol=1e-12)
    total = lambda linear: linear.transition(0.0, jnp.asarray(1.0)).root.sum()
    slopes = jax.tree.leaves(eqx.filter_jit(eqx.filter_grad(total))(ones))
    assert all(np.all(np.isfinite(x)) for x in slopes)
