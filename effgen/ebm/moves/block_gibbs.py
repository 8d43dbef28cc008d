"""Gibbs moves of restricted Boltzmann machines, a layer at a time."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from effgen.ebm.contract.energy import Energy
from effgen.ebm.contract.energy_checks import check_energies
from effgen.ebm.energies.rbm import RBM
from effgen.ebm.walkers.particles import Particles
from effgen.ebm.walkers.weighted_walkers import Walkers

from .kernels import AbstractBinaryKernel


class BlockGibbs(AbstractBinaryKernel):
    """Gibbs moves of an `RBM`: all hidden units given the visible, and back.

        log_weights += energies - energy(positions)
        hidden ~ Bernoulli(sigmoid(hidden_bias + x @ weights))
        new ~ Bernoulli(sigmoid(visible_bias + weights @ hidden))

    The move leaves the model invariant, so the weights are exact. No gradients are
    taken. It takes no arguments.

    Source:
        Hinton (2002); for the weights, as `MALA`'s, Carbone et al. (2023).
    """

    takes_gradients: ClassVar[bool] = False

    def move(
        self,
        walkers: Walkers,
        energy: Energy,
        step: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> Walkers:
        """Return the walkers after one sweep through both layers.

        Arguments:
            walkers: Zeros and ones, weighted for `energy`.
            energy: The `RBM` that stays invariant.
            step: Not used.
            key: The randomness of the move.

        Returns:
            The walkers, their weights as they were, their gradients zero.
        """
        del step
        rbm = _as_rbm(energy)
        keys = jax.random.split(key)
        fields = rbm.hidden_bias[None] + walkers.positions @ rbm.weights
        hidden = _drawn(fields, keys[0])
        visible = _drawn(rbm.visible_bias[None] + hidden @ rbm.weights.T, keys[1])
        # No gradients are kept, so that the compiler leaves out those of `follow`.
        nowhere = jnp.zeros_like(visible)
        return walkers.at(Particles(visible, jax.vmap(energy)(visible), nowhere))

    def between(self, old: Energy, new: Energy, share: Float[Array, ""]) -> Energy:
        """Return the `RBM` whose parameters are at a `share` of the straight way.

        Arguments:
            old: The `RBM` at `share` 0.
            new: The `RBM` at `share` 1, of the same sizes.
            share: From 0 to 1, one number.

        Returns:
            The `RBM` at `share`.
        """
        return jax.tree.map(lambda a, b: a + share * (b - a), old, new)

    def check(self, model: Energy, walkers: Walkers) -> None:
        """Raise unless `model` is an `RBM` and the walkers are zeros and ones.

        Arguments:
            model: The energy at the start.
            walkers: The walkers at the start.

        Raises:
            TypeError: For a model that is no `RBM`.
            ValueError: For walkers of another size, or that are not zeros and ones, or
                a machine whose energy is not finite there.
        """
        shape = _as_rbm(model).visible_bias.shape
        if walkers.positions.shape[1:] != shape:
            raise ValueError(
                f"`memory` has walkers of shape {walkers.positions.shape[1:]}, the "
                f"RBM {shape} visible units: give both the same."
            )
        super().check(model, walkers)
        check_energies(model, walkers.positions)


def _as_rbm(energy: Energy) -> RBM:
    if not isinstance(energy, RBM):
        raise TypeError(
            f"`model` is a {type(energy).__name__}: `BlockGibbs` moves an `ebm.RBM`; "
            "for other energies use `ebm.MALA` or `ebm.ULA`."
        )
    return energy


def _drawn(fields: Float[Array, "walkers units"], key: PRNGKeyArray) -> Array:
    drawn = jax.random.bernoulli(key, jax.nn.sigmoid(fields))
    return drawn.astype(fields.dtype)
