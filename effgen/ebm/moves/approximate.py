"""Langevin moves with approximate weights, for comparison: biased at any step size."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from effgen.ebm.contract.energy import Energy
from effgen.ebm.walkers.particles import Particles
from effgen.ebm.walkers.weighted_walkers import Walkers

from .kernels import AbstractContinuousKernel
from .langevin import Langevin, check_langevin
from .step_sizes import (
    StepSize,
    begun_by_variance,
    check_unadjusted,
    step_size_at,
    with_step_size,
)


class UncorrectedULA(AbstractContinuousKernel):
    """Unadjusted Langevin moves whose weights leave out the error of the discrete step.

        log_weights += energies - energy(positions)

    This is the limit of small steps, `d log_weights = -d energy / dt`. It is BIASED:
    `log Z` is off by about the step size times the distance that the model moves (0.02
    nats at `h = 0.05`, 0.13 at 0.8, where `ULA` has no bias). It costs one evaluation
    more than `ULA`.

    Arguments:
        step_size: `h`, in units of squared length: a number, an optax schedule, or
            `TargetVariance`.

    Raises:
        ValueError: For a step size that is not positive, or a `TargetAcceptance`.
        TypeError: For an object that is no step size.
    """

    step_size: StepSize

    def __check_init__(self) -> None:
        """Raise for a step size that is not positive."""
        check_langevin(self.step_size, None)
        check_unadjusted("UncorrectedULA", self.step_size)

    def move(
        self,
        walkers: Walkers,
        energy: Energy,
        step: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> Walkers:
        """Return the walkers moved; weights change only where a new energy is infinite.

        Arguments:
            walkers: Weighted for `energy`.
            energy: The energy that they move under.
            step: The step of the training, from 0.
            key: The randomness of the move.

        Returns:
            The walkers after one move. One whose new energy is not finite stays where
                it was, with weight zero.
        """
        x, h = walkers.positions, step_size_at(self.step_size, walkers, step)
        noise = jax.random.normal(key, x.shape, x.dtype)
        new = x - h * walkers.gradients + jnp.sqrt(2 * h) * noise
        moved = Particles.of(energy, new)
        lost = jnp.where(jnp.isfinite(moved.energies), 0.0, -jnp.inf)
        kept = walkers.weighed(moved, lost.astype(x.dtype))
        squares = Langevin(None, None).squares(kept.gradients)
        return with_step_size(kept, self.step_size, h, jnp.ones(()), squares, step)

    def begun(self, walkers: Walkers, energy: Energy) -> Walkers:
        """Return the walkers with the step size that their gradients ask for.

        Arguments:
            walkers: Weighted for `energy`.
            energy: Not used.

        Returns:
            The walkers with a new `step_size`, if that follows `TargetVariance`.
        """
        del energy
        squares = Langevin(None, None).squares(walkers.gradients)
        return begun_by_variance(walkers, self.step_size, squares)
