"""Many walkers at the cost of few: blocks that take turns, and catch up when due."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from effgen.core.contract.counts import check_count
from effgen.core.running.loops import default_platform, has_convolution, read_now
from effgen.ebm.contract.energy import Energy

from .islands import check_walkers
from .weighted_walkers import Walkers


class Reservoir(eqx.Module):
    """Walkers in blocks, of which a step moves one while the others wait.

    A waiting block's walkers keep the energies of the model that they last saw. The
    first move of their next turn crosses from that model to the current one. Its
    weights are exact, however far the model has moved meanwhile. So a step with 10^5 or
    10^6 walkers costs no more than one with a single block. The variance of the
    gradient and the bias of the likelihood fall as the inverse of the number of
    walkers.

    Blocks are resampled one by one, and each has its own `log Z`. On several devices
    each device holds its own blocks. A step moves one block on every device, and only
    the gradient's sums are exchanged. `Reservoir.from_walkers` makes one.

    Arguments:
        walkers: Walkers whose arrays, but the kernel's state, have two leading axes
            more, `(active, turns)`: `active` blocks are touched at once, and every
            block again after `turns` steps.

    Raises:
        TypeError: For walkers that are not arranged so.
    """

    walkers: Walkers

    def __check_init__(self) -> None:
        """Raise `TypeError` for walkers that are not arranged in turns."""
        check_walkers("walkers", self.walkers)
        if jnp.ndim(self.walkers.log_partition) != 3:
            raise TypeError(
                "`walkers` are not arranged in turns: make a reservoir of them by "
                "`ebm.Reservoir.from_walkers(walkers)`."
            )

    @classmethod
    def from_walkers(
        cls, walkers: Walkers, *, block_size: int = 1024, active: int = 1
    ) -> "Reservoir":
        """Split `walkers`, none of them resampled yet, into blocks.

        Arguments:
            walkers: Walkers in one block.
            block_size: Walkers a block, 2 or more.
            active: Blocks a step: the number of devices, or 1.

        Returns:
            The reservoir.

        Raises:
            TypeError: If `walkers` are no walkers.
            ValueError: If the blocks do not divide the walkers evenly, or the walkers
                are in blocks already or were resampled together.
        """
        check_walkers("walkers", walkers)
        check_count("active", active)
        check_count("block_size", block_size)
        per_turn = block_size * active
        if block_size < 2:
            raise ValueError("`block_size` is 1: pass at least 2 walkers a block.")
        if walkers.num % per_turn:
            nearest = max(1, round(walkers.num / per_turn)) * per_turn
            raise ValueError(
                f"`walkers` are {walkers.num}, which blocks of {block_size}, {active} "
                f"at a time, do not share evenly: draw {nearest}."
            )
        if walkers.num_blocks > 1:
            raise ValueError(
                f"`walkers` are in {walkers.num_blocks} blocks already, as `annealed` "
                "leaves them: draw fresh ones."
            )
        num, turns = walkers.num // block_size, walkers.num // per_turn
        blocks = walkers.in_blocks(num)
        split = lambda x: x.reshape(active, turns, len(x) // num, *x.shape[1:])
        return cls(blocks.arranged(split))

    @property
    def turns(self) -> int:
        """After how many steps a block is touched again."""
        return self.walkers.log_partition.shape[1]

    @property
    def num(self) -> int:
        """The number of walkers in all blocks."""
        return self.walkers.log_weights.size

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return self.walkers.positions.shape[3:]

    def current(self, step: Int[Array, ""]) -> Walkers:
        """Return the blocks that step `step - 1` has touched: the model's own.

        Arguments:
            step: The number of steps taken.

        Returns:
            The walkers of the active blocks, weighted for the current model.
        """
        return self._at((step - 1) % self.turns)

    def due(self, step: Int[Array, ""]) -> Walkers:
        """Return the blocks whose turn it is at `step`.

        Arguments:
            step: The number of steps taken.

        Returns:
            The walkers of the active blocks, weighted for the model they last saw.
        """
        return self._at(step % self.turns)

    def taken(self, step: Int[Array, ""]) -> tuple[Walkers, Walkers]:
        """Return `current(step)` and `due(step)`, read at once.

        A step that reads them so, and then puts back what was due, updates the arrays
        in place.

        Arguments:
            step: The number of steps taken.

        Returns:
            Both, as a pair.
        """
        return read_now(lambda: (self.current(step), self.due(step)), step % self.turns)

    def put(self, step: Int[Array, ""], walkers: Walkers) -> "Reservoir":
        """Return the reservoir with the blocks that were due at `step` replaced.

        Arguments:
            step: The number of steps taken before.
            walkers: The walkers to put there, as many as were due.

        Returns:
            The reservoir.
        """
        turn = step % self.turns

        def put(part: Array, whole: Array) -> Array:
            part = part.reshape(whole.shape[0], *whole.shape[2:])
            return jax.lax.dynamic_update_index_in_dim(whole, part, turn, 1)

        return Reservoir(walkers.arranged(put, self.walkers))

    def reweighted(self, energy: Energy) -> "Reservoir":
        """Return the reservoir with every block weighted for `energy`, none moved.

        One evaluation of every walker, block after block; all at once for convolutions
        on a CPU, which are slow in a compiled loop.

        Arguments:
            energy: The energy to weigh them for.

        Returns:
            The reservoir.
        """

        def one(turn: Int[Array, ""]) -> Walkers:
            return self._at(turn).reweighted(energy)

        first = jnp.zeros((), jnp.int32)
        if default_platform() == "cpu" and has_convolution(jax.make_jaxpr(one)(first)):
            flat = self.flattened().reweighted(energy)
            return Reservoir(
                self.walkers.arranged(lambda x, y: y.reshape(x.shape), flat)
            )
        turns = jax.lax.map(one, jnp.arange(self.turns))

        def back(whole: Array, parts: Array) -> Array:
            active = whole.shape[0]
            return jnp.moveaxis(
                parts.reshape(self.turns, active, *whole.shape[2:]), 0, 1
            )

        return Reservoir(self.walkers.arranged(back, turns))

    def flattened(self) -> Walkers:
        """Return all walkers, in their blocks.

        Returns:
            Walkers with positions `(num, *shape)`.
        """
        return self.walkers.arranged(lambda x: x.reshape(-1, *x.shape[3:]))

    def _at(self, turn: Int[Array, ""]) -> Walkers:
        def take(x: Float[Array, "active turns ..."]) -> Array:
            part = jax.lax.dynamic_index_in_dim(x, turn, axis=1, keepdims=False)
            return part.reshape(-1, *part.shape[2:])

        return self.walkers.arranged(take)
