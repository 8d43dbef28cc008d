"""Problems that several test files share."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from effgen import collocation as co
from effgen.collocation.modeling.problem import in_double


def oscillator(t, x, u, p, nets):
    """A driven oscillator whose spring a network corrects; one algebraic state."""
    force = nets["spring"](x[:2]) + p["gain"] * u[0]
    return jnp.stack([x[1], force - p["damping"] * x[2], x[2] - x[1] ** 3])


def everything(seed=0):
    """Two trajectories, samples off the nodes and missing, every kind of term."""
    rng = np.random.default_rng(seed)
    data = []
    for num, last in ((9, 1.0), (5, 0.6)):
        ts = np.sort(rng.uniform(0, last, num))
        ys = rng.normal(size=(num, 2))
        ys[rng.uniform(size=ys.shape) < 0.2] = np.nan
        data.append(co.Trajectory(ts, ys, lambda t: np.sin(t), (0.0, last)))
    problem = co.Problem(
        oscillator,
        data,
        observe=lambda t, x, u, p, nets: jnp.stack([x[0] * p["gain"], x[0] * x[1]]),
        num_states=3,
        num_algebraic=1,
        nominal=[2.0, 0.5, 1.5],
        initial=co.Initial(np.array([1.0, np.nan, np.nan]), 0.3),
        constraints=[
            co.PathConstraint(
                lambda t, x, u, p, nets: x[:2] ** 2 * p["damping"], -1, 4, "energy"
            ),
            co.BoundaryConstraint(
                lambda first, last, p, nets: first[:1] * last[1:2] - p["gain"],
                -9,
                9,
                "ends",
            ),
            co.ModelConstraint(
                lambda p, nets: nets["spring"](jnp.zeros(2)), 0, 0, "origin"
            ),
        ],
        lagrange=lambda t, x, u, p, nets: 0.1 * x[0] ** 2 * p["gain"],
        mayer=lambda first, last, p, nets: last[0] ** 2 * first[1],
        penalty=lambda p, nets: p["gain"] ** 4,
        weight_decay=0.1,
    )
    return problem, model()


def model():
    spring = eqx.nn.MLP(2, "scalar", 3, 1, jax.nn.tanh, key=jax.random.key(0))
    return co.Model(
        {"gain": jnp.asarray(0.7), "damping": jnp.asarray(0.2)},
        {"spring": in_double(spring)},
    )
