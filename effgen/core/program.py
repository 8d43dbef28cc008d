"""The compiled chunk: a trainer's step traced once, and the loop around it."""

import dataclasses
import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex
from jaxtyping import Array, Bool, Int, PRNGKeyArray, PyTree

from .loops import default_platform, has_convolution
from .packing import Layout, capacity_of, empty_rows, layout_of, pack, unpack
from .results import RESULTS
from .sharding import constrain_batch, constrain_state, replicated
from .state import Metrics, TrainState
from .static import Static


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


@lru_cache(maxsize=64)
def compiled_program(
    statics: tuple[Static, Static],
    avals: tuple[Leaves, Inputs],
    batches: Any,
    mesh: jax.sharding.Mesh | None,
) -> Program:
    """Return the program of a trainer, a state and a kind of batch; compiled once.

    **Arguments:**

    - `statics`: the halves without arrays of the state and of `(trainer, batches)`.
    - `avals`: `(state, inputs)` as `jax.ShapeDtypeStruct`s.
    - `batches`: the structure and shapes of a stack of host batches, or `None` where
      the batches are computed in the loop.
    - `mesh`: the mesh that the state lives on, or `None` on one device.
    """
    start = time.perf_counter()
    stack = None if batches is None else jax.tree.unflatten(*batches)
    step, layout = _traced(statics, *avals, stack, mesh)
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
    return Program(
        advance=partial(advance, compiled, layout),
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
    """A step as a jaxpr: Python ran once, and every loop is built from this."""

    jaxpr: Any
    num_state: int
    trained: tuple[int, ...]

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


def _traced(
    statics: tuple[Static, Static], state: Leaves, inputs: Inputs, stack: Any, mesh: Any
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
        new, metrics = trainer.step(old, batch, key=step_key)
        leaves, structure = jax.tree.flatten(metrics)
        structures.append(structure)
        leaves = [jnp.asarray(leaf) for leaf in leaves]
        arrays = constrain_state(_matched(old, new), placed, mesh)
        return arrays, leaves, _code(metrics)

    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), stack)
    jaxpr, (new, metrics, _) = jax.make_jaxpr(step, return_shape=True)(
        state, *inputs, batch
    )
    step_ = _Step(jaxpr, len(new), _trained(statics[0].combine(state)))
    return step_, layout_of(structures[0], metrics)


def _trained(state: TrainState) -> tuple[int, ...]:
    """Return which of the state's arrays are parameters: the model's, its first."""
    leaves = jax.tree.leaves(state.model)
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.ShapeDtypeStruct)]
    inexact = [jnp.issubdtype(array.dtype, jnp.inexact) for array in arrays]
    return tuple(i for i, trained in enumerate(inexact) if trained)


def _code(metrics: Metrics) -> Int[Array, ""]:
    finite = jnp.ones((), bool)
    for name in ("loss", "grad_norm"):
        if name in metrics:
            finite &= jnp.isfinite(metrics[name]).all()
    reported = metrics.get("result", RESULTS.successful)
    if not isinstance(reported, RESULTS):
        raise TypeError(
            f'metrics["result"] is a {type(reported).__name__}: the name is reserved '
            "for an item of `effgen.RESULTS`."
        )
    (code,) = jax.tree.leaves(RESULTS.where(finite, reported, RESULTS.nonfinite))
    return jnp.asarray(code, jnp.int32)


def _matched(old: TrainState, new: TrainState) -> list[Array]:
    """Return the arrays of `new`, shaped as those of `old`, or say where not."""
    if not isinstance(new, TrainState):
        raise TypeError(
            f"`step` returned a {type(new).__name__} where the new `TrainState` should "
            "be: return `state.advance(model, opt_state, memory), metrics`."
        )
    new = eqx.tree_at(lambda state: state.step, new, old.step + 1)
    named_old, named_new = _named_arrays(old), _named_arrays(new)
    faults = [
        f"state{name}: {_shape(named_old.get(name))} became "
        f"{_shape(named_new.get(name))}"
        for name in {**named_old, **named_new}
        if _shape(named_old.get(name)) != _shape(named_new.get(name))
    ]
    if faults:
        raise ValueError(
            "`step` must return a state with the arrays it was given, but "
            + "; ".join(faults)
            + ". Cast or reshape them back, and give `init` a complete first state."
        )
    return [jnp.asarray(x, x.dtype) for x in named_new.values()]


def _named_arrays(tree: PyTree) -> dict[str, Array]:
    arrays = eqx.filter(tree, eqx.is_array)
    leaves, _ = jax.tree_util.tree_flatten_with_path(arrays)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _shape(array: Array | None) -> str:
    return "nothing" if array is None else f"{array.dtype}{list(array.shape)}"


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
        num_done, code, state, rows = jax.lax.while_loop(
            more, body, (zero, zero, state, empty_rows(layout))
        )
        return state, rows, num_done, (code == 0) & step.finite(state)

    return chunk


def _advance_loop(
    compiled: Any,
    layout: Layout,
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
    state: Leaves,
    inputs: Inputs,
    stack: PyTree,
    first: int,
    num: int,
) -> Advance:
    # Calls return before they are computed; the one wait is at the end. What follows a
    # failed step is thrown away, so finding out late costs time only.
    outputs, state = [], tuple(map(jnp.copy, state))
    for i in range(num):
        index, one = np.int32(first + i), np.int32(1)
        state, row, _, sound = compiled(state, inputs, stack, index, one)
        outputs.append((row, sound))
    outputs = jax.device_get(outputs)
    num_done = next((i + 1 for i, (_, sound) in enumerate(outputs) if not sound), num)
    taken = [row for row, _ in outputs[:num_done]]
    stacked = {dtype: np.stack([row[dtype] for row in taken]) for dtype in taken[0]}
    sound = bool(outputs[num_done - 1][1])
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
