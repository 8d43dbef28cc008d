"""How walkers move, with the exact change of their weights."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .checks import check_continuous, check_continuous_data
from .evaluation import Energy, energy_of_one, evaluate
from .langevin import Langevin, check_langevin
from .step_sizes import (
    StepSize,
    TargetAcceptance,
    TargetVariance,
    step_size_at,
    with_step_size,
)
from .walkers import Walkers, chosen, kept_where_finite


class AbstractKernel(eqx.Module):
    """A Markov move of all walkers, with what it does to their weights."""

    @abc.abstractmethod
    def follow(
        self,
        walkers: Walkers,
        energy: Energy,
        step: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> Walkers:
        """Return the walkers moved once and weighted for `energy`.

        They come with the energies and gradients of the model that they last saw, which
        is all that is needed of it.
        """

    @abc.abstractmethod
    def move(
        self,
        walkers: Walkers,
        energy: Energy,
        step: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> Walkers:
        """Return the walkers, which are already weighted for `energy`, moved once."""

    def check(self, model: Energy, walkers: Walkers) -> None:
        """Raise if this kernel cannot move `walkers` under `model`.

        By default a self-test: the energy must be finite, the same twice, the same
        whatever the other rows are, and confining.
        """
        check_continuous(model, walkers.positions)

    def check_data(self, batch: Any, source: Any) -> None:
        """Raise on data that this kernel's walkers cannot be compared with.

        By default, on integers and on constant columns, which have no density.
        """
        check_continuous_data(batch, source)


class ULA(AbstractKernel):
    r"""Unadjusted Langevin moves, weighted exactly at any step size.

        new = positions - h * gradients + sqrt(2 h) * noise
        log_weights += alpha(positions, new) - alpha'(new, positions)
        alpha(x, y) = energy(x) + (y - x) . gradient(x) / 2 + h / 4 * |gradient(x)|^2

    `alpha` takes the energy before the update at the old position (carried), `alpha'`
    the energy after it at the new one: so a move costs one energy and one gradient, as
    it would without weights. The weights undo both the lag behind the model and the
    bias of the discrete step; a large `h` costs effective sample size, not exactness.
    As a rule, `h <= 0.5 / sqrt(sum of squared curvatures)`, which `TargetVariance`
    finds.

    A walker whose new energy is not finite stays where it was with weight zero, which
    is exact, until resampling replaces it.

    **Attributes:**

    - `step_size`, `h`, in units of squared length: a number, an optax schedule, or
      `TargetVariance`.
    - `clip`: the norm at which an example's gradient is cut, in both halves of the
      weight, so that it stays exact; `None` for no clipping.
    - `scale`: a preconditioner `L`, an array of the shape of an example or a matrix:
      moves are `-h L L^T gradients + sqrt(2 h) L noise`.

    **Source:** Carbone et al. (2023), Proposition 1, equations 13 to 16.
    """

    step_size: StepSize
    clip: float | None = None
    scale: Float[Array, "..."] | None = None

    def __check_init__(self) -> None:
        """Raise `ValueError` for settings out of range."""
        check_langevin(self.step_size, self.clip)
        if isinstance(self.step_size, TargetAcceptance):
            raise ValueError(
                "`step_size` is a `TargetAcceptance`, but `ULA` accepts every move: "
                "give it `TargetVariance`, or use `MALA`."
            )

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
        new, ratios, squares = langevin.proposed(walkers, energy, h, key=key)
        moved = dataclasses.replace(new, log_weights=walkers.log_weights + ratios)
        moved = kept_where_finite(ratios, moved, walkers)
        return with_step_size(moved, self.step_size, h, jnp.ones(()), squares)

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


class MALA(AbstractKernel):
    """Langevin moves, accepted or refused so that the model stays invariant.

        log_weights += energies - energy(positions)
        accepted with probability min(1, exp(alpha(positions, new) -
            alpha(new, positions)))

    with `ULA`'s proposal and `alpha`, at the new energy. Only the lag behind the model
    enters the weights: large steps cost acceptance, not effective sample size. A
    following move costs two evaluations (one of them at the walkers' old positions),
    every further move one.

    **Attributes:** as `ULA`; `step_size` may be `TargetAcceptance`.

    **Source:** Roberts and Tweedie (1996); Carbone et al. (2023), section 3.
    """

    step_size: StepSize
    clip: float | None = None
    scale: Float[Array, "..."] | None = None

    def __check_init__(self) -> None:
        """Raise `ValueError` for settings out of range."""
        check_langevin(self.step_size, self.clip)
        if isinstance(self.step_size, TargetVariance):
            raise ValueError(
                "`step_size` is a `TargetVariance`, which is for unadjusted moves: "
                "give `MALA` a `TargetAcceptance`."
            )

    def follow(
        self,
        walkers: Walkers,
        energy: Energy,
        step: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> Walkers:
        """Return the walkers weighted for `energy`, then moved once."""
        return self.move(walkers.reweighted(energy), energy, step, key=key)

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
        new, ratios, squares = langevin.proposed(walkers, energy, h, key=propose)
        # A proposal of infinite or undefined energy is refused.
        ratios = jnp.where(jnp.isnan(ratios), -jnp.inf, ratios)
        uniform = jax.random.uniform(decide, ratios.shape, ratios.dtype)
        accepted = jnp.log(uniform) < ratios
        moved = chosen(accepted, new, walkers)
        acceptance = jnp.mean(jnp.exp(jnp.minimum(ratios, 0.0)))
        return with_step_size(moved, self.step_size, h, acceptance, squares)


class ReweightFirst(AbstractKernel):
    """A kernel in the other exact order: the new weights first, then the move.

        log_weights += energies - energy(positions), then `kernel.move`

    One evaluation more a step, and a slightly larger effective sample size.

    **Attributes:** `kernel`.
    """

    kernel: AbstractKernel

    def follow(
        self,
        walkers: Walkers,
        energy: Energy,
        step: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> Walkers:
        """Return the walkers weighted for `energy`, then moved once."""
        return self.kernel.move(walkers.reweighted(energy), energy, step, key=key)

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


class BlackJAX(AbstractKernel):
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

    def follow(
        self,
        walkers: Walkers,
        energy: Energy,
        step: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> Walkers:
        """Return the walkers weighted for `energy`, then moved once."""
        return self.move(walkers.reweighted(energy), energy, step, key=key)

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
        algorithm = self.algorithm(lambda x: -energy_of_one(energy, x))
        states = jax.vmap(algorithm.init)(walkers.positions)
        keys = jax.random.split(key, walkers.num)
        states, info = jax.vmap(algorithm.step)(keys, states)
        energies, gradients = evaluate(energy, states.position)
        rates = getattr(info, "acceptance_rate", jnp.ones(()))
        return dataclasses.replace(
            walkers,
            positions=states.position,
            energies=energies,
            gradients=gradients,
            acceptance=jnp.mean(rates).astype(walkers.acceptance.dtype),
        )
