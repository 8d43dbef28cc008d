"""What a trained model becomes: simulated stiff and algebraic, saved, and exported."""

import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

import effgen as eg
from effgen import collocation as co
from effgen.collocation.modeling.model import as_trained


KEY = jax.random.key(0)
GRAVITY = 9.81


def robertson(t, x, u, p, nets):
    a, b, c = 0.04 * x[0], 1e4 * x[1] * x[2], 3e7 * x[1] ** 2
    return jnp.stack([b - a, a - b - c, c])


@pytest.mark.slow
def test_a_stiff_model_is_simulated_without_a_word():
    ts = np.array([0.0, 1e-3, 1.0, 100.0])
    problem = co.Problem(robertson, (ts, np.ones((4, 3))))
    found = co.simulate(problem, co.Model({}, None), [1.0, 0.0, 0.0], ts)
    law = lambda t, x: np.asarray(robertson(t, x, None, None, None))
    how = dict(method="Radau", rtol=1e-10, atol=1e-14, t_eval=ts)
    exact = scipy.integrate.solve_ivp(law, (0, 100), [1.0, 0, 0], **how).y.T
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-10)


def swing(ts):
    """Positions and velocities of a pendulum of length one, from its angle."""
    law = lambda t, y: [y[1], -GRAVITY * np.sin(y[0])]
    how = dict(t_eval=ts, rtol=1e-12, atol=1e-13)
    angle, speed = scipy.integrate.solve_ivp(law, (0, ts[-1]), [1.0, 0.0], **how).y
    along = np.cos(angle) * speed, np.sin(angle) * speed
    return np.stack([np.sin(angle), -np.cos(angle), *along], 1)


def rod(x, p):
    """Return what a rod of length one keeps at zero, by index."""
    radial = x[2] ** 2 + x[3] ** 2 - x[4] * (x[0] ** 2 + x[1] ** 2) - p["g"] * x[1]
    return {3: x[0] ** 2 + x[1] ** 2 - 1, 2: x[0] * x[2] + x[1] * x[3], 1: radial}


def pendulum(index, ts):
    """In positions, velocities, and the rod's pull: equations as one writes them."""

    def field(t, x, u, p, nets):
        pull = -x[4] * x[:2] - jnp.stack([jnp.zeros(()), p["g"]])
        return jnp.concatenate([x[2:4], pull, rod(x, p)[index][None]])

    observe = lambda t, x, u, p, nets: x[:4]
    kinds = dict(observe=observe, num_states=5, num_algebraic=1, scale=1.0)
    return co.Problem(field, (ts, swing(ts)), **kinds)


@pytest.mark.one_case("3")
@pytest.mark.parametrize("index", [1, 2, 3])
def test_a_pendulum_in_x_and_y_is_simulated_at_any_index(index):
    ts = np.linspace(0, 2, 21)
    start = np.append(swing(ts)[0], 0.0)
    model = co.Model({"g": GRAVITY}, None)
    found = co.simulate(pendulum(index, ts), model, start, ts)
    np.testing.assert_allclose(found[:, :4], swing(ts), atol=2e-8)
    if index == 1:
        np.testing.assert_allclose(found[0, 4], GRAVITY * np.cos(1.0), rtol=1e-9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the mesh is too coarse")
@pytest.mark.parametrize(("index", "order"), [(1, 4.5), (2, 4.5), (3, 2.0)])
def test_fits_have_radau_s_order_by_index(index, order):
    """Three stages: five for index one and two, about three for index three."""
    ts, errors = np.linspace(0, 2, 41), []
    for intervals in (10, 20, 40):
        level = co.transcribe(pendulum(index, ts), intervals=intervals, stages=3)
        guess = level.guess()
        states = np.ones((level.mesh.num_nodes, 5))
        states[:, :4] = swing(np.maximum(guess.nodes(), 0)) + 0.05
        trainer = co.CollocationTrainer(tol=1e-10, max_iter=200)
        begin = co.Solution(guess.edges, states, 3)
        state = trainer.init(co.Model({"g": 5.0}, None), begin)
        state, history = eg.fit(trainer, state, [level], key=KEY)
        errors.append(np.sqrt(history["loss"][-1]))
    assert np.log2(errors[0] / errors[2]) / 2 > order
    np.testing.assert_allclose(state.model.parameters["g"], GRAVITY, rtol=1e-4)
    assert np.isfinite(co.covariance(level, state, noise=0.01).model).all()


def test_algebraic_models_are_extrapolated_and_guessed_by_simulation():
    ts = np.linspace(0, 2, 21)
    problem = pendulum(1, ts)
    model = co.Model({"g": jnp.asarray(GRAVITY)}, None)
    level = co.transcribe(problem, intervals=10)
    start = np.append(swing(ts)[0], 1.0)
    found = co.extrapolation(problem, model, level.guess(), starts=[start])
    assert found.errors.max() < 1e-5


def test_what_cannot_be_simulated_is_named():
    ts = np.linspace(0, 1, 5)
    problem = co.Problem(lambda t, x, u, p, nets: -x + u, (ts, np.ones(5), ts))
    model = co.Model({}, None)
    with pytest.raises(ValueError, match=r"`start` has shape \(\)"):
        co.simulate(problem, model, 2.0, ts)
    with pytest.raises(ValueError, match="times that rise"):
        co.simulate(problem, model, [2.0], ts[::-1])
    for inputs in (ts, lambda t: np.asarray(t)[None]):
        with pytest.raises(TypeError, match="no function of the time that JAX can"):
            co.simulate(problem, model, [2.0], ts, inputs)
    explodes = co.Problem(lambda t, x, u, p, nets: x**2, (ts, np.ones(5)))
    with pytest.raises(RuntimeError, match=r"could not reach t = 2\.0"):
        co.simulate(explodes, model, [1.0], [0.0, 2.0])


def learned():
    ts = np.linspace(0, 4, 21)
    net = eqx.nn.MLP(1, "scalar", 4, 1, jax.nn.tanh, key=KEY)
    field = lambda t, x, u, p, nets: -p["k"] * x - nets(x)[None]
    ys = 2 * np.exp(-0.7 * ts)
    problem = co.Problem(field, (ts, ys), weight_decay=1e-3)
    level = co.transcribe(problem, intervals=8)
    trainer = co.CollocationTrainer()
    start = co.Model({"k": 0.5}, net)
    state, _ = eg.fit(trainer, trainer.init(start, level.guess()), [level], key=KEY)
    return problem, start, state


@pytest.mark.slow
def test_a_learned_law_is_saved_and_exported(tmp_path):
    problem, start, state = learned()
    path = tmp_path / "law.eqx"
    eqx.tree_serialise_leaves(path, state.model)
    same = eqx.tree_deserialise_leaves(path, as_trained(start))
    law = lambda model, t, x: problem.vector_field(
        t, x, None, model.parameters, model.networks
    )
    t, x = jnp.asarray(0.0), jnp.asarray([1.5])
    np.testing.assert_array_equal(law(same, t, x), law(state.model, t, x))
    exported = jax.export.export(jax.jit(lambda t, x: law(state.model, t, x)))(t, x)
    np.testing.assert_allclose(exported.call(t, x), law(state.model, t, x), rtol=1e-12)
    assert "stablehlo" in exported.mlir_module()
