"""The report of what the data tell, on a law that is linear."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import effgen as eg
from effgen import collocation as co


KEY = jax.random.key(0)
TS = np.linspace(0, 2, 21)


@pytest.mark.filterwarnings("ignore:the data do not tell")
def test_what_is_told_has_its_deviation_and_the_rest_a_name():
    """`x' = (a + b, c, c + d)` from zero: only the sum of `a` and `b` is told."""
    law = lambda t, x, u, p, nets: jnp.stack(
        [p["a"] + p["b"], p["c"], p["c"] + 1e-3 * p["d"]]
    )
    rng = np.random.default_rng(0)
    ys = TS[:, None] * [1.0, 2.0, 2.003] + 0.1 * rng.normal(size=(21, 3))
    problem = co.Problem(law, (TS, ys), scale=0.1, initial=co.Initial(np.zeros(3)))
    level = co.transcribe(problem, intervals=2)
    trainer = co.CollocationTrainer(tol=1e-12)
    start = {"a": 0.3, "b": 0.5, "c": 1.0, "d": 1.0}
    state = trainer.init(co.Model(start, None), level.guess())
    state, _ = eg.fit(trainer, state, [level], key=KEY)
    found = co.identifiability(level, state, noise=1.0)
    one = 0.1 / np.sqrt(np.sum(TS**2))  # of one slope
    exact = one**2 * np.array([[1.0, -1e3], [-1e3, 2e6]])
    assert found.names == ("a", "b", "c", "d")
    assert set(found.open) == {"a", "b"}
    np.testing.assert_array_equal(
        np.isinf(found.deviations), [True, True, False, False]
    )
    np.testing.assert_allclose(found.deviations[2:], np.sqrt(np.diag(exact)), rtol=1e-5)
    share = exact[0, 1] / np.sqrt(exact[0, 0] * exact[1, 1])
    np.testing.assert_allclose(found.correlations[2, 3], share, rtol=1e-5)
    assert np.isnan(found.correlations[0, 2])
    sizes = np.abs(found.values[2:])
    squares = np.linalg.eigvalsh(exact / np.outer(sizes, sizes))[::-1]
    np.testing.assert_allclose(found.spreads, np.sqrt(squares), rtol=1e-4)
    np.testing.assert_allclose(np.abs(found.directions[3, 0]), 1, rtol=1e-3)
    said = str(found).splitlines()
    assert "not told" in said[0]
    assert "open: a, b can move together" in said[4]
    assert said[5].endswith("d")
    with pytest.raises(ValueError, match=r"`noise` is -1\.0"):
        co.identifiability(level, state, noise=-1.0)
