"""Where equinox meets optax: one gradient step on a model with non-array leaves."""

import equinox as eqx
import jax
import optax
from jaxtyping import PyTree


def init_opt_state(optim: optax.GradientTransformation, model: PyTree) -> PyTree:
    """Return `optim`'s first state for the trainable leaves of `model`.

    Trainable are the inexact arrays; all else (activations, integers, flags) is left
    alone by `apply_gradients`.
    """
    return optim.init(eqx.filter(model, eqx.is_inexact_array))


def apply_gradients(
    optim: optax.GradientTransformation,
    gradients: PyTree,
    opt_state: PyTree,
    model: PyTree,
) -> tuple[PyTree, PyTree]:
    """Take one optimizer step: `updates = optim(gradients)`, `model = model + updates`.

    The parameters are passed to `optim.update`, so weight decay and trust ratios work.

    **Arguments:**

    - `optim`: any optax transformation.
    - `gradients`: a pytree like `model`, with `None` where nothing is trained.
    - `opt_state`: from `init_opt_state` or the last call.
    - `model`: the pytree to update.

    **Returns:** `(model, opt_state)`, one step later, each leaf in its own dtype.

    **Raises:** `ValueError` if `opt_state` is another optimizer's.
    """
    params = eqx.filter(model, eqx.is_inexact_array)
    try:
        updates, opt_state = optim.update(gradients, opt_state, params)
    except Exception as error:
        _check_own(optim, opt_state, model, error)
        raise
    updates = jax.tree.map(
        lambda u, p: None if u is None else u.astype(p.dtype),
        updates,
        params,
        is_leaf=lambda u: u is None,
    )
    return eqx.apply_updates(model, updates), opt_state


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
