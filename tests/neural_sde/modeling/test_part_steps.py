"""Steps of parts in closed form against the exponential of their matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effgen import neural_sde as ns
from effgen.neural_sde.linear_sdes.transitions import constant_transition


PARTS = {
    "level": ns.level(noise=0.3),
    "trend": ns.trend(noise=0.3, slope_noise=0.2),
    "cycle": ns.cycle(7.0, damping=0.2, scale=1.3),
    "season": ns.season(3.0, 3, noise=0.1),
    "periodic": ns.periodic(5.0, 3, scale=2.0),
    "ou": ns.ou(length=2.0, scale=0.7),
    "smooth": ns.matern(1.5, length=2.0, scale=0.7),
    "car": ns.car(3, scale=0.8),
}


def wide(structure):
    return jax.tree.map(lambda x: x.astype(jnp.float64), structure)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("dt", [0.0, 1e-9, 1e-3, 0.4, 1.6, 30.0])
def test_a_part_steps_as_its_matrix_says(name, dt):
    with jax.enable_x64(True):
        structure, dt = wide(PARTS[name]), jnp.asarray(dt)
        step = structure.transition(jnp.zeros(()), dt)
        told = structure.coefficients(jnp.zeros(()))
        truth = constant_transition(told, dt, jnp.zeros(len(told.bias)))
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-13)
        close(step.matrix, truth.matrix)
        close(step.push, truth.push)
        close(step.covariance, truth.covariance)
        close(step.root @ step.root.T, step.covariance)


@pytest.mark.parametrize("dt", [1e-3, 0.4, 1.6])
def test_derivatives_are_those_of_the_matrix(dt):
    with jax.enable_x64(True):
        whole = wide(PARTS["cycle"] + PARTS["trend"] + PARTS["ou"])
        rng = np.random.default_rng(0)
        weights = [jnp.asarray(rng.normal(size=(5, 5))) for _ in range(3)]

        def read(step):
            seen = step.matrix, step.push, step.covariance
            return sum(jnp.sum(w * x) for w, x in zip(weights, seen, strict=True))

        def by_matrix(structure):
            told = structure.coefficients(jnp.zeros(()))
            return read(constant_transition(told, jnp.asarray(dt), jnp.zeros(5)))

        by_parts = lambda s: read(s.transition(jnp.zeros(()), jnp.asarray(dt)))
        found, truth = jax.grad(by_parts)(whole), jax.grad(by_matrix)(whole)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(truth), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12)
