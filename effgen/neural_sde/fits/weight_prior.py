"""A normal prior of a network's parameters, as a transformation of gradients."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from effgen.neural_sde.modeling.model import LatentSDE

from .peak import kept_by_logarithms


_SCALE = 1.5  # of a natural logarithm, as in `fit_linear`
_MOVED = 4.0  # the variance of a gap's drift over its noise's, for features of one


def weight_prior() -> optax.GradientTransformation:
    """Return a transformation that adds the gradient of a normal prior.

        update + precision (parameter - start)

    The prior's mean is the parameters' start. The loss must be in nats of one record,
    and the model one of `with_network`. The last layer starts at zero. So under the
    prior the drift of a usual gap is about as large as its noise, and the model stays
    linear where the values do not determine the network. The control has no prior.

    Returns:
        A transformation to chain before `optax.adam`.

    Source:
        MacKay (1992), on the evidence for networks; Williams (1996), on the widths.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        add = lambda u, p, x, x0: u + p * (x - x0)
        sizes = precisions(params)
        return jax.tree.map(add, updates, sizes, params, state), state

    return optax.GradientTransformation(lambda params: params, update)


def precisions(params: LatentSDE) -> LatentSDE:
    """Return the prior precision of each parameter.

    It is `1 / 1.5^2` for logarithms, one for the drift's layers, and zero for all other
    parameters. For the drift's last layer it is `width / 4`. With features of one, the
    drift of a usual gap then has four times the variance of its noise.
    """
    found = jax.tree.map(lambda x: x / _SCALE**2, kept_by_logarithms(params))
    layers = lambda model: model.drift.layers
    last = lambda model: model.drift.layers.layers[-1]
    found = eqx.tree_at(layers, found, jax.tree.map(jnp.ones_like, layers(params)))
    size = last(params).weight.shape[1] / _MOVED
    sized = jax.tree.map(lambda x: jnp.full_like(x, size), last(params))
    return eqx.tree_at(last, found, sized)
