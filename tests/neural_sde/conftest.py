"""Exact answers need float64, which each of these tests turns on for itself."""

import jax
import pytest


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
