"""Derivatives of the program: sparse ones against dense ones and differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effgen import collocation as co
from effgen.collocation.program.curvature import ExactHessian, GaussNewton
from effgen.collocation.program.evaluator import Evaluator
from effgen.collocation.program.nlp import constraints, objective
from effgen.collocation.program.transcription import limits_of, shapes_of
from tests.collocation.cases import everything


def dense(pattern, values, shape):
    matrix = np.zeros(shape)
    np.add.at(matrix, (pattern.rows, pattern.columns), values)
    return matrix


@pytest.fixture(params=["off the nodes", "on the nodes"])
def program(request):
    problem, model = everything()
    if request.param == "on the nodes":
        transcription = co.transcribe(problem, stages=2)
    else:
        transcription = co.transcribe(problem, intervals=3, stages=3)
    nlp = transcription.program(model)
    size = transcription.mesh.num_nodes * 3
    z = np.concatenate([np.zeros(size), np.asarray(nlp.flat())])
    z += 0.5 * np.random.default_rng(1).normal(size=len(z))
    return transcription, nlp, z


@pytest.mark.one_case("on the nodes")
def test_the_jacobian_is_the_dense_one(program):
    _, nlp, z = program
    found = Evaluator(nlp, ExactHessian())
    rows = found.functions().constraints(z)
    exact = jax.jit(jax.jacfwd(lambda z: constraints(nlp, z)))(z)
    values = found.functions().jacobian(z)
    matrix = dense(found.jacobian_pattern, values, (len(rows), len(z)))
    np.testing.assert_allclose(matrix, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "program",
    ["off the nodes", pytest.param("on the nodes", marks=pytest.mark.slow)],
    indirect=True,
)
def test_the_hessian_is_the_dense_one(program):
    _, nlp, z = program
    found = Evaluator(nlp, ExactHessian())
    rng = np.random.default_rng(2)
    multipliers = rng.normal(size=len(found.functions().constraints(z)))

    def lagrangian(z):
        return 0.7 * objective(nlp, z) + multipliers @ constraints(nlp, z)

    exact = jax.jit(jax.hessian(lagrangian))(z)
    values = found.functions().hessian(z, multipliers, 0.7)
    pattern = found.hessian_pattern
    assert np.all(pattern.rows >= pattern.columns)
    matrix = dense(pattern, values, (len(z), len(z)))
    np.testing.assert_allclose(matrix, np.tril(exact), rtol=1e-11, atol=1e-11)


def test_the_gradient_and_the_jacobian_are_slopes(program):
    _, nlp, z = program
    functions = Evaluator(nlp, ExactHessian()).functions()
    direction = np.random.default_rng(3).normal(size=len(z))
    step = 1e-6 * direction
    ahead, behind = z + step, z - step
    slope = (functions.objective(ahead) - functions.objective(behind)) / 2e-6
    np.testing.assert_allclose(functions.gradient(z) @ direction, slope, rtol=1e-7)


def test_gauss_and_newton_s_is_the_hessian_where_residuals_are_zero_and_linear():
    ts = np.linspace(0, 1, 4)
    rate = lambda t, x, u, p, nets: -p["rate"] * x
    problem = co.Problem(rate, (ts, np.exp(-ts)), scale=1.0)
    model = co.Model({"rate": jnp.asarray(1.0)}, None)
    nlp = co.transcribe(problem, intervals=2, stages=2).program(model)
    z = np.ones(6)
    none = np.zeros(4)
    exact, gauss_newton = (
        Evaluator(nlp, curvature).functions().hessian(z, none, 1.0)
        for curvature in (ExactHessian(), GaussNewton())
    )
    np.testing.assert_allclose(exact, gauss_newton, atol=1e-14)


def test_a_term_that_nothing_depends_on_has_no_entries():
    """`dx_0 = x_1` has no column for the model, and the model's rows are few."""
    problem, model = everything()
    nlp = co.transcribe(problem, intervals=3, stages=3).program(model)
    found = Evaluator(nlp, ExactHessian())
    num_states = len(nlp.ts) * 3
    border = found.jacobian_pattern.columns >= num_states
    first_rows = np.arange(0, len(nlp.inner) * 3, 3)
    assert not np.isin(found.jacobian_pattern.rows[border], first_rows).any()


def test_shapes_and_limits_fit(program):
    transcription, nlp, z = program
    limits, shapes = limits_of(transcription, nlp), shapes_of(nlp)
    rows = len(jax.jit(lambda z: constraints(nlp, z))(z))
    assert len(limits.constraints_lower) == rows == len(limits.constraints_upper)
    assert sum(int(np.prod(shape)) for shape in shapes[:5]) == rows
    assert len(limits.lower) == len(z)


def test_trajectories_add_up():
    problem, model = everything()
    whole = co.transcribe(problem, intervals=3, stages=3)
    nlp = whole.program(model)
    counted = nlp.counted
    rng = np.random.default_rng(5)
    x = rng.normal(size=(whole.mesh.num_nodes, 3))
    flat = np.asarray(nlp.flat())

    def value(nlp, x):
        whole = np.concatenate([x.ravel(), flat])
        return float(jax.jit(lambda z: objective(nlp, z))(whole))

    total = 0.0
    for i, trajectory in enumerate(problem.data):
        one, _ = everything()
        one = jax.tree.map(lambda x: x, one)
        object.__setattr__(one, "data", (trajectory,))
        part = co.transcribe(one, edges=[whole.mesh.edges[i]], stages=3).program(model)
        object.__setattr__(part, "counted", counted)
        here = slice(int(whole.mesh.starts[i]), int(whole.mesh.ends[i]) + 1)
        total += value(part, x[here])
    alone = value(nlp, x)
    penalties = 0.7**4 + 0.05 * float(jnp.sum(nlp.flat()[2:] ** 2))
    np.testing.assert_allclose(total - penalties, alone, rtol=1e-12)
