"""The compiled chunk: a trainer's step traced once, and the loop around it."""

import dataclasses
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex
from jaxtyping import Array, Bool, PRNGKeyArray, PyTree

from .contract import (
    check_tree,
    checked_metrics,
    counted_state,
    result_code,
)
from .loops import default_platform, has_convolution
from .packing import Layout, capacity_of, empty_rows, layout_of, pack, unpack
from .sharding import constrain_batch, constrain_state, replicated
from .state import Metrics, TrainState
from .static import Static, settings
from .trainer import AbstractHostTrainer, AbstractTrainer


Leaves = tuple[Array, ...]


class Inputs(NamedTuple):
    """What the loop reads and never writes."""

    constants: Leaves
    data_key: PRNGKeyArray
    noise_key: PRNGKeyArray


class Advance(NamedTuple):
    """What a call of a program gives.

    **Attributes:** `state`, the arrays after the steps; `metrics`, a `(steps, ...)`
    pytree of numpy arrays; `num`, how many steps were taken, the last of which failed
    unless `sound`; `sound`, whether every step succeeded and the model is finite.
    """

    state: Leaves
    metrics: PyTree
    num: int
    sound: bool


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled chunk of steps.

    **Attributes:**

    - `advance(state, inputs, batches, first, num)`: take `num` steps, or fewer if one
      fails; `state` stays as it was, to come back to.
    - `examine(state, inputs, batches, index)`: one step, nothing refused or donated.
    - `capacity`: the most steps that one call may take.
    - `driver`: `"scan"`, one device loop, or `"dispatch"`, one call a step.
    - `seconds`: how long tracing and compiling took.
    - `compiled`: the executable, for its memory and cost analyses.
    """

    advance: Callable[..., Advance]
    examine: Callable[..., tuple[Any, Metrics, int]]
    capacity: int
    driver: str
    seconds: float
    compiled: Any


class ProgramInfo(NamedTuple):
    """How often programs were found, how often compiled, and how many are kept."""

    hits: int
    misses: int
    currsize: int


class Programs:
    """Compiled programs, by all that they depend on; the last few used are kept.

    A program goes with the functions of the user that it was traced from, so that the
    arrays that these close over are freed.
    """

    def __init__(self, most: int) -> None:
        """Keep at `most` programs."""
        self._most = most
        self._kept: OrderedDict[Hashable, Program] = OrderedDict()
        self._hits = self._misses = 0

    def __call__(
        self,
        statics: tuple[Static, Static],
        avals: tuple[Leaves, Inputs],
        batches: Any,
        mesh: jax.sharding.Mesh | None,
        decay: float | None = None,
    ) -> Program:
        """Return the program of a trainer, a state and a kind of batch; compiled once.

        **Arguments:**

        - `statics`: the halves without arrays of the state and of `(trainer, batches)`.
        - `avals`: `(state, inputs)` as `jax.ShapeDtypeStruct`s.
        - `batches`: the structure and shapes of a stack of host batches, or `None`
          where the batches are computed in the loop.
        - `mesh`: the mesh that the state lives on, or `None` on one device.
        - `decay`: of the model's average, where the state keeps one.
        """
        keys = tuple(static.key for static in statics)
        key = (keys, avals, batches, mesh, decay, choose_driver, settings())
        program = self._kept.get(key)
        self._hits += program is not None
        if program is None:
            self._misses += 1
            program = _compiled(statics, avals, batches, mesh, decay)
            self._keep(key, program, statics[0].owned + statics[1].owned)
        self._kept.move_to_end(key)
        return program

    def cache_info(self) -> ProgramInfo:
        """Return how often programs were found and compiled, and how many are kept."""
        return ProgramInfo(self._hits, self._misses, len(self._kept))

    def cache_clear(self) -> None:
        """Forget all programs and counts."""
        self._kept.clear()
        self._hits = self._misses = 0

    def _keep(self, key: Hashable, program: "Program", owned: list[Any]) -> None:
        self._kept[key] = program
        for value in owned:
            try:
                weakref.finalize(value, self._kept.pop, key, None).atexit = False
            except TypeError:
                continue  # kept by the key
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)


compiled_program = Programs(most=64)


def _compiled(
    statics: tuple[Static, Static],
    avals: tuple[Leaves, Inputs],
    batches: Any,
    mesh: jax.sharding.Mesh | None,
    decay: float | None,
) -> Program:
    start = time.perf_counter()
    stack = None if batches is None else jax.tree.unflatten(*batches)
    step, layout = _traced(statics, *avals, stack, mesh, decay)
    driver = choose_driver(step.jaxpr)
    build, advance, donated = {
        "scan": (_loop, _advance_loop, ()),
        "dispatch": (_single, _advance_single, (0,)),
    }[driver]
    outputs = None if mesh is None else (_shardings(avals[0]), *[replicated(mesh)] * 3)
    index = jax.ShapeDtypeStruct((), np.int32)
    function = jax.jit(
        build(step, layout), donate_argnums=donated, out_shardings=outputs
    )
    compiled = function.trace(*avals, stack, index, index).lower().compile()
    kept_sound = jax.jit(step.kept_sound)
    return Program(
        advance=partial(advance, compiled, layout, kept_sound),
        examine=partial(_examine, jax.jit(step.examine), layout),
        capacity=capacity_of(layout),
        driver=driver,
        seconds=time.perf_counter() - start,
        compiled=compiled,
    )


def choose_driver(jaxpr: Any) -> str:
    """Return `"dispatch"` for convolutions on a CPU, where a device loop is slow."""
    slow = default_platform() == "cpu" and has_convolution(jaxpr)
    return "dispatch" if slow else "scan"


class _Step(NamedTuple):
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

        A number of the optimizer's state that is not finite, or a NaN in the memory
        (where `-inf` may be a log-weight), is unsound in an array that had none.
        """
        sound = jnp.ones((), bool)
        for i in self.optimizer:
            bad = [~jnp.isfinite(state[i]).all() for state in (before, after)]
            sound &= bad[0] | ~bad[1]
        for i in self.memory:
            bad = [jnp.isnan(state[i]).any() for state in (before, after)]
            sound &= bad[0] | ~bad[1]
        return sound


