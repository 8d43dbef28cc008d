"""Warnings of a fit whose residuals are above the noise that is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import effgen as eg
from effgen import collocation as co


KEY = jax.random.key(0)
TS = np.linspace(0, 4, 41)
NOISE = 0.02
ERRORS = NOISE * np.random.default_rng(0).normal(size=41)


def decay(t, x, u, p, nets):
    return -p["k"] * x


def fitted(ys, intervals=20, law=decay, **more):
    level = co.transcribe(co.Problem(law, (TS, ys), **more), intervals=intervals)
    trainer = co.CollocationTrainer()
    state = trainer.init(co.Model({"k": 0.5}, None), level.guess())
    return eg.fit(trainer, state, [level], key=KEY)[0]


def test_a_law_that_does_not_fit_is_told_by_how_much():
    ys = 2 * np.exp(-0.7 * TS) + 0.1 * np.sin(5 * TS) + ERRORS
    with pytest.warns(eg.RunWarning, match="the law does not fit") as told:
        fitted(ys, scale=NOISE)
    assert "output 0 are 3.4 times `scale`" in str(told[0].message)
    fitted(ys)  # whose noise is not known


def test_a_law_that_fits_is_silent():
    fitted(2 * np.exp(-0.7 * TS) + ERRORS, scale=NOISE)


def test_a_mesh_that_is_too_coarse_is_told_as_the_cause():
    fast = lambda t, x, u, p, nets: -p["k"] * x * (1 + jnp.cos(12 * t))
    ys = 2 * np.exp(-0.7 * (TS + np.sin(12 * TS) / 12)) + ERRORS / 10
    with (
        pytest.warns(eg.RunWarning, match="the mesh is too coarse"),
        pytest.warns(eg.RunWarning, match=r"the mesh's error is most of them"),
    ):
        fitted(ys, intervals=6, law=fast, scale=NOISE / 10)
