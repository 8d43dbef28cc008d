"""NIST's certified nonlinear regressions that are ODEs, from its hard starts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import effgen as eg
from effgen import collocation as co


SETS = {  # x, y, starts, certified values, deviations, residual sum of squares
    "BoxBOD": (
        [1, 2, 3, 5, 7, 10],
        [109, 149, 149, 191, 213, 224],
        [(1.0, 1.0), (100.0, 0.75)],
        [2.1380940889e02, 5.4723748542e-01],
        [1.2354515176e01, 1.0455993237e-01],
        1.1680088766e03,
    ),
    "Misra1a": (
        [
            *(77.6, 114.9, 141.1, 190.8, 239.9, 289.0, 332.8),
            *(378.4, 434.8, 477.3, 536.8, 593.1, 689.1, 760.0),
        ],
        [
            *(10.07, 14.73, 17.94, 23.93, 29.61, 35.18, 40.02),
            *(44.82, 50.76, 55.05, 61.01, 66.40, 75.47, 81.78),
        ],
        [(500.0, 1e-4), (250.0, 5e-4)],
        [2.3894212918e02, 5.5015643181e-04],
        [2.7070075241e00, 7.2668688436e-06],
        1.2455138894e-01,
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_saturation_has_the_certified_values(name):
    """`x' = b2 (b1 - x)`, `x(0) = 0`."""
    xs, ys, starts, values, deviations, squares = SETS[name]
    law = lambda t, x, u, p, nets: p[1] * (p[0] - x)
    data = co.Trajectory(np.array(xs), np.array(ys), span=(0.0, float(xs[-1])))
    problem = co.Problem(law, data, initial=co.Initial([0.0]))
    level = co.transcribe(problem, intervals=12, stages=8)
    trainer = co.CollocationTrainer(tol=1e-12)
    for start in starts:
        state = trainer.init(co.Model(jnp.array(start), None), level.guess())
        state, history = eg.fit(trainer, state, [level], key=jax.random.key(0))
        assert history["iterations"][0] <= 15
        np.testing.assert_allclose(state.model.parameters, values, rtol=1e-10)
        found = np.sqrt(np.diag(co.covariance(level, state).model))
        np.testing.assert_allclose(found, deviations, rtol=1e-9)
        loss = 2 * len(xs) * float(history["loss"][0]) * problem.scale[0] ** 2
        np.testing.assert_allclose(loss, squares, rtol=1e-9)
