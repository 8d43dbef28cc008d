"""Optimizers that ask for the loss: exact answers, and every trainer."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from tests.cases import CASES, KEY, arrays


made = functools.cache(lambda name: CASES[name]())

# Trainers whose loss is a function of the model and the batch alone.
DETERMINISTIC = ("regression", "derivative_matching", "in_batch", "full_softmax")

# Cases whose step calls `apply_gradients` where another one's does, and two that take
# long to compile.
AGAIN = {
    *("reservoir", "restarted", "cd", "rbm", "images"),
    *("streamed", "cross_batch", "full_softmax", "gumbel_max", "pcd"),
    *("shooting", "latent_sde"),
}


class Quadratic(eqx.Module):
    """A model with leaves that nothing trains: a count, a flag and a function."""

    x: jax.Array
    count: jax.Array
    scale: float
    square: object

    def __call__(self):
        curvature = jnp.array([1.0, 3.0, 10.0])
        return 0.5 * self.scale * jnp.sum(curvature * self.square(self.x - 1.0))


class Descent(eg.AbstractTrainer):
    """Steps on a model that is its own loss."""

    optim: optax.GradientTransformation

    def init(self, model, memory=None):
        return eg.TrainState.start(model, eg.init_opt_state(self.optim, model), memory)

    def step(self, state, batch, *, key):
        call = lambda model: model()
        loss, gradients = eqx.filter_value_and_grad(call)(state.model)
        model, opt_state = eg.apply_gradients(
            self.optim,
            gradients,
            state.opt_state,
            state.model,
            value=loss,
            value_fn=call,
        )
        return state.advance(model, opt_state, None), {"loss": loss}


def quadratic():
    return Quadratic(jnp.array([4.0, -2.0, 3.0]), jnp.arange(3), 1.0, jnp.square)


def descended(optim, num_steps):
    trainer = Descent(optim)
    data = eg.Minibatches(jnp.zeros(4), 4)
    return eg.fit(
        trainer, trainer.init(quadratic()), data, key=KEY, num_steps=num_steps
    )


def plain_loop(optim, num_steps):
    """Return where optax's own loop leads, without effgen."""

    def loss(x):
        return eqx.tree_at(lambda model: model.x, quadratic(), x)()

    @jax.jit
    def step(x, state):
        value, grad = jax.value_and_grad(loss)(x)
        updates, state = optim.update(
            grad, state, x, value=value, grad=grad, value_fn=loss
        )
        return optax.apply_updates(x, updates), state

    x = quadratic().x
    state = optim.init(x)
    for _ in range(num_steps):
        x, state = step(x, state)
    return np.asarray(x)


def asking():
    """Optimizers that ask for the loss, of the three kinds that there are."""
    plateau = optax.contrib.reduce_on_plateau(patience=1, rtol=0.9, factor=0.5)
    return {
        "plateau": optax.chain(optax.adam(1e-2), plateau),
        "polyak": optax.polyak_sgd(max_learning_rate=1e-2),
        "lbfgs": optax.lbfgs(memory_size=3),
    }


every_optimizer = pytest.mark.parametrize("optim", asking().values(), ids=asking())


def test_lbfgs_finds_the_minimum_of_a_quadratic():
    state, history = descended(optax.lbfgs(), 12)
    np.testing.assert_allclose(state.model.x, 1.0, atol=1e-6)
    np.testing.assert_array_equal(state.model.count, [0, 1, 2])
    assert np.all(np.diff(history["loss"]) <= 0)


def test_polyak_s_step_is_the_closed_form():
    model = quadratic()
    state, _ = descended(optax.polyak_sgd(max_learning_rate=10.0), 1)
    value, slope = model(), jnp.array([1.0, 3.0, 10.0]) * (model.x - 1)
    expected = model.x - value / jnp.sum(slope**2) * slope
    np.testing.assert_allclose(state.model.x, expected, rtol=1e-6)


def test_the_scale_follows_the_loss():
    """A loss that hardly falls halves the step once in `patience` steps."""
    plateau = optax.contrib.reduce_on_plateau(patience=2, rtol=0.9, factor=0.5)
    state, _ = descended(optax.chain(optax.sgd(1e-6), plateau), 9)
    assert float(state.opt_state[1].scale) == 0.5**4


