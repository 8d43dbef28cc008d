"""Trajectories eliminated: how all states move with the model and the free starts."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from jaxtyping import Array, Float, Int

from .nlp import NLP, constraint_shapes, sample_residual, states_at_samples
from .points import Functions, Limits


_AT_ONCE = 64


class Eliminated(NamedTuple):
    """`dz = P df`: what the linearized equations make of the free numbers `f`.

    Attributes:
        free: The model's numbers and the differential states at starts, but for what is
            held fixed.
        rest: The variables that follow from them.
        fixed: Those of the rest that are held fixed.
        factors: Of the equations by the rest.
        by_free: The equations' derivatives by the free.
        rows: The Jacobian of all other constraints.
        size: The number of variables.
    """

    free: Int[np.ndarray, " free"]
    rest: Int[np.ndarray, " rest"]
    fixed: Int[np.ndarray, " fixed"]
    factors: Any
    by_free: Any
    rows: Any
    size: int

    def moved(
        self, directions: Float[np.ndarray, "free columns"]
    ) -> Float[np.ndarray, "variables columns"]:
        """Return `P directions`."""
        found = np.zeros((self.size, directions.shape[1]))
        found[self.free] = directions
        found[self.rest] = -self.factors.solve(self.by_free @ directions)
        return found

    def pulled(
        self, gradients: Float[np.ndarray, "variables columns"]
    ) -> Float[np.ndarray, "free columns"]:
        """Return `P^T gradients`."""
        back = self.factors.solve(np.ascontiguousarray(gradients[self.rest]), "T")
        return gradients[self.free] - self.by_free.T @ back


def eliminated(
    nlp: NLP, functions: Functions, limits: Limits, z: Float[np.ndarray, " variables"]
) -> Eliminated:
    """Return the map of what is free to all variables.

    Raises:
        ValueError: If the equations do not determine the states.
    """
    size, problem = len(z), nlp.problem
    num_equations = sum(int(np.prod(s)) for s in constraint_shapes(nlp)[:2])
    num_states = len(nlp.ts) * problem.num_states
    differential = np.arange(problem.num_states - problem.num_algebraic)
    starts = np.asarray(nlp.starts)[:, None] * problem.num_states + differential
    chosen = np.concatenate([starts.ravel(), np.arange(num_states, size)])
    held = limits.lower == limits.upper
    rest = np.setdiff1d(np.arange(num_states), starts)
    free = chosen[~held[chosen]]
    pattern = functions.jacobian_pattern
    entries = (functions.jacobian(z), (pattern.rows, pattern.columns))
    shape = (len(limits.constraints_lower), size)
    jacobian = scipy.sparse.coo_matrix(entries, shape).tocsc()
    told = np.arange(num_equations)
    if _undetermined(nlp, jacobian):
        # Of index 2 and 3 the start's equation is one of its differential states, and
        # no equation has its algebraic ones.
        told = told[: int(np.prod(constraint_shapes(nlp)[0]))]
        algebraic = np.setdiff1d(np.arange(problem.num_states), differential)
        unused = np.asarray(nlp.starts)[:, None] * problem.num_states + algebraic
        rest = np.setdiff1d(rest, unused)
    equations = jacobian.tocsr()[told].tocsc()
    try:
        factors = scipy.sparse.linalg.splu(equations[:, rest])
    except RuntimeError as error:
        raise ValueError(
            "the equations do not determine the states, as their linearization is "
            "singular: look for algebraic residuals that their states do not enter."
        ) from error
    rows, fixed = jacobian.tocsr()[len(told) :], rest[held[rest]]
    return Eliminated(free, rest, fixed, factors, equations[:, free], rows, size)


def _undetermined(nlp: NLP, jacobian: Any) -> bool:
    """Return whether the equations at starts leave the algebraic states there open."""
    size, algebraic = nlp.problem.num_states, nlp.problem.num_algebraic
    first, by_row = int(np.prod(constraint_shapes(nlp)[0])), jacobian.tocsr()
    own = np.arange(size - algebraic, size)
    blocks = [
        by_row[first + i * algebraic + np.arange(algebraic)][:, node * size + own]
        for i, node in enumerate(np.asarray(nlp.starts))
    ]
    ranks = [np.linalg.matrix_rank(block.toarray(), rtol=1e-12) for block in blocks]
    return algebraic > 0 and min(ranks) < algebraic


def columns(num: int) -> Iterator[slice]:
    """Return slices of columns, some at a time."""
    return (slice(i, min(i + _AT_ONCE, num)) for i in range(0, num, _AT_ONCE))


class SampleJacobian(NamedTuple):
    """Derivatives of the samples' residuals: by the state there, and by the model."""

    states: Float[np.ndarray, "samples outputs state"]
    model: Float[np.ndarray, "samples outputs model"]

    def along(
        self, nlp: NLP, moved: Float[np.ndarray, "variables columns"]
    ) -> Float[np.ndarray, "samples outputs columns"]:
        """Return how the residuals change along columns of variables."""
        num, size = len(nlp.ts), nlp.problem.num_states
        nodes = moved[: num * size].reshape(num, size, -1)
        points = np.asarray(nlp.points)[np.asarray(nlp.samples.interval)]
        basis = np.asarray(nlp.samples.basis)
        there = sum(
            basis[:, k, None, None] * nodes[points[:, k]] for k in range(basis.shape[1])
        )
        return self.states @ there + self.model @ moved[num * size :]


def sample_jacobian(nlp: NLP, z: Float[np.ndarray, " variables"]) -> SampleJacobian:
    """Return the derivatives of all samples' residuals."""
    return SampleJacobian(
        *(np.asarray(part) for part in _sample_jacobian(nlp, jnp.asarray(z)))
    )


@eqx.filter_jit
def _sample_jacobian(nlp: NLP, z: Array) -> tuple[Array, Array]:
    x, flat = nlp.split(z)
    at = states_at_samples(nlp, x)

    def one(sample: Any, x: Array) -> tuple[Array, Array]:
        residual = lambda x, p: sample_residual(nlp, sample, x, p)
        by_model = jax.jacrev(residual, argnums=1)(x, flat)
        return jax.jacfwd(residual)(x, flat), by_model

    return jax.vmap(one)(nlp.samples, at)


@eqx.filter_jit
def sample_residuals(nlp: NLP, z: Array) -> Float[Array, "samples outputs"]:
    """Return all samples' residuals, divided by `scale` and the root of the count."""
    x, flat = nlp.split(z)
    at = states_at_samples(nlp, x)
    return jax.vmap(lambda s, x: sample_residual(nlp, s, x, flat))(nlp.samples, at)
