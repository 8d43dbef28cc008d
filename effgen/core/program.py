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
from .sharding import constrain_batch, replicated
from .state import Metrics, TrainState
from .static import Static


class Carry(NamedTuple):
    """What the loop carries: the state's arrays and the guard's two registers."""

    state: tuple[Array, ...]
    failed: Bool[Array, ""]
    in_a_row: Int[Array, ""]


class Inputs(NamedTuple):
    """What the loop reads and never writes."""

    constants: tuple[Array, ...]
    data_key: PRNGKeyArray
    noise_key: PRNGKeyArray
    tolerance: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled chunk of steps.

    **Attributes:**

    - `advance(carry, inputs, batches, first, num)`: take up to `num` steps, donating
      `carry`; returns the carry, the metrics and the codes of the steps taken.
    - `examine(state, inputs, batches, index)`: one step, nothing refused or donated.
    - `capacity`: the most steps that one call may take.
    - `driver`: `"scan"`, one device loop, or `"dispatch"`, one call a step.
    - `seconds`: how long tracing and compiling took.
    - `compiled`: the executable, for its memory and cost analyses.
    """

    advance: Callable[..., tuple[Carry, PyTree, np.ndarray]]
    examine: Callable[..., tuple[Any, Metrics, int]]
    capacity: int
    driver: str
    seconds: float
    compiled: Any


@lru_cache(maxsize=64)
def compiled_program(
    statics: tuple[Static, Static],
    avals: tuple[Carry, Inputs],
    batches: Any,
    mesh: jax.sharding.Mesh | None,
) -> Program:
    """Return the program of a trainer, a state and a kind of batch; compiled once.

    **Arguments:**

    - `statics`: the halves without arrays of the state and of `(trainer, batches)`.
    - `avals`: `(carry, inputs)` as `jax.ShapeDtypeStruct`s.
    - `batches`: the structure and shapes of a stack of host batches, or `None` where
      the batches are computed in the loop.
    - `mesh`: the mesh that the state lives on, or `None` on one device.
    """
    start = time.perf_counter()
    stack = None if batches is None else jax.tree.unflatten(*batches)
    step, layout = _traced(statics, *avals, stack, mesh)
    driver = choose_driver(step.jaxpr)
    build = {"scan": _loop, "dispatch": _single}[driver]
    outputs = None if mesh is None else (_shardings(avals[0]), *[replicated(mesh)] * 2)
    index = jax.ShapeDtypeStruct((), np.int32)
    function = jax.jit(build(step, layout), donate_argnums=0, out_shardings=outputs)
    compiled = function.trace(*avals, stack, index, index).lower().compile()
    advance = {"scan": _advance_loop, "dispatch": _advance_single}[driver]
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

    def examine(
        self, state: tuple[Array, ...], inputs: Inputs, batches: PyTree, index: Any
    ) -> tuple[list[Array], list[Array], Array]:
        """Return the next state, the metrics and the result's code, whatever they are."""
        batch = jax.tree.map(lambda x: x[index], batches)
        flat = jax.tree.leaves((state, inputs[:3], batch))
        out = jex.jaxpr_as_fun(self.jaxpr)(*flat)
        return out[: self.num_state], out[self.num_state : -1], out[-1]

    def guarded(
        self, carry: Carry, inputs: Inputs, batches: PyTree, index: Any
    ) -> tuple[Carry, list[Array]]:
        """Return the next carry: the old state where the step failed.

        A failure within `tolerance` in a row is skipped: only the counter goes on, so
        that the next batch and the next noise are others. One more stops the loop.
        """
        new, metrics, code = self.examine(carry.state, inputs, batches, index)
        bad = code != 0
        in_a_row = jnp.where(bad, carry.in_a_row + 1, 0)
        failed = carry.failed | (in_a_row > inputs.tolerance)
        keep = bad | carry.failed
        old = [*carry.state[:-1], carry.state[-1] + jnp.where(failed, 0, 1)]
        state = tuple(
            jax.lax.select(jnp.broadcast_to(keep, o.shape), o, n)
            for o, n in zip(old, new, strict=True)
        )
        return Carry(state, failed, in_a_row), [*metrics, code]


def _traced(
    statics: tuple[Static, Static], carry: Carry, inputs: Inputs, stack: Any, mesh: Any
) -> tuple[_Step, Layout]:
    structures = []

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
        return _matched(old, new), leaves, _code(metrics, new)

    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), stack)
    jaxpr, (new, metrics, code) = jax.make_jaxpr(step, return_shape=True)(
        carry.state, *inputs[:3], batch
    )
    return _Step(jaxpr, len(new)), layout_of(structures[0], [*metrics, code])


