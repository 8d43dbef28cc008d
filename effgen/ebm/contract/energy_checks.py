"""Checks of energies, before training and during it."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from .arguments import traced
from .energy import Energy, energies_at


# Rows that a self-test evaluates, and how far out it looks, in spreads of the walkers.
_NUM_ROWS = 64
_NUM_RAYS = 8
_FAR = (100.0, 1000.0)


def check_continuous(model: Energy, positions: Float[Array, "walkers *shape"]) -> None:
    """Raise `ValueError` if `model` cannot be the energy of a density.

    It must be finite where the walkers are; give the same numbers twice; give a row the
    same energy whatever the other rows are; and grow fast enough along every ray that
    `exp(-energy)` has an integral.
    """
    seen = check_energies(model, positions)
    if seen is not None:
        _check_confining(seen, positions[0].size)


def check_energies(
    model: Energy,
    positions: Float[Array, "walkers *shape"],
    called: str = "walkers",
    *,
    least: float = 1.0,
) -> "_Seen | None":
    """Raise `ValueError` if `model` is no function of a row, finite at the walkers.

    They are `called` so in messages. A share of `least` or more must have a finite
    energy; that of the others is infinite, as where a model has no mass.

    Returns:
        What was seen of it, if there are numbers to look at.
    """
    if isinstance(positions, Tracer) or traced(model):
        return None
    seen = _Seen(*map(np.asarray, _seen(model, positions[:_NUM_ROWS])))
    _check_finite(seen.energies, called, least)
    _check_repeatable(seen)
    return seen


class _Seen(NamedTuple):
    """Energies of the same rows: twice, half of them alone, and far out along rays."""

    energies: Any
    again: Any
    half: Any
    near: Any
    far: Any


@eqx.filter_jit
def _seen(model: Energy, rows: Float[Array, "walkers *shape"]) -> _Seen:
    # One program, in which `model` is called anew each time: what differs between two
    # calls is seen, as it would be if each were compiled by itself.
    return _Seen(
        energies_at(model, rows),
        energies_at(model, rows),
        energies_at(model, rows[: len(rows) // 2]),
        *_along_rays(model, rows),
    )


def confines(model: Energy, positions: Float[Array, "walkers *shape"]) -> Any:
    """Return whether the energy grows fast enough along rays through some walkers.

    As `check_continuous` asks it before training, of 8 rays.
    """
    near, far = _along_rays(model, positions[:_NUM_RAYS])
    return jnp.all(_grows(near, far, positions[0].size))


def _along_rays(
    model: Energy, rows: Float[Array, "walkers *shape"]
) -> tuple[Array, Array]:
    flat = rows.reshape(rows.shape[0], -1)
    norms = jnp.linalg.norm(flat, axis=1, keepdims=True)
    spread = jnp.sqrt(jnp.mean(norms**2))
    # A row of zeros has no direction: it looks along the diagonal.
    along = jnp.where(norms > 0, flat / jnp.where(norms > 0, norms, 1.0), 1.0)
    rays = along.reshape(rows.shape)
    near, far = (energies_at(model, spread * r * rays) for r in _FAR)
    return near, far


def _grows(near: Any, far: Any, size: int) -> Array:
    # Along a ray the density must fall faster than the volume at that radius grows.
    needed = size * np.log(_FAR[1] / _FAR[0])
    return (jnp.asarray(far) - near > needed) | jnp.isposinf(far)


def walled(
    model: Energy,
    positions: Float[Array, "walkers *shape"],
    walls: tuple[float, float] | None,
) -> bool:
    """Return whether the energy is infinite outside of a box, if there is one."""
    if walls is None or traced((model, positions)):
        return True
    return bool(_infinite_beyond(model, positions[:_NUM_ROWS], walls[1] - walls[0]))


@eqx.filter_jit
def _infinite_beyond(
    model: Energy, rows: Float[Array, "walkers *shape"], width: float
) -> Array:
    # Each row with one of its entries past a wall, above or below by turns.
    flat = rows.reshape(rows.shape[0], -1)
    i = jnp.arange(len(flat))
    past = jnp.where(i // flat.shape[1] % 2 == 0, 1.5 * width, -1.5 * width)
    beyond = flat.at[i, i % flat.shape[1]].add(past.astype(flat.dtype))
    return jnp.all(jnp.isposinf(energies_at(model, beyond.reshape(rows.shape))))


def _check_finite(energies: np.ndarray, called: str, least: float) -> None:
    bad = int(np.sum(~np.isfinite(energies)))
    infinite = int(np.sum(np.isposinf(energies)))
    if bad > infinite or len(energies) - bad < least * len(energies):
        raise ValueError(
            f"`model` gives {bad} of {len(energies)} {called} an energy that is not "
            f"finite: pass {called} where the energy is, or mend it there."
        )


def _check_repeatable(seen: _Seen) -> None:
    # Infinite energies stay what they are: all are looked at as finite ones.
    energies, again, half = map(np.nan_to_num, (seen.energies, seen.again, seen.half))
    scale = 1e-4 * (1 + np.abs(energies))
    if np.any(np.abs(again - energies) > scale):
        raise ValueError(
            "`model` gives the same walkers other energies the second time: an energy "
            "must be a function of its input alone. Take out dropout and other noise "
            "(`eqx.nn.inference_mode`)."
        )
    if np.any(np.abs(half - energies[: len(half)]) > scale[: len(half)]):
        raise ValueError(
            "`model` gives a walker another energy when other walkers are evaluated "
            "beside it: use no batch normalization; normalize layers or groups."
        )


def _check_confining(seen: _Seen, size: int) -> None:
    grows = np.asarray(_grows(seen.near, seen.far, size))
    if not grows.all():
        raise ValueError(
            f"`model` does not confine: along {int((~grows).sum())} of {len(grows)} "
            "rays its energy does not grow fast enough for `exp(-energy)` to have an "
            "integral, and walkers would escape. Put the network into "
            "`ebm.ConfinedEnergy(network, scale)`."
        )
