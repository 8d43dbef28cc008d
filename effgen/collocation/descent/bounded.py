"""What training by gradient steps makes of a problem: bounds kept, the rest refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from effgen.collocation.modeling.model import Model
from effgen.collocation.modeling.problem import Problem, flat_bounds


_LEFT_OUT = {
    "lagrange": "pass a problem without it",
    "mayer": "pass a problem without it",
    "priors": "pass a problem without them, or a `penalty`",
    "constraints": "pass a problem without them, or a `penalty` of what they forbid",
    "switches": "write the law with `jax.nn.sigmoid((t - p[...]) / width)`",
    "state_bounds": "pass a problem without them, whose law keeps its states inside",
}


def check_kept(problem: Problem, trainer: str, names: tuple[str, ...]) -> None:
    """Raise `ValueError` for what a problem has and its trainer would leave out."""
    costs = (problem.lagrange, problem.mayer)
    given = {name: cost is not None for name, cost in zip(("lagrange", "mayer"), costs)}
    given["switches"] = bool(problem.brackets)
    given["priors"] = bool(problem.priors)
    given["constraints"] = len(problem.constraints) > len(problem.brackets)
    given["state_bounds"] = bool(np.any(np.isfinite(problem.state_bounds)))
    for name in names:
        if given[name]:
            raise ValueError(
                f"the problem has `{name}`, which `{trainer}` does not keep to: "
                f"{_LEFT_OUT[name]}, or solve it by `CollocationTrainer`."
            )


def data_alone(problem: Problem) -> Problem:
    """Return the problem with its law and data, but no costs and no constraints."""
    where = lambda p: (
        *(p.constraints, p.brackets, p.priors),
        *(p.lagrange, p.mayer, p.penalty),
    )
    bare = ((), (), (), None, None, None)
    return eqx.tree_at(where, problem, bare, is_leaf=lambda leaf: leaf is None)


def started(problem: Problem, model: Model) -> Model:
    """Return the model inside of the problem's bounds, once these are checked.

    Raises:
        ValueError: For `parameter_bounds` that cross or are not like the parameters.
    """
    flat_bounds(problem.parameter_bounds, model.parameters)
    return in_bounds(problem, model)


def in_bounds(problem: Problem, model: Model) -> Model:
    """Return the model with each parameter moved to the nearest value in its bounds."""
    arrays, rest = eqx.partition(model.parameters, eqx.is_inexact_array)
    if not jax.tree.leaves(arrays):
        return model
    lower, upper = (jax.tree.broadcast(b, arrays) for b in problem.parameter_bounds)
    arrays = jax.tree.map(_clipped, arrays, lower, upper)
    return Model(eqx.combine(arrays, rest), model.networks)


def _clipped(array: PyTree, lower: PyTree, upper: PyTree) -> PyTree:
    ends = (
        jnp.broadcast_to(jnp.asarray(b, array.dtype), array.shape)
        for b in (lower, upper)
    )
    return jnp.clip(array, *ends)
