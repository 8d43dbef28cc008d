"""What a move of walkers is, with the exact change of their weights."""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from effgen.core.running.loops import repeat
from effgen.ebm.contract.arguments import traced
from effgen.ebm.contract.data_checks import (
    are_bits,
    check_bits_of,
    check_continuous_data,
)
from effgen.ebm.contract.energy import Energy, energies_at
from effgen.ebm.contract.energy_checks import check_continuous, confines, walled
from effgen.ebm.walkers.particles import KernelState
from effgen.ebm.walkers.weighted_walkers import Walkers, followed_from


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


class AbstractBinaryKernel(AbstractKernel):
    """A kernel of walkers that are zeros and ones."""

    def admits(self, model: Energy, batch: Float[Array, "batch *shape"]) -> Array:
        """Return whether a batch is of zeros and ones, one bool.

        Arguments:
            model: Not used.
            batch: The data of a step.
        """
        del model
        return are_bits(batch)

    def check(self, model: Energy, walkers: Walkers) -> None:
        """Raise `ValueError` unless the walkers are zeros and ones.

        Arguments:
            model: Not used.
            walkers: The walkers at the start.
        """
        del model
        if not traced(walkers.positions) and not bool(are_bits(walkers.positions)):
            raise ValueError(
                "`memory` has walkers that are not zeros and ones: draw them by "
                "`ebm.Walkers.from_bernoulli`."
            )

    def check_data(self, batch: Any, source: Any) -> None:
        """Raise unless the data, as far as they are at hand, are zeros and ones.

        Arguments:
            batch: The first batch, or its shape and dtype.
            source: The data of the run.

        Raises:
            ValueError: For data that are not zeros and ones.
        """
        check_bits_of(batch, source)


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


def followed(
    kernel: AbstractKernel,
    walkers: Walkers,
    model: Energy,
    step: Int[Array, ""],
    num_moves: int,
    *,
    key: PRNGKeyArray,
    leader: KernelState | None = None,
) -> Walkers:
    """Return the walkers after `num_moves`, of which the first crosses to `model`.

    Every move has the step size of the `leader`, where there is one. Without, each
    walker has a share in the step size of all, and an estimate by them is off by about
    the inverse of their number.
    """

    def led(walkers: Walkers) -> Walkers:
        if leader is None:
            return walkers
        return walkers.moving(leader.like(walkers.kernel_state))

    moved = kernel.follow(led(walkers), model, step, key=jax.random.fold_in(key, 0))

    def body(i: Int[Array, ""], walkers: Walkers) -> Walkers:
        move_key = jax.random.fold_in(key, i + 1)
        return kernel.move(led(walkers), model, step, key=move_key)

    if num_moves > 1:
        moved = repeat(body, moved, num_moves - 1)
    return followed_from(walkers, moved)


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
