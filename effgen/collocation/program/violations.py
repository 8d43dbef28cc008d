"""What is wrong with a point: by name, trajectory, and time."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from effgen.collocation.modeling.constraints import KINDS
from effgen.collocation.modeling.model import Model
from effgen.collocation.modeling.phases import Bracket
from effgen.collocation.modeling.priors import check_prior_shapes
from effgen.collocation.modeling.problem import (
    Constraint,
    ModelConstraint,
    PathConstraint,
    names_of_model,
)

from .compiled import compiled_node_terms, compiled_other_terms, values
from .curvature import AbstractCurvature
from .elimination import sample_residuals
from .nlp import NLP, constraint_shapes
from .points import Limits
from .transcription import Transcription, constraint_size


_MOST_BYTES = 8 << 30
_REMEDY = "bound the states, or start from another guess."


def check_shapes(batch: Transcription, model: Model) -> None:
    """Raise where a function of the problem returns what it must not, by name.

    Raises:
        ValueError: For a shape.
        TypeError: For no numbers, or for functions that JAX cannot trace or that ask
            for parameters the model has not.
    """
    problem, mesh = batch.problem, batch.mesh
    given = (model.parameters, model.networks)
    x, outputs = jnp.asarray(problem.nominal), problem.data[0].ys.shape[1]
    at = (jnp.asarray(mesh.ts[0]), x, jnp.asarray(mesh.inputs[0]), *given)
    one, size = ((), (1,)), ((problem.num_states,),)
    for bracket in problem.brackets:
        _check_switch(bracket, given)
    _check_shape("vector_field", problem.mesh_field, at, size)
    if problem.observe is not None:
        wanted = ((outputs,), ()) if outputs == 1 else ((outputs,),)
        _check_shape("observe", problem.observe, at, wanted)
    _check_shape("lagrange", problem.lagrange, at, one)
    _check_shape("mayer", problem.mayer, (x, x, *given), one)
    _check_shape("penalty", problem.penalty, given, one)
    check_prior_shapes(problem.priors, given)
    problem.decays(model.networks)
    for constraint in problem.constraints:
        wanted_by = {PathConstraint: at, ModelConstraint: given}
        args = wanted_by.get(type(constraint), (x, x, *given))
        _check_vector(constraint, args)


def _check_switch(bracket: Bracket, given: tuple[Any, ...]) -> None:
    name = f"`time` of the switch near {bracket.at:.6g}"
    found = _shape_of(name, lambda p, nets: bracket.time(p), given)
    if found not in ((), (1,)):
        raise ValueError(
            f"{name} returns shape {found}: pass a function of parameters to one time."
        )


def _check_vector(constraint: Constraint, given: tuple[Any, ...]) -> None:
    name = f"constraint {constraint.name!r}"
    found = _shape_of(name, constraint.function, given)
    if len(found) > 1:
        raise ValueError(
            f"{name} returns shape {found}: pass a function to a number or a vector."
        )


def _check_shape(
    name: str, function: Any, given: tuple[Any, ...], wanted: tuple[Any, ...]
) -> None:
    if function is None:
        return
    found = _shape_of(f"`{name}`", function, given)
    if found not in wanted:
        raise ValueError(
            f"`{name}` returns shape {found}: pass a function to {wanted[0]}."
        )


def _shape_of(name: str, function: Any, given: tuple[Any, ...]) -> tuple[int, ...]:
    try:
        found = eqx.filter_eval_shape(lambda *g: jnp.asarray(function(*g)), *given)
    except jax.errors.TracerArrayConversionError as error:
        raise TypeError(
            f"{name} calls numpy on what JAX traces: write it in `jax.numpy`."
        ) from error
    except KeyError as error:
        parameters = given[-2]
        has = list(parameters) if isinstance(parameters, dict) else parameters
        raise TypeError(
            f"{name} asks for {error} and the model's parameters are {has}: pass "
            "`Model(parameters, networks)`."
        ) from error
    if jnp.issubdtype(found.dtype, jnp.complexfloating):
        raise TypeError(f"{name} returns complex numbers: pass a real function.")
    return found.shape


def check_finite(nlp: NLP, batch: Transcription, z: np.ndarray) -> None:
    """Raise `ValueError` where the vector field is not finite."""
    problem = batch.problem
    size = problem.num_states
    found = np.asarray(compiled_node_terms(nlp, jnp.asarray(z)))
    bad = np.argwhere(~np.isfinite(found))
    if len(bad):
        node, term = bad[0]
        what = f"component {term} of `vector_field`" if term < size else "a constraint"
        at = slice(node * size, (node + 1) * size)
        state = (z[at] * problem.nominal).tolist()
        raise ValueError(
            f"{what} is {found[node, term]} {_where(node, batch.mesh)}, where the "
            f"guess is x = {state}: bound the states, or start from another guess."
        )


def check_others(nlp: NLP, batch: Transcription, z: np.ndarray) -> None:
    """Raise `ValueError` where an output, or a term of ends or model, is not finite."""
    residuals = np.asarray(sample_residuals(nlp, jnp.asarray(z)))
    bad = np.argwhere(~np.isfinite(residuals))
    if len(bad):
        sample, output = bad[0]
        time = float(np.asarray(nlp.samples.ts)[sample])
        raise ValueError(
            f"output {output} of `observe` is not finite at t = {time:.6g} of the "
            f"guess: {_REMEDY}"
        )
    names = (
        "boundary constraint or `mayer`",
        "model constraint or `penalty`",
        "link constraint",
    )
    for name, part in zip(names, compiled_other_terms(nlp, jnp.asarray(z))):
        found = np.asarray(part)
        if not np.all(np.isfinite(found)):
            raise ValueError(
                f"a {name} is not finite at the guess, which gives {found.tolist()}: "
                f"{_REMEDY}"
            )


def not_finite(nlp: NLP, batch: Transcription, functions: Any, z: np.ndarray) -> str:
    """Return a sentence on the first derivative that is not finite; none if all are."""
    bad = np.flatnonzero(~np.isfinite(functions.gradient(z)))
    if len(bad):
        by = name_of_variable(int(bad[0]), batch, nlp)
        return f"The derivative of the objective by {by} is not finite."
    pattern = functions.jacobian_pattern
    bad = np.flatnonzero(~np.isfinite(functions.jacobian(z)))
    if not len(bad):
        return ""
    row, by = (int(part[bad[0]]) for part in (pattern.rows, pattern.columns))
    of, by = name_of_row(row, batch, nlp), name_of_variable(by, batch, nlp)
    return f"The derivative of {of} by {by} is not finite."


def check_size(nlp: NLP, curvature: AbstractCurvature) -> None:
    """Raise `ValueError` where derivatives would not fit, before any is computed."""
    num_states, num_model = len(nlp.ts) * nlp.problem.num_states, nlp.flat().shape[0]
    numbers = num_states * num_model
    if curvature.blocks is not None:
        numbers += num_states * num_model + num_model**2
    if 8 * numbers > _MOST_BYTES:
        raise ValueError(
            f"{curvature.name} of {num_model:,} parameters at {len(nlp.ts):,} nodes "
            f"would take {8 * numbers / 2**30:.0f} GiB: use fewer parameters or nodes, "
            "`curvature=LimitedMemory()`, or `ShootingTrainer`."
        )


def worst_violation(
    batch: Transcription, nlp: NLP, limits: Limits, z: np.ndarray
) -> str:
    """Return a sentence on the constraint that is furthest from holding."""
    rows = np.asarray(values(nlp, jnp.asarray(z))[1])
    below = limits.constraints_lower - rows
    above = rows - limits.constraints_upper
    amount = np.nan_to_num(np.maximum(below, above), nan=np.inf)
    if len(amount) == 0 or amount.max() <= 0:
        return "All constraints hold."
    row = int(np.argmax(amount))
    return (
        f"The worst violation is {amount[row]:.3g}, of {name_of_row(row, batch, nlp)}."
    )


def name_of_variable(index: int, batch: Transcription, nlp: NLP) -> str:
    """Return which state, where, or which number of the model a variable is."""
    size, num_states = nlp.problem.num_states, len(nlp.ts) * nlp.problem.num_states
    if index >= num_states:
        return f"{names_of_model(nlp.template)[index - num_states]} of the model"
    return f"state {index % size} {_where(index // size, batch.mesh)}"


def name_of_row(row: int, batch: Transcription, nlp: NLP) -> str:
    """Return which constraint a row is, and where."""
    shapes = constraint_shapes(nlp)
    sizes = [int(np.prod(shape)) for shape in shapes]
    part = int(np.searchsorted(np.cumsum(sizes), row, side="right"))
    at = np.unravel_index(row - sum(sizes[:part]), shapes[part])
    place, column = int(at[0]), int(at[-1])
    if part == 0:
        node = batch.mesh.inner[place, int(at[1])]
        return f"equation {column} {_where(node, batch.mesh)}"
    if part == 1:
        return f"an algebraic equation at the start of trajectory {place}"
    name = [
        c.name
        for c in batch.problem.constraints
        if isinstance(c, KINDS[part - 2])
        for _ in range(constraint_size(c, nlp))
    ][column]
    where = (
        lambda: _where(place, batch.mesh),
        lambda: f"of trajectory {place}",
        lambda: "of the model",
        lambda: f"where trajectory {_owner(nlp.links[place, 1], batch.mesh)} begins",
    )
    return f"{name!r} {where[part - 2]()}"


def _where(node: Any, mesh: Any) -> str:
    return f"in trajectory {_owner(node, mesh)} at t = {mesh.ts[node]:.6g}"


def _owner(node: Any, mesh: Any) -> int:
    return int(np.searchsorted(mesh.starts, int(node), side="right")) - 1
