"""Linear models against dense Gaussians, Kalman filters and differential equations."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg

from effgen import neural_sde as ns
from effgen.neural_sde.bounds.objectives import anchored_on_grid
from effgen.neural_sde.data.grid import make_grid, steps_needed
from effgen.neural_sde.data.series import as_series
from effgen.neural_sde.linear_sdes.messages import guided
from tests.neural_sde.cases import problem
from tests.neural_sde.dense import Dense, kalman


pytestmark = pytest.mark.usefixtures("x64")

columns = pytest.mark.parametrize("columns", [1, 3])
one_is_enough = pytest.mark.parametrize(
    "columns", [pytest.param(1, marks=pytest.mark.slow), 3]
)


def anchored(model, ts, ys, dt=0.1, parallel=False):
    series = as_series((ts, ys))
    # One length for all, so that they share a program.
    steps = max(64, steps_needed(np.asarray(ts), dt=dt, t0=model.t0))
    model = dataclasses.replace(model, dt=dt)
    return on_grid(model, series, steps, parallel)


@eqx.filter_jit
def on_grid(model, series, steps, parallel):
    return anchored_on_grid(model, series, num_steps=steps, parallel=parallel)


@pytest.mark.one_case("3-0.1-True")
@pytest.mark.parametrize(
    ("columns", "dt", "parallel"),
    [
        (1, 0.1, False),
        (3, 0.1, False),
        (3, 0.1, True),
        pytest.param(1, 0.1, True, marks=pytest.mark.slow),
        pytest.param(3, 0.4, False, marks=pytest.mark.slow),
    ],
)
def test_log_evidence_is_that_of_the_dense_gaussian_and_of_kalman(
    columns, dt, parallel
):
    case = problem(columns)
    found, _ = anchored(case.model(), case.ts, case.values(), dt, parallel)
    exact = case.log_prob()
    filtered = kalman(case.dense, case.ts, case.ys, case.observe, case.noise, case.mask)
    np.testing.assert_allclose(filtered, exact, rtol=1e-10)
    np.testing.assert_allclose(found.guided.log_evidence, exact, rtol=1e-9)


marginals = eqx.filter_jit(ns.marginals)


@pytest.mark.parametrize(
    ("columns", "parallel"),
    [
        (1, False),
        (3, True),
        pytest.param(3, False, marks=pytest.mark.slow),
        pytest.param(1, True, marks=pytest.mark.slow),
    ],
)
def test_marginals_are_those_of_the_dense_gaussian(columns, parallel):
    case = problem(columns)
    found, grid = anchored(case.model(), case.ts, case.values(), 0.1, parallel)
    means, covariances = marginals(found.guided, parallel=parallel)
    exact = case.dense.posterior(case.ts, case.ys, case.observe, case.noise, case.mask)
    np.testing.assert_allclose(means[grid.nodes], exact[0], rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(covariances[grid.nodes], exact[1], rtol=1e-7, atol=1e-9)


@one_is_enough
def test_in_parallel_is_in_sequence(columns):
    case = problem(columns)
    for one, other in zip(
        jax.tree.leaves(anchored(case.model(), case.ts, case.values())[0]),
        jax.tree.leaves(
            anchored(case.model(), case.ts, case.values(), parallel=True)[0]
        ),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "parallel", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_in_single_precision_to_its_own_rounding(parallel):
    case = problem(3, correlated=False)
    exact = case.log_prob()
    with jax.enable_x64(False):
        single = problem(3, correlated=False)
        found, _ = anchored(
            single.model(), single.ts.astype(np.float32), single.values(), 0.1, parallel
        )
        assert found.guided.log_evidence.dtype == jnp.float32
        np.testing.assert_allclose(found.guided.log_evidence, exact, rtol=1e-4)


def test_messages_can_be_double_while_paths_are_single():
    case = problem(3, correlated=False)
    decoder = ns.LinearDecoder(case.observe.astype(np.float32), np.float32(1e-4))
    noise = 1e-8 * np.eye(2)
    mask = np.ones_like(case.mask)
    mask[3] = False  # two exact observations at one time would disagree
    dense = case.dense
    ys = np.stack([case.observe @ np.full(3, 0.1 * i) for i in range(len(case.ts))])
    ys = ys.astype(np.float32).astype(np.float64)
    linear = jax.tree.map(lambda x: x.astype(jnp.float32), case.linear)
    ts = case.ts.astype(np.float32)
    exact = Dense(
        *(np.asarray(x, np.float64) for x in (linear.matrix, linear.bias)),
        np.asarray(linear.diffusion, np.float64),
        np.asarray(linear.initial.mean, np.float64),
        np.asarray(linear.initial.covariance, np.float64),
    ).log_prob(ts.astype(np.float64), ys, case.observe.astype(np.float32), noise, mask)
    assert dense.t0 == 0
    model = ns.LatentSDE(linear, decoder, t0=0.0, message_dtype=jnp.float64)
    values = np.where(mask, ys, np.nan).astype(np.float32)
    found, _ = anchored(model, ts, values)
    assert found.guided.log_evidence.dtype == jnp.float32
    np.testing.assert_allclose(found.guided.log_evidence, exact, rtol=3e-5)


@pytest.mark.one_case("1")
@columns
def test_control_is_the_gradient_of_the_future_s_likelihood(columns):
    """`u = sigma^T grad log p(later y | X_t = x)`, the paper's closed form."""
    case = problem(columns)
    found, grid = anchored(case.model(), case.ts, case.values())
    sigma = np.asarray(case.linear.diffusion)
    for k in (0, 3, 7):
        t = float(grid.starts[k])
        later = case.ts > t
        x = np.array([0.3, -0.2, 0.5])

        def log_future(x, t=t, later=later):
            dense = Dense(
                case.dense.matrix,
                case.dense.bias,
                sigma,
                x,
                np.zeros((3, 3)),
                t,
            )
            return dense.log_prob(
                case.ts[later],
                case.ys[later],
                case.observe,
                case.noise,
                case.mask[later],
            )

        slope = np.array(
            [
                (log_future(x + 1e-5 * e) - log_future(x - 1e-5 * e)) / 2e-5
                for e in np.eye(3)
            ]
        )
        before = jax.tree.map(lambda a, k=k: a[k], found.guided.before)
        control = sigma.T @ np.asarray(before.shift - before.precision @ x)
        np.testing.assert_allclose(control, sigma.T @ slope, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(before.log_value(x), log_future(x), rtol=1e-8)


@pytest.mark.one_case("3")
@columns
def test_messages_solve_their_differential_equations(columns):
    case = problem(columns)
    a, b = case.dense.matrix, case.dense.bias
    q = case.dense.noise
    after = ns.Site(
        np.array([[2.0, 0.3, 0.0], [0.3, 1.0, 0.2], [0.0, 0.2, 0.5]]),
        np.array([0.5, -1.0, 0.3]),
        np.array(0.7),
    )

    def backward(_, flat):
        p, e = flat[:9].reshape(3, 3), flat[9:12]
        dp = a.T @ p + p @ a - p @ q @ p
        de = a.T @ e - p @ q @ e - p @ b
        dc = b @ e + 0.5 * e @ q @ e - 0.5 * np.trace(q @ p)
        return np.concatenate([dp.ravel(), de, [dc]])

    start = np.concatenate([after.precision.ravel(), after.shift, [after.constant]])
    solved = scipy.integrate.solve_ivp(
        backward, (0, 0.4), start, rtol=1e-12, atol=1e-12, method="DOP853"
    ).y[:, -1]
    step = case.linear.transition(jnp.array(0.0), jnp.array(0.4))
    before, _ = jax.jit(guided)(step, jax.tree.map(jnp.asarray, after))
    np.testing.assert_allclose(before.precision.ravel(), solved[:9], atol=1e-8)
    np.testing.assert_allclose(before.shift, solved[9:12], atol=1e-8)
    np.testing.assert_allclose(before.constant, solved[12], atol=1e-8)


def dense_log_prob(linear, decoder, ts, ys):
    """The Kalman filter once more, in JAX, so that it can be differentiated."""
    sigma = linear.diffusion
    noise, size = sigma @ sigma.T, 3
    mean, covariance = linear.initial.mean, linear.initial.covariance
    observe, spread = decoder.matrix, jnp.diag(decoder.scale**2)

    def meet(carry, at):
        (mean, covariance, total), (gap, y) = carry, at
        affine = jnp.zeros((4, 4)).at[:3, :3].set(linear.matrix)
        whole = jax.scipy.linalg.expm(affine.at[:3, 3].set(linear.bias) * gap)
        phi, offset = whole[:3, :3], whole[:3, 3]
        loan = jnp.block(
            [[linear.matrix, noise], [jnp.zeros((size, size)), -linear.matrix.T]]
        )
        grown = jax.scipy.linalg.expm(loan * gap)[:3, 3:] @ phi.T
        mean, covariance = phi @ mean + offset, phi @ covariance @ phi.T + grown
        there = observe @ covariance @ observe.T + spread
        error = y - observe @ mean
        logs = jnp.linalg.slogdet(2 * jnp.pi * there)[1]
        total -= 0.5 * (error @ jnp.linalg.solve(there, error) + logs)
        gain = covariance @ observe.T @ jnp.linalg.inv(there)
        return (mean + gain @ error, covariance - gain @ observe @ covariance, total), 0

    start = (mean, covariance, jnp.zeros(()))
    return jax.lax.scan(meet, start, (jnp.diff(ts, prepend=0.0), ys))[0][2]


@pytest.mark.slow
@one_is_enough
def test_gradients_are_those_of_the_kalman_filter(columns):
    case = problem(columns, correlated=False)
    ts = np.unique(case.ts)
    ys = case.ys[: len(ts)]
    model = case.model()

    def ours(linear, decoder):
        changed = dataclasses.replace(model, linear=linear, decoder=decoder)
        return anchored(changed, ts, ys)[0].guided.log_evidence

    graded = lambda f: eqx.filter_jit(eqx.filter_value_and_grad(f))
    value, found = graded(lambda p: ours(*p))((case.linear, case.decoder))
    exact_value, exact = graded(lambda p: dense_log_prob(*p, ts, ys))(
        (case.linear, case.decoder)
    )
    np.testing.assert_allclose(value, exact_value, rtol=1e-9)
    tested = 0
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        if np.any(b):  # the reference has no offset
            np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-7)
            tested += 1
    assert tested >= 6


