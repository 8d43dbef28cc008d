"""A prior of a network about the linear fit from which it begins, as a gradient."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from .model import LatentSDE
from .peak import kept_by_logarithms


_SCALE = 1.5  # of a natural logarithm, as of `fit_linear`
_MOVED = 4.0  # the variance of a step's drift, in that of its noise, were features one


def weight_prior(dt: float) -> optax.GradientTransformation:
    """Return the gradient of a normal prior about where parameters began, beside.

        update + precision (parameter - start)

    It is for losses that are nats of one record, and models of `with_network`. The last
    layer begins at zero: so the prior says that a step's drift is about as large as its
    noise, and what the values do not hold stays linear. The control has no prior.

    Arguments:
        dt: The model's step.

    Returns:
        What goes before `optax.adam`.

    Source:
        MacKay (1992), of the evidence for networks; Williams (1996), of the widths.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        add = lambda u, p, x, x0: u + p * (x - x0)
        sizes = precisions(params, dt)
        return jax.tree.map(add, updates, sizes, params, state), state

    return optax.GradientTransformation(lambda params: params, update)


def precisions(params: LatentSDE, dt: float) -> LatentSDE:
    """Return the prior precision of each parameter.

    Of logarithms, `1 / 1.5^2`; of the drift's layers one, but of the last `width dt /
    4`, so that the drift of unit features over a step has four times the noise's
    variance; of all others zero.
    """
    found = jax.tree.map(lambda x: x / _SCALE**2, kept_by_logarithms(params))
    layers = lambda model: model.drift.layers
    last = lambda model: model.drift.layers.layers[-1]
    found = eqx.tree_at(layers, found, jax.tree.map(jnp.ones_like, layers(params)))
    size = last(params).weight.shape[1] * dt / _MOVED
    sized = jax.tree.map(lambda x: jnp.full_like(x, size), last(params))
    return eqx.tree_at(last, found, sized)
