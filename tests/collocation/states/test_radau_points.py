"""Nodes, weights and matrices to rounding; orders on two equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial import legendre

from effgen import collocation as co
from effgen.collocation.program.nlp import constraints


STAGES = [1, 2, 3, 5, 9, 20, 33]


@pytest.mark.parametrize("stages", STAGES)
def test_nodes_are_roots_and_the_last_is_one(stages):
    scheme = co.radau(stages)
    coefficients = np.zeros(stages + 1)
    coefficients[stages], coefficients[stages - 1] = 1, -1
    x = 2 * scheme.nodes - 1
    slope = legendre.legval(x, legendre.legder(coefficients))
    away = legendre.legval(x, coefficients) / slope
    assert np.all(np.abs(away) < 1e-14)
    assert scheme.nodes[-1] == 1
    assert np.all(np.diff(scheme.nodes) > 0)


@pytest.mark.parametrize("stages", STAGES)
def test_quadrature_is_exact_to_degree_twice_the_stages_less_two(stages):
    scheme = co.radau(stages)
    powers = np.arange(2 * stages - 1)
    found = scheme.weights @ scheme.nodes[:, None] ** powers
    np.testing.assert_allclose(found, 1 / (powers + 1), rtol=0, atol=1e-14)
    if stages < 10:  # and no further
        beyond = scheme.weights @ scheme.nodes ** (2 * stages - 1)
        assert abs(2 * stages * beyond - 1) > 1e-14


@pytest.mark.parametrize("stages", STAGES)
def test_integration_and_differentiation_are_exact_and_inverse(stages):
    scheme = co.radau(stages)
    powers = np.arange(stages)
    values = scheme.nodes[:, None] ** powers
    exact = scheme.nodes[:, None] ** (powers + 1) / (powers + 1)
    np.testing.assert_allclose(scheme.integration @ values, exact, rtol=0, atol=1e-14)
    inner = scheme.differentiation[:, 1:]
    eye = np.eye(stages)
    np.testing.assert_allclose(inner @ scheme.integration, eye, rtol=0, atol=1e-13)
    scale = np.abs(scheme.differentiation).sum(1)
    assert np.all(np.abs(scheme.differentiation.sum(1)) < 1e-15 * scale)


def test_two_stages_are_the_textbook_s():
    scheme = co.radau(2)
    np.testing.assert_allclose(scheme.nodes, [1 / 3, 1], rtol=4e-16)
    np.testing.assert_allclose(scheme.weights, [3 / 4, 1 / 4], rtol=4e-16)
    table = [[5 / 12, -1 / 12], [3 / 4, 1 / 4]]
    np.testing.assert_allclose(scheme.integration, table, rtol=1e-15)


def test_the_basis_is_one_at_its_own_point_and_interpolates():
    scheme = co.radau(6)
    np.testing.assert_array_equal(scheme.basis(scheme.points), np.eye(7))
    at = np.linspace(0, 1, 31)
    powers = np.arange(7)
    found = scheme.basis(at) @ scheme.points[:, None] ** powers
    np.testing.assert_allclose(found, at[:, None] ** powers, atol=1e-14)


def test_stages_that_cannot_be():
    for stages in (0, 2.0, -1):
        with pytest.raises(ValueError, match="`stages` is"):
            co.radau(stages)


def end_error(stages, intervals, rate, mean):
    """The error at the end of `x' = -rate (x - mean(t)) + mean'(t)`, by Newton."""
    slope = jax.grad(mean)
    field = lambda t, x, u, p, nets: -rate * (x - mean(t)) + slope(t)
    problem = co.Problem(field, (np.array([0.0, 1.0]), np.array([1.0, 0.0])), nominal=1)
    transcription = co.transcribe(problem, intervals=intervals, stages=stages)
    nlp = transcription.program(co.Model({}, None))
    size = transcription.mesh.num_nodes
    z = jnp.full(size, float(mean(0.0)))
    residual = lambda free: constraints(nlp, z.at[1:].set(free))

    @jax.jit
    def step(free):
        return free - jnp.linalg.solve(jax.jacfwd(residual)(free), residual(free))

    return abs(float(step(z[1:])[-1] - mean(1.0)))


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_the_order_at_the_end_is_twice_the_stages_less_one(stages):
    coarse, fine = (
        end_error(stages, n, 1.5, lambda t: jnp.sin(3 * t)) for n in (8, 16)
    )
    np.testing.assert_allclose(np.log2(coarse / fine), 2 * stages - 1, atol=0.25)


@pytest.mark.parametrize("stages", [2, 3])
def test_a_stiff_equation_keeps_the_stage_order_and_does_not_swing(stages):
    """With rate times interval far above one, the order is that of the stages."""
    coarse, fine = (end_error(stages, n, 1e6, jnp.cos) for n in (8, 16))
    assert coarse < 1e-6
    assert np.log2(coarse / fine) > stages - 0.3
