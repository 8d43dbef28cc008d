"""Where walkers are, and how they are moved: what kernels see of them."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from effgen.ebm.contract.energy import Energy, evaluate


class Particles(eqx.Module):
    """Positions, with what a model is there.

    Attributes:
        positions: Shape `(walkers, *shape)`.
        energies: Of the model last seen; carried to save an evaluation, `(walkers,)`.
        gradients: Of that energy, shape `(walkers, *shape)`.
    """

    positions: Float[Array, "walkers *shape"]
    energies: Float[Array, " walkers"]
    gradients: Float[Array, "walkers *shape"]

    @classmethod
    def of(
        cls, energy: Energy, positions: Float[Array, "walkers *shape"]
    ) -> "Particles":
        """Return `positions` with their energies and gradients, in one pass."""
        return cls(positions, *evaluate(energy, positions))

    @property
    def num(self) -> int:
        """The number of particles."""
        return self.positions.shape[0]

    def where(
        self, accepted: Bool[Array, " walkers"], otherwise: "Particles"
    ) -> "Particles":
        """Return these, but `otherwise` where they are not accepted."""

        def choose(a: Array, b: Array) -> Array:
            return jnp.where(accepted.reshape(-1, *[1] * (a.ndim - 1)), a, b)

        return jax.tree.map(choose, self, otherwise)


class KernelState(eqx.Module):
    """How a kernel moves.

    Attributes:
        step_size: That of the next move.
        acceptance: The mean share of the last move's proposals that were accepted.
    """

    step_size: Float[Array, ""]
    acceptance: Float[Array, ""]

    @classmethod
    def unknown(cls) -> "KernelState":
        """Return that of a kernel that has not moved yet: by its rule's `initial`."""
        return cls(jnp.zeros(()), jnp.ones(()))

    def like(self, other: "KernelState") -> "KernelState":
        """Return the same in the precision of `other`."""
        return jax.tree.map(lambda new, old: new.astype(old.dtype), self, other)
