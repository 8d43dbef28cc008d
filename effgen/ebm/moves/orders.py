"""The other exact order: the weights of a new model first, and then the move."""

from typing import Any

from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from effgen.ebm.contract.energy import Energy
from effgen.ebm.walkers.weighted_walkers import Walkers

from .kernels import AbstractKernel, check_kernel


class ReweightFirst(AbstractKernel):
    """A kernel in the other exact order: the new weights first, then the move.

        log_weights += energies - energy(positions), then `kernel.move`

    Of `ULA`, and of a kernel that defines its own `follow`: one evaluation more a step,
    and a slightly larger effective sample size. All other kernels weigh first already,
    and stay as they are.

    Arguments:
        kernel: The kernel that moves the walkers, such as `ULA`.

    Raises:
        TypeError: If `kernel` is no kernel.
    """

    kernel: AbstractKernel

    def __check_init__(self) -> None:
        """Raise `TypeError` for an object that is no kernel."""
        check_kernel(self.kernel)

    def move(
        self,
        walkers: Walkers,
        energy: Energy,
        step: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> Walkers:
        """Return the walkers after one of `kernel`'s moves."""
        return self.kernel.move(walkers, energy, step, key=key)

    def begun(self, walkers: Walkers, energy: Energy) -> Walkers:
        """Return the walkers as `kernel` begins."""
        return self.kernel.begun(walkers, energy)

    def confined(self, model: Energy, walkers: Walkers) -> Bool[Array, ""]:
        """Return whether the energy is confined, as `kernel` sees it."""
        return self.kernel.confined(model, walkers)

    @property
    def takes_gradients(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether walkers carry the gradients of the last model, as `kernel` has it."""
        return self.kernel.takes_gradients

    def between(self, old: Energy, new: Energy, share: Float[Array, ""]) -> Energy:
        """Return a model on `kernel`'s way from `old` to `new`."""
        return self.kernel.between(old, new, share)

    def admits(self, model: Energy, batch: Float[Array, "batch *shape"]) -> Array:
        """Return whether `kernel`'s walkers could be at a batch's rows."""
        return self.kernel.admits(model, batch)

    def check(self, model: Energy, walkers: Walkers) -> None:
        """Raise if `kernel` cannot move `walkers` under `model`."""
        self.kernel.check(model, walkers)

    def check_data(self, batch: Any, source: Any) -> None:
        """Raise on data that `kernel`'s walkers cannot be compared with."""
        self.kernel.check_data(batch, source)
