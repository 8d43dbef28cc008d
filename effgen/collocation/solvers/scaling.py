"""Scales that the solver sees: of parameters, the objective and constraints."""

import itertools
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float, PyTree

from effgen.collocation.modeling.model import Model
from effgen.collocation.program.nlp import NLP, constraint_shapes
from effgen.collocation.program.points import Functions, Limits


_LEAST, _MOST = 0.1, 10.0
_STEEPEST = 100.0
_FAINTEST = 1e-4  # the slope of an equation by weights of size one, or its inverse


class Scaling(NamedTuple):
    """What variables, objective and constraints are multiplied with."""

    objective: float
    variables: Float[np.ndarray, " variables"]
    rows: Float[np.ndarray, " rows"]


def sizes(
    parameters: PyTree, lower: Float[np.ndarray, " flat"], upper: np.ndarray
) -> Float[np.ndarray, " flat"]:
    """Return the size of each parameter: its own, of a zero its bounds', else one."""
    leaves = jax.tree.leaves(eqx.filter(parameters, eqx.is_inexact_array))
    parts = [np.abs(np.asarray(leaf, float)).ravel() for leaf in leaves]
    own = np.concatenate([*parts, np.zeros(0)])
    bounds = [np.where(np.isfinite(b), np.abs(b), 0) for b in (lower, upper)]
    bounded = np.maximum(*bounds)
    return np.where(own > 0, own, np.where(bounded > 0, bounded, 1.0))


def sizes_of(
    model: Model, given: PyTree | None, bounds: tuple[np.ndarray, np.ndarray]
) -> Float[np.ndarray, " flat"]:
    """Return the sizes of the parameters: as given, or those of the guess."""
    if given is None:
        return sizes(model.parameters, *bounds)
    arrays = eqx.filter(model.parameters, eqx.is_inexact_array)
    full = jax.tree.broadcast(given, arrays)
    pairs = zip(jax.tree.leaves(full), jax.tree.leaves(arrays), strict=True)
    parts = [np.broadcast_to(np.asarray(n, float), a.shape).ravel() for n, a in pairs]
    return np.concatenate([*parts, np.zeros(0)])


def scaling(
    nlp: NLP, functions: Functions, limits: Limits, z: Float[np.ndarray, " variables"]
) -> Scaling | None:
    """Return scales from the guess; `None` where Ipopt's own are the same.

    Parameters are divided by their sizes where these are far from one, as in SI units.
    So are the arrays of networks, whose size is what moves an equation by one.
    The objective, and constraints of any kind, are brought to gradients of 100 at
    most, as Ipopt does; those that are not equations of the model, up to one as well.
    """
    first = len(nlp.ts) * nlp.problem.num_states
    parameters = eqx.filter(nlp.template.parameters, eqx.is_inexact_array)
    num = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    mine = slice(first, first + num)
    bounds = (limits.lower[mine], limits.upper[mine])
    nominal = np.ones(len(z))
    own = sizes_of(nlp.template, nlp.problem.parameter_nominal, bounds)
    nominal[mine] = np.where((own < _LEAST) | (own > _MOST), own, 1.0)
    pattern = functions.jacobian_pattern
    slopes = np.nan_to_num(np.abs(functions.jacobian(z)))
    equations = sum(int(np.prod(s)) for s in constraint_shapes(nlp)[:2])
    by_variable = np.zeros(len(z))
    there = pattern.rows < equations
    np.maximum.at(by_variable, pattern.columns[there], slopes[there])
    nominal[first + num :] = _network_sizes(nlp, by_variable[first + num :])
    values = slopes * nominal[pattern.columns]
    steepest = np.zeros(len(limits.constraints_lower))
    np.maximum.at(steepest, pattern.rows, values)
    rest = np.arange(len(steepest)) >= equations
    flat = rest & (steepest < _LEAST) & (steepest > 0)
    if np.all(nominal == 1) and not np.any(flat):
        return None
    rows = np.minimum(1.0, _STEEPEST / np.maximum(steepest, _STEEPEST))
    rows = np.where(flat, 1 / np.where(flat, steepest, 1.0), rows)
    slope = np.abs(functions.gradient(z) * nominal).max(initial=0.0)
    factor = min(1.0, _STEEPEST / max(float(np.nan_to_num(slope)), _STEEPEST))
    return Scaling(factor, 1 / nominal, rows)


def _network_sizes(
    nlp: NLP, slopes: Float[np.ndarray, " weights"]
) -> Float[np.ndarray, " weights"]:
    """Return the size of each weight: one, unless its array hardly moves an equation.

    Weights of a law in SI units can be millions, where Ipopt's tolerance is on slopes.
    """
    arrays = jax.tree.leaves(eqx.filter(nlp.template.networks, eqx.is_inexact_array))
    ends = np.cumsum([0, *(array.size for array in arrays)])
    found = np.ones(len(slopes))
    for first, last in itertools.pairwise(ends):
        most = slopes[first:last].max(initial=0.0)
        if most > 0 and not _FAINTEST < most < 1 / _FAINTEST:
            found[first:last] = 1 / most
    return found
