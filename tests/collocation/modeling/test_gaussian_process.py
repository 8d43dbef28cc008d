"""A Gaussian process as part of a law: its kernel, its units, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effgen import collocation as co


POINTS = np.random.default_rng(0).normal(size=(300, 2)) * [2.0, 0.5]


def features(process, x):
    with jax.enable_x64(True):
        gradient = lambda row: jax.grad(lambda p: p(row))(process).weights
        return np.asarray(jax.vmap(gradient)(jnp.asarray(x)))


def in_double(points, **settings):
    with jax.enable_x64(True):
        return co.GaussianProcess(points, **settings)


def test_the_covariance_is_the_kernel_where_the_points_are():
    process = in_double(POINTS, lengthscale=[4.0, 1.0])
    assert len(process.points) == 100
    assert len(process.weights) < 60  # the kernel has no more directions
    at = np.concatenate([POINTS[:50], process.points])
    unit = (at - POINTS.mean(0)) / [4.0, 1.0]
    squares = np.sum((unit[:, None] - unit[None]) ** 2, axis=-1)
    kernel = np.exp(-squares / 2) + unit @ unit.T
    found = features(process, at)
    np.testing.assert_allclose(found @ found.T, kernel, atol=1e-5)


@pytest.mark.parametrize("size", [1e-6, 1e6])
def test_units_and_origins_change_nothing(size):
    plain = in_double(POINTS)
    moved = in_double(size * (POINTS + 30.0))
    np.testing.assert_allclose(plain.lengthscale, 2 * POINTS.std(0), rtol=1e-12)
    at = POINTS[:20]
    first, second = features(plain, at), features(moved, size * (at + 30.0))
    np.testing.assert_allclose(first @ first.T, second @ second.T, atol=1e-5)


def test_one_input_may_be_a_vector_of_points_and_a_scalar():
    process = in_double(np.linspace(0, 3, 7))
    assert process.points[0] == pytest.approx((0.0,))
    assert float(process(jnp.asarray(1.0))) == 0
    with jax.enable_x64(True):
        assert process(jnp.ones(1)).shape == ()
    # Points that are there twice count once.
    twice = in_double(np.repeat(np.linspace(0, 3, 7), 3), lengthscale=1.0)
    assert len(twice.points) == 7


def test_what_is_no_process_is_named():
    for points in ([1.0], np.ones((2, 2, 2)), [[1.0, np.nan], [0.0, 1.0]]):
        with pytest.raises(ValueError, match="`points` has shape"):
            co.GaussianProcess(points)
    for points in ("data", {"x": [1.0]}, [[1.0, 2.0], [1.0]]):
        with pytest.raises(TypeError, match=r"`points` is a \w+ that is no"):
            co.GaussianProcess(points)
    with pytest.raises(ValueError, match="a column of `points` does not vary"):
        co.GaussianProcess([[1.0, 2.0], [1.0, 3.0]])
    for lengthscale in (0.0, np.inf, [1.0, 2.0, 3.0]):
        with pytest.raises(ValueError, match="`lengthscale` is"):
            co.GaussianProcess(POINTS, lengthscale=lengthscale)
    with pytest.raises(ValueError, match="`num_points` is 0"):
        co.GaussianProcess(POINTS, num_points=0)
    with pytest.raises(ValueError, match=r"`x` has shape \(3,\): pass \(2,\)"):
        co.GaussianProcess(POINTS)(jnp.ones(3))
