"""What depends on what: found for any values, and no wider than it is."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import effgen as eg
from effgen import collocation as co
from effgen.collocation.program.curvature import ExactHessian, GaussNewton
from effgen.collocation.program.dependence import derivative_pattern
from effgen.collocation.program.evaluator import Evaluator
from effgen.collocation.program.products import check_products
from effgen.collocation.solvers.ipopt import Point
from tests.collocation.cases import everything


def net(width=4, activation=jax.nn.tanh):
    key = jax.random.key(0)
    return eqx.nn.MLP(2, "scalar", width, 1, activation, key=key)


def looped(z, t):
    """A loop whose length the time decides: it passes one element on a turn."""
    turn = lambda i, z: jnp.concatenate([z[1:], z[:1] ** 2])
    return jax.lax.fori_loop(0, jnp.floor(t).astype(int), turn, z)[:1]


def scanned(z, t):
    return jax.lax.scan(lambda c, x: (c + x**2, c * x), t, z)[1]


@jax.custom_jvp
def rounded(x):
    return jnp.round(x)


rounded.defjvp(lambda x, v: (rounded(*x), v[0]))


# Each a function of four numbers and the time, and its exact pattern, row by row.
FORMS = {
    "where by time": (lambda z, t: jnp.where(t > 2, z[0] * z[1], z[2]), ["1110"]),
    "where by state": (lambda z, t: jnp.where(z[0] < 0, z[1] ** 2, z[2]), ["0110"]),
    "maximum": (lambda z, t: jnp.maximum(z[0] - 9, z[3] * t), ["1001"]),
    "cond": (
        lambda z, t: jax.lax.cond(z[0] > 9, lambda: z[1] ** 2, lambda: z[3]),
        ["0101"],
    ),
    "switch": (
        lambda z, t: jax.lax.switch(
            jnp.floor(t).astype(int), [lambda z: z[0], lambda z: z[1]], z
        ),
        ["1100"],
    ),
    "index by time": (lambda z, t: z[jnp.floor(t).astype(int)] * t, ["1111"]),
    "known indices": (lambda z, t: z[np.array([3, 0])] ** 2, ["0001", "1000"]),
    "negative index": (lambda z, t: z[-2] * t, ["0010"]),
    "set": (lambda z, t: z.at[1].set(z[3] ** 2)[:3], ["1000", "0001", "0010"]),
    "add": (lambda z, t: z.at[1].add(z[3])[:2], ["1000", "0101"]),
    "table": (lambda z, t: jnp.interp(z[0], jnp.arange(3.0), z[1:]), ["1111"]),
    "product": (
        lambda z, t: jnp.sin(z.reshape(2, 2)) @ jnp.stack([z[0], t]),
        ["1100", "1011"],
    ),
    "sum": (lambda z, t: jnp.sum(z.reshape(2, 2), 1), ["1100", "0011"]),
    "loop": (looped, ["1111"]),
    "scan": (scanned, ["1111"] * 4),
    "stop": (lambda z, t: jax.lax.stop_gradient(z[0]) * z[1], ["0100"]),
    "own rule": (lambda z, t: rounded(z[:2]), ["1000", "0100"]),
    "compare": (lambda z, t: (z[0] > 0) * z[1], ["0100"]),
    "sort": (lambda z, t: jnp.sort(z)[:1], ["1111"]),
    "solve": (
        lambda z, t: jnp.linalg.solve(z.reshape(2, 2), jnp.ones(2)),
        ["1111"] * 2,
    ),
    "vmap": (lambda z, t: jax.vmap(lambda a: a**2 * t)(z[2:]), ["0010", "0001"]),
    "outer": (lambda z, t: jnp.outer(z[:1], z[2:]).ravel(), ["1010", "1001"]),
    "reversed, padded": (
        lambda z, t: jnp.pad(z[::-1], (1, 0))[:3],
        ["0000", "0001", "0010"],
    ),
    "relu": (lambda z, t: jax.nn.relu(z[:2] - 9), ["1000", "0100"]),
}


@pytest.mark.parametrize("name", FORMS)
def test_everyday_forms_have_their_exact_patterns(name):
    function, expected = FORMS[name]
    vector = lambda z, t: jnp.atleast_1d(function(z, t)).astype(float)
    found = derivative_pattern(vector, jnp.ones(4), jnp.asarray(0.5))
    assert ["".join(map(str, row)) for row in found.astype(int)] == expected


@pytest.mark.parametrize("name", FORMS)
def test_no_derivative_is_outside_of_the_pattern(name):
    function, _ = FORMS[name]
    vector = lambda z, t: jnp.atleast_1d(function(z, t)).astype(float)
    there = derivative_pattern(vector, jnp.ones(4), jnp.asarray(0.5))
    rng = np.random.default_rng(0)
    dense = jax.jit(jax.jacfwd(vector))
    for t in (0.0, 0.5, 1.2, 2.5, 3.4):
        slopes = dense(jnp.asarray(3 * rng.normal(size=4)), jnp.asarray(t))
        assert not np.any((np.asarray(slopes) != 0) & ~there)


def test_a_network_depends_on_its_inputs_and_weights_alone():
    nets = net()
    arrays, rest = eqx.partition(nets, eqx.is_inexact_array)
    flat, back = jax.flatten_util.ravel_pytree(arrays)

    def outputs(z, t):
        value = eqx.combine(back(z[3:]), rest)(z[:2])
        return jnp.stack([value, z[2] * t])

    z = jnp.concatenate([jnp.ones(3), flat])
    found = derivative_pattern(outputs, z, jnp.asarray(1.0))
    assert found[0, :2].all()
    assert found[0, 3:].all()
    assert found[0, 2] == 0
    assert found[1].nonzero()[0].tolist() == [2]


def valve(t, x, u, p, nets):
    flow = jnp.where(t > 1.0, p["k"] * x[0], 0.0)
    return jnp.stack([-flow, flow - 0.2 * x[1]])


def emptied(t):
    """The exact levels: the valve of rate 0.5 opens at 1."""
    s = np.maximum(t - 1, 0)
    late = np.exp(-0.2 * s - 0.2 * np.minimum(t, 1))
    both = 2 * 0.5 / (0.2 - 0.5) * (np.exp(-0.5 * s) - np.exp(-0.2 * s))
    return np.stack([2 * np.exp(-0.5 * s), late + both], 1)


@pytest.mark.slow
def test_a_valve_shut_at_the_first_time_is_fitted():
    """The right rate is 0.5; a pattern found at the first time leaves it at its start.

    The valve's time is an edge. The node there is of the old branch, `t > 1`.
    """
    ts = np.linspace(0, 5, 26)
    problem = co.Problem(valve, (ts, emptied(ts)))
    level = co.transcribe(problem, stages=4)
    trainer = co.CollocationTrainer(tol=1e-10)
    state = trainer.init(co.Model({"k": 0.1}, None), level.guess())
    state, history = eg.fit(trainer, state, [level], key=jax.random.key(0))
    assert history["status"][-1] == 0
    np.testing.assert_allclose(state.model.parameters["k"], 0.5, rtol=1e-7)


@pytest.mark.one_case("curvature1")
@pytest.mark.parametrize("curvature", [ExactHessian(), GaussNewton()])
def test_products_are_jax_s_and_a_lost_entry_is_an_error(curvature):
    problem, model = everything()
    level = co.transcribe(problem, intervals=3, stages=2)
    nlp = level.program(model)
    evaluator = Evaluator(nlp, curvature)
    z = np.random.default_rng(1).normal(size=evaluator.sizes()["variables"])
    check_products(evaluator, level, Point(z))
    whole = evaluator.jacobian_pattern
    evaluator.jacobian_pattern = whole._replace(columns=np.roll(whole.columns, 1))
    with pytest.raises(RuntimeError, match=r"Jacobian, of .* in trajectory 1"):
        check_products(evaluator, level, Point(z))
    evaluator.jacobian_pattern = whole
    half = evaluator.hessian_pattern
    evaluator.hessian_pattern = half._replace(rows=half.rows * 0, columns=half.rows * 0)
    with pytest.raises(RuntimeError, match="curvature, of"):
        check_products(evaluator, level, Point(z))
