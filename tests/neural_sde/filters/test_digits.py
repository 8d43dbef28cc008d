"""Predictions of structural models in float32, against a filter in float64."""

import jax
import numpy as np
import pytest

from effgen import neural_sde as ns


NUM = 120
TS = np.arange(NUM) * 1.0


def record(noise):
    turns = np.sin(2 * np.pi * TS / 12) + 0.3 * np.cos(2 * np.pi * TS / 6)
    return 0.05 * TS + turns + noise * np.random.default_rng(0).normal(size=NUM)


def exact(model, ys):
    """Return means, scales and scores of predictions, by Joseph's form in float64."""
    array = lambda x: np.asarray(x, np.float64)
    step = model.linear.transition(jax.numpy.zeros(()), jax.numpy.ones(()))
    matrix, offset, root = map(array, (step.matrix, step.offset, step.root))
    law, row = model.linear.initial, array(model.decoder.matrix)[0]
    noise = float(model.decoder.scale[0]) ** 2
    mean, covariance = array(law.mean), array(law.root) @ array(law.root).T
    rows = []
    for i, y in enumerate(ys):
        if i:
            mean = matrix @ mean + offset
            covariance = matrix @ covariance @ matrix.T + root @ root.T
        center = row @ mean + float(model.decoder.offset[0])
        variance = row @ covariance @ row + noise
        score = -0.5 * ((y - center) ** 2 / variance + np.log(2 * np.pi * variance))
        rows.append((center, np.sqrt(variance), score))
        gain = covariance @ row / variance
        mean = mean + gain * (y - center)
        kept = np.eye(len(mean)) - np.outer(gain, row)
        covariance = kept @ covariance @ kept.T + noise * np.outer(gain, gain)
    return np.array(rows).T


@pytest.mark.parametrize("noise", [0.1, 0.01, 0.003])
def test_predictions_keep_their_digits_where_the_noise_is_small(noise):
    ys = record(noise)
    model = ns.structural(ns.trend() + ns.season(12.0, 3), TS, ys)
    decoder = ns.LinearDecoder(
        model.decoder.matrix, np.full(1, noise), offset=model.decoder.offset
    )
    model = ns.LatentSDE(model.linear, decoder)
    found = ns.posterior(model, TS, ys)
    told = found.predictions()
    mean, scale, scores = exact(model, ys)
    assert np.abs((np.asarray(told.mean)[:, 0] - mean) / scale).max() < 0.01
    np.testing.assert_allclose(np.asarray(told.scale)[:, 0], scale, rtol=2e-3)
    np.testing.assert_allclose(float(told.scores.sum()), scores.sum(), atol=0.1)
    np.testing.assert_allclose(float(found.log_evidence), scores.sum(), atol=0.1)
    seen = found.filter(key=jax.random.key(0)).evidence
    np.testing.assert_allclose(float(seen.value), scores.sum(), atol=0.1)
    later = ns.compare({"model": model}, TS, ys, since=12.0).log_scores[0]
    np.testing.assert_allclose(later, scores[12:].sum(), atol=0.1)


def test_equal_times_and_gaps_are_filtered_one_after_the_other():
    """Two observations of one time are one of twice the precision."""
    law = ns.Gaussian.independent(np.zeros(1), 1.0)
    model = ns.LatentSDE(
        ns.DiagonalSDE(0.5, 0.0, 0.3, law), ns.LinearDecoder([[1.0]], 0.2), dt=0.3
    )
    ts, ys = np.array([0.0, 1.0, 1.0, 2.0]), np.array([0.3, -0.2, 0.4, np.nan])
    found = ns.posterior(model, ts, ys)
    told = found.predictions()
    np.testing.assert_allclose(
        float(told.scores.sum()), float(found.log_evidence), rtol=1e-5
    )
    np.testing.assert_allclose(told.mean[1], told.mean[2])
    together = np.mean(ys[1:3])
    errors = np.array([1.0, np.sqrt(0.5), 1.0])
    single = ns.posterior(
        model, ts[[0, 1, 3]], np.array([ys[0], together, np.nan]), errors=errors
    ).predictions()
    np.testing.assert_allclose(told.mean[3], single.mean[2], rtol=1e-5)
    np.testing.assert_allclose(told.scale[3], single.scale[2], rtol=1e-5)