@every_optimizer
def test_steps_are_optax_s_own_to_the_bit(optim):
    state, _ = descended(optim, 5)
    np.testing.assert_array_equal(state.model.x, plain_loop(optim, 5))


def test_optimizers_that_do_not_ask_pay_nothing():
    model, calls = quadratic(), []
    grad = eqx.filter_grad(lambda model: model())(model)

    def size(optim, **given):
        def step(arrays):
            own = eqx.combine(arrays, eqx.filter(model, eqx.is_array, inverse=True))
            state = eg.init_opt_state(optim, own)
            new, state = eg.apply_gradients(optim, grad, state, own, **given)
            return eqx.filter((new, state), eqx.is_array)

        return str(jax.make_jaxpr(step)(eqx.filter(model, eqx.is_array)))

    for optim in (optax.adam(0.1), optax.adamw(0.1), optax.MultiSteps(optax.sgd(1), 2)):
        given = {"value": jnp.ones(()), "value_fn": calls.append}
        assert size(optim, **given) == size(optim)
    assert not calls


def halved():
    """An optimizer of one's own, which takes the loss and nothing else."""

    def update(updates, state, params=None, *, value=None):
        return jax.tree.map(lambda u: -0.5 * value * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)


def negated():
    """An optimizer of one's own, which takes nothing."""
    update = lambda updates, state, params=None: (
        jax.tree.map(jnp.negative, updates),
        state,
    )
    return optax.GradientTransformation(lambda params: (), update)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda optim: optax.MultiSteps(optim, 1),
        lambda optim: optax.MultiSteps(optim, 1).gradient_transformation(),
        lambda optim: optax.apply_if_finite(optim, 3),
        lambda optim: optax.chain(optax.clip(1e9), optim, optax.identity()),
    ],
    ids=["steps", "made of steps", "if finite", "chain"],
)
@pytest.mark.parametrize("inner", [asking()["polyak"], negated()])
def test_the_loss_goes_through_what_is_around_an_optimizer(wrapped, inner):
    state, _ = descended(wrapped(inner), 2)
    expected, _ = descended(inner, 2)
    np.testing.assert_array_equal(state.model.x, expected.model.x)


def test_an_optimizer_is_given_what_its_signature_has():
    model = quadratic()
    grad = eqx.filter_grad(lambda model: model())(model)
    given = {"value": jnp.array(3.0), "value_fn": lambda model: model()}
    new, _ = eg.apply_gradients(halved(), grad, (), model, **given)
    np.testing.assert_allclose(new.x, model.x - 1.5 * grad.x)
    new, _ = eg.apply_gradients(negated(), grad, (), model, **given)
    np.testing.assert_allclose(new.x, model.x - grad.x)


def test_what_an_optimizer_misses_is_named():
    model = quadratic()
    grad = eqx.filter_grad(lambda model: model())(model)

    def apply(optim, **given):
        state = eg.init_opt_state(optim, model)
        return eg.apply_gradients(optim, grad, state, model, **given)

    with pytest.raises(ValueError, match=r"needs `value`.*apply_gradients\(..., value"):
        apply(optax.polyak_sgd())
    with pytest.raises(ValueError, match=r"needs `value_fn`.*value_fn="):
        apply(optax.lbfgs(), value=model())
    with pytest.raises(ValueError, match=r"`value` has shape \(3,\).*one number"):
        apply(optax.polyak_sgd(), value=model.x)

    def wanting(updates, state, params=None, *, oracle, **_):
        return updates, state

    asks = optax.GradientTransformationExtraArgs(lambda params: (), wanting)
    with pytest.raises(ValueError, match=r"needs `oracle`.*use an optimizer"):
        apply(asks, value=model())
    state = eg.init_opt_state(optax.adam(1.0), model)
    with pytest.raises(ValueError, match="is not of the trainer's `optim`"):
        eg.apply_gradients(optax.lbfgs(), grad, state, model, value=model())


def test_another_gradient_than_the_one_applied():
    """A line search goes along what is applied, and looks at the loss's own slope."""
    model = quadratic()
    grad = eqx.filter_grad(lambda model: model())(model)
    seen = []

    def update(updates, state, params=None, *, grad, **_):
        seen.append((updates.x, grad.x))
        return updates, state

    optim = optax.GradientTransformationExtraArgs(lambda params: (), update)
    clipped = jax.tree.map(lambda x: x / 10, grad)
    eg.apply_gradients(optim, clipped, (), model, grad=grad)
    eg.apply_gradients(optim, clipped, (), model)
    np.testing.assert_array_equal(seen[0][0], clipped.x)
    np.testing.assert_array_equal(seen[0][1], grad.x)
    np.testing.assert_array_equal(seen[1][1], clipped.x)


