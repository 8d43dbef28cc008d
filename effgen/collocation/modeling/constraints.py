"""Constraints as a modeler states them, checked."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from .phases import Bracket, followers, on_clock, span_of
from .trajectories import Trajectory


class PathConstraint(NamedTuple):
    """`lower <= function(t, x, u, p, nets) <= upper` at every node.

    Arguments:
        function: `(t, x, u, p, nets)` to a number or a vector.
        lower: The lower bound, a number or one of each value; `-inf` for none.
        upper: The upper bound, likewise; `inf` for none.
        name: What messages call it.
    """

    function: Callable[..., Array]
    lower: ArrayLike
    upper: ArrayLike
    name: str = "path"


class BoundaryConstraint(NamedTuple):
    """`lower <= function(x_start, x_end, p, nets) <= upper` on every trajectory.

    Arguments:
        function: `(x_start, x_end, p, nets)` to a number or a vector.
        lower: The lower bound, a number or one of each value; `-inf` for none.
        upper: The upper bound, likewise; `inf` for none.
        name: What messages call it.
    """

    function: Callable[..., Array]
    lower: ArrayLike
    upper: ArrayLike
    name: str = "boundary"


class ModelConstraint(NamedTuple):
    """`lower <= function(p, nets) <= upper`, such as a network's zero crossing.

    Arguments:
        function: `(p, nets)` to a number or a vector.
        lower: The lower bound, a number or one of each value; `-inf` for none.
        upper: The upper bound, likewise; `inf` for none.
        name: What messages call it.
    """

    function: Callable[..., Array]
    lower: ArrayLike
    upper: ArrayLike
    name: str = "model"


class LinkConstraint(NamedTuple):
    """`lower <= function(x_end, x_start, p, nets) <= upper` between two phases.

    `x_end` is where a trajectory ends, `x_start` where the one that follows it begins.

    Arguments:
        function: `(x_end, x_start, p, nets)` to a number or a vector.
        lower: The lower bound, a number or one of each value; `-inf` for none.
        upper: The upper bound, likewise; `inf` for none.
        name: What messages call it.
    """

    function: Callable[..., Array]
    lower: ArrayLike
    upper: ArrayLike
    name: str = "link"


Constraint = PathConstraint | BoundaryConstraint | ModelConstraint | LinkConstraint
KINDS = (PathConstraint, BoundaryConstraint, ModelConstraint, LinkConstraint)
"""Constraints in the order of the program's rows, after its equations."""


def check_functions(**functions: Any) -> None:
    """Raise `TypeError` for an object that is no function, by name."""
    for name, function in functions.items():
        optional = name != "vector_field"
        if not (callable(function) or (optional and function is None)):
            raise TypeError(
                f"`{name}` is a {type(function).__name__}: pass a function. The order "
                "is `Problem(vector_field, data)`."
            )


def checked_constraints(constraints: Any) -> tuple[Constraint, ...]:
    """Return constraints of known kinds, whose bounds do not cross."""
    if isinstance(constraints, KINDS):
        constraints = (constraints,)
    for constraint in constraints:
        if not isinstance(constraint, KINDS):
            raise TypeError(
                f"`constraints` has a {type(constraint).__name__}: pass a list of "
                "`PathConstraint`, `BoundaryConstraint`, `ModelConstraint` or "
                "`LinkConstraint`."
            )
        check_functions(vector_field=constraint.function)
        checked_bounds(f"constraint {constraint.name!r}", constraint[1:3], None)
    return tuple(constraints)


def retimed(
    constraints: Sequence[Constraint], brackets: tuple[Bracket, ...]
) -> tuple[Constraint, ...]:
    """Return constraints on the mesh's clock, with those of the switches' times."""
    if not brackets:
        return tuple(constraints)
    path = lambda c: c._replace(function=on_clock(c.function, brackets, 0))
    own = (path(c) if isinstance(c, PathConstraint) else c for c in constraints)
    return (*own, *(_between_samples(b) for b in brackets))


def _between_samples(bracket: Bracket) -> ModelConstraint:
    """Return the constraint that a switch stays between the samples around it."""
    time, before, at, after = bracket
    function = lambda p, nets: jnp.reshape(jnp.asarray(time(p)), ())
    return ModelConstraint(function, before, after, f"the switch near {at:.6g}")


def check_links(constraints: Sequence[Constraint], data: Sequence[Trajectory]) -> None:
    """Raise `ValueError` for trajectories that follow none, or in no known way."""
    later = followers(data)
    linked = any(isinstance(c, LinkConstraint) for c in constraints)
    if len(later) and later[0] == 0:
        raise ValueError("trajectory 0 has `follows=True`, and none is before it.")
    if bool(len(later)) != linked:
        raise ValueError(
            f"{len(later)} trajectories have `follows=True` and `constraints` has "
            f"{'a' if linked else 'no'} `LinkConstraint`: it says what holds between "
            "the end of a trajectory and the start of the one that follows."
        )
    for i in later:
        ends = (span_of(data[i - 1])[1], span_of(data[i])[0])
        if ends[0] != ends[1]:
            raise ValueError(
                f"trajectory {i} follows one that ends at t = {ends[0]:.6g} and begins "
                f"at {ends[1]:.6g}: give both that time in their `span`."
            )


def checked_bounds(
    name: str, pair: Any, size: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return a lower and an upper bound, in order; of `(size,)` if that is given."""
    try:
        lower, upper = (np.asarray(b, np.float64) for b in pair)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} is {pair!r}: pass a lower and an upper one."
        ) from error
    if size is not None:
        try:
            lower, upper = (np.broadcast_to(b, (size,)) for b in (lower, upper))
        except ValueError as error:
            raise ValueError(
                f"{name} has shapes {lower.shape} and {upper.shape}: pass numbers, or "
                f"({size},)."
            ) from error
    if np.any(np.isnan(lower)) or np.any(np.isnan(upper)):
        raise ValueError(f"{name} is {pair}: pass -inf or inf where there is no bound.")
    if np.any(lower > upper):
        raise ValueError(f"{name} crosses: lower {lower}, upper {upper}.")
    return lower, upper
