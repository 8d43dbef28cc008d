"""Any of blackjax's adjusted samplers, as a kernel of walkers."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from .evaluation import Energy, energy_of_one
from .kernels import AbstractContinuousKernel
from .particles import Particles
from .walkers import Walkers


# What tells of a move that may be refused; elliptical slices try until one is accepted.
_ADJUSTED = ("acceptance_rate", "is_accepted", "subiter")

_WANTED = (
    "`algorithm` must be a function from a log-density to a sampling algorithm, as in "
    "`lambda log_density: blackjax.hmc(log_density, 0.1, jnp.ones(2), 4)`."
)


class BlackJAX(AbstractContinuousKernel):
    """Any of blackjax's kernels that leaves a density invariant: HMC, NUTS, Barker.

        log_weights += energies - energy(positions), then one step of `algorithm`

    The weights are exact because the model does not change while the walkers move.

    ```python
    ebm.BlackJAX(lambda log_density: blackjax.hmc(
        log_density, step_size=0.1, inverse_mass_matrix=jnp.ones(2),
        num_integration_steps=4,
    ))
    ```

    **Attributes:** `algorithm`, a function from a log-density of one example to a
    `blackjax.SamplingAlgorithm`. It must be adjusted (accept or refuse): an unadjusted
    one leaves another density invariant, and the weights would be wrong.
    """

    algorithm: Callable[[Callable[[Array], Array]], Any]

    def move(
        self,
        walkers: Walkers,
        energy: Energy,
        step: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> Walkers:
        """Return the walkers after one step of `algorithm`."""
        del step
        keys = jax.random.split(key, (2, walkers.num))
        algorithm = self.algorithm(lambda x: -energy_of_one(energy, x))
        states = jax.vmap(algorithm.init)(walkers.positions, keys[0])
        states, info = jax.vmap(algorithm.step)(keys[1], states)
        accepted = jnp.mean(_acceptance(info)).astype(walkers.positions.dtype)
        moved = walkers.at(Particles.of(energy, states.position))
        return dataclasses.replace(moved, acceptance=accepted)

    def check(self, model: Energy, walkers: Walkers) -> None:
        """Raise if `algorithm` cannot move the walkers, or does not accept or refuse.

        **Raises:** `TypeError` for what is no function from a log-density to a
        `blackjax.SamplingAlgorithm`, or for an unadjusted sampler.
        """
        super().check(model, walkers)
        algorithm = self._algorithm(model)
        one = jax.ShapeDtypeStruct(walkers.positions.shape[1:], walkers.positions.dtype)
        key = jax.random.key(0)
        state = eqx.filter_eval_shape(algorithm.init, one, key)
        _, info = eqx.filter_eval_shape(algorithm.step, key, state)
        if not any(hasattr(info, name) for name in _ADJUSTED):
            raise TypeError(
                "`algorithm` tells of no acceptance, as unadjusted samplers do, which "
                "leave another density than the model's invariant: pass an adjusted "
                "one, such as `blackjax.hmc` or `blackjax.adjusted_mclmc`."
            )

    def _algorithm(self, model: Energy) -> Any:
        try:
            algorithm = self.algorithm(lambda x: -energy_of_one(model, x))
        except Exception as error:
            raise TypeError(f"{_WANTED} It raised: {error}") from error
        if not (hasattr(algorithm, "init") and hasattr(algorithm, "step")):
            raise TypeError(f"{_WANTED} It returned a {type(algorithm).__name__}.")
        return algorithm


def _acceptance(info: Any) -> Array:
    rates = [getattr(info, name) for name in _ADJUSTED[:2] if hasattr(info, name)]
    return jnp.asarray(rates[0] if rates else 1.0)
