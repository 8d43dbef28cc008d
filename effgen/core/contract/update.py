"""Where equinox meets optax: one gradient step on a model with non-array leaves."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree


def init_opt_state(optim: optax.GradientTransformation, model: PyTree) -> PyTree:
    """Return `optim`'s first state for the trainable leaves of `model`.

    Trainable are the inexact arrays; all else (activations, integers, flags) is left
    alone by `apply_gradients`.

    Arguments:
        optim: Any optax transformation.
        model: The pytree to train.

    Returns:
        The state to pass to `apply_gradients`.

    Raises:
        TypeError: If `optim` is no optax transformation.
        ValueError: If `model` has numbers, and none that can be trained. A function
            without any, such as a fixed energy, is let through.
    """
    if not hasattr(optim, "init") or not hasattr(optim, "update"):
        raise TypeError(
            f"`optim` is a {type(optim).__name__}: pass an optax transformation, such "
            "as `optax.adam(1e-3)`."
        )
    params = eqx.filter(model, eqx.is_inexact_array)
    numbers = [x for x in jax.tree.leaves(model) if eqx.is_array_like(x)]
    if numbers and not jax.tree.leaves(params):
        raise ValueError(
            "`model` has no array of real or complex numbers, and so nothing to train: "
            "make its parameters arrays, such as `jnp.asarray(0.5)` for `0.5`."
        )
    return optim.init(params)


def apply_gradients(
    optim: optax.GradientTransformation,
    gradients: PyTree,
    opt_state: PyTree,
    model: PyTree,
    *,
    value: Float[Array, ""] | None = None,
    grad: PyTree = None,
    value_fn: Callable[[PyTree], Float[Array, ""]] | None = None,
    samples: Any = None,
) -> tuple[PyTree, PyTree]:
    """Take one optimizer step: `updates = optim(gradients)`, `model = model + updates`.

    The parameters are passed to `optim.update`, so weight decay and trust ratios work.
    The loss, its gradient and the loss as a function are passed too, to optimizers that
    ask for them. These are step sizes that follow the loss
    (`optax.contrib.reduce_on_plateau`, `optax.polyak_sgd`) and line searches
    (`optax.lbfgs`). They cost the others nothing, because `value_fn` is traced only
    where it is called.

    Arguments:
        optim: Any optax transformation.
        gradients: A pytree like `model`, with `None` where nothing is trained.
        opt_state: From `init_opt_state` or the last call.
        model: The pytree to update.
        value: The loss at `model`, one number.
        grad: The loss's gradient at `model`; by default `gradients`, which may be other
            ones (clipped, averaged).
        value_fn: From a pytree like `model` to its loss, of the same batch and noise,
            so that `value_fn(model)` is `value` and has the gradient `grad`.
        samples: What the gradient was estimated from, for optimizers that look at it
            themselves (`effgen.ebm.minsr`).

    Returns:
        `(model, opt_state)`, one step later, each leaf of the model in its own dtype.

    Raises:
        ValueError: Before any compute if `opt_state` is another optimizer's, if `value`
            is not one number, or if the optimizer asks for what is not given.
    """
    params, fixed = eqx.partition(model, eqx.is_inexact_array)
    given: dict[str, Any] = {"grad": gradients if grad is None else grad}
    if value is not None:
        given["value"] = _one_number(value)
    if samples is not None:
        given["samples"] = samples
    if value_fn is not None:
        # A line search hands on all it is given, `samples` too, and minds what is left.
        given["value_fn"] = lambda params, samples=None: value_fn(
            eqx.combine(params, fixed)
        )
    try:
        accepted = _accepted(optim.update, given)
        updates, opt_state = optim.update(gradients, opt_state, params, **accepted)
    except Exception as error:
        _check_own(optim, opt_state, model, error)
        _check_given(error)
        raise
    updates = jax.tree.map(
        lambda u, p: None if u is None else u.astype(p.dtype),
        updates,
        params,
        is_leaf=lambda u: u is None,
    )
    return eqx.apply_updates(model, updates), opt_state


def _one_number(value: Any) -> Any:
    if jnp.shape(value):
        raise ValueError(
            f"`value` has shape {jnp.shape(value)}: pass the loss, one number."
        )
    return value


def _accepted(update: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return what `update` takes of `given`, by its signature.

    Not by its class: `optax.MultiSteps` and what it makes take extra arguments without
    being of the class that says so.
    """
    parameters = inspect.signature(update).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return given
    return {name: given[name] for name in given if name in parameters}


def _check_own(
    optim: optax.GradientTransformation,
    opt_state: PyTree,
    model: PyTree,
    error: Exception,
) -> None:
    """Raise, from `error`, if `opt_state` is not built as `optim`'s first one."""
    first = eqx.filter_eval_shape(init_opt_state, optim, model)
    if jax.tree.structure(first) != jax.tree.structure(opt_state):
        raise ValueError(
            "`opt_state` is not of the trainer's `optim`: begin with "
            "`trainer.init(state.model, state.memory)`, or pass the optimizer that the "
            "state was trained by."
        ) from error


def _check_given(error: Exception) -> None:
    """Raise, from `error`, if it says that the optimizer misses an argument."""
    message = str(error)
    missing = re.search(r"missing \d+ required keyword-only argument", message)
    if not isinstance(error, TypeError) or missing is None:
        return
    names = re.findall(r"'(\w+)'", message)
    known = [name for name in names if name in ("value", "value_fn")]
    remedy = "use an optimizer that does without"
    if known == names:
        passed = ", ".join(f"{name}=..." for name in names)
        remedy = f"pass `apply_gradients(..., {passed})`, or {remedy}"
    raise ValueError(
        f"`optim` needs `{'`, `'.join(names)}`, which it is not given: {remedy}."
    ) from error
