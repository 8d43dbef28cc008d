"""Particles that are moved in stages, against laws known exactly."""

import numpy as np
import pytest

from effgen.neural_sde.fits.tempering import effective_share, student, tempered


def normal(z, mean, scale):
    return -0.5 * np.sum(((z - mean) / scale) ** 2, axis=1)


def moved(log_density, size, seed=0, num=512):
    rng = np.random.default_rng(seed)
    z, _ = student(rng, num, size)
    return tempered(log_density, z, log_density(z), rng)


def test_a_normal_law_far_from_the_proposals_is_reached():
    mean, scale = np.array([30.0, -20.0, 0.0]), np.array([5.0, 0.1, 1.0])
    found = moved(lambda z: normal(z, mean, scale), 3)
    away = (found.particles - mean) / scale
    np.testing.assert_allclose(away.mean(0), 0, atol=0.2)
    np.testing.assert_allclose(away.std(0), 1, atol=0.15)
    assert 0.1 < found.accepted < 0.6
    assert found.distinct > 0.9


def test_modes_keep_their_masses():
    logs = lambda z: np.logaddexp(
        np.log(0.7) + normal(z, [-3.0, 0.0], 0.5),
        np.log(0.3) + normal(z, [3.0, 0.0], 0.5),
    )
    shares = [np.mean(moved(logs, 2, s).particles[:, 0] < 0) for s in range(8)]
    np.testing.assert_allclose(np.mean(shares), 0.7, atol=0.05)


def test_particles_without_a_density_are_left():
    logs = lambda z: np.where(z[:, 0] > 0, normal(z, 0.0, 0.01), np.nan)
    found = moved(logs, 2)
    assert np.all(found.particles[:, 0] > 0)
    np.testing.assert_allclose(found.particles[:, 1].std(), 0.01, rtol=0.2)


@pytest.mark.parametrize("count", [1, 4])
def test_the_effective_share_of_equal_weights(count):
    logs = np.where(np.arange(8) < count, 0.0, -np.inf)
    assert effective_share(logs) == count / 8
