"""The compiled chunk: a trainer's step traced once, and the loop around it."""

import dataclasses
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from effgen.core.contract.static import Static, settings
from effgen.core.devices.sharding import replicated

from .loops import compiler_options, default_platform, has_convolution
from .packing import Layout, capacity_of, empty_rows, pack, unpack
from .step import Inputs, Leaves, Step, traced


class Advance(NamedTuple):
    """What a call of a program gives.

    Attributes:
        state: The arrays after the steps.
        metrics: A `(steps, ...)` pytree of numpy arrays.
        num: How many steps were taken, the last of which failed unless `sound`.
        sound: Whether every step succeeded and the model is finite.
        code: The result of the last step.
    """

    state: Leaves
    metrics: PyTree
    num: int
    sound: bool
    code: int = 0


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled chunk of steps.

    Attributes:
        advance: `advance(state, inputs, batches, first, num)`: take `num` steps, or
            fewer if one fails, which is taken too; `state` stays as it was, to come
            back to.
        capacity: The most steps that one call may take.
        driver: `"scan"`, one device loop, or `"dispatch"`, one call a step.
        seconds: How long tracing and compiling took.
        compiled: The executable, for its memory and cost analyses.
    """

    advance: Callable[..., Advance]
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

        Arguments:
            statics: The halves without arrays of the state and of `(trainer, batches)`.
            avals: `(state, inputs)` as `jax.ShapeDtypeStruct`s.
            batches: The structure and shapes of a stack of host batches, or `None`
                where the batches are computed in the loop.
            mesh: The mesh that the state lives on, or `None` on one device.
            decay: Of the model's average, where the state keeps one.
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
    step, layout = traced(statics, *avals, stack, mesh, decay)
    driver = choose_driver(step.jaxpr)
    build, advance, donated = {
        "scan": (_loop, _advance_loop, ()),
        "dispatch": (_single, _advance_single, (0,)),
    }[driver]
    outputs = None if mesh is None else (_shardings(avals[0]), *[replicated(mesh)] * 4)
    index = jax.ShapeDtypeStruct((), np.int32)
    function = jax.jit(
        build(step, layout), donate_argnums=donated, out_shardings=outputs
    )
    lowered = function.trace(*avals, stack, index, index).lower()
    compiled = _compile(lowered, compiler_options(step.jaxpr))
    kept_sound = jax.jit(step.kept_sound)
    return Program(
        advance=partial(advance, compiled, layout, kept_sound),
        capacity=capacity_of(layout),
        driver=driver,
        seconds=time.perf_counter() - start,
        compiled=compiled,
    )


def _compile(lowered: Any, options: dict[str, str]) -> Any:
    """Compile with options, or without those that this release of XLA has not."""
    try:
        return lowered.compile(options or None)
    except jax.errors.JaxRuntimeError as error:
        if not options or "compile option" not in str(error):
            raise
        return lowered.compile()


def choose_driver(jaxpr: Any) -> str:
    """Return `"dispatch"` for convolutions on a CPU, where a device loop is slow."""
    slow = default_platform() == "cpu" and has_convolution(jaxpr)
    return "dispatch" if slow else "scan"


def _loop(step: Step, layout: Layout) -> Callable[..., Any]:
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
        return state, rows, num_done, sound, code

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
    rows, num_done, sound, code = jax.device_get(outputs)
    taken = {dtype: row[: int(num_done)].copy() for dtype, row in rows.items()}
    metrics = unpack(taken, layout)
    return Advance(state, metrics, int(num_done), bool(sound), int(code))


def _single(step: Step, layout: Layout) -> Callable[..., Any]:
    def chunk(state: Leaves, inputs: Inputs, stack: Any, index: Any, num: Any) -> Any:
        state, metrics, code = step.examine(state, inputs, stack, index)
        sound = (code == 0) & step.finite(state)
        return state, pack(metrics, layout), num, sound, code

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
        state, row, _, *ended = compiled(state, inputs, stack, index, one)
        outputs.append((row, *ended))
    outputs = jax.device_get(outputs)
    num_done = next(
        (i + 1 for i, (_, sound, _) in enumerate(outputs) if not sound), num
    )
    taken = [row for row, *_ in outputs[:num_done]]
    stacked = {dtype: np.stack([row[dtype] for row in taken]) for dtype in taken[0]}
    _, sound, code = outputs[num_done - 1]
    sound = bool(sound) and bool(kept_sound(before, state))
    return Advance(state, unpack(stacked, layout), num_done, sound, int(code))


def _shardings(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda aval: aval.sharding, tree)
