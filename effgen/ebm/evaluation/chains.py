"""Long chains of a model, without weights."""

import itertools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from effgen.core.contract.counts import check_count
from effgen.core.contract.keys import check_key
from effgen.core.running.loops import repeat
from effgen.ebm.contract.arguments import as_rows, check_energy, check_finite
from effgen.ebm.contract.energy import Energy
from effgen.ebm.moves.kernels import AbstractKernel, check_admitted, check_kernel
from effgen.ebm.walkers.weighted_walkers import Walkers


class Chains(NamedTuple):
    """Where long chains ended, and their mean energies, as `long_run` returns it.

    Attributes:
        positions: Where the chains ended, shape `(walkers, *shape)`.
        mean_energies: The mean energy at the start and at each record, shape
            `(records,)`.
        acceptances: The last move's mean acceptance at each, shape `(records,)`.
    """

    positions: Float[Array, "walkers *shape"]
    mean_energies: Float[Array, " records"]
    acceptances: Float[Array, " records"]


def long_run(
    model: Energy,
    positions: Float[Array, "walkers *shape"],
    *,
    kernel: AbstractKernel,
    key: PRNGKeyArray,
    num_steps: int = 10_000,
    num_records: int = 20,
) -> Chains:
    """Move chains from `positions` under a fixed model, without weights, for long.

    A model may be good only for short chains. Its long-run samples then saturate, and
    their mean energy continues to fall (Nijkamp et al., 2020). Exact samples of the
    model keep their law.

    Arguments:
        model: The energy.
        positions: Where to start, such as `ebm.sample` gives, `(walkers, *shape)`.
        kernel: How the chains move.
        key: The randomness of the moves.
        num_steps: Moves in all.
        num_records: How often the mean energy is recorded after the start, at most once
            a move.

    Returns:
        The last positions, with the records, one more than `num_records` as the start
            is one.

    Raises:
        ValueError: For counts that are not positive, or positions that are not finite,
            fewer than 2, or where walkers of the kernel can never be.
        TypeError: For an object that is no energy, no kernel, no key, or no numbers.
    """
    check_count("num_steps", num_steps)
    check_count("num_records", num_records)
    check_energy("model", model)
    check_kernel(kernel)
    check_key(key)
    positions = as_rows("positions", positions)
    check_finite("positions", positions)
    check_admitted("`positions` has", kernel, model, positions)
    walkers = kernel.begun(_started(model, positions), model)
    ends = np.linspace(0, num_steps, min(num_records, num_steps) + 1).astype(int)
    energies = [jnp.mean(walkers.energies)]
    acceptances = [walkers.acceptance]
    for first, end in itertools.pairwise(ends.tolist()):
        walkers = _several(kernel, model, walkers, jnp.asarray(first), end - first, key)
        energies.append(jnp.mean(walkers.energies))
        acceptances.append(walkers.acceptance)
    return Chains(walkers.positions, jnp.stack(energies), jnp.stack(acceptances))


@eqx.filter_jit
def _started(model: Energy, positions: Float[Array, "walkers *shape"]) -> Walkers:
    return Walkers.from_samples(positions).reweighted(model)


@eqx.filter_jit
def _several(
    kernel: AbstractKernel,
    model: Energy,
    walkers: Walkers,
    first: Int[Array, ""],
    num: int,
    key: PRNGKeyArray,
) -> Walkers:
    def body(i: Int[Array, ""], walkers: Walkers) -> Walkers:
        step = first + i
        return kernel.move(walkers, model, step, key=jax.random.fold_in(key, step))

    return repeat(body, walkers, num)
