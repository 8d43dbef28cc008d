"""Moves of zeros and ones under any differentiable energy."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from effgen.ebm.contract.energy import Energy
from effgen.ebm.contract.energy_checks import check_energies
from effgen.ebm.walkers.particles import KernelState, Particles
from effgen.ebm.walkers.weighted_walkers import Walkers

from .acceptance import metropolized
from .kernels import AbstractBinaryKernel


# The share of the walkers that must begin where the energy is finite.
_LEAST_ALLOWED = 0.05


class GibbsWithGradients(AbstractBinaryKernel):
    """Flips of one entry a move, which the energy's gradient proposes.

        log_weights += energies - energy(positions)
        gains = (2 x - 1) * gradient(x) / 2
        i ~ softmax(gains),  new = x with entry i flipped
        accepted with probability min(1, exp(energy(x) - energy(new))
            * softmax(gains(new))[i] / softmax(gains(x))[i])

    To first order a flip changes the log-probability by `2 gains`, so probable flips
    are proposed more often. Each is accepted or refused. So the move leaves the model
    invariant for any energy, and the weights are exact. A move costs one evaluation.
    Take `num_moves` about as large as a tenth of the number of entries.

    Walkers and data are zeros and ones, `Walkers.from_bernoulli`. Spins `s` of -1 and 1
    are `s = 2 x - 1` inside the energy. Where a gradient is not finite, nothing is
    preferred, which is exact too. It takes no arguments.

    Source:
        Grathwohl et al. (2021); Zanella (2020).
    """

    def move(
        self,
        walkers: Walkers,
        energy: Energy,
        step: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> Walkers:
        """Return the walkers after one proposed flip each.

        Arguments:
            walkers: Zeros and ones, weighted for `energy`.
            energy: The energy of the model that stays invariant.
            step: Not used.
            key: The randomness of the move.

        Returns:
            The walkers, their weights as they were, with the mean acceptance.
        """
        del step
        propose, decide = jax.random.split(key)
        x, num = walkers.positions, walkers.num
        logits = _logits(x, walkers.gradients)
        entry = jax.random.categorical(propose, logits, axis=1)
        flipped = jax.nn.one_hot(entry, logits.shape[1], dtype=x.dtype).reshape(x.shape)
        new = Particles.of(energy, jnp.abs(x - flipped))
        back = _logits(new.positions, new.gradients)
        falls = walkers.energies - new.energies
        rows = jnp.arange(num)
        ratios = falls + back[rows, entry] - logits[rows, entry]
        moved, acceptance = metropolized(walkers, new, ratios, key=decide)
        return moved.moving(KernelState(moved.step_size, acceptance))

    def check(self, model: Energy, walkers: Walkers) -> None:
        """Raise unless the walkers are zeros and ones, where the energy is finite.

        Arguments:
            model: The energy at the start.
            walkers: The walkers at the start.

        Raises:
            ValueError: For walkers that are not zeros and ones, or an energy that is
                infinite at most of them, undefined, not the same twice, or a function
                of the other rows.
        """
        super().check(model, walkers)
        # Unused codes may have infinite energy, such as the fourth of three colors.
        check_energies(model, walkers.positions, least=_LEAST_ALLOWED)


def _logits(
    x: Float[Array, "walkers *shape"], gradients: Float[Array, "walkers *shape"]
) -> Float[Array, "walkers entries"]:
    # Any function of the position will do: an energy may have no gradient at a corner.
    gradients = jnp.where(jnp.isfinite(gradients), gradients, 0.0)
    gains = 0.5 * ((2 * x - 1) * gradients).reshape(x.shape[0], -1)
    return jax.nn.log_softmax(gains, axis=1)