def test_merging_splitting_and_shifting_change_nothing():
    case = problem(3, correlated=False)
    model = case.model(t0=None)
    values = case.values()

    def evidence(ts, ys):
        """Of as many rows for all, the last of them of nothing, by one program."""
        more = 2 * len(case.ts) - len(ts)
        ts, ys = (
            np.pad(ts, (0, more), "edge"),
            np.pad(ys, ((0, more), (0, 0)), constant_values=np.nan),
        )
        return float(anchored(model, ts, ys)[0].guided.log_evidence)

    whole = evidence(case.ts, values)
    # The two observations at one time as one, where they are of different sensors.
    np.testing.assert_allclose(evidence(case.ts + 7.3, values), whole, rtol=1e-9)
    middle = (case.ts[0] + case.ts[1]) / 2
    split = evidence(
        np.insert(case.ts, 1, middle), np.insert(values, 1, np.nan, axis=0)
    )
    np.testing.assert_allclose(split, whole, rtol=1e-9)
    apart_ts = np.repeat(case.ts, 2)
    apart = np.full((2 * len(case.ts), 2), np.nan)
    apart[0::2, 0], apart[1::2, 1] = values[:, 0], values[:, 1]
    np.testing.assert_allclose(evidence(apart_ts, apart), whole, rtol=1e-9)


