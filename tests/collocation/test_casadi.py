"""The same program stated by hand in CasADi: values, derivatives and optimum."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import effgen as eg
from benchmarks import casadi_peer
from effgen import collocation as co
from effgen.collocation.modeling.problem import in_double
from effgen.collocation.program.evaluator import Evaluator


ca = pytest.importorskip("casadi")
KEY = jax.random.key(0)


def field(t, x, u, p, nets):
    return jnp.stack([x[1], nets(x)[0] - x[0] + u[0]])


def observed(t, x, u, p, nets):
    return jnp.stack([x[0], x[0] * x[1]])


def program():
    """Return a level, a model, and CasADi's program of them."""
    rng = np.random.default_rng(0)
    rows = []
    for num, last in ((14, 2.0), (9, 1.5)):
        ts = np.sort(rng.uniform(0, last, num))
        ys = np.stack([np.cos(ts), -np.sin(ts) * np.cos(ts)], axis=1)
        ys += 0.1 * rng.normal(size=ys.shape)
        rows.append(co.Trajectory(ts, ys, lambda t: 0.1 * jnp.sin(t)[None], (0, last)))
    problem = co.Problem(
        field,
        rows,
        observe=observed,
        num_states=2,
        nominal=[2.0, 0.5],
        weight_decay=1e-3,
    )
    level = co.transcribe(problem, intervals=6, stages=4)
    net = eqx.nn.MLP(2, 1, 4, 2, jax.nn.tanh, key=KEY)
    model = co.Model({}, in_double(net))
    theirs, num = casadi_peer.network([2, 4, 4, 1])
    right = lambda x, u, p: ca.vertcat(x[1], theirs(x, p) - x[0] + u[0])
    seen = lambda x: ca.vertcat(x[0], x[0] * x[1])
    return level, model, casadi_peer.program(level, right, num, seen)


def start(level, model):
    nlp = level.program(model)
    scaled = level.guess().positions / level.problem.nominal
    return nlp, np.concatenate([scaled.ravel(), np.asarray(nlp.flat())])


def dense(pattern, values, shape):
    matrix = np.zeros(shape)
    np.add.at(matrix, (pattern.rows, pattern.columns), values)
    return matrix


@pytest.mark.slow
def test_values_and_derivatives_are_equal_at_random_points():
    level, model, stated = program()
    nlp, z = start(level, model)
    functions = Evaluator(nlp, co.ExactHessian()).functions()
    x, f, g = (stated[name] for name in "xfg")
    y = ca.MX.sym("y", g.shape[0])
    second = ca.hessian(f + ca.dot(y, g), x)[0]
    outputs = [f, g, ca.gradient(f, x), ca.jacobian(g, x), second]
    whole = ca.Function("whole", [x, y], outputs)
    rng = np.random.default_rng(1)
    for _ in range(3):
        at = z + 0.3 * rng.normal(size=len(z))
        multipliers = rng.normal(size=g.shape[0])
        found = [np.asarray(part) for part in whole(at, multipliers)]
        size = (len(multipliers), len(z))
        lower = functions.hessian(at, multipliers, 1.0)
        ours = (
            functions.objective(at),
            functions.constraints(at),
            functions.gradient(at),
            dense(functions.jacobian_pattern, functions.jacobian(at), size),
            dense(functions.hessian_pattern, lower, (len(z),) * 2),
        )
        for mine, theirs in zip(ours[:4], found, strict=False):
            theirs = theirs.reshape(np.shape(mine))
            np.testing.assert_allclose(mine, theirs, rtol=1e-10, atol=1e-10)
        half = np.tril(found[4])
        np.testing.assert_allclose(ours[4], half, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_the_optimum_is_the_same():
    level, model, stated = program()
    _, z = start(level, model)
    trainer = co.CollocationTrainer(tol=1e-10)
    state = trainer.init(model, level.guess())
    state, history = eg.fit(trainer, state, [level], key=KEY)
    found = level.program(state.model)
    scaled = np.asarray(state.memory.positions) / level.problem.nominal
    ours = np.concatenate([scaled.ravel(), np.asarray(found.flat())])
    # From near it: a network has many optima, and two solvers may part on the way.
    near = ours + 1e-3 * np.random.default_rng(0).normal(size=len(z))
    options = {"ipopt.tol": 1e-10, "ipopt.print_level": 0, "print_time": False}
    solver = ca.nlpsol("solver", "ipopt", stated, options | {"ipopt.sb": "yes"})
    theirs = solver(x0=near, lbg=0, ubg=0)
    np.testing.assert_allclose(float(theirs["f"]), history["loss"][-1], rtol=1e-9)
    np.testing.assert_allclose(np.asarray(theirs["x"]).ravel(), ours, atol=1e-5)