def _code(metrics: Metrics, state: TrainState) -> Array:
    # What is checked must be cheap: two numbers where the trainer gives both, for a
    # gradient norm is finite only if every gradient is.
    watched = [metrics[name] for name in ("loss", "grad_norm") if name in metrics]
    if "grad_norm" not in metrics:
        watched += jax.tree.leaves(eqx.filter(state.model, eqx.is_inexact_array))
    finite = jnp.array(True)
    for value in watched:
        finite &= jnp.isfinite(value).all()
    reported = metrics.get("result", RESULTS.successful)
    if not isinstance(reported, RESULTS):
        raise TypeError(
            f'metrics["result"] is a {type(reported).__name__}: the name is reserved '
            "for an item of `effgen.RESULTS`."
        )
    (code,) = jax.tree.leaves(RESULTS.where(finite, reported, RESULTS.nonfinite))
    return jnp.asarray(code, jnp.int32)


def _matched(old: TrainState, new: TrainState) -> list[Array]:
    """Return the arrays of `new`, in the shapes and dtypes of `old`, or say where not."""
    if not isinstance(new, TrainState):
        raise TypeError(
            f"`step` returned a {type(new).__name__} where the new `TrainState` should "
            "be: return `state.advance(model, opt_state, memory), metrics`."
        )
    new = eqx.tree_at(lambda state: state.step, new, old.step + 1)
    named_old, named_new = _named_arrays(old), _named_arrays(new)
    faults = [
        f"state{name}: {_shape(named_old.get(name))} became {_shape(named_new.get(name))}"
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
    def chunk(carry: Carry, inputs: Inputs, stack: Any, first: Any, num: Any) -> Any:
        def more(loop: Any) -> Array:
            return (loop[0] < num) & ~loop[1].failed

        def body(loop: Any) -> Any:
            i, carry, rows = loop
            carry, leaves = step.guarded(carry, inputs, stack, first + i)
            packed = pack(leaves, layout)
            rows = {dtype: rows[dtype].at[i].set(packed[dtype]) for dtype in rows}
            return i + 1, carry, rows

        zero = jnp.zeros((), jnp.int32)
        num_done, carry, rows = jax.lax.while_loop(
            more, body, (zero, carry, empty_rows(layout))
        )
        return carry, rows, num_done

    return chunk


def _advance_loop(
    compiled: Any,
    layout: Layout,
    carry: Carry,
    inputs: Inputs,
    stack: PyTree,
    first: int,
    num: int,
) -> tuple[Carry, PyTree, np.ndarray]:
    outputs = compiled(carry, inputs, stack, np.int32(first), np.int32(num))
    carry, rows, num_done = outputs
    rows, num_done = jax.device_get((rows, num_done))
    taken = {dtype: row[: int(num_done)].copy() for dtype, row in rows.items()}
    return carry, *unpack(taken, layout)


def _examine(
    function: Any,
    layout: Layout,
    state: tuple[Array, ...],
    inputs: Inputs,
    stack: PyTree,
    index: int,
) -> tuple[Any, Metrics, int]:
    new, metrics, code = function(state, inputs, stack, np.int32(index))
    metrics = jax.tree.unflatten(layout.structure, jax.device_get(metrics))
    return tuple(new), metrics, int(code)


def _single(step: _Step, layout: Layout) -> Callable[..., Any]:
    def chunk(carry: Carry, inputs: Inputs, stack: Any, index: Any, num: Any) -> Any:
        carry, leaves = step.guarded(carry, inputs, stack, index)
        return carry, pack(leaves, layout), carry.failed

    return chunk


def _advance_single(
    compiled: Any,
    layout: Layout,
    carry: Carry,
    inputs: Inputs,
    stack: PyTree,
    first: int,
    num: int,
) -> tuple[Carry, PyTree, np.ndarray]:
    # Calls return before they are computed; the one wait is at the end. A step after a
    # failed one changes nothing, so finding out late costs time only.
    outputs = []
    for i in range(num):
        carry, row, failed = compiled(
            carry, inputs, stack, np.int32(first + i), np.int32(1)
        )
        outputs.append((row, failed))
    outputs = jax.device_get(outputs)
    num_done = next((i + 1 for i, (_, bad) in enumerate(outputs) if bad), num)
    taken = [row for row, _ in outputs[:num_done]]
    stacked = {dtype: np.stack([row[dtype] for row in taken]) for dtype in taken[0]}
    return carry, *unpack(stacked, layout)


def _shardings(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda aval: aval.sharding, tree)
