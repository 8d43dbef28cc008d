"""How energies are evaluated: one example or a batch, values and gradients."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


Energy = Callable[[Float[Array, "*shape"]], Float[Array, ""]]
"""A callable pytree from one example to its energy, or from a batch to energies.

Which of the two is seen from the shapes: if one example gives one number, the energy is
mapped over batches; if not, it is given the whole batch, `(batch, *shape)`, and must
return `(batch,)`, each energy a function of its own row alone.
"""


def takes_one_example(energy: Energy, shape: tuple[int, ...], dtype: Any) -> bool:
    """Return whether `energy` maps one example to one number.

    What `energy` itself raises, if it takes neither an example nor a batch, is raised.

    Raises:
        ValueError: If what it returns are no energies.
    """
    one = jax.ShapeDtypeStruct(shape, dtype)
    two = jax.ShapeDtypeStruct((2, *shape), dtype)
    try:
        out = eqx.filter_eval_shape(energy, one)
    except Exception as refusal:
        try:
            batch_out = eqx.filter_eval_shape(energy, two)
        except Exception:
            raise refusal from None
        return _checked(batch_out, (2,), shape, batch_out)
    if getattr(out, "shape", None) == ():
        return _checked(out, (), shape, out)
    try:
        batch_out = eqx.filter_eval_shape(energy, two)
    except Exception:
        batch_out = None
    return _checked(batch_out, (2,), shape, out)


def _checked(
    out: Any, expected: tuple[int, ...], shape: tuple[int, ...], shown: Any
) -> bool:
    floating = hasattr(out, "dtype") and jnp.issubdtype(out.dtype, jnp.floating)
    if getattr(out, "shape", None) != expected or not floating:
        raise ValueError(
            f"`model` maps one example of shape {shape} to {shown}: an energy is one "
            "floating-point number an example (sum over axes, or take `[0]`), or, from "
            "a batch `(batch, *shape)`, an array `(batch,)` of them."
        )
    return expected == ()


def energies_at(
    energy: Energy, positions: Float[Array, "walkers *shape"]
) -> Float[Array, " walkers"]:
    """Return the energy of each row, in the positions' precision."""
    if takes_one_example(energy, positions.shape[1:], positions.dtype):
        energies = jax.vmap(energy)(positions)
    else:
        energies = energy(positions)
    return energies.astype(positions.dtype)


def evaluate(
    energy: Energy, positions: Float[Array, "walkers *shape"]
) -> tuple[Float[Array, " walkers"], Float[Array, "walkers *shape"]]:
    """Return each row's energy and its gradient, in one pass."""
    energies, pullback = jax.vjp(lambda x: energies_at(energy, x), positions)
    (gradients,) = pullback(jnp.ones_like(energies))
    return energies, gradients


def slopes_along(
    energy: Energy, direction: PyTree, positions: Float[Array, "walkers *shape"]
) -> tuple[Float[Array, " walkers"], Float[Array, " walkers"]]:
    """Return each row's energy, and how it changes along a direction of the parameters.

    Arguments:
        energy: The energy.
        direction: A pytree like the inexact arrays of `energy`.
        positions: The rows, shape `(walkers, *shape)`.
    """
    params, fixed = eqx.partition(energy, eqx.is_inexact_array)

    def energies_of(params: PyTree) -> Float[Array, " walkers"]:
        return energies_at(eqx.combine(params, fixed), positions)

    return jax.jvp(energies_of, (params,), (direction,))


def energy_of_one(energy: Energy, x: Float[Array, "*shape"]) -> Float[Array, ""]:
    """Return the energy of one example, whichever of the two `energy` takes."""
    return energies_at(energy, x[None])[0]
