"""Walkers in independent blocks: checks, and resampling between moves."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from effgen.core.weights import effective_sample_size
from effgen.ebm.contract.arguments import traced

from .blocks import num_blocks_of
from .weighted_walkers import Walkers


def islands(walkers: Walkers) -> Walkers:
    """Return fresh walkers in blocks, as many as tell the error of `log Z`.

    16 blocks, or the next smaller number that divides the walkers, down to 8. Walkers
    that are in blocks already, that are too few, or that have been resampled together
    are returned as they are.
    """
    fitting = num_blocks_of(walkers.num)
    if walkers.num_blocks > 1 or walkers.num % fitting or fitting == 1:
        return walkers
    fresh = walkers.roots == jnp.arange(walkers.num)
    if not traced(fresh) and not bool(jnp.all(fresh)):
        return walkers
    return walkers.in_blocks(fitting)


def first_walkers(walkers: Walkers, num: int) -> Walkers:
    """Return copies of up to `num` walkers that have not been moved, in one block."""
    joint = dataclasses.replace(
        walkers,
        log_weights=walkers.joint_log_weights,
        log_partition=jnp.max(walkers.log_partition, keepdims=True),
        least_ess=jnp.min(walkers.least_ess, keepdims=True),
    )
    some = joint.arranged(lambda x: x[:num])
    return dataclasses.replace(some, roots=jnp.arange(some.num, dtype=some.roots.dtype))


def unweighted(walkers: Walkers) -> Walkers:
    """Return the walkers with equal weights, which say nothing of `log Z`."""
    return dataclasses.replace(
        walkers,
        log_weights=jnp.zeros_like(walkers.log_weights),
        log_partition=jnp.full_like(walkers.log_partition, jnp.nan),
    )


def resampled_below(share: float, walkers: Walkers, *, key: PRNGKeyArray) -> Walkers:
    """Return the walkers, each block resampled if fewer than `share` of it count."""
    log_weights = walkers.block_weights.by_block(walkers.log_weights)
    size = log_weights.shape[1]
    too_few = jax.vmap(effective_sample_size)(log_weights) < share * size
    return jax.lax.cond(
        jnp.any(too_few), lambda: walkers.resampled(key, too_few), lambda: walkers
    )


def check_walkers(name: str, walkers: Any) -> None:
    """Raise `TypeError` for an object that is no walkers."""
    if not isinstance(walkers, Walkers):
        raise TypeError(
            f"`{name}` is a {type(walkers).__name__}: pass "
            "`ebm.Walkers.from_gaussian(key, num, shape)`."
        )
