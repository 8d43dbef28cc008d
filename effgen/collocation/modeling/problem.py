"""The problem as a modeler states it: equations, measurements, bounds, constraints."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from effgen.core.contract.counts import check_count

from .constraints import (
    BoundaryConstraint as BoundaryConstraint,
    Constraint as Constraint,
    LinkConstraint as LinkConstraint,
    ModelConstraint as ModelConstraint,
    PathConstraint as PathConstraint,
    check_functions,
    check_links,
    checked_bounds,
    checked_constraints,
    retimed,
)
from .doses import check_amount, checked_doses
from .initial import Initial as Initial, checked_initial
from .inputs import with_found_jumps
from .misfits import AbstractMisfit, Squares, check_misfit
from .model import (
    Model as Model,
    as_model as as_model,
    as_numbers as as_numbers,
    as_trained as as_trained,
    in_double as in_double,
    names_of_model as names_of_model,
)
from .phases import (
    Bracket,
    Switch as Switch,
    brackets_of,
    on_clock,
    with_edges,
)
from .priors import Prior as Prior, checked_priors
from .trajectories import Trajectory as Trajectory, as_trajectories


_ROUNDING = 1e-12

Table = Array | np.ndarray
"""Numpy's on the host, JAX's on a device."""


class Problem(eqx.Module):
    """A physics-enhanced neural ODE and its data.

        minimize   mean of misfit((y - observe(t, x, u, p, nets)) / scale) over values
                   + sum over trajectories of (integral of lagrange dt + mayer)
                   + penalty(p, nets) + priors / values + weight_decay |nets|^2 / 2
        subject to dx/dt = vector_field(t, x, u, p, nets)

    Arguments:
        vector_field: `(t, x, u, p, nets)` to `dx/dt`, `(state,)`. The last
            `num_algebraic` of its values are residuals, `0 = g`, of a DAE of index 1
            (also 2 and 3, with less order: see docs/collocation.md).
        data: `(ts, ys)`, `(ts, ys, inputs)`, a `Trajectory`, or a list of these.
        observe: `(t, x, u, p, nets)` to what is measured, `(outputs,)`; by default `x`.
        num_states: The number of states; needed where `observe` is given.
        num_algebraic: How many of the states, the last ones, are algebraic.
        scale: What a residual of each output is divided by, a number or `(outputs,)`,
            in its units. With the noise's standard deviation, the misfit is a
            log-likelihood. By default the fit estimates the outputs' noise: `scale`
            begins at their standard deviations in the data (of equal values, at their
            size), keeps the geometric mean of these, and takes the ratios of the noise.
        nominal: The size of each state, a number or `(state,)`, in its units. The
            solver sees states divided by it. By default the largest absolute value in
            the data, or 1 where `observe` is given.
        initial: What is known of the starts; by default they are free.
        state_bounds: Lower and upper bounds of the states, numbers or `(state,)`.
        parameter_bounds: Lower and upper bounds, numbers or pytrees like `parameters`;
            a number in them is for all of its part.
        constraints: Path, boundary, model and link constraints.
        lagrange: `(t, x, u, p, nets)` to a cost by time, a number.
        mayer: `(x_start, x_end, p, nets)` to a cost, a number.
        penalty: `(p, nets)` to a cost, a number.
        weight_decay: Of the networks, a number or a pytree of numbers for their parts.
        hold: How sampled inputs continue between samples, `"linear"` or `"previous"`; a
            `Trajectory` may have its own. `None` is linear, but refuses inputs that
            move in steps.
        parameter_nominal: The size of each parameter, a number or a pytree like
            `parameters`; by default that of the guess. The solver sees parameters
            divided by it where it is far from one.
        switches: Times that are parameters, where the law or a phase ends. The law, and
            what depends on `t`, is on the mesh's clock between the samples around one.
        misfit: The cost of a residual: `Squares()`, half its square, by default. Where
            some samples are far out `Huber()` or `SoftL1()`, which need a `scale`.
        priors: Priors of parameters, each number of which counts like one more
            measured value.

    Attributes:
        vector_field: The law, as it was passed.
        mesh_field: The law on the mesh's clock: other than it around switches alone.
        is_sized: Whether `nominal` was passed, or is that of measured states.

    Raises:
        TypeError: For functions, data or constraints of another type.
        ValueError: For data or settings that cannot be, named by trajectory.

    Source:
        Langenkamp, Hannebohm and Bachmann (2025).
    """

    vector_field: Callable[..., Array]
    mesh_field: Callable[..., Array]
    data: tuple[Trajectory, ...]
    observe: Callable[..., Array] | None
    num_states: int
    num_algebraic: int
    scale: Float[np.ndarray, " outputs"]
    spread: Float[np.ndarray, " outputs"]
    weighs: bool
    nominal: Float[np.ndarray, " state"]
    is_sized: bool = eqx.field(static=True)
    initial: Initial | None
    state_bounds: tuple[np.ndarray, np.ndarray]
    parameter_bounds: Any
    parameter_nominal: Any
    constraints: tuple[Constraint, ...]
    lagrange: Callable[..., Array] | None
    mayer: Callable[..., Array] | None
    penalty: Callable[..., Array] | None
    weight_decay: Any
    brackets: tuple[Bracket, ...]
    misfit: AbstractMisfit
    priors: tuple[Prior, ...]

    def __init__(
        self,
        vector_field: Callable[..., Array],
        data: Any,
        *,
        observe: Callable[..., Array] | None = None,
        num_states: int | None = None,
        num_algebraic: int = 0,
        scale: ArrayLike | None = None,
        nominal: ArrayLike | None = None,
        initial: Initial | None = None,
        state_bounds: tuple[ArrayLike, ArrayLike] = (-np.inf, np.inf),
        parameter_bounds: Any = (-np.inf, np.inf),
        constraints: Sequence[Constraint] = (),
        lagrange: Callable[..., Array] | None = None,
        mayer: Callable[..., Array] | None = None,
        penalty: Callable[..., Array] | None = None,
        weight_decay: Any = 0.0,
        hold: str | None = None,
        parameter_nominal: Any = None,
        switches: Sequence[Switch] = (),
        misfit: AbstractMisfit = Squares(),
        priors: Sequence[Prior] = (),
    ) -> None:
        """Check the data and fill in what follows from them."""
        check_functions(
            vector_field=vector_field,
            observe=observe,
            lagrange=lagrange,
            mayer=mayer,
            penalty=penalty,
        )
        self.vector_field, self.observe = vector_field, observe
        check_misfit(misfit, scaled=scale is not None)
        self.misfit, self.priors = misfit, checked_priors(priors)
        found = as_trajectories(data, hold)
        self.data = tuple(map(with_found_jumps, found))
        outputs = self.data[0].ys.shape[1]
        if num_states is None and observe is not None:
            raise ValueError("pass `num_states`, which `observe` does not tell.")
        size = outputs if num_states is None else num_states
        check_count("num_states", size)
        size = int(size)
        if observe is None and size != outputs:
            raise ValueError(
                f"`ys` has {outputs} columns and there are {size} states: pass "
                "`observe`, which says what is measured."
            )
        if num_algebraic not in range(size + 1):
            raise ValueError(
                f"`num_algebraic` is {num_algebraic} of {size} states: pass how many, "
                "the last ones, are algebraic."
            )
        self.num_states, self.num_algebraic = size, int(num_algebraic)
        self.data = tuple(
            t._replace(doses=checked_doses(i, t.doses, t.span or (0.0, 0.0)))
            for i, t in enumerate(self.data)
        )
        for i, trajectory in enumerate(self.data):
            check_amount(i, trajectory.doses, size, num_algebraic)
        self.spread = _spread(np.concatenate([t.ys for t in self.data]))
        self.scale = _vector("scale", self.spread if scale is None else scale, outputs)
        self.weighs = scale is None and outputs > 1
        self.is_sized = nominal is not None or observe is None
        if nominal is None:
            nominal = _size(self.data) if observe is None else 1.0
        self.nominal = _vector("nominal", nominal, size)
        self.state_bounds = checked_bounds("`state_bounds`", state_bounds, size)
        follows = [t.follows for t in self.data]
        self.initial = checked_initial(initial, follows, size, self.state_bounds)
        self.parameter_bounds = parameter_bounds
        self.parameter_nominal = _checked_sizes(parameter_nominal)
        constraints = checked_constraints(constraints)
        check_links(constraints, self.data)
        self.brackets = brackets_of(switches, self.data)
        self.data = tuple(with_edges(t, self.brackets) for t in self.data)
        self.mesh_field = on_clock(vector_field, self.brackets, size - num_algebraic)
        lagrange = on_clock(lagrange, self.brackets, 1)
        self.constraints = retimed(constraints, self.brackets)
        self.lagrange, self.mayer, self.penalty = lagrange, mayer, penalty
        if lagrange is None and mayer is None:
            _check_seen(self.data)
        self.weight_decay = _checked_decay(weight_decay)

    def without_data(self) -> "Problem":
        """Return the problem's functions and scales alone, which can be compiled.

        Returns:
            The problem with `data` empty.
        """
        return eqx.tree_at(lambda p: p.data, self, ())

    def decays(self, networks: PyTree) -> PyTree:
        """Return the weight decay of each array of the networks.

        Arguments:
            networks: The networks, a pytree.

        Returns:
            Their inexact arrays' weight decays, a pytree.

        Raises:
            ValueError: For a `weight_decay` that is no part of the networks' tree.
        """
        arrays = eqx.filter(networks, eqx.is_inexact_array)
        if not jax.tree.leaves(arrays):
            return None
        try:
            return jax.tree.broadcast(self.weight_decay, arrays)
        except ValueError as error:
            raise ValueError(
                f"`weight_decay` is {jax.tree.structure(self.weight_decay)}, and the "
                "networks are another tree: pass a number, or a pytree like the "
                f"networks or a part of their tree ({error})."
            ) from error

    def decay(self, networks: PyTree) -> Float[Array, ""]:
        """Return `weight_decay |networks|^2 / 2`.

        Arguments:
            networks: The networks, a pytree.

        Returns:
            A scalar.

        Raises:
            ValueError: For a `weight_decay` that is no part of the networks' tree.
        """
        arrays = eqx.filter(networks, eqx.is_inexact_array)
        decays = self.decays(networks)
        pairs = zip(jax.tree.leaves(decays), jax.tree.leaves(arrays), strict=True)
        return sum((0.5 * d * jnp.sum(w**2) for d, w in pairs), start=jnp.zeros(()))

    def outputs(
        self, t: Table, x: Array, u: Table, p: PyTree, nets: PyTree
    ) -> Float[Array, " outputs"]:
        """Return what is measured at a state.

        Arguments:
            t: The time.
            x: The state, `(state,)`, in its units.
            u: The known inputs, `(inputs,)`.
            p: The parameters.
            nets: The networks.

        Returns:
            The outputs, `(outputs,)`, in the units of `ys`.
        """
        if self.observe is None:
            return x
        return jnp.atleast_1d(jnp.asarray(self.observe(t, x, u, p, nets)))


def _check_seen(data: Sequence[Trajectory]) -> None:
    if all(np.all(np.isnan(t.ys)) for t in data):
        raise ValueError(
            "`ys` has no value, and there is no `lagrange` or `mayer` cost: nothing "
            "would determine the parameters."
        )


def _checked_decay(weights: Any) -> PyTree:
    if weights is None:
        raise ValueError("`weight_decay` is None: pass a number of at least 0.")
    return jax.tree.map(_weight, weights)


def _weight(weight: Any) -> np.ndarray:
    if not (np.ndim(weight) == 0 and np.isfinite(weight) and weight >= 0):
        raise ValueError(
            f"`weight_decay` is {weight}: pass a number of at least 0, or a pytree of "
            "such, like the networks or a part of their tree."
        )
    return np.asarray(weight, np.float64)


def _checked_sizes(sizes: Any) -> Any:
    for size in jax.tree.leaves(sizes):
        array = np.asarray(size)
        good = array.dtype.kind in "iuf" and np.all(np.isfinite(array))
        if not (good and np.all(array > 0)):
            raise ValueError(
                f"`parameter_nominal` has {size}: pass positive numbers, the size of "
                "each parameter."
            )
    return sizes


def _spread(ys: np.ndarray) -> np.ndarray:
    """Return each output's standard deviation; of equal values, their size."""
    columns = [y[~np.isnan(y)] for y in ys.T]
    found = np.array([np.std(y) if len(y) else 0.0 for y in columns])
    size = np.array([np.abs(y).max(initial=0.0) for y in columns])
    # The deviation of equal values is not zero but their rounding.
    return np.where(found > _ROUNDING * size, found, np.where(size > 0, size, 1.0))


