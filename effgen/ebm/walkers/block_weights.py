"""What walkers count: log-weights in blocks, each of which is resampled by itself."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from effgen.core.contract.counts import check_count
from effgen.core.weights import Estimate
from effgen.ebm.contract.arguments import traced

from .blocks import combined, drawn_if, log_mean, num_roots, share_left


class BlockWeights(eqx.Module):
    """Log-weights of walkers, in blocks, with what earlier resamplings have booked.

    Blocks are consecutive and of equal size. `exp(log_partition)` times the mean weight
    of a block is its own `Z`.

    Attributes:
        log_weights: Since the last resampling, shape `(walkers,)`.
        roots: Which of its block's first walkers each descends from, `(walkers,)`.
        log_partition: `log Z` up to the last resampling, shape `(blocks,)`.
        least_ess: The least share of a block that one change has left, `(blocks,)`.
    """

    log_weights: Float[Array, " walkers"]
    roots: Int[Array, " walkers"]
    log_partition: Float[Array, " blocks"]
    least_ess: Float[Array, " blocks"]

    @property
    def num(self) -> int:
        """The number of walkers."""
        return self.log_weights.shape[0]

    @property
    def num_blocks(self) -> int:
        """The number of blocks."""
        return self.log_partition.shape[0]

    @property
    def joint(self) -> Float[Array, " walkers"]:
        """The log-weights with their blocks' `log Z`, comparable between blocks."""
        if self.num_blocks == 1:
            return self.log_weights
        booked = self.log_partition - jnp.max(self.log_partition)
        # NaN: no weights at all; of a block that is lost as a whole, `-inf`.
        booked = jnp.where(jnp.isnan(booked), 0.0, booked)
        return self.log_weights + jnp.repeat(booked, self.num // self.num_blocks)

    @property
    def num_roots(self) -> Int[Array, ""]:
        """How many walkers, of those that there were, have descendants left."""
        return jnp.sum(jax.vmap(num_roots)(self.by_block(self.roots)))

    @property
    def spread(self) -> Float[Array, ""]:
        """The standard deviation of the blocks' `log Z`, in nats; 0 of one block."""
        if self.num_blocks == 1:
            return jnp.zeros((), self.log_weights.dtype)
        return jnp.std(self.values(), ddof=1)

    def values(self) -> Float[Array, " blocks"]:
        """Return each block's `log Z`."""
        since = jax.vmap(log_mean)(self.by_block(self.log_weights))
        return since + self.log_partition

    def estimate(self) -> Estimate:
        """Return `log Z` and its error, as `Walkers.estimate` says."""
        log_weights, roots = map(self.by_block, (self.log_weights, self.roots))
        return combined(self.values(), log_weights, roots)

    def changed(self, increments: Float[Array, " walkers"]) -> "BlockWeights":
        """Return the weights after `increments`; zero where these are not finite."""
        new = jnp.where(
            jnp.isfinite(increments), self.log_weights + increments, -jnp.inf
        )
        return dataclasses.replace(self, log_weights=new)

    def followed_from(self, before: "BlockWeights") -> "BlockWeights":
        """Return the weights, with how much of `before` a change has left."""
        left = share_left(
            before.by_block(before.log_weights), self.by_block(self.log_weights)
        )
        return dataclasses.replace(self, least_ess=jnp.minimum(before.least_ess, left))

    def drawn(
        self, keys: PRNGKeyArray, chosen: Bool[Array, " blocks"]
    ) -> tuple[Int[Array, "blocks size"], "BlockWeights"]:
        """Return which walkers of each block are kept, and what they count then.

        Arguments:
            keys: The randomness of each block, shape `(blocks,)`.
            chosen: Which blocks to resample; of the others all are kept.
        """
        log_weights = self.by_block(self.log_weights)
        index = jax.vmap(drawn_if)(log_weights, chosen, keys)
        since = jnp.where(chosen, jax.vmap(log_mean)(log_weights), 0.0)
        kept = jnp.where(chosen[:, None], 0.0, log_weights).reshape(-1)
        return index, dataclasses.replace(
            self,
            log_weights=kept,
            roots=taken_by_block(self.roots, index),
            log_partition=self.log_partition + since,
        )

    def in_blocks(self, num_blocks: int) -> "BlockWeights":
        """Return the same weights in more blocks, none of them resampled yet.

        Raises:
            ValueError: As `Walkers.in_blocks`.
        """
        check_count("num_blocks", num_blocks)
        size = self.num // num_blocks
        if self.num_blocks > 1 or self.num % num_blocks or size < 2:
            raise ValueError(
                f"`num_blocks` is {num_blocks}, for {self.num} walkers in "
                f"{self.num_blocks} block(s): pass a divisor that leaves 2 or more a "
                "block, for walkers in one block."
            )
        roots = jnp.arange(self.num, dtype=self.roots.dtype)
        if not traced(self.roots) and bool(jnp.any(self.roots != roots)):
            raise ValueError(
                "the walkers were resampled together, so that blocks of them would not "
                "be independent: split them before they are."
            )
        return dataclasses.replace(
            self,
            roots=roots % size,
            log_partition=jnp.broadcast_to(self.log_partition, num_blocks),
            least_ess=jnp.broadcast_to(self.least_ess, num_blocks),
        )

    def by_block(self, x: Array) -> Array:
        """Return one number a walker, `(walkers,)`, as `(blocks, size)`."""
        return x.reshape(self.num_blocks, -1)


def taken_by_block(x: Array, index: Int[Array, "blocks size"]) -> Array:
    """Return the rows of `x` that each block keeps, by their places in the block.

    Block by block, so that blocks on several devices stay where they are.
    """
    blocks = x.reshape(len(index), -1, *x.shape[1:])
    return jax.vmap(lambda x, i: x[i])(blocks, index).reshape(x.shape)
