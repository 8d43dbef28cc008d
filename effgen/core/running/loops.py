"""Which loop is fast for a program on a device: compiled, or unrolled."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.extend import core as jex
from jaxtyping import Array, Int


State = TypeVar("State")

# YNNPACK handles arrays of fewer axes, and ends the process at more (jaxlib 0.10.2).
_MOST_AXES = 7


def has_convolution(jaxpr: Any) -> bool:
    """Return whether a (closed) jaxpr computes a convolution, at any depth."""
    return _has(jaxpr, _is_convolution)


def compiler_options(jaxpr: Any) -> dict[str, str]:
    """Return what XLA is told of a (closed) jaxpr: no YNNPACK for sums of many axes.

    Derivatives of convolutions, mapped over a batch, have such sums.
    """
    wide = default_platform() == "cpu" and _has(jaxpr, _sums_many_axes)
    return {"xla_cpu_experimental_ynn_fusion_type": ""} if wide else {}


def _is_convolution(equation: Any) -> bool:
    return equation.primitive.name == "conv_general_dilated"


def _sums_many_axes(equation: Any) -> bool:
    is_sum = equation.primitive.name.startswith("reduce_")
    return is_sum and any(
        getattr(x.aval, "ndim", 0) > _MOST_AXES for x in equation.invars
    )


def _has(jaxpr: Any, test: Callable[[Any], bool]) -> bool:
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    return any(
        test(equation)
        or any(_has(each, test) for each in _inner_jaxprs(equation.params))
        for equation in inner.eqns
    )


def _inner_jaxprs(params: dict[str, Any]) -> list[Any]:
    values = jax.tree.leaves(
        list(params.values()), is_leaf=lambda v: isinstance(v, _JAXPRS)
    )
    return [value for value in values if isinstance(value, _JAXPRS)]


_JAXPRS = (
    jex.Jaxpr,
    jex.ClosedJaxpr,  # pyright: ignore[reportPrivateImportUsage]
)


def repeat(
    body: Callable[[Int[Array, ""], State], State], state: State, num: int
) -> State:
    """Return `state` after `body(i, state)` for `i` in `0 .. num-1`, by the fast loop.

    On a CPU, XLA runs a convolution inside a compiled loop 15 to 30 times slower than
    outside one: there, a body with convolutions is unrolled. Everywhere else this is
    `jax.lax.fori_loop`.

    Arguments:
        body: A pure function of the index and the state.
        state: A pytree of arrays.
        num: A Python integer.
    """
    index = jax.numpy.zeros((), jax.numpy.int32)
    if num > 1 and default_platform() == "cpu":
        if has_convolution(jax.make_jaxpr(body)(index, state)):
            for i in range(num):
                state = body(index + i, state)
            return state
    return jax.lax.fori_loop(0, num, body, state)


def read_now(read: Callable[[], State], index: Int[Array, ""]) -> State:
    """Return `read()`, slices at `index >= 0` of arrays that are then updated in place.

    On a CPU, XLA may fuse such a slice into what uses it, move that past the update,
    and copy the whole array at every step of a loop for its sake. A branch that is
    always taken, of which the compiler cannot know, keeps the slice where it is.
    """
    if default_platform() != "cpu":
        return read()
    empty = jax.eval_shape(read)

    def zeros() -> State:
        return jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), empty)

    return jax.lax.cond(index >= 0, read, zeros)


def default_platform() -> str:
    """Return where uncommitted computations run: `"cpu"`, `"gpu"` or `"tpu"`."""
    device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform
