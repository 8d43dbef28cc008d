"""How walkers move, with the exact change of their weights."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from .walkers import Energy, Walkers, evaluate


Schedule = float | Callable[[Any], ArrayLike]
"""A number, or an optax schedule: a function from the step to a number."""


class AbstractKernel(eqx.Module):
    """A Markov move of all walkers, under an energy that may just have changed."""

    @abc.abstractmethod
    def move(
        self,
        walkers: Walkers,
        energy: Energy,
        step: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> Walkers:
        """Return the moved walkers, weighted for `energy`.

        The walkers come with the energies and gradients of the energy before, which is
        all that is needed of it; `energy` is evaluated once.
        """


class ULA(AbstractKernel):
    r"""Unadjusted Langevin moves, weighted exactly at any step size.

        new = positions - h * gradients + sqrt(2 h) * noise
        log_weights += alpha(positions, new) - alpha'(new, positions)
        alpha(x, y) = energy(x) + (y - x) . gradient(x) / 2 + h / 4 * |gradient(x)|^2

    `alpha` takes the energy before the update at the old position (carried), `alpha'`
    the energy after it at the new one: so a move costs one energy and one gradient, as
    it would without weights. The weights undo both the lag behind the model and the
    bias of the discrete step; a large `h` costs effective sample size, not exactness.
    As a rule, `h <= 0.5 / sqrt(sum of squared curvatures)`.

    A walker whose new energy is not finite stays where it was with weight zero, which
    is exact, until resampling replaces it.

    **Attributes:** `step_size`, `h`, in units of squared length; a number or an optax
    schedule.

    **Source:** Carbone et al. (2023), Proposition 1, equations 13 to 16.
    """

    step_size: Schedule

    def __check_init__(self) -> None:
        """Raise `ValueError` for a step size that is not positive."""
        if isinstance(self.step_size, int | float) and not self.step_size > 0:
            raise ValueError(
                f"`step_size` is {self.step_size}: pass a number > 0 or a schedule."
            )

    def move(
        self,
        walkers: Walkers,
        energy: Energy,
        step: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> Walkers:
        """Return the walkers after one move, weighted for `energy`."""
        x, gradients = walkers.positions, walkers.gradients
        h = value_at(self.step_size, step).astype(x.dtype)
        noise = jax.random.normal(key, x.shape, x.dtype)
        y = x - h * gradients + jnp.sqrt(2 * h) * noise
        new_energies, new_gradients = evaluate(energy, y)
        # alpha - alpha', gathered so that large energies cancel before they are added.
        increments = (
            walkers.energies
            - new_energies
            + 0.5 * _dot(y - x, gradients + new_gradients)
            + 0.25
            * h
            * (_dot(gradients, gradients) - _dot(new_gradients, new_gradients))
        )
        return _where_finite(
            increments,
            Walkers(
                positions=y,
                log_weights=walkers.log_weights + increments,
                energies=new_energies,
                gradients=new_gradients,
                log_partition=walkers.log_partition,
                variance=walkers.variance,
            ),
            walkers,
        )


def value_at(schedule: Schedule, step: Int[Array, ""]) -> Float[Array, ""]:
    """Return a number, or the value of a schedule at `step`."""
    return jnp.asarray(schedule(step) if callable(schedule) else schedule)


def _where_finite(
    increments: Float[Array, " walkers"], moved: Walkers, old: Walkers
) -> Walkers:
    finite = jnp.isfinite(increments)

    def choose(new: Array, kept: Array) -> Array:
        return jnp.where(finite.reshape(-1, *[1] * (new.ndim - 1)), new, kept)

    return Walkers(
        positions=choose(moved.positions, old.positions),
        log_weights=jnp.where(finite, moved.log_weights, -jnp.inf),
        energies=choose(moved.energies, old.energies),
        gradients=choose(moved.gradients, old.gradients),
        log_partition=moved.log_partition,
        variance=moved.variance,
    )


def _dot(
    a: Float[Array, "walkers *shape"], b: Float[Array, "walkers *shape"]
) -> Float[Array, " walkers"]:
    return jnp.sum((a * b).reshape(a.shape[0], -1), axis=1)
