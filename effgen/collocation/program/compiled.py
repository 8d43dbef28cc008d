"""Functions of the whole program, compiled, at one point on the host."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .nlp import (
    NLP,
    all_boundary_terms,
    all_link_terms,
    all_node_terms,
    constraints,
    costs,
    misfit,
    model_terms,
    objective,
)


@eqx.filter_jit
def values(
    nlp: NLP, z: Float[Array, " variables"]
) -> tuple[Float[Array, ""], Float[Array, " rows"]]:
    """Return objective and constraints."""
    return objective(nlp, z), constraints(nlp, z)


@eqx.filter_jit
def compiled_node_terms(
    nlp: NLP, z: Float[Array, " variables"]
) -> Float[Array, "nodes terms"]:
    """Return `node_terms` at all nodes."""
    return all_node_terms(nlp, *nlp.split(z))


@eqx.filter_jit
def compiled_other_terms(nlp: NLP, z: Float[Array, " variables"]) -> tuple[Array, ...]:
    """Return `boundary_terms` and `link_terms` of all ends, `model_terms` between."""
    x, flat = nlp.split(z)
    ends, links = all_boundary_terms(nlp, x, flat), all_link_terms(nlp, x, flat)
    return ends, model_terms(nlp, flat), links


@eqx.filter_jit
def _misfit(nlp: NLP, z: Array) -> Float[Array, ""]:
    return misfit(nlp, z)


@eqx.filter_jit
def _costs(nlp: NLP, z: Array) -> Float[Array, ""]:
    return costs(nlp, z)


def costs_of(nlp: NLP, z: Float[np.ndarray, " variables"]) -> float:
    """Return the objective but for the misfit."""
    return float(_costs(nlp, jnp.asarray(z)))


def misfit_of(nlp: NLP, z: Float[np.ndarray, " variables"]) -> float:
    """Return the misfit."""
    return float(_misfit(nlp, jnp.asarray(z)))
