"""The condensed system and its iterations against dense algebra and Ipopt."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import effgen as eg
from effgen import collocation as co
from effgen.collocation import directions, interior
from effgen.collocation.condensed import layout_of
from effgen.collocation.evaluator import Evaluator
from effgen.collocation.transcription import limits_of


KEY = jax.random.key(0)


def pendulum(t, x, u, p, nets):
    return jnp.stack([x[1], nets(x)[0] - p * x[0]])


def problem_of(**settings):
    """Return two trajectories of unequal length, sampled off the nodes."""
    rng = np.random.default_rng(0)
    data = []
    for first, last, num in ((1.0, 3.0, 13), (2.0, 2.0, 8)):
        ts = np.linspace(0, last, num)
        exact = np.stack([np.cos(2 * ts), -2 * np.sin(2 * ts)], 1) * first
        data.append((ts, exact * np.exp(-0.2 * ts)[:, None]))
        data[-1][1][:] += 0.02 * rng.normal(size=exact.shape)
    return co.Problem(pendulum, data, weight_decay=1e-4, **settings)


def model():
    network = eqx.nn.MLP(2, 1, 4, 1, jax.nn.tanh, key=KEY)
    return co.Model(jnp.asarray(3.0), network)


def fitted(problem, linear_solver, **settings):
    level = co.transcribe(problem, intervals=6, stages=3)
    trainer = co.CollocationTrainer(linear_solver=linear_solver, **settings)
    state = trainer.init(model(), level.guess())
    return eg.fit(trainer, state, [level], key=KEY)


def program_of(problem):
    """Return a program, its start, and its Jacobian and Hessian as dense matrices."""
    level = co.transcribe(problem, intervals=6, stages=3)
    made = co.CollocationTrainer().init(model(), level.guess())
    nlp = level.program(made.model)
    z = nlp.joined(made.memory.positions)
    evaluator = Evaluator(nlp, co.ExactHessian())
    limits = limits_of(level, nlp)
    free = jnp.asarray(np.where(limits.lower == limits.upper, 0.0, 1.0))
    rows = jnp.ones(len(limits.constraints_lower))
    program = directions.Program(
        nlp,
        layout_of(level.mesh),
        evaluator.pairs,
        co.ExactHessian.blocks,
        jnp.ones(()),
        rows,
        free,
    )
    y = np.random.default_rng(1).normal(size=len(rows))
    functions = evaluator.functions()
    jacobian = np.zeros((len(rows), len(z)))
    pattern = functions.jacobian_pattern
    jacobian[pattern.rows, pattern.columns] = functions.jacobian(z)
    lower = np.zeros((len(z), len(z)))
    pattern = functions.hessian_pattern
    lower[pattern.rows, pattern.columns] = functions.hessian(z, y, 1.0)
    hessian = lower + np.tril(lower, -1).T
    return program, z, y, jacobian, hessian


@pytest.mark.parametrize(
    "initial",
    [
        pytest.param(None, marks=pytest.mark.slow),
        co.Initial(np.array([1.0, np.nan])),
    ],
)
def test_a_direction_solves_the_dense_system_with_its_inertia(initial):
    program, z, y, jacobian, hessian = program_of(problem_of(initial=initial))
    at = directions.local(program, jnp.asarray(z), jnp.asarray(y))
    rng = np.random.default_rng(2)
    free = np.asarray(program.free)
    diagonal = rng.uniform(0.1, 1.0, len(z))
    right = rng.normal(size=len(z)), rng.normal(size=len(y))
    kept = free > 0
    for shift in (0.0, 1.0, 100.0):
        found = directions.direction(
            program,
            at,
            jnp.asarray(1.0),
            jnp.asarray(diagonal),
            (jnp.asarray(right[0]), jnp.asarray(right[1])),
            jnp.asarray(shift),
            jnp.asarray(0.0),
        )
        taken = float(found.shift)
        upper = hessian + np.diag(diagonal + taken)
        none = np.zeros((len(y), len(y)))
        whole = np.block([[upper, jacobian.T], [jacobian, none]])
        both = np.concatenate([kept, np.ones(len(y), bool)])
        whole = whole[np.ix_(both, both)]
        expected = np.linalg.solve(whole, np.concatenate(right)[both])
        given = np.concatenate([found.z, found.rows])[both]
        np.testing.assert_allclose(given, expected, rtol=1e-7, atol=1e-8)
        negative = np.sum(np.linalg.eigvalsh(whole) < 0)
        assert bool(found.right)
        assert negative == len(y)
        if taken > shift:  # a smaller shift was refused: rightly
            sizes = np.diag(np.arange(len(whole)) < kept.sum())
            less = whole - (taken - shift) * sizes
            assert np.sum(np.linalg.eigvalsh(less) < 0) != len(y)


SETTINGS = {
    "free": {},
    "fixed": {"initial": co.Initial(np.array([1.0, np.nan]))},
    "penalized": {"initial": co.Initial(np.array([1.0, 0.0]), 0.1)},
    "bounded": {"parameter_bounds": (0.0, 3.5)},
    "lagrange": {"lagrange": lambda t, x, u, p, nets: 0.01 * nets(x)[0] ** 2},
}
SETTINGS["the last three"] = (
    SETTINGS["penalized"] | SETTINGS["bounded"] | SETTINGS["lagrange"]
)


@pytest.mark.filterwarnings("ignore:the mesh is too coarse")
@pytest.mark.parametrize(
    "name",
    [
        *("free", "fixed", "the last three"),
        *[
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("penalized", "bounded", "lagrange")
        ],
    ],
)
def test_it_ends_where_ipopt_does(name):
    problem = problem_of(**SETTINGS[name])
    ipopt, theirs = fitted(problem, None)
    ours, history = fitted(problem, "condensed")
    assert history["status"][-1] == theirs["status"][-1] == 0
    np.testing.assert_allclose(history["loss"], theirs["loss"], rtol=1e-6)
    # Of networks, units may have changed places.
    for part in (
        lambda s: s.memory,
        lambda s: s.model.parameters,
        lambda s: s.opt_state,
    ):
        mine, other = map(jax.tree.leaves, map(part, (ours, ipopt)))
        for a, b in zip(mine, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_where_it_is_stuck_ipopt_goes_on(monkeypatch):
    moved, taken = interior._moved, []

    def stuck(*given):
        taken.append(1)
        return moved(*given) if len(taken) < 4 else None

    monkeypatch.setattr(interior, "_moved", stuck)
    monkeypatch.setattr(interior, "_restored", lambda *given: None)
    _, history = fitted(problem_of(), "condensed")
    _, theirs = fitted(problem_of(), None)
    assert history["status"][-1] == 0
    np.testing.assert_allclose(history["loss"], theirs["loss"], rtol=1e-6)
    assert np.isfinite(history["trace"][-1, : int(history["iterations"][-1]), 0]).all()


def test_a_restored_point_has_smaller_defects(monkeypatch):
    moved, taken = interior._moved, []

    def refused(*given):
        taken.append(1)
        return None if len(taken) in (2, 5) else moved(*given)

    monkeypatch.setattr(interior, "_moved", refused)
    _, history = fitted(problem_of(), "condensed")
    assert history["status"][-1] == 0
    infeasibility = history["trace"][-1, :, 1]
    assert infeasibility[2] < infeasibility[1]


def test_a_limit_keeps_the_iterate():
    with pytest.warns(eg.RunWarning, match="after 2 iterations"):
        state, history = fitted(problem_of(), "condensed", max_iter=2)
    assert history["status"][-1] == -1
    trainer = co.CollocationTrainer(linear_solver="condensed")
    level = co.transcribe(problem_of(), intervals=6, stages=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, history = eg.fit(trainer, state, iter([level]), key=KEY)
    assert history["status"][-1] == 0


def test_programs_of_more_than_defects_are_refused():
    at_rest = co.ModelConstraint(lambda p, nets: nets(jnp.zeros(2)), 0, 0, "at rest")
    with pytest.raises(ValueError, match="the problem has constraints"):
        fitted(problem_of(constraints=[at_rest]), "condensed")
    with pytest.raises(ValueError, match="limited-memory"):
        fitted(problem_of(), "condensed", curvature=co.LimitedMemory())