def asked():
    """An optimizer that notes how far `value_fn` is from what else it is told."""

    def update(updates, state, params=None, *, value, grad, value_fn, **_):
        found, slopes = jax.value_and_grad(value_fn)(params)
        apart = jax.tree.map(jnp.subtract, slopes, grad)
        worst = optax.tree.norm(apart) / optax.tree.norm(grad)
        return updates, (jnp.abs(found - value) / (1 + jnp.abs(value)), worst)

    zeros = lambda params: (jnp.zeros(()), jnp.zeros(()))
    return optax.GradientTransformationExtraArgs(zeros, update)


def started_with(name, optim):
    """Return the trainer and the first state of a case with another optimizer."""
    case = made(name)
    trainer = eqx.tree_at(
        lambda trainer: getattr(trainer, "trainer", trainer).optim,
        case.trainer(),
        optim,
    )
    model = case.state.model
    trained = model.trainable()[0] if hasattr(model, "trainable") else model
    opt_state = eg.init_opt_state(optim, trained)
    state = eqx.tree_at(
        lambda state: state.opt_state,
        case.state,
        opt_state,
        is_leaf=lambda x: x is None,
    )
    return trainer, state


def trained_with(name, optim, num_steps, data=None):
    """Return the state and the losses after steps of a case with another optimizer."""
    trainer, state = started_with(name, optim)
    data = made(name).data if data is None else data
    state, history = eg.fit(trainer, state, data, key=KEY, num_steps=num_steps, every=1)
    return state, np.asarray(history["loss"])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in AGAIN else [])
        for name in CASES
    ],
)
def test_every_trainer_tells_its_loss_and_the_function_it_is_of(name):
    """At the model, `value_fn` is the value, and has the gradient that is applied.

    No loss falls by as much as is asked here, so that every step halves the next.
    """
    plateau = optax.contrib.reduce_on_plateau(1 / 2, patience=1, rtol=0, atol=1e6)
    optim = optax.chain(asked(), optax.adam(1e-2), plateau)
    state, losses = trained_with(name, optim, 4)
    (value, slope), _, followed = state.opt_state
    assert float(value) < 1e-5
    assert float(slope) < 1e-4
    assert float(followed.scale) == 0.5**3
    np.testing.assert_allclose(followed.best_value, losses[0], rtol=1e-6)


@pytest.mark.one_case("shooting")
@pytest.mark.parametrize("name", ["latent_sde", "shooting"])
def test_the_function_can_be_looked_at_where_it_takes_long_to_compile(name):
    """What is traced has the state's own structure; its numbers are in `make slow`."""
    trainer, state = started_with(name, asked())

    def stepped(state):
        batch = made(name).data.batch_at(jnp.array(0), key=KEY)
        return trainer.step(state, batch, key=KEY)[0]

    new = eqx.filter_eval_shape(stepped, state)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    kinds = [
        [(x.shape, x.dtype) for x in jax.tree.leaves(tree) if hasattr(x, "shape")]
        for tree in (new, state)
    ]
    assert kinds[0] == kinds[1]


@pytest.mark.one_case("full_softmax")
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_line_search_lowers_a_loss_that_is_a_function(name):
    batch = made(name).data.batch_at(jnp.array(0), key=KEY)
    state, losses = trained_with(name, asking()["lbfgs"], 6, [batch] * 6)
    assert np.all(np.diff(losses) < 0)
    assert losses[-1] < 0.9 * losses[0]
    assert int(state.opt_state[-1].info.num_linesearch_steps) >= 1


@pytest.mark.slow
@every_optimizer
@pytest.mark.parametrize("name", sorted(set(CASES) - {"lazy_tables"}))
def test_every_trainer_takes_every_optimizer(name, optim):
    state, losses = trained_with(name, optim, 4)
    assert np.all(np.isfinite(losses))
    assert all(np.all(np.isfinite(x)) for x in arrays(state.model))