def _traced(
    statics: tuple[Static, Static],
    state: Leaves,
    inputs: Inputs,
    stack: Any,
    mesh: Any,
    decay: float | None,
) -> tuple[_Step, Layout]:
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
    return _Step(jaxpr, len(new), *parts), layout_of(structures[0], metrics)


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
    weight = 1 - jnp.minimum(decay, (1 + n) / (10 + n))

    def leaf(average: Any, model: Any) -> Any:
        if not eqx.is_inexact_array(model):
            return model
        return average + (weight * (model - average)).astype(average.dtype)

    return jax.tree.map(leaf, average, new.model)


def _parts(state: TrainState) -> tuple[tuple[int, ...], ...]:
    """Return which of the state's arrays are parameters, optimizer's and memory."""
    parts, start = [], 0
    for part in (state.model, state.opt_state, state.memory):
        leaves = jax.tree.leaves(part)
        arrays = [leaf for leaf in leaves if isinstance(leaf, jax.ShapeDtypeStruct)]
        inexact = [jnp.issubdtype(array.dtype, jnp.inexact) for array in arrays]
        parts.append(tuple(start + i for i, given in enumerate(inexact) if given))
        start += len(arrays)
    return tuple(parts)


def _loop(step: _Step, layout: Layout) -> Callable[..., Any]:
    def chunk(state: Leaves, inputs: Inputs, stack: Any, first: Any, num: Any) -> Any:
        def more(loop: Any) -> Array:
            return (loop[0] < num) & (loop[1] == 0)

        def body(loop: Any) -> Any:
            i, _, state, rows = loop
            state, metrics, code = step.examine(state, inputs, stack, first + i)
            packed = pack(metrics, layout)
            rows = {dtype: rows[dtype].at[i].set(packed[dtype]) for dtype in rows}
            return i + 1, code, state, rows

        zero = jnp.zeros((), jnp.int32)
        before = state
        num_done, code, state, rows = jax.lax.while_loop(
            more, body, (zero, zero, state, empty_rows(layout))
        )
        sound = (code == 0) & step.finite(state) & step.kept_sound(before, state)
        return state, rows, num_done, sound

    return chunk


def _advance_loop(
    compiled: Any,
    layout: Layout,
    kept_sound: Callable[..., Any],
    state: Leaves,
    inputs: Inputs,
    stack: PyTree,
    first: int,
    num: int,
) -> Advance:
    state, *outputs = compiled(state, inputs, stack, np.int32(first), np.int32(num))
    rows, num_done, sound = jax.device_get(outputs)
    taken = {dtype: row[: int(num_done)].copy() for dtype, row in rows.items()}
    return Advance(state, unpack(taken, layout), int(num_done), bool(sound))


def _single(step: _Step, layout: Layout) -> Callable[..., Any]:
    def chunk(state: Leaves, inputs: Inputs, stack: Any, index: Any, num: Any) -> Any:
        state, metrics, code = step.examine(state, inputs, stack, index)
        sound = (code == 0) & step.finite(state)
        return state, pack(metrics, layout), num, sound

    return chunk


def _advance_single(
    compiled: Any,
    layout: Layout,
    kept_sound: Callable[..., Any],
    state: Leaves,
    inputs: Inputs,
    stack: PyTree,
    first: int,
    num: int,
) -> Advance:
    # Calls return before they are computed; the one wait is at the end. What follows a
    # failed step is thrown away, so finding out late costs time only.
    outputs, before, state = [], state, tuple(map(jnp.copy, state))
    for i in range(num):
        index, one = np.int32(first + i), np.int32(1)
        state, row, _, sound = compiled(state, inputs, stack, index, one)
        outputs.append((row, sound))
    outputs = jax.device_get(outputs)
    num_done = next((i + 1 for i, (_, sound) in enumerate(outputs) if not sound), num)
    taken = [row for row, _ in outputs[:num_done]]
    stacked = {dtype: np.stack([row[dtype] for row in taken]) for dtype in taken[0]}
    sound = bool(outputs[num_done - 1][1]) and bool(kept_sound(before, state))
    return Advance(state, unpack(stacked, layout), num_done, sound)


def _examine(
    function: Any,
    layout: Layout,
    state: Leaves,
    inputs: Inputs,
    stack: PyTree,
    index: int,
) -> tuple[Leaves, Metrics, int]:
    new, metrics, code = function(state, inputs, stack, np.int32(index))
    metrics = jax.tree.unflatten(layout.structure, jax.device_get(metrics))
    return tuple(new), metrics, int(code)


def _shardings(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda aval: aval.sharding, tree)
