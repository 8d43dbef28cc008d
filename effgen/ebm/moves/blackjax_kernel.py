"""Any of blackjax's adjusted samplers, as a kernel of walkers."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from effgen.ebm.contract.arguments import traced
from effgen.ebm.contract.energy import Energy, energy_of_one
from effgen.ebm.walkers.particles import KernelState, Particles
from effgen.ebm.walkers.weighted_walkers import Walkers

from .kernels import AbstractContinuousKernel


# What tells of a move that may be refused; elliptical slices try until one is accepted.
_ADJUSTED = ("acceptance_rate", "is_accepted", "subiter")

# Exact samples of a Gaussian, how often they are moved, and how far their mean square
# may be from its own, in standard errors.
_NUM_NUMBERS, _FEWEST, _NUM_TRIED, _FARTHEST_OFF = 16_384, 1024, 32, 6.0

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

    Arguments:
        algorithm: A function from a log-density of one example to a
            `blackjax.SamplingAlgorithm`. It must be adjusted (accept or refuse). An
            unadjusted one leaves another density invariant, so its weights would be
            wrong.

    Raises:
        TypeError: For an `algorithm` that cannot be called.
    """

    algorithm: Callable[[Callable[[Array], Array]], Any]

    def __check_init__(self) -> None:
        """Raise `TypeError` for what cannot be called."""
        if not callable(self.algorithm):
            raise TypeError(f"`algorithm` is {self.algorithm!r}: {_WANTED}")

    def move(
        self,
        walkers: Walkers,
        energy: Energy,
        step: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> Walkers:
        """Return the walkers after one step of `algorithm`.

        Arguments:
            walkers: Weighted for `energy`.
            energy: The energy of the model that stays invariant.
            step: Not used.
            key: The randomness of the move.

        Returns:
            The walkers, their weights as they were, with the mean acceptance.
        """
        del step
        keys = jax.random.split(key, (2, walkers.num))
        algorithm = self.algorithm(lambda x: -energy_of_one(energy, x))
        states = jax.vmap(algorithm.init)(walkers.positions, keys[0])
        states, info = jax.vmap(algorithm.step)(keys[1], states)
        accepted = jnp.mean(_acceptance(info)).astype(walkers.positions.dtype)
        moved = walkers.at(Particles.of(energy, states.position))
        return moved.moving(KernelState(moved.step_size, accepted))

    def check(self, model: Energy, walkers: Walkers) -> None:
        """Raise if `algorithm` cannot move the walkers, or does not accept or refuse.

        Arguments:
            model: The energy at the start.
            walkers: The walkers at the start.

        Raises:
            TypeError: For an object that is no function from a log-density to a
                `blackjax.SamplingAlgorithm`, or for an unadjusted sampler.
            ValueError: For an algorithm that does not leave a Gaussian as it is, or an
                energy that is not finite, repeatable and confining.
        """
        super().check(model, walkers)
        _check_adjusted(self._info(model, walkers))
        if not traced(walkers):
            self._check_invariant(walkers.positions)

    def _info(self, model: Energy, walkers: Walkers) -> Any:
        """Return the shape of what a step tells of itself."""
        algorithm = self._algorithm(model)
        one = jax.ShapeDtypeStruct(walkers.positions.shape[1:], walkers.positions.dtype)
        key = jax.random.key(0)
        try:
            state = eqx.filter_eval_shape(algorithm.init, one, key)
            return eqx.filter_eval_shape(algorithm.step, key, state)[1]
        except TypeError as error:
            raise TypeError(f"{_WANTED} Its step raised: {error}") from error

    def _check_invariant(self, positions: Float[Array, "walkers *shape"]) -> None:
        """Raise `ValueError` if exact samples of a Gaussian do not stay so.

        Of the walkers' own scale, for which the step size is meant.
        """
        off = positions - jnp.mean(positions, axis=0, keepdims=True)
        scale = jnp.sqrt(jnp.mean(off**2))
        scale = jnp.where(scale > 0, scale, 1.0)
        before, after, off = _mean_squares(self, positions[0], scale)
        if not off < _FARTHEST_OFF:
            raise ValueError(
                "`algorithm` does not leave a density as it is: by a few moves, the "
                "mean square of exact samples of a Gaussian goes from "
                f"{before:.3g} to {after:.3g}. Give `blackjax.irmh` its "
                "`proposal_logdensity_fn`, and "
                "`blackjax.elliptical_slice` the log-density less that of its Gaussian."
            )

    def _algorithm(self, model: Energy) -> Any:
        try:
            algorithm = self.algorithm(lambda x: -energy_of_one(model, x))
        except Exception as error:
            raise TypeError(f"{_WANTED} It raised: {error}") from error
        if not (hasattr(algorithm, "init") and hasattr(algorithm, "step")):
            raise TypeError(f"{_WANTED} It returned a {type(algorithm).__name__}.")
        return algorithm


@eqx.filter_jit
def _mean_squares(
    kernel: BlackJAX, like: Float[Array, "*shape"], scale: Float[Array, ""]
) -> tuple[Array, Array, Array]:
    """Return the mean square of Gaussian samples, before and after a few moves.

    The third is their difference in standard errors of independent samples.
    """
    keys = jax.random.split(jax.random.key(0), (2 + _NUM_TRIED,))
    shape = (max(_FEWEST, _NUM_NUMBERS // max(1, like.size)), *like.shape)
    x = scale * jax.random.normal(keys[0], shape, like.dtype)
    energy = lambda x: 0.5 * jnp.sum((x / scale) ** 2)
    walkers = Walkers.from_samples(x).reweighted(energy)

    def moved(walkers: Walkers, key: PRNGKeyArray) -> tuple[Walkers, None]:
        return kernel.move(walkers, energy, jnp.zeros((), jnp.int32), key=key), None

    last, _ = jax.lax.scan(moved, walkers, keys[2:])
    before, after = jnp.mean(x**2), jnp.mean(last.positions**2)
    error = scale**2 * jnp.sqrt(2 / x.size)
    return before, after, jnp.abs(after - scale**2) / error


def _check_adjusted(info: Any) -> None:
    if not any(hasattr(info, name) for name in _ADJUSTED):
        raise TypeError(
            "`algorithm` tells of no acceptance, as unadjusted samplers do, which "
            "leave another density than the model's invariant: pass an adjusted "
            "one, such as `blackjax.hmc` or `blackjax.adjusted_mclmc`."
        )


def _acceptance(info: Any) -> Array:
    _check_adjusted(info)  # again: chains of data, and long runs, have no walkers
    rates = [getattr(info, name) for name in _ADJUSTED[:2] if hasattr(info, name)]
    return jnp.asarray(rates[0] if rates else 1.0)