@pytest.mark.slow
def test_padding_changes_nothing():
    case = problem(3)
    model = case.model()
    values = case.values()
    alone = anchored(model, case.ts, values)[0].guided.log_evidence
    ts, ys, mask = ns.pad_series(
        [(case.ts, values), (np.arange(20.0), np.ones((20, 2)))]
    )
    series = as_series((ts[0], ys[0], mask[0]))
    model = dataclasses.replace(model, dt=0.1)
    padded, _ = on_grid(model, series, 200, False)
    np.testing.assert_allclose(padded.guided.log_evidence, alone, rtol=1e-10)


def test_no_observations_leave_the_prior():
    case = problem(3)
    nothing = np.full_like(case.ys, np.nan)
    found, grid = anchored(case.model(), case.ts, nothing)
    np.testing.assert_allclose(found.guided.log_evidence, 0, atol=1e-12)
    means, covariances = marginals(found.guided)
    mean, covariance = case.dense.joint(case.ts)
    np.testing.assert_allclose(means[grid.nodes].ravel(), mean, rtol=1e-9)
    np.testing.assert_allclose(
        covariances[grid.nodes[-1]], covariance[-3:, -3:], rtol=1e-8
    )


@pytest.mark.one_case("0.0")
@pytest.mark.parametrize("t0", [None, 0.0])
def test_one_observation(t0):
    case = problem(3)
    t = np.array([0.8])
    found, _ = anchored(case.model(t0=t0), t, case.ys[:1])
    dense = case.dense
    if t0 is None:
        dense = Dense(
            dense.matrix,
            dense.bias,
            np.asarray(case.linear.diffusion),
            dense.mean,
            dense.covariance,
            0.8,
        )
    everything = np.ones((1, 2), bool)
    exact = dense.log_prob(t, case.ys[:1], case.observe, case.noise, everything)
    np.testing.assert_allclose(found.guided.log_evidence, exact, rtol=1e-9)


