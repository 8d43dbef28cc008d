"""Training steps as one compiled program that owns its state, ours and a peer's."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from benchmarks import measure, roofline
from benchmarks.headline_sizes import SEED, Sizes


class Stepper(NamedTuple):
    """Training under way: `take` some steps a call; what one costs and takes."""

    take: Callable[[], Any]
    compile_seconds: float
    demand: roofline.Demand


def begun(trainer: Any, model: Any, memory: Any = None) -> Any:
    """Return a trainer's first state, by one program in place of many small ones."""
    return eqx.filter_jit(trainer.init)(model, memory)


def program(trainer: Any, state: Any, source: Any, num: int) -> tuple[Any, Any, Any]:
    """Return what takes `num` steps, and the arrays that it takes: state and data."""
    arrays, static = eqx.partition(state, eqx.is_array)
    data, kind = eqx.partition(source, eqx.is_array)

    def step(arrays: Any, data: Any, key: Any) -> tuple[Any, Any]:
        state, source = eqx.combine(arrays, static), eqx.combine(data, kind)
        batch = source.batch_at(state.step, key=key)
        new, metrics = trainer.step(state, batch, key=key)
        return eqx.filter(new, eqx.is_array), eqx.filter(metrics, eqx.is_array)

    @partial(jax.jit, donate_argnums=0)
    def steps(arrays: Any, data: Any) -> tuple[Any, Any]:
        keys = jax.random.split(jax.random.key(SEED), num)
        return jax.lax.scan(lambda a, key: step(a, data, key), arrays, keys)

    return steps, arrays, data


def stepper(trainer: Any, state: Any, source: Any, num: int) -> Stepper:
    """Return what takes `num` steps a call, compiled, and owns the state."""
    steps, arrays, data = program(trainer, state, source, num)
    lowered = steps.lower(arrays, data)
    began = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - began
    asked = roofline.demand(lowered, compiled)  # of a loop XLA counts one turn
    held = [jax.tree.map(jnp.copy, arrays)]

    def take() -> Any:
        held[0], metrics = compiled(held[0], data)
        return metrics

    return Stepper(take, seconds, asked)


def compared(steppers: dict[str, Stepper], ours: str, sizes: Sizes) -> dict[str, Any]:
    """Return a step's median time of each, and the peers' over ours."""
    work = {name: x.take for name, x in steppers.items()}
    times = measure.interleaved(work, rounds=sizes.rounds)
    peers = [name for name in times if name != ours]
    return {
        "milliseconds": {n: roofline.median(t) / sizes.steps for n, t in times.items()},
        "peer_over_ours": {
            name: measure.paired_ratio(times[name], times[ours]) for name in peers
        },
        "compile_seconds": {n: x.compile_seconds for n, x in steppers.items()},
    }


def peaks_of(sizes: Sizes) -> dict[str, float]:
    return roofline.peaks(matrix=sizes.matrix, copied=sizes.copied, rounds=sizes.rounds)


def check_room(needed: float) -> None:
    """Raise `MemoryError` if the device has no room, rather than try."""
    stats = jax.devices()[0].memory_stats() or {}
    limit = stats.get("bytes_limit")
    if limit is not None and needed > 0.95 * limit:
        raise MemoryError(f"needs {needed:.3g} bytes of the device's {limit:.3g}")


def reason(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:300]
