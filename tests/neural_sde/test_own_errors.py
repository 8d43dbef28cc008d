"""Errors of single values, where paths and particles are followed."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effgen import neural_sde as ns
from effgen.neural_sde.bounds.controlled import likelihood
from effgen.neural_sde.data.series import as_series
from effgen.neural_sde.filters.filtering import Filtered
from effgen.neural_sde.filters.predictions import predictions
from tests.neural_sde.cases import double_well


KEY = jax.random.key(0)
TS, YS = np.arange(3.0), np.array([[0.3], [np.nan], [-0.5]])
ERRORS = np.array([[0.5], [1.0], [4.0]])


@pytest.mark.parametrize("root", [False, True])
def test_paths_are_worth_what_the_errors_say(root):
    scale = np.array([[0.2]]) if root else 0.2
    decoder = ns.LinearDecoder(np.eye(1), scale)
    model = dataclasses.replace(double_well(), decoder=decoder)
    x = np.random.default_rng(0).normal(size=(3, 5, 1)).astype(np.float32)
    series = as_series((TS, YS, None, None, ERRORS))
    found = eqx.filter_jit(likelihood)(model, series, jnp.asarray(x))
    sizes = 0.2 * ERRORS[::2]
    away = (YS[::2] - x[::2, :, 0]) / sizes
    right = np.sum(-0.5 * away**2 - np.log(sizes) - 0.5 * np.log(2 * np.pi), axis=0)
    np.testing.assert_allclose(found, right, rtol=1e-5)


def test_particles_foretell_with_the_errors_of_the_values():
    series = as_series((TS, YS, None, None, ERRORS))
    num = 4_000
    nothing = jnp.zeros((3, num, 1))
    flat = jnp.zeros(3)
    known = Filtered(None, nothing, jnp.zeros(num), flat, nothing, flat)  # pyright: ignore
    found = eqx.filter_jit(predictions)(double_well(), series, known, key=KEY)
    np.testing.assert_allclose(found.scale[:, 0], [0.05, 0.1, 0.4], rtol=0.05)
    np.testing.assert_allclose(found.residuals[2, 0], -1.25, atol=0.1)