def test_nearly_exact_observations_stay_accurate():
    case = problem(3, correlated=False)
    ts = np.unique(case.ts)
    ys = case.ys[: len(ts)]
    mask = np.ones_like(ys, bool)
    for scale in (1e-3, 1e-6):
        model = case.model()
        decoder = ns.LinearDecoder(case.observe, scale)
        model = dataclasses.replace(model, decoder=decoder)
        found, _ = anchored(model, ts, ys)
        exact = case.dense.log_prob(ts, ys, case.observe, scale**2 * np.eye(2), mask)
        np.testing.assert_allclose(found.guided.log_evidence, exact, rtol=1e-5)


@pytest.mark.slow
def test_unstable_dynamics_and_long_gaps():
    matrix = np.array([[1.5, 1.0], [0.0, 0.8]])
    law = ns.Gaussian.independent(np.zeros(2), 1.0)
    linear = ns.LinearSDE(matrix, np.zeros(2), np.eye(2), law)
    dense = Dense(matrix, np.zeros(2), np.eye(2), np.zeros(2), np.eye(2))
    ts, observe = np.array([0.0, 4.0, 9.0]), np.eye(2)
    ys = np.array([[0.1, 0.2], [5.0, 1.0], [900.0, 40.0]])
    model = ns.LatentSDE(linear, ns.LinearDecoder(observe, 0.5), t0=0.0)
    found, _ = anchored(model, ts, ys, 1.0)
    exact = kalman(dense, ts, ys, observe, 0.25 * np.eye(2), np.ones((3, 2), bool))
    np.testing.assert_allclose(found.guided.log_evidence, exact, rtol=1e-6)


@pytest.mark.slow
def test_several_inputs_held_between_times():
    rng = np.random.default_rng(0)
    case = problem(3, correlated=False)
    push = rng.normal(size=(3, 2))
    inputs = rng.normal(size=(len(case.ts), 2))
    linear = ns.LinearSDE(
        case.linear.matrix,
        case.linear.bias,
        case.linear.diffusion,
        case.linear.initial,
        input_matrix=push,
    )
    series = as_series((case.ts, case.ys, case.mask, inputs))
    model = dataclasses.replace(case.model(), linear=linear, dt=0.1)
    found, _ = on_grid(model, series, 64, False)
    # By hand: the filter with another bias in each gap.
    mean, covariance, t, total = case.dense.mean, case.dense.covariance, 0.0, 0.0
    for i, time in enumerate(case.ts):
        held = inputs[max(i - 1, 0)]
        gap = Dense(
            case.dense.matrix,
            case.dense.bias + push @ held,
            np.asarray(case.linear.diffusion),
            mean,
            covariance,
            t,
        )
        one = slice(i, i + 1)
        args = (case.ts[one], case.ys[one], case.observe, case.noise, case.mask[one])
        if case.mask[i].any():
            total += gap.log_prob(*args)
            means, covariances = gap.posterior(*args)
            mean, covariance = means[0], covariances[0]
        else:
            mean, covariance = gap.joint(case.ts[one])
        t = time
    np.testing.assert_allclose(found.guided.log_evidence, total, rtol=1e-8)


@pytest.mark.slow
def test_a_grid_has_equal_steps_no_longer_than_dt():
    ts = jnp.array([0.5, 0.5, 1.3, 1.3001, 2.0, 2.0])
    grid = make_grid(ts, jnp.ones(6, bool), dt=0.25, num_steps=16, t0=0.0)
    assert bool(grid.fits)
    np.testing.assert_allclose(grid.lengths.sum(), 2.0, rtol=1e-12)
    assert grid.lengths.max() <= 0.25 + 1e-9
    ends = np.concatenate([[0.0], np.cumsum(grid.lengths)])
    np.testing.assert_allclose(ends[grid.nodes], ts, rtol=1e-12)
    np.testing.assert_allclose(ends[:-1], grid.starts, atol=1e-12)
    assert not bool(make_grid(ts, ts > 0, dt=0.25, num_steps=8, t0=0.0).fits)
