"""How walkers move, with the exact change of their weights."""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from .checks import check_continuous, confines, traced, walled
from .data_checks import check_continuous_data
from .evaluation import Energy, energies_at
from .langevin import Langevin, check_langevin
from .particles import Particles
from .step_sizes import (
    StepSize,
    TargetAcceptance,
    begun_by_variance,
    begun_with,
    check_adjusted,
    check_unadjusted,
    searched,
    step_size_at,
    with_step_size,
)
from .walkers import Walkers


# So many walkers tell what is accepted, where a first step size is looked for.
_PROBED = 256


class AbstractKernel(eqx.Module):
    """A Markov move of all walkers, with what it does to their weights.

    A subclass defines `move`; all else has a default.

    Attributes:
        takes_gradients: Whether walkers carry the gradients of the last model.
    """

    takes_gradients: ClassVar[bool] = True

    def follow(
        self,
        walkers: Walkers,
        energy: Energy,
        step: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> Walkers:
        """Return the walkers moved once and weighted for `energy`.

        By default they are weighted where they are, and then moved.

        Arguments:
            walkers: Weighted for the model that they last saw, whose energies and
                gradients they carry; no more is needed of it.
            energy: The energy to weigh them for.
            step: The step of the training, from 0.
            key: The randomness of the move.
        """
        return self.move(walkers.reweighted(energy), energy, step, key=key)

    @abc.abstractmethod
    def move(
        self,
        walkers: Walkers,
        energy: Energy,
        step: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> Walkers:
        """Return the walkers moved once, under the energy that they are weighted for.

        Arguments:
            walkers: Weighted for `energy`.
            energy: The energy of the model, which the move leaves invariant.
            step: The step of the training, from 0.
            key: The randomness of the move.
        """

    def begun(self, walkers: Walkers, energy: Energy) -> Walkers:
        """Return the walkers with the step size of their first move; by default as is.

        Arguments:
            walkers: Weighted for `energy`; a rule finds its step size on them.
            energy: The energy at the start.
        """
        del energy
        return walkers

    def between(self, old: Energy, new: Energy, share: Float[Array, ""]) -> Energy:
        """Return a model on the way from `old` to `new`; by default the geometric one.

            energy(x) = (1 - share) * old(x) + share * new(x)

        Arguments:
            old: The energy at `share` 0.
            new: The energy at `share` 1. A kernel may ask for two of one kind.
            share: From 0 to 1, one number.
        """
        return Between(old, new, share)

    def confined(self, model: Energy, walkers: Walkers) -> Bool[Array, ""]:
        """Return whether a trained model still has a density; by default, yes.

        An `AbstractContinuousKernel` looks far out.

        Arguments:
            model: The energy after an update.
            walkers: Walkers of it, where to begin to look.
        """
        del model, walkers
        return jnp.ones((), bool)

    def admits(self, model: Energy, batch: Float[Array, "batch *shape"]) -> Array:
        """Return whether walkers could be at a batch's rows, one bool; by default, yes.

        Every step asks it of its batch, in the compiled program.

        Arguments:
            model: The energy that is trained.
            batch: The data of a step.
        """
        del model, batch
        return jnp.ones((), bool)

    def check(self, model: Energy, walkers: Walkers) -> None:
        """Raise if this kernel cannot move `walkers` under `model`, by a self-test.

        Arguments:
            model: The energy at the start.
            walkers: The walkers at the start.

        Raises:
            ValueError: By default, for an energy that is not finite, not the same
                twice, a function of the other rows, or not confining.
        """
        check_continuous(model, walkers.positions)

    def check_data(self, batch: Any, source: Any) -> None:
        """Raise on data that this kernel's walkers cannot be compared with.

        Arguments:
            batch: The first batch, or its shape and dtype.
            source: The data of the run.

        Raises:
            TypeError: By default, for integers.
            ValueError: By default, for constant or repeated values, which have no
                density, and for values that are not finite.
        """
        check_continuous_data(batch, source)


class AbstractContinuousKernel(AbstractKernel):
    """A kernel of walkers that may go anywhere, if the energy lets them."""

    def check(self, model: Energy, walkers: Walkers) -> None:
        """Raise for walkers that would leave a box, or an energy without a density."""
        if not walled(model, walkers.positions, walkers.walls):
            raise ValueError(
                f"`memory` has walkers of the walls {walkers.walls}, to which neither "
                f"`{type(self).__name__}` nor the energy keeps them: move them by "
                "`ebm.ReflectedMALA`, or draw them by `ebm.Walkers.from_gaussian`."
            )
        super().check(model, walkers)

    def confined(self, model: Energy, walkers: Walkers) -> Bool[Array, ""]:
        """Return whether the energy grows fast enough along a few rays."""
        return confines(model, walkers.positions)


class Between(eqx.Module):
    """A model on the geometric path between two, of a batch of examples."""

    old: Energy
    new: Energy
    share: Float[Array, ""]

    def __call__(self, x: Float[Array, "batch *shape"]) -> Float[Array, " batch"]:
        """Return the energies; what is infinite at an end is so on the way, too."""
        return part_of(1 - self.share, energies_at(self.old, x)) + part_of(
            self.share, energies_at(self.new, x)
        )


def part_of(share: Float[Array, ""], energies: Float[Array, "..."]) -> Array:
    """Return `share * energies`; infinite energies stay so, for any share above 0."""
    whole = jnp.where(share > 0, energies, 0.0)
    finite = jnp.isfinite(energies)
    return jnp.where(finite, share * jnp.where(finite, energies, 0.0), whole)


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


def metropolized(
    walkers: Walkers,
    proposed: Particles,
    ratios: Float[Array, " walkers"],
    *,
    key: PRNGKeyArray,
) -> tuple[Walkers, Float[Array, ""]]:
    """Return the walkers as proposed, or where they were, and how often accepted.

        accepted with probability min(1, exp(ratios))

    Source:
        Metropolis et al. (1953); Hastings (1970).
    """
    # A proposal of infinite or undefined energy is refused.
    ratios = jnp.where(jnp.isnan(ratios), -jnp.inf, ratios)
    uniform = jax.random.uniform(key, ratios.shape, ratios.dtype)
    kept = proposed.where(jnp.log(uniform) < ratios, walkers.particles)
    return walkers.at(kept), jnp.mean(jnp.exp(jnp.minimum(ratios, 0.0)))


def begun_by_acceptance(
    kernel: AbstractKernel, step_size: StepSize, walkers: Walkers, energy: Energy
) -> Walkers:
    """Return the walkers with the step size that `kernel` begins with.

    By doubling or halving it, where `step_size` asks for an acceptance.
    """
    if not isinstance(step_size, TargetAcceptance) or traced((walkers, energy)):
        return walkers
    some = walkers.arranged(lambda x: x[:_PROBED])

    def acceptance(h: float) -> float:
        return float(_acceptance(kernel, some, energy, jnp.asarray(h)))

    found = searched(acceptance, step_size)
    return begun_with(walkers, jnp.asarray(found))


@eqx.filter_jit
def _acceptance(
    kernel: AbstractKernel, walkers: Walkers, energy: Energy, h: Float[Array, ""]
) -> Float[Array, ""]:
    begun, key = begun_with(walkers, h), jax.random.key(0)
    moved = kernel.move(begun, energy, jnp.zeros((), jnp.int32), key=key)
    return moved.acceptance


def check_admitted(
    said: str, kernel: AbstractKernel, model: Energy, rows: Float[Array, "rows *shape"]
) -> None:
    """Raise `ValueError` for rows that walkers of the kernel cannot reach."""
    admitted = kernel.admits(model, rows)
    if not traced(admitted) and not bool(admitted):
        each = jax.vmap(lambda row: kernel.admits(model, row[None]))(rows)
        raise ValueError(
            f"{said} {int(jnp.sum(~each))} row(s) of {len(rows)} (row "
            f"{int(jnp.argmin(each))} first) where walkers of the `kernel`, "
            f"`{type(kernel).__name__}`, can never be."
        )


def check_kernel(kernel: Any) -> None:
    """Raise `TypeError` for an object that is no kernel."""
    if not isinstance(kernel, AbstractKernel):
        raise TypeError(f"`kernel` is {kernel!r}: pass `ebm.ULA(step_size=...)`.")