def _size(data: Sequence[Trajectory]) -> np.ndarray:
    """Return the largest value of each output: a scale that is never near zero."""
    ys = np.abs(np.concatenate([t.ys for t in data]))
    found = np.where(np.isnan(ys), 0, ys).max(0)
    return np.where(found > 0, found, 1.0)


def _vector(name: str, value: ArrayLike, size: int) -> np.ndarray:
    array = np.asarray(value, np.float64)
    good = np.all(array > 0) and np.all(np.isfinite(array))
    if array.shape not in ((), (size,)) or not good:
        raise ValueError(f"`{name}` is {array}: pass a positive number, or ({size},).")
    return np.broadcast_to(array, (size,)).copy()


def flat_bounds(
    bounds: Any, parameters: PyTree
) -> tuple[Float[np.ndarray, " flat"], Float[np.ndarray, " flat"]]:
    """Return lower and upper bounds of the raveled parameters.

    Raises:
        ValueError: For bounds that cross or are not like `parameters`.
    """
    leaves = jax.tree.leaves(eqx.filter(parameters, eqx.is_inexact_array))
    if not leaves:
        return np.zeros(0), np.zeros(0)
    arrays = eqx.filter(parameters, eqx.is_inexact_array)
    flat = []
    for side in bounds:
        try:
            full = jax.tree.broadcast(side, arrays)
        except ValueError as error:
            raise ValueError(
                "`parameter_bounds` must be two numbers, or two pytrees like "
                f"`parameters`: {error}"
            ) from error
        pairs = zip(jax.tree.leaves(full), leaves, strict=True)
        try:
            parts = [np.broadcast_to(b, a.shape).ravel() for b, a in pairs]
        except ValueError as error:
            raise ValueError(
                f"`parameter_bounds` has a bound of another shape than its parameter: "
                f"{error}"
            ) from error
        flat.append(np.concatenate(parts))
    return checked_bounds("`parameter_bounds`", flat, len(flat[0]))
