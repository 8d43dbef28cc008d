"""Weighted walkers: samples of a model that moved while they were being drawn."""

import dataclasses
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from effgen.core.weights import (
    Estimate,
    effective_sample_size,
    log_mean_exp,
    normalized,
    resample,
)

from .evaluation import Energy, evaluate


# The share of distinct roots below which a block's variance is booked: with fewer, the
# genealogy no longer tells how far relatives vary together.
_FEWEST_ROOTS = 0.25


class Walkers(eqx.Module):
    """Positions with log-weights, which follow a model as it trains.

    For any function `phi`, and the model `exp(-energy) / Z` that the walkers were last
    moved under,

        E[exp(log_partition) * mean(exp(log_weights) * phi(positions))]
            = Z * E_model[phi]

    so `log_partition + log_mean_exp(log_weights)` estimates `log Z`, and the weights
    normalized to one give expectations under the model.

    The walkers may be split into `blocks`, consecutive and of equal size. Each block
    fulfills the identity by itself, with its own `log_partition`, and is resampled by
    itself; the average of the blocks' `Z` is their estimate together.

    **Attributes:**

    - `positions`, `(walkers, *shape)`.
    - `log_weights`, `(walkers,)`: since they were last resampled.
    - `energies`, `(walkers,)`, and `gradients`, `(walkers, *shape)`: of the model that
      the walkers last saw, at their positions; carried to save an evaluation.
    - `roots`, `(walkers,)`: which walker of its block each one descends from, since
      `variance` was last booked.
    - `log_partition`, `()` or `(blocks,)`: `log Z` as booked at the last resampling.
    - `variance`, `()` or `(blocks,)`: of `log_partition`, up to where the roots begin.
    - `step_size` and `acceptance`: of the last move.

    **Source:** Carbone et al. (2023), Proposition 1 and section 3; for the variance,
    Chan and Lai (2013), and Lee and Whiteley (2018).
    """

    positions: Float[Array, "walkers *shape"]
    log_weights: Float[Array, " walkers"]
    energies: Float[Array, " walkers"]
    gradients: Float[Array, "walkers *shape"]
    roots: Int[Array, " walkers"]
    log_partition: Float[Array, "*blocks"]
    variance: Float[Array, "*blocks"]
    step_size: Float[Array, ""]
    acceptance: Float[Array, ""]

    @classmethod
    def from_gaussian(
        cls,
        key: PRNGKeyArray,
        num: int,
        shape: tuple[int, ...],
        *,
        scale: float = 1.0,
    ) -> "Walkers":
        """Draw `num` walkers from a Gaussian, whose `log Z` is known.

        The energy is `|x|^2 / (2 scale^2)`, its `log Z = (d / 2) log(2 pi scale^2)`. A
        `ConfinedEnergy` of the same scale is exactly this before training; for any
        other, `trainer.init` gives the walkers importance weights, which are exact too
        and the better the closer the two are.

        **Raises:** `ValueError` for fewer than 2 walkers, or a scale not positive.
        """
        _check_num(num)
        if not scale > 0:
            raise ValueError(f"`scale` is {scale}: pass a positive number.")
        return _gaussian(key, scale, (num, *shape))

    @classmethod
    def from_bernoulli(
        cls, key: PRNGKeyArray, num: int, logits: Float[Array, "*shape"]
    ) -> "Walkers":
        """Draw `num` walkers of zeros and ones, independent, from `sigmoid(logits)`.

        The energy is `-sum(logits * x)`, its `log Z = sum(softplus(logits))`: that of
        an `RBM` whose weights are zero, but for a constant that `trainer.init` adds.

        **Raises:** `ValueError` for fewer than 2 walkers.
        """
        _check_num(num)
        return _bernoulli(key, jnp.asarray(logits), num)

    @classmethod
    def from_samples(
        cls,
        positions: Float[Array, "walkers *shape"],
        log_density: Float[Array, " walkers"] | None = None,
    ) -> "Walkers":
        """Start at `positions`, samples of a normalized `log_density`.

        Without a density (walkers started at data), weights have no meaning: only
        trainers that use none, such as `PCDTrainer`, accept such walkers.

        **Raises:** `ValueError` if the two differ in their number, or are too few.
        """
        positions = jnp.asarray(positions)
        num = positions.shape[0]
        if num < 2:
            raise ValueError(f"`positions` has {num} row(s): pass at least 2 walkers.")
        known = log_density is not None
        density = jnp.asarray(log_density) if known else jnp.zeros(num)
        if density.shape != (num,):
            raise ValueError(
                f"`log_density` has shape {density.shape}: pass one number for each of "
                f"the {num} positions."
            )
        start = 0.0 if known else jnp.nan
        return _started(positions, -density, jnp.zeros_like(positions), start)

    @property
    def num(self) -> int:
        """The number of walkers."""
        return self.positions.shape[0]

    @property
    def num_blocks(self) -> int:
        """The number of blocks."""
        return self.log_partition.size

    @property
    def joint_log_weights(self) -> Float[Array, " walkers"]:
        """The log-weights with their blocks' `log Z`, comparable between blocks."""
        if self.num_blocks == 1:
            return self.log_weights
        booked = self.log_partition - jnp.max(self.log_partition)
        booked = jnp.where(jnp.isfinite(booked), booked, 0.0)  # NaN: no weights at all
        return self.log_weights + jnp.repeat(booked, self.num // self.num_blocks)

    @property
    def weights(self) -> Float[Array, " walkers"]:
        """The weights, normalized to one over all blocks."""
        return normalized(self.joint_log_weights)

    @property
    def ess(self) -> Float[Array, ""]:
        """The effective sample size, between 0 and the number of walkers."""
        return effective_sample_size(self.joint_log_weights)

    @property
    def num_roots(self) -> Int[Array, ""]:
        """How many walkers, of those that there were, have descendants left."""
        return jnp.sum(jax.vmap(_num_roots)(self._by_block(self.roots)))

    def estimate(self) -> Estimate:
        """Return `log Z` of the model last moved under, and its standard error.

        The error follows the walkers' genealogy: relatives count as one. Where their
        common ancestors become few it is booked and begun anew, as if what came before
        were forgotten. Of several blocks, which are independent, it is no less than
        their spread says.
        """
        values, variances = jax.vmap(_since)(
            self._by_block(self.log_weights), self._by_block(self.roots)
        )
        values = values + self.log_partition.reshape(-1)
        variances = variances + self.variance.reshape(-1)
        value, between = log_mean_exp(values)
        within = jnp.sum(normalized(values) ** 2 * variances)
        return Estimate(value, jnp.sqrt(jnp.maximum(within, between**2)))

    def reweighted(self, energy: Energy) -> "Walkers":
        """Return the walkers, where they are, as weighted samples of `energy`.

            log_weights += energies - energy(positions)

        exact for any change of energy: the move is the identity, which leaves every
        distribution invariant. A walker whose new energy is not finite gets weight 0.
        """
        energies, gradients = evaluate(energy, self.positions)
        reweighted = dataclasses.replace(
            self,
            log_weights=self.log_weights + self.energies - energies,
            energies=energies,
            gradients=gradients,
        )
        return kept_where_finite(energies - self.energies, reweighted, self)

    def resampled(
        self, key: PRNGKeyArray, blocks: Bool[Array, " blocks"] | None = None
    ) -> "Walkers":
        """Return equally weighted walkers, each kept in proportion to its weight.

        Block by block: all, or those where `blocks` is true. `log Z` since the last
        resampling is booked; every array that belongs to a walker moves with it.
        """
        num = self.num_blocks
        chosen = jnp.ones(num, bool) if blocks is None else blocks
        if num == 1:
            one = _resampled_block(self._flattened(), chosen[0], key)
            return one._shaped_like(self)
        blocked = jax.tree.map(
            lambda x: x.reshape(num, -1, *x.shape[1:]) if x.ndim else x, self
        )
        axes = jax.tree.map(lambda x: 0 if x.ndim else None, self)
        blocked = dataclasses.replace(
            blocked, log_partition=self.log_partition, variance=self.variance
        )
        mapped = jax.vmap(_resampled_block, in_axes=(axes, 0, 0), out_axes=axes)
        return mapped(blocked, chosen, jax.random.split(key, num))._shaped_like(self)

    def _by_block(self, x: Array) -> Array:
        return x.reshape(self.num_blocks, -1)

    def _flattened(self) -> "Walkers":
        return dataclasses.replace(
            self,
            log_partition=self.log_partition.reshape(()),
            variance=self.variance.reshape(()),
        )

    def _shaped_like(self, other: "Walkers") -> "Walkers":
        return jax.tree.map(lambda x, y: x.reshape(y.shape), self, other)


def kept_where_finite(
    increments: Float[Array, " walkers"], moved: Walkers, old: Walkers
) -> Walkers:
    """Return `moved`, but where `increments` are not finite, `old` with weight zero.

    Exact: a region of infinite energy has no mass. Resampling replaces such walkers.
    """
    finite = jnp.isfinite(increments)
    return dataclasses.replace(
        chosen(finite, moved, old),
        log_weights=jnp.where(finite, moved.log_weights, -jnp.inf),
    )


def chosen(accepted: Bool[Array, " walkers"], new: Walkers, old: Walkers) -> Walkers:
    """Return `new`, but at `old`'s positions where a move is not accepted."""

    def choose(a: Array, b: Array) -> Array:
        return jnp.where(accepted.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return dataclasses.replace(
        new,
        positions=choose(new.positions, old.positions),
        energies=choose(new.energies, old.energies),
        gradients=choose(new.gradients, old.gradients),
    )


def unweighted(walkers: Walkers) -> Walkers:
    """Return the walkers with equal weights, which say nothing of `log Z`."""
    return dataclasses.replace(
        walkers,
        log_weights=jnp.zeros_like(walkers.log_weights),
        log_partition=jnp.full_like(walkers.log_partition, jnp.nan),
    )


def resampled_below(share: float, walkers: Walkers, *, key: PRNGKeyArray) -> Walkers:
    """Return the walkers, each block resampled if fewer than `share` of it count."""
    log_weights = walkers._by_block(walkers.log_weights)
    size = log_weights.shape[1]
    too_few = jax.vmap(effective_sample_size)(log_weights) < share * size
    return jax.lax.cond(
        jnp.any(too_few), lambda: walkers.resampled(key, too_few), lambda: walkers
    )


def _resampled_block(
    block: Walkers, wanted: Bool[Array, ""], key: PRNGKeyArray
) -> Walkers:
    num = block.num
    everyone = jnp.arange(num, dtype=block.roots.dtype)
    drawn = resample(block.log_weights, num, key=key)
    index = jnp.where(wanted, drawn.astype(everyone.dtype), everyone)
    since, variance = _since(block.log_weights, block.roots)
    roots = block.roots[index]
    booked = wanted & (_num_roots(roots) < _FEWEST_ROOTS * num)
    return dataclasses.replace(
        block,
        positions=block.positions[index],
        log_weights=jnp.where(wanted, 0.0, block.log_weights),
        energies=block.energies[index],
        gradients=block.gradients[index],
        roots=jnp.where(booked, everyone, roots),
        log_partition=block.log_partition + jnp.where(wanted, since, 0.0),
        variance=block.variance + jnp.where(booked, variance, 0.0),
    )


def _since(
    log_weights: Float[Array, " walkers"], roots: Int[Array, " walkers"]
) -> Estimate:
    """Return `log_mean_exp(log_weights)` and its variance, relatives as one.

    With every walker its own root, the variance is `(n / ess - 1) / (n - 1)`.
    """
    num = log_weights.shape[0]
    value = jax.nn.logsumexp(log_weights) - jnp.log(num)
    shares = jax.ops.segment_sum(normalized(log_weights), roots, num)
    excess = jnp.maximum(jnp.sum(shares**2) - 1 / num, 0.0)
    return Estimate(value, excess * num / (num - 1))


def _num_roots(roots: Int[Array, " walkers"]) -> Int[Array, ""]:
    num = roots.shape[0]
    return jnp.sum(jnp.zeros(num, roots.dtype).at[roots].set(1))


# Compiled as a whole: one after the other, small operations compile for seconds.
@partial(jax.jit, static_argnames="shape")
def _gaussian(key: PRNGKeyArray, scale: float, shape: tuple[int, ...]) -> Walkers:
    positions = scale * jax.random.normal(key, shape)
    size = positions[0].size
    return _started(
        positions,
        0.5 * jnp.sum(_flat(positions / scale) ** 2, axis=1),
        positions / scale**2,
        0.5 * size * jnp.log(2 * jnp.pi * scale**2),
    )


@partial(jax.jit, static_argnames="num")
def _bernoulli(key: PRNGKeyArray, logits: Float[Array, "*shape"], num: int) -> Walkers:
    shape = (num, *logits.shape)
    drawn = jax.random.bernoulli(key, jax.nn.sigmoid(logits)[None], shape)
    positions = drawn.astype(logits.dtype)
    gradients = jnp.broadcast_to(-logits[None], shape)
    return _started(
        positions,
        jnp.sum(_flat(positions * gradients), axis=1),
        gradients,
        jnp.sum(jax.nn.softplus(logits)),
    )


def _started(
    positions: Float[Array, "walkers *shape"],
    energies: Float[Array, " walkers"],
    gradients: Float[Array, "walkers *shape"],
    log_partition: Float[Array, ""] | float,
) -> Walkers:
    num, dtype = positions.shape[0], positions.dtype
    return Walkers(
        positions=positions,
        log_weights=jnp.zeros(num, dtype),
        energies=energies.astype(dtype),
        gradients=gradients.astype(dtype),
        roots=jnp.arange(num, dtype=jnp.int32),
        log_partition=jnp.asarray(log_partition, dtype),
        variance=jnp.zeros((), dtype),
        step_size=jnp.zeros((), dtype),
        acceptance=jnp.ones((), dtype),
    )


def _check_num(num: int) -> None:
    if num < 2:
        raise ValueError(f"`num` is {num}: weights need at least 2 walkers.")


def _flat(array: Float[Array, "walkers *shape"]) -> Float[Array, "walkers size"]:
    return array.reshape(array.shape[0], -1)
