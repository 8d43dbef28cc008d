"""Langevin moves, unadjusted and adjusted, both weighted exactly."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from effgen.ebm.contract.energy import Energy
from effgen.ebm.walkers.weighted_walkers import Walkers

from .acceptance import begun_by_acceptance, metropolized
from .kernels import AbstractContinuousKernel
from .langevin import Langevin, check_langevin
from .step_sizes import (
    StepSize,
    begun_by_variance,
    check_adjusted,
    check_unadjusted,
    step_size_at,
    with_step_size,
)


class ULA(AbstractContinuousKernel):
    r"""Unadjusted Langevin moves, weighted exactly at any step size.

        new = positions - h * gradients + sqrt(2 h) * noise
        log_weights += alpha(positions, new) - alpha'(new, positions)
        alpha(x, y) = energy(x) + (y - x) . gradient(x) / 2 + h / 4 * |gradient(x)|^2

    `alpha` takes the energy before the update at the old position, which is carried.
    `alpha'` takes the energy after the update at the new position. So a move costs one
    energy and one gradient, as it would without weights. The weights correct both the
    lag behind the model and the bias of the discrete step. A large `h` costs effective
    sample size, not exactness. As a rule, `h <= 0.5 / sqrt(sum of squared curvatures)`,
    which `TargetVariance` finds. A walker whose new energy is not finite stays where it
    was with weight zero, which is exact. Resampling replaces it.

    Arguments:
        step_size: `h`, in units of squared length: a number, an optax schedule, or
            `TargetVariance`.
        clip: The norm at which an example's gradient is cut, in both halves of the
            weight, so that it stays exact; `None` for no clipping.
        scale: A preconditioner `L`, an array of the shape of an example or a matrix:
            moves are `-h L L^T gradients + sqrt(2 h) L noise`.

    Raises:
        TypeError: If `step_size` is neither number, schedule nor rule.
        ValueError: For settings out of range, or a `TargetAcceptance`.

    Source:
        Carbone et al. (2023), Proposition 1, equations 13 to 16.
    """

    step_size: StepSize
    clip: float | None = None
    scale: Float[Array, "..."] | None = None

    def __check_init__(self) -> None:
        """Raise `ValueError` for settings out of range."""
        check_langevin(self.step_size, self.clip, self.scale)
        check_unadjusted("ULA", self.step_size)

    def follow(
        self,
        walkers: Walkers,
        energy: Energy,
        step: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> Walkers:
        """Return the walkers after one move, weighted for `energy`."""
        langevin = Langevin(self.clip, self.scale)
        h = step_size_at(self.step_size, walkers, step)
        new, ratios, squares = langevin.proposed(walkers.particles, energy, h, key=key)
        moved = walkers.weighed(new, ratios)
        return with_step_size(moved, self.step_size, h, jnp.ones(()), squares, step)

    def move(
        self,
        walkers: Walkers,
        energy: Energy,
        step: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> Walkers:
        """Return the walkers after one move; as `follow`."""
        return self.follow(walkers, energy, step, key=key)

    def begun(self, walkers: Walkers, energy: Energy) -> Walkers:
        """Return the walkers with the step size that their gradients ask for."""
        del energy
        squares = Langevin(self.clip, self.scale).squares(walkers.gradients)
        return begun_by_variance(walkers, self.step_size, squares)


class MALA(AbstractContinuousKernel):
    """Langevin moves, accepted or refused so that the model stays invariant.

        log_weights += energies - energy(positions)
        accepted with probability min(1, exp(alpha(positions, new) -
            alpha(new, positions)))

    with `ULA`'s proposal and `alpha`, at the new energy. Only the lag behind the model
    enters the weights, so large steps cost acceptance and not effective sample size.
    The first move after an update costs two evaluations, one of them at the walkers'
    old positions. Every further move costs one.

    Arguments:
        step_size: `h`, in units of squared length: a number, an optax schedule, or
            `TargetAcceptance`.
        clip: As for `ULA`.
        scale: As for `ULA`.

    Raises:
        TypeError: If `step_size` is neither number, schedule nor rule.
        ValueError: For settings out of range, or a `TargetVariance`.

    Source:
        Roberts and Tweedie (1996); Carbone et al. (2023), section 3.
    """

    step_size: StepSize
    clip: float | None = None
    scale: Float[Array, "..."] | None = None

    def __check_init__(self) -> None:
        """Raise `ValueError` for settings out of range."""
        check_langevin(self.step_size, self.clip, self.scale)
        check_adjusted("MALA", self.step_size)

    def move(
        self,
        walkers: Walkers,
        energy: Energy,
        step: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> Walkers:
        """Return the walkers after one move that leaves `energy`'s model invariant."""
        propose, decide = jax.random.split(key)
        langevin = Langevin(self.clip, self.scale)
        h = step_size_at(self.step_size, walkers, step)
        old = walkers.particles
        new, ratios, squares = langevin.proposed(old, energy, h, key=propose)
        moved, acceptance = metropolized(walkers, new, ratios, key=decide)
        return with_step_size(moved, self.step_size, h, acceptance, squares, step)

    def begun(self, walkers: Walkers, energy: Energy) -> Walkers:
        """Return the walkers with a step size whose acceptance is about the target."""
        return begun_by_acceptance(self, self.step_size, walkers, energy)
