"""What the data tell at a solution: which directions, and how well."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int

from effgen.collocation.modeling.misfits import influence
from effgen.collocation.modeling.problem import names_of_model
from effgen.collocation.program.elimination import (
    Eliminated,
    SampleJacobian,
    columns,
    eliminated,
    sample_jacobian,
    sample_residuals,
)
from effgen.collocation.program.evaluator import Evaluator
from effgen.collocation.program.nlp import NLP
from effgen.collocation.program.points import Functions, Limits, Point

from .bounds import active_rows, held_rows, pulled_units
from .roots import Curvature, in_units, inverse


_NAMED = 0.1  # of the most that an open direction moves a number
_LINKED = 1e3  # deviations that a number has alone, of one that moves with others


class Information(NamedTuple):
    """The objective's curvature over what is free, factored.

    Attributes:
        eliminated: The map of what is free to all variables.
        roots: `L` with `L L^T` the inverse of the curvature in the directions that are
            told.
        open: Directions that are not, each scaled to the sizes of what it moves.
        sensitivities: `J P L` of the samples' residuals.
        residuals: The samples' residuals.
        slopes: The objective's slope at each of the model's numbers that a bound holds.
        variances: The inverse curvature along each of these, were its bound not there;
            zero where it is not told.
    """

    eliminated: Eliminated
    roots: Float[np.ndarray, "free told"]
    open: Float[np.ndarray, "free open"]
    sensitivities: Float[np.ndarray, "samples outputs told"]
    residuals: Float[np.ndarray, "samples outputs"]
    slopes: Float[np.ndarray, " held"]
    variances: Float[np.ndarray, " held"]

    def moved(self, factor: np.ndarray) -> Float[np.ndarray, "variables columns"]:
        """Return `P L factor`."""
        return self.eliminated.moved(self.roots @ factor)


def information(evaluator: Evaluator, limits: Limits, point: Point) -> Information:
    """Return what is told at a point: curvature, active bounds, open directions.

    With `P` the map from what is free to all variables, the curvature is `P^T H P`. A
    bound is active where the solution without it would pass it: its multiplier times
    the inverse curvature there is larger than the distance.

    Raises:
        ValueError: Without second derivatives, or where the point is no minimum.
    """
    nlp, functions = evaluator.nlp, evaluator.functions()
    if functions.hessian is None or functions.hessian_pattern is None:
        raise ValueError("pass `ExactHessian()` or `GaussNewton()` as `curvature`.")
    through = eliminated(nlp, functions, limits, point.z)
    residuals = np.asarray(sample_residuals(nlp, jnp.asarray(point.z)))
    jacobian = sample_jacobian(nlp, point.z)
    curvature = _curvature(nlp, functions, through, point, (residuals, jacobian))
    held = held_rows(through, limits)
    first, _ = inverse(curvature, held)
    numbers = through.free >= len(nlp.ts) * nlp.problem.num_states
    most = _most(through, point, curvature, numbers)
    values = functions.constraints(point.z)
    bounds, active = active_rows(through, limits, point, first, values, most)
    rows = np.concatenate([held, pulled_units(through, bounds), active])
    roots, left = inverse(curvature, rows)
    along = _along(nlp, jacobian, through, roots)
    own = np.flatnonzero(np.isin(bounds, through.free[numbers]))
    let_go = [np.delete(rows, len(held) + k, axis=0) for k in own]
    variances = _let_go(curvature, through, bounds[own], let_go)
    assert point.lower is not None
    assert point.upper is not None
    slopes = (point.lower + point.upper)[bounds[own]]
    return Information(through, roots, left, along, residuals, slopes, variances)


def _most(
    through: Eliminated,
    point: Point,
    curvature: Curvature,
    numbers: Bool[np.ndarray, " free"],
) -> Float[np.ndarray, " variables"]:
    """Return how far each variable could go; numbers of the model have no unit."""
    most, mine = np.maximum(np.abs(point.z), 1.0), through.free[numbers]
    alone = _LINKED * curvature.unit[numbers]
    most[mine] = np.maximum(np.abs(point.z[mine]), alone)
    return most


def _let_go(
    curvature: Curvature,
    through: Eliminated,
    numbers: Int[np.ndarray, " held"],
    rows: list[np.ndarray],
) -> Float[np.ndarray, " held"]:
    """Return the variance of each number, its bound let go and its rows held."""
    where = np.searchsorted(through.free, numbers)
    pairs = zip(rows, where, strict=True)
    found = [np.sum(inverse(curvature, rest)[0][i] ** 2) for rest, i in pairs]
    return np.array(found)


def _curvature(
    nlp: NLP,
    functions: Functions,
    through: Eliminated,
    point: Point,
    samples: tuple[np.ndarray, SampleJacobian],
) -> Curvature:
    """Return `P^T H P`, with the roots of its parts by samples and by priors."""
    pattern = functions.hessian_pattern
    assert point.constraints is not None
    assert functions.hessian is not None
    assert pattern is not None
    values = functions.hessian(point.z, point.constraints, 1.0)
    shape = (len(point.z), len(point.z))
    half = scipy.sparse.coo_matrix((values, (pattern.rows, pattern.columns)), shape)
    whole = half.tocsr() + scipy.sparse.tril(half, -1).tocsr().T
    eye = np.eye(len(through.free))
    parts = [
        through.pulled(whole @ through.moved(eye[:, c])) for c in columns(len(eye))
    ]
    curvature = np.concatenate([np.zeros((len(eye), 0)), *parts], axis=1)
    residuals, jacobian = samples
    weights = np.maximum(pulls(nlp, residuals)[1], 0.0)
    seen = np.sqrt(weights)[..., None] * _along(nlp, jacobian, through, eye)
    sizes = np.maximum(np.abs(point.z), 1.0)[through.free]
    prior = np.sqrt(_decays(nlp)[through.free])
    symmetric = (curvature + curvature.T) / 2
    return in_units(symmetric, sizes, prior, seen.reshape(-1, len(eye)))


def _along(
    nlp: NLP, jacobian: SampleJacobian, through: Eliminated, roots: np.ndarray
) -> Float[np.ndarray, "samples outputs told"]:
    """Return how residuals move with what is free."""
    start = np.zeros((*jacobian.model.shape[:2], 0))
    parts = [
        jacobian.along(nlp, through.moved(roots[:, c])) for c in columns(roots.shape[1])
    ]
    return np.concatenate([start, *parts], axis=2)


def _decays(nlp: NLP) -> np.ndarray:
    """Return the weight decay of each variable, zero of states and parameters."""
    networks = eqx.filter(nlp.template.networks, eqx.is_inexact_array)
    decays = nlp.problem.decays(nlp.template.networks)
    pairs = zip(jax.tree.leaves(decays), jax.tree.leaves(networks), strict=True)
    own = [np.full(np.size(weights), float(decay)) for decay, weights in pairs]
    found = np.concatenate([np.zeros(0), *own])
    num = len(nlp.ts) * nlp.problem.num_states + len(nlp.flat())
    return np.concatenate([np.zeros(num - len(found)), found])


def pulls(
    nlp: NLP, residuals: Float[np.ndarray, "samples outputs"]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and second derivatives of the costs of samples' residuals."""
    return influence(nlp.problem.misfit, residuals * np.sqrt(float(nlp.counted)))


def open_names(found: Information, nlp: NLP) -> list[str]:
    """Return the names of all numbers that open directions move."""
    if not found.open.shape[1]:
        return []
    much = np.linalg.norm(found.open, axis=1)
    moved = found.eliminated.free[much > _NAMED * much.max()]
    return [name_of_free(nlp, int(i)) for i in moved]


def name_of_free(nlp: NLP, index: int) -> str:
    """Return which number of the model, or which state at a start, a variable is."""
    size, num = nlp.problem.num_states, len(nlp.ts) * nlp.problem.num_states
    if index >= num:
        return names_of_model(nlp.template)[index - num]
    i = int(np.searchsorted(np.asarray(nlp.starts), index // size))
    return f"state {index % size} at the start of trajectory {i}"
