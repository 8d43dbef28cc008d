"""Checks of a trainer's walkers before training, and of data against them."""

from typing import Any

import equinox as eqx
import jax
import numpy as np

from effgen.core.contract.state import TrainState
from effgen.ebm.contract.arguments import check_energy, traced
from effgen.ebm.contract.data_checks import (
    are_bits,
    check_batch,
    check_scale_of,
    local_rows,
    rows_at_hand,
    spread_rows,
    values_at_hand,
)
from effgen.ebm.contract.energy import Energy, takes_one_example
from effgen.ebm.energies.labels import LabeledEnergy
from effgen.ebm.moves.kernels import AbstractKernel
from effgen.ebm.walkers.populations import (
    Audited,
    Memory,
    example_shape,
    flattened,
    knows_partition,
    populations,
    some_positions,
)
from effgen.ebm.walkers.reservoir import Reservoir
from effgen.ebm.walkers.weighted_walkers import Walkers


# Numbers that are not the same in two populations unless they are one.
_FEW = 64

# How much the columns of two populations correlate only if one key has drawn them.
_CORRELATED = 0.999

# So many rows of the data are compared with the walkers.
_LOOKED_AT = 4096


def check_memory(kernel: AbstractKernel, model: Energy, memory: Any) -> None:
    """Raise unless `memory` holds walkers that fit the model and the kernel."""
    check_energy("model", model)
    if not (isinstance(memory, Walkers | Reservoir | Audited) and populations(memory)):
        raise TypeError(
            f"`memory` is a {type(memory).__name__}: pass "
            "`ebm.Walkers.from_gaussian(key, num, shape)`, or two in `ebm.Audited`."
        )
    _check_audited(memory)
    for population in populations(memory):
        walkers = flattened(population)
        kernel.check(model, walkers)
        takes_one_example(model, walkers.positions.shape[1:], walkers.positions.dtype)


def _check_audited(memory: Any) -> None:
    for name in ("walkers", "audit"):
        held = getattr(memory, name, None) if isinstance(memory, Audited) else None
        if held is not None and not isinstance(held, eqx.Module):
            raise TypeError(
                f"`memory.{name}` is a {type(held).__name__}: pass "
                "`ebm.Walkers.from_gaussian(key, num, shape)`."
            )
    shapes = {flattened(one).positions.shape[1:] for one in populations(memory)}
    if len(shapes) > 1:
        raise ValueError(
            f"`memory.walkers` and `memory.audit` have shapes {sorted(shapes)}: draw "
            "both of the shape of one example."
        )
    if isinstance(memory, Audited) and _same_walkers(memory):
        raise ValueError(
            "`memory.audit` are the walkers that train. Their likelihood would be too "
            "high, and its error bar too small. Draw the audit by another key."
        )


def _same_walkers(memory: Audited) -> bool:
    pair = [flattened(one) for one in populations(memory)]
    if len(pair) < 2 or traced(pair):
        return False
    num = min(_FEW, *(walkers.num for walkers in pair))
    one, other = (np.asarray(local_rows(walkers.positions)[:num]) for walkers in pair)
    # A few zeros and ones are alike by chance.
    return one.size >= _FEW and _alike(one, other)


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether rows are those of the same key: equal, or of another scale."""
    if np.array_equal(one, other):
        return True
    one, other = (x - x.mean(axis=0) for x in (one.astype(float), other.astype(float)))
    norms = np.linalg.norm(one, axis=0) * np.linalg.norm(other, axis=0)
    inner = (one * other).sum(axis=0)
    return bool((norms > 0).all() and (inner >= _CORRELATED * norms).all())


def check_known(memory: Memory, instead: str) -> None:
    """Raise if there are walkers in `memory` whose density is unknown."""
    for population in populations(memory):
        if not knows_partition(population):
            raise ValueError(
                "`memory` has walkers of unknown density, whose weights mean nothing: "
                "start from `Walkers.from_gaussian`, give `from_samples` their "
                f"`log_density`, or {instead}."
            )


def check_values(
    kernel: AbstractKernel,
    model: Energy,
    shape: tuple[int, ...],
    batch: Any,
    source: Any,
) -> None:
    """Raise on data that are no rows of `shape`, or none of the kernel or the model."""
    check_batch(batch, shape)
    kernel.check_data(batch, source)
    values = values_at_hand(batch, source)
    if isinstance(model, LabeledEnergy) and values is not None:
        model.check_rows("data", values)


def check_data(
    kernel: AbstractKernel, state: TrainState, batch: Any, source: Any
) -> None:
    """Raise on data that the walkers cannot be compared with."""
    check_values(kernel, state.model, example_shape(state.memory), batch, source)
    memory = state.memory
    rows = rows_at_hand(batch, source)
    rows = rows if rows is batch else spread_rows(rows, _LOOKED_AT)
    if isinstance(rows, np.ndarray | jax.Array) and not traced((rows, memory)):
        positions = local_rows(some_positions(memory))
        if not bool(are_bits(positions)):  # these have no scale: any may be flipped
            check_scale_of(local_rows(rows), positions)
