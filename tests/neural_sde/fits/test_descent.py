"""Minima and curvatures by a compiled gradient, against functions that are known."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effgen.neural_sde.fits.descent import hessian, minimized, units_of


class Valley(eqx.Module):
    """A bent valley whose parameters differ in size; its minimum is at `center`."""

    center: jax.Array
    sizes: jax.Array

    def __call__(self, x):
        z = (x - self.center) / self.sizes
        return 0.5 * z[0] ** 2 + 2 * (z[1] - z[0] ** 2) ** 2 + jnp.cosh(z[2])


def valley():
    center = jnp.asarray([1e6, 0.3, -2e-6])
    return Valley(center, jnp.asarray([1e5, 1.0, 1e-7]))


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def test_a_minimum_is_found_in_parameters_of_any_size():
    loss, none = valley(), jnp.zeros(3)
    start = loss.center + loss.sizes * jnp.asarray([0.7, -0.4, 0.9])
    units = units_of(loss, none, start)
    assert np.all(np.abs(np.log(units / loss.sizes)) < 2)
    found = minimized(loss, start, units, 100, 1e-8)
    away = (found.x - loss.center) / loss.sizes
    np.testing.assert_allclose(away, 0, atol=1e-6)
    assert found.converged
    assert found.loss == pytest.approx(1.0)
    short = minimized(loss, start, units, 1, 1e-8)
    assert (short.num_steps, short.converged) == (1, False)


def test_a_search_steps_back_from_where_a_loss_has_no_value():
    """`x - log x` has none below zero, where a first step of one leads."""
    loss = jax.tree_util.Partial(lambda x: jnp.sum(x - jnp.log(x)))
    found = minimized(loss, jnp.asarray([0.05, 30.0]), jnp.ones(2), 100, 1e-8)
    np.testing.assert_allclose(found.x, 1.0, atol=1e-6)
    assert found.converged


def test_second_derivatives_are_those_of_the_loss():
    loss = valley()
    x = loss.center + loss.sizes * jnp.asarray([0.3, 0.2, 0.5])
    squares = np.outer(loss.sizes, loss.sizes)
    truth = jax.hessian(loss)(x) * squares
    bends = hessian(loss, jnp.zeros(3), x) * squares
    np.testing.assert_allclose(bends, truth, rtol=1e-6, atol=1e-6)


def test_a_parameter_that_nothing_bends_has_a_unit_of_one():
    loss = jax.tree_util.Partial(lambda x: x[0] ** 2 + 0 * x[1])
    units = units_of(loss, jnp.asarray([0.0, 0.0]), jnp.asarray([3.0, 2.0]))
    np.testing.assert_allclose(units, [np.sqrt(0.5), 1.0], rtol=1e-6)
    assert units_of(loss, jnp.ones(2), jnp.zeros(2)).tolist() == [1.0, 1.0]
