"""Weighted walkers: samples of a model that changes while it is trained."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from effgen.core.contract.keys import check_key
from effgen.core.weights import Estimate, effective_sample_size, normalized
from effgen.ebm.contract.arguments import (
    as_rows,
    as_walls,
    check_box,
    check_draw,
    check_finite,
    check_logits,
    check_positive,
)
from effgen.ebm.contract.energy import Energy
from effgen.ebm.energies.coordinates import AbstractCoordinates, check_coordinates

from .block_weights import BlockWeights, taken_by_block
from .particles import KernelState, Particles
from .starts import bernoulli, gaussian, uniform


class Walkers(eqx.Module):
    """Positions with log-weights, which follow a model as it trains.

        E[exp(log_partition) * mean(exp(log_weights) * phi(positions))]
            = Z * E_model[phi]

    for any `phi`, and the model `exp(-energy) / Z` last moved under. So
    `log_partition + log_mean_exp(log_weights)` estimates `log Z`, and the normalized
    weights give expectations. The walkers are in blocks, consecutive and of equal size.
    Each block fulfills the identity and is resampled by itself: an island, independent
    of the others. The mean of the blocks' `Z` is the estimate, their spread its error.

    They are seen in three parts: where they are, `particles`; what they count,
    `block_weights`; and how they move, `kernel_state`. `at`, `counting` and `moving`
    give them another.

    Attributes:
        positions: Shape `(walkers, *shape)`.
        energies: Those of the model last seen, shape `(walkers,)`.
        gradients: Those of that energy, shape `(walkers, *shape)`.
        log_weights: Since the last resampling, shape `(walkers,)`.
        roots: Which of its block's first walkers each descends from, `(walkers,)`.
        log_partition: `log Z` up to the last resampling, shape `(blocks,)`.
        least_ess: The least share of a block that one change has left, `(blocks,)`.
        step_size: Of the next move, one number.
        acceptance: The mean share of the last move's proposals that were accepted.
        walls: The box that they cannot leave, `(low, high)`, or `None`; fixed.

    Source:
        Carbone et al. (2023), section 3; Verge et al. (2015) for islands.
    """

    positions: Float[Array, "walkers *shape"]
    energies: Float[Array, " walkers"]
    gradients: Float[Array, "walkers *shape"]
    log_weights: Float[Array, " walkers"]
    roots: Int[Array, " walkers"]
    log_partition: Float[Array, " blocks"]
    least_ess: Float[Array, " blocks"]
    step_size: Float[Array, ""]
    acceptance: Float[Array, ""]
    walls: tuple[float, float] | None = eqx.field(static=True, default=None)

    @classmethod
    def from_gaussian(
        cls,
        key: PRNGKeyArray,
        num: int,
        shape: tuple[int, ...],
        *,
        scale: float = 1.0,
        coordinates: AbstractCoordinates | None = None,
    ) -> "Walkers":
        """Draw walkers from a Gaussian, whose `log Z` is known.

            energy = |x|^2 / (2 scale^2),  log Z = (d / 2) log(2 pi scale^2)

        A `ConfinedEnergy` of the same scale is this at first; by any other energy,
        `trainer.init` weighs the walkers exactly.

        Arguments:
            key: The randomness of the draw.
            num: How many walkers, 2 or more.
            shape: The shape of one example.
            scale: The standard deviation, above 0, in `coordinates`, if there are any.
            coordinates: Such as `Standardized.of(data)`; positions stay in data units.
        """
        check_draw(key, num, shape)
        check_positive("scale", scale)
        check_coordinates(coordinates, tuple(shape))
        return gaussian(key, float(scale), (num, *shape), coordinates, _started)

    @classmethod
    def from_uniform(
        cls,
        key: PRNGKeyArray,
        num: int,
        shape: tuple[int, ...],
        *,
        low: float = 0.0,
        high: float = 1.0,
    ) -> "Walkers":
        """Draw walkers from a box: energy 0 and `log Z = d log(high - low)`.

        Arguments:
            key: The randomness of the draw.
            num: How many walkers, 2 or more.
            shape: The shape of one example.
            low: The lower wall, the same for every coordinate.
            high: The upper wall, above `low`, likewise; as `ReflectedMALA` has them.
        """
        check_draw(key, num, shape)
        check_box(low, high)
        box = float(low), float(high)
        drawn = uniform(key, (num, *shape), *box, _started)
        return dataclasses.replace(drawn, walls=box)

    @classmethod
    def from_bernoulli(
        cls, key: PRNGKeyArray, num: int, logits: Float[Array, "*shape"]
    ) -> "Walkers":
        """Draw walkers of zeros and ones, independent, from `sigmoid(logits)`.

            energy = -sum(logits * x),  log Z = sum(softplus(logits))

        Arguments:
            key: The randomness of the draw.
            num: How many walkers, 2 or more.
            logits: Of the shape of an example; as an `RBM` without weights has them.
        """
        logits = as_rows("logits", logits)
        check_logits("logits", logits)
        check_draw(key, num, logits.shape)
        return bernoulli(key, logits, num, _started)

    @classmethod
    def from_samples(
        cls,
        positions: Float[Array, "walkers *shape"],
        log_density: Float[Array, " walkers"] | None = None,
        *,
        walls: tuple[float, float] | None = None,
    ) -> "Walkers":
        """Start at `positions`, samples of a normalized density.

        Arguments:
            positions: The samples, shape `(walkers, *shape)`, 2 or more, finite.
            log_density: At each, in nats, shape `(walkers,)`. Without it weights mean
                nothing: trainers that use them, unlike `PCDTrainer`, refuse it.
            walls: `(low, high)`, of a box that they are to stay in.

        Raises:
            ValueError: If the two differ in number, are too few, or are not finite.
        """
        positions = as_rows("positions", positions)
        num = positions.shape[0]
        if num < 2:
            raise ValueError(f"`positions` has {num} row(s): pass at least 2 walkers.")
        known = log_density is not None
        density = as_rows("log_density", log_density) if known else jnp.zeros(num)
        if density.shape != (num,):
            raise ValueError(
                f"`log_density` has shape {density.shape}: pass one number for each of "
                f"the {num} positions."
            )
        check_finite("positions", positions)
        check_finite("log_density", density)
        start = 0.0 if known else jnp.nan
        begun = _started(positions, -density, jnp.zeros_like(positions), start)
        if walls is None:
            return begun
        return dataclasses.replace(begun, walls=as_walls(walls))

    @property
    def particles(self) -> Particles:
        """Where the walkers are, with what the model that they last saw is there."""
        return Particles(self.positions, self.energies, self.gradients)

    @property
    def kernel_state(self) -> KernelState:
        """How the walkers move next."""
        return KernelState(self.step_size, self.acceptance)

    @property
    def block_weights(self) -> BlockWeights:
        """What the walkers count, in their blocks."""
        return BlockWeights(
            self.log_weights, self.roots, self.log_partition, self.least_ess
        )

    @property
    def num(self) -> int:
        """The number of walkers."""
        return self.positions.shape[0]

    @property
    def num_blocks(self) -> int:
        """The number of blocks."""
        return self.log_partition.shape[0]

    @property
    def joint_log_weights(self) -> Float[Array, " walkers"]:
        """The log-weights with their blocks' `log Z`, comparable between blocks."""
        return self.block_weights.joint

    @property
    def weights(self) -> Float[Array, " walkers"]:
        """The weights, normalized to one over all blocks."""
        return normalized(self.joint_log_weights)

    @property
    def ess(self) -> Float[Array, ""]:
        """The effective sample size, a share of the number of walkers."""
        return effective_sample_size(self.joint_log_weights) / self.num

    @property
    def num_roots(self) -> Int[Array, ""]:
        """How many walkers, of those that there were, have descendants left."""
        return self.block_weights.num_roots

    @property
    def least_share(self) -> Float[Array, ""]:
        """The least share of a block that one change of the model has left so far."""
        return jnp.min(self.least_ess)

    @property
    def spread(self) -> Float[Array, ""]:
        """The standard deviation of the blocks' `log Z`, in nats; 0 of one block."""
        return self.block_weights.spread

    def estimate(self) -> Estimate:
        """Return `log Z` of the model last moved under, and its error, in nats.

            values = log_partition + log_mean_exp(log_weights), block by block
            log Z = log_mean_exp(values)

        Of 8 blocks or more, the error is that of their spread (`spread_error`): twice
        the error holds the truth in 95 % of runs. Of fewer blocks, it follows the
        walkers' genealogy: relatives count as one.

        Source:
            Chan and Lai (2013), and Lee and Whiteley (2018), for the genealogy.
        """
        return self.block_weights.estimate()

    def in_blocks(self, num_blocks: int) -> "Walkers":
        """Return the same walkers in `num_blocks` blocks, none of them resampled yet.

        Arguments:
            num_blocks: A divisor of the number of walkers.

        Raises:
            ValueError: If it leaves fewer than 2 a block, or is no divisor, or for
                walkers in blocks, or relatives.
        """
        return self.counting(self.block_weights.in_blocks(num_blocks))

    def reweighted(self, energy: Energy) -> "Walkers":
        """Return the walkers, where they are, as weighted samples of `energy`.

            log_weights += energies - energy(positions), exact for any change

        Arguments:
            energy: The new energy; a walker where it is not finite gets weight 0.
        """
        seen = Particles.of(energy, self.positions)
        return followed_from(self, self.weighed(seen, self.energies - seen.energies))

    def weighed(
        self, particles: Particles, increments: Float[Array, " walkers"]
    ) -> "Walkers":
        """Return the walkers at `particles`, their log-weights changed by `increments`.

        Where these are not finite, a walker stays where it was with weight zero. That
        is exact: a region of infinite energy has no mass. Resampling replaces it.

        Arguments:
            particles: Where the walkers go, with energies and gradients there.
            increments: What is added to the log-weights, shape `(walkers,)`.
        """
        kept = self.at(particles.where(jnp.isfinite(increments), self.particles))
        return kept.counting(self.block_weights.changed(increments))

    def at(self, particles: Particles) -> "Walkers":
        """Return the walkers at other particles, nothing else of them changed."""
        return dataclasses.replace(
            self,
            positions=particles.positions,
            energies=particles.energies,
            gradients=particles.gradients,
        )

    def counting(self, weights: BlockWeights) -> "Walkers":
        """Return the walkers, each of which counts as `weights` say."""
        return dataclasses.replace(
            self,
            log_weights=weights.log_weights,
            roots=weights.roots,
            log_partition=weights.log_partition,
            least_ess=weights.least_ess,
        )

    def moving(self, state: KernelState) -> "Walkers":
        """Return the walkers, to be moved as `state` says."""
        return dataclasses.replace(
            self, step_size=state.step_size, acceptance=state.acceptance
        )

    def resampled(
        self, key: PRNGKeyArray, blocks: Bool[Array, " blocks"] | None = None
    ) -> "Walkers":
        """Return equally weighted walkers, each kept in proportion to its weight.

        Arguments:
            key: The randomness of the draw.
            blocks: Which ones to resample, shape `(blocks,)`; `None` for all. Their
                `log Z` since the last resampling is added to `log_partition`.
        """
        check_key(key)
        num = self.num_blocks
        chosen = jnp.ones(num, bool) if blocks is None else blocks
        keys = key[None] if num == 1 else jax.random.split(key, num)
        index, weights = self.block_weights.drawn(keys, chosen)
        kept = lambda x: taken_by_block(x, index)
        return self.at(jax.tree.map(kept, self.particles)).counting(weights)

    def arranged(self, change: Callable[..., Array], *others: "Walkers") -> "Walkers":
        """Return the walkers with a `change` of every array but the kernel's state."""
        none: Any = None
        apart = [x.moving(KernelState(none, none)) for x in (self, *others)]
        return jax.tree.map(change, *apart).moving(self.kernel_state)


def followed_from(before: Walkers, after: Walkers) -> Walkers:
    """Return `after`, with how many of `before` a change of the model has left."""
    counted = after.block_weights.followed_from(before.block_weights)
    return after.counting(counted)


def _started(
    positions: Float[Array, "walkers *shape"],
    energies: Float[Array, " walkers"],
    gradients: Float[Array, "walkers *shape"],
    log_partition: Float[Array, ""] | float,
) -> Walkers:
    num, dtype = positions.shape[0], positions.dtype
    return Walkers(
        positions=positions,
        energies=energies.astype(dtype),
        gradients=gradients.astype(dtype),
        log_weights=jnp.zeros(num, dtype),
        roots=jnp.arange(num, dtype=jnp.int32),
        log_partition=jnp.full(1, log_partition, dtype),
        least_ess=jnp.ones(1, dtype),
        step_size=jnp.zeros((), dtype),
        acceptance=jnp.ones((), dtype),
    )
