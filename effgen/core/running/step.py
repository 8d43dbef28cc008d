"""A step as a jaxpr: traced once, held to its contract; every loop is built from it."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend import core as jex
from jaxtyping import Array, Bool, PRNGKeyArray, PyTree

from effgen.core.contract.checks import (
    check_tree,
    checked_metrics,
    counted_state,
    result_code,
)
from effgen.core.contract.state import Metrics, TrainState
from effgen.core.contract.static import Static
from effgen.core.contract.trainer import AbstractHostTrainer, AbstractTrainer
from effgen.core.devices.sharding import constrain_batch, constrain_state

from .packing import Layout, layout_of


Leaves = tuple[Array, ...]


class Inputs(NamedTuple):
    """What the loop reads and never writes."""

    constants: Leaves
    data_key: PRNGKeyArray
    noise_key: PRNGKeyArray


class Step(NamedTuple):
    """A step as a jaxpr: Python ran once, and every loop is built from this.

    `trained`, `optimizer` and `memory` say which of the state's arrays are which.
    """

    jaxpr: Any
    num_state: int
    trained: tuple[int, ...]
    optimizer: tuple[int, ...]
    memory: tuple[int, ...]

    def examine(
        self, state: Leaves, inputs: Inputs, batches: PyTree, index: Any
    ) -> tuple[Leaves, list[Array], Array]:
        """Return the next state, the metrics and the result's code, whatever it is."""
        batch = jax.tree.map(lambda x: x[index], batches)
        out = jex.jaxpr_as_fun(self.jaxpr)(*jax.tree.leaves((state, inputs, batch)))
        return tuple(out[: self.num_state]), out[self.num_state : -1], out[-1]

    def finite(self, state: Leaves) -> Bool[Array, ""]:
        """Return whether every parameter of the model is finite."""
        finite = jnp.ones((), bool)
        for i in self.trained:
            finite &= jnp.isfinite(state[i]).all()
        return finite

    def kept_sound(self, before: Leaves, after: Leaves) -> Bool[Array, ""]:
        """Return whether optimizer and memory kept sound what was.

        What an optimizer keeps of each parameter is unsound where it is not finite; the
        rest, and the memory, where it is NaN (`-inf` may be a log-weight): in an array
        that had none before.
        """
        sound = jnp.ones((), bool)
        for i in self.optimizer:
            bad = [~jnp.isfinite(state[i]).all() for state in (before, after)]
            sound &= bad[0] | ~bad[1]
        for i in self.memory:
            bad = [jnp.isnan(state[i]).any() for state in (before, after)]
            sound &= bad[0] | ~bad[1]
        return sound


def traced(
    statics: tuple[Static, Static],
    state: Leaves,
    inputs: Inputs,
    stack: Any,
    mesh: Any,
    decay: float | None,
) -> tuple[Step, Layout]:
    """Return the step as a jaxpr, and how its metrics are packed.

    Arguments:
        statics: The static halves of the state and of `(trainer, batches)`.
        state: The shapes of the state.
        inputs: The shapes of the inputs.
        stack: The shapes of a stack of batches, if any.
        mesh: The mesh, if any.
        decay: The decay of the model's average, if it has one.
    """
    structures, placed = [], state

    def step(
        state: Any, constants: Any, data_key: Any, noise_key: Any, batch: Any
    ) -> tuple[list[Array], list[Array], Array]:
        old = statics[0].combine(state)
        trainer, source = statics[1].combine(constants)
        if source is not None:
            batch = source.batch_at(old.step, key=data_key)
        batch = constrain_batch(batch, mesh)
        step_key = jax.random.fold_in(noise_key, old.step)
        new, metrics = next_state(trainer, old, batch, decay, key=step_key)
        leaves, structure = jax.tree.flatten(metrics)
        structures.append(structure)
        leaves = [jnp.asarray(leaf) for leaf in leaves]
        arrays = jax.tree.leaves(eqx.filter(new, eqx.is_array))
        arrays = [jnp.asarray(x, x.dtype) for x in arrays]
        arrays = constrain_state(arrays, placed, mesh)
        return arrays, leaves, result_code(metrics)

    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), stack)
    jaxpr, (new, metrics, _) = jax.make_jaxpr(step, return_shape=True)(
        state, *inputs, batch
    )
    parts = _parts(statics[0].combine(state))
    return Step(jaxpr, len(new), *parts), layout_of(structures[0], metrics)


def next_state(
    trainer: AbstractTrainer,
    old: TrainState,
    batch: PyTree,
    decay: float | None,
    *,
    key: PRNGKeyArray,
) -> tuple[TrainState, Metrics]:
    """Take one step of `trainer`, hold it to its contract, and average the model.

    The steps of host trainers may change the shapes of their arrays.
    """
    given = TrainState(old.model, old.opt_state, old.memory, old.step)
    new, metrics = trainer.step(given, batch, key=key)
    new = counted_state(given, new)
    if not isinstance(trainer, AbstractHostTrainer):
        check_tree(given, new)
    average = None if decay is None else averaged_model(old.average, new, decay)
    parts = new.model, new.opt_state, new.memory, new.step, average
    return TrainState(*parts), checked_metrics(metrics)


def averaged_model(average: PyTree, new: TrainState, decay: float) -> PyTree:
    """Return `average` after a step, as `effgen.averaged` has it."""
    n = new.step.astype(jnp.float32)
    # `1 - d`, without the rounding of a `decay` close to one.
    weight = jnp.maximum(1 - decay, 9 / (10 + n))

    def leaf(average: Any, model: Any) -> Any:
        if not eqx.is_inexact_array(model):
            return model
        model = model.astype(average.dtype)
        return average + (weight * (model - average)).astype(average.dtype)

    return jax.tree.map(leaf, average, new.model)


def shapes_of_parameters(model: PyTree) -> frozenset[tuple[int, ...]]:
    """Return the shapes of the parameters; of numbers only where all are numbers.

    What an optimizer keeps of each parameter has its shape; numbers beside may be
    infinite, such as the error of a line search that left the domain.
    """
    leaves = [x for x in jax.tree.leaves(model) if hasattr(x, "shape")]
    shapes = {x.shape for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)}
    return frozenset(shapes - {()} or shapes)


def _parts(state: TrainState) -> tuple[tuple[int, ...], ...]:
    """Return which of the state's arrays are parameters, optimizer's and memory.

    Of the optimizer's state, what has the shape of a parameter; the rest is watched
    like the memory.
    """
    parts, start = [], 0
    for part in (state.model, state.opt_state, state.memory):
        leaves = jax.tree.leaves(part)
        arrays = [leaf for leaf in leaves if isinstance(leaf, jax.ShapeDtypeStruct)]
        inexact = [jnp.issubdtype(array.dtype, jnp.inexact) for array in arrays]
        parts.append([start + i for i, given in enumerate(inexact) if given])
        start += len(arrays)
    trained, optimizer, memory = parts
    shapes = shapes_of_parameters(state.model)
    leaves = jax.tree.leaves(eqx.filter(state, lambda x: hasattr(x, "dtype")))
    shaped = [i for i in optimizer if leaves[i].shape in shapes]
    beside = [i for i in optimizer if leaves[i].shape not in shapes]
    return tuple(trained), tuple(shaped), (*beside, *memory)
