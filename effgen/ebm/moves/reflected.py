"""Langevin moves inside a box, which its walls reflect."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray

from effgen.ebm.contract.arguments import check_box
from effgen.ebm.contract.data_checks import check_continuous_data, values_at_hand
from effgen.ebm.contract.energy import Energy
from effgen.ebm.contract.energy_checks import check_energies
from effgen.ebm.walkers.particles import Particles
from effgen.ebm.walkers.weighted_walkers import Walkers

from .acceptance import begun_by_acceptance, metropolized
from .kernels import AbstractKernel
from .langevin import check_langevin
from .step_sizes import StepSize, check_adjusted, step_size_at, with_step_size


# Reflections to each side that a proposal's density counts; of the longest step, half
# of the box, the next one is six standard deviations away.
_IMAGES = 2
_LONGEST = 0.5


class ReflectedMALA(AbstractKernel):
    r"""Langevin moves in a box, reflected at its walls, accepted or refused.

        new = reflected(x - drift(x) + sqrt(2 h) * noise),   drift = h * gradient(x)
        accepted with probability min(1, exp(energy(x) - energy(new))
            * density(new -> x) / density(x -> new))

    The density of a reflected Gaussian is the sum of the Gaussian's over the mirror
    images of a point. So the move leaves the model invariant exactly. The model is the
    energy's density *inside the box*, and no walker leaves the box. It is for images in
    [0, 1], shares and angles. The weights are `MALA`'s. The drift is cut, coordinate by
    coordinate, at the width of the box, and a step's deviation at half of it.

    Walkers come from `Walkers.from_uniform` of the same box. The energy need not
    confine.

    Arguments:
        step_size: `h`, in units of squared length: a number, an optax schedule, or
            `TargetAcceptance`.
        low: The lower wall, the same for every coordinate, in units of the data.
        high: The upper wall, likewise.

    Raises:
        TypeError: If `step_size` is neither number, schedule nor rule.
        ValueError: For settings out of range, or a `TargetVariance`.

    Source:
        Roberts and Tweedie (1996) for the acceptance.
    """

    step_size: StepSize
    low: float = 0.0
    high: float = 1.0

    def __check_init__(self) -> None:
        """Raise `ValueError` for settings out of range."""
        check_langevin(self.step_size, None)
        check_box(self.low, self.high)
        check_adjusted("ReflectedMALA", self.step_size)

    def move(
        self,
        walkers: Walkers,
        energy: Energy,
        step: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> Walkers:
        """Return the walkers after one move that leaves `energy`'s model invariant.

        Arguments:
            walkers: In the box, weighted for `energy`.
            energy: The energy of the model that stays invariant.
            step: The step of the training, from 0.
            key: The randomness of the move.

        Returns:
            The walkers, their weights as they were, with the next step size.
        """
        propose, decide = jax.random.split(key)
        width, x = self.high - self.low, walkers.positions
        h = step_size_at(self.step_size, walkers, step)
        h = jnp.minimum(h, 0.5 * (_LONGEST * width) ** 2)
        scale = jnp.sqrt(2 * h)
        noise = jax.random.normal(propose, x.shape, x.dtype)
        center = self._center(x, walkers.gradients, h)
        new = Particles.of(energy, self._reflected(center + scale * noise))
        there = self._log_density(new.positions, center, scale)
        center = self._center(new.positions, new.gradients, h)
        back = self._log_density(x, center, scale)
        ratios = walkers.energies - new.energies + back - there
        moved, acceptance = metropolized(walkers, new, ratios, key=decide)
        squares = jnp.sum((new.gradients**2).reshape(walkers.num, -1), axis=1)
        return with_step_size(moved, self.step_size, h, acceptance, squares, step)

    def begun(self, walkers: Walkers, energy: Energy) -> Walkers:
        """Return the walkers with a step size whose acceptance is about the target.

        Arguments:
            walkers: In the box, weighted for `energy`.
            energy: The energy at the start.

        Returns:
            The walkers with a new `step_size`, if that follows `TargetAcceptance`.
        """
        return begun_by_acceptance(self, self.step_size, walkers, energy)

    def admits(self, model: Energy, batch: Float[Array, "batch *shape"]) -> Array:
        """Return whether a batch is inside the box, one bool.

        Arguments:
            model: Not used.
            batch: The data of a step.
        """
        del model
        return jnp.all((batch >= self.low) & (batch <= self.high))

    def check(self, model: Energy, walkers: Walkers) -> None:
        """Raise unless the walkers are in the box, where the energy is finite.

        Arguments:
            model: The energy at the start.
            walkers: The walkers at the start.

        Raises:
            ValueError: For walkers of other walls or outside of them, or an energy that
                is not finite, not the same twice, or a function of the other rows.
        """
        walls = (float(self.low), float(self.high))
        if walkers.walls != walls:
            raise ValueError(
                f"`memory` has walkers of the walls {walkers.walls}, the kernel {walls}"
                ": draw them by `ebm.Walkers.from_uniform(key, num, shape, low=..., "
                "high=...)`, or give `from_samples` the `walls`."
            )
        self._check_inside("memory", walkers.positions)
        check_energies(model, walkers.positions)

    def check_data(self, batch: Any, source: Any) -> None:
        """Raise on data outside the box, integers, and constant columns.

        Arguments:
            batch: The first batch, or its shape and dtype.
            source: The data of the run.

        Raises:
            TypeError: For integers.
            ValueError: For data outside the box, constant or repeated values, or values
                that are not finite.
        """
        check_continuous_data(batch, source)
        values = values_at_hand(batch, source)
        if values is not None:
            self._check_inside("data", values)

    def _check_inside(self, name: str, x: Any) -> None:
        if isinstance(x, Tracer):
            return
        lowest, highest = float(np.min(x)), float(np.max(x))
        low, high = np.asarray((self.low, self.high), x.dtype)  # rounded as they are
        if not (low <= lowest and highest <= high):
            raise ValueError(
                f"`{name}` goes from {lowest:.3g} to {highest:.3g}, outside of "
                f"[{self.low}, {self.high}]: pass `low` and `high` around it, and "
                "`ebm.Walkers.from_uniform` of the same."
            )

    def _center(self, x: Array, gradients: Array, h: Float[Array, ""]) -> Array:
        # Cut where it is not finite, too: any function of the position will do.
        width = self.high - self.low
        drift = jnp.nan_to_num(h * gradients, posinf=width, neginf=-width)
        return x - jnp.clip(drift, -width, width)

    def _reflected(self, x: Array) -> Array:
        width = self.high - self.low
        turned = jnp.mod((x - self.low) / width, 2.0)
        inside = self.low + width * jnp.minimum(turned, 2.0 - turned)
        return jnp.clip(inside, self.low, self.high)  # rounding

    def _log_density(
        self, x: Array, center: Array, scale: Float[Array, ""]
    ) -> Float[Array, " walkers"]:
        period = 2 * (self.high - self.low)
        mirror = 2 * self.low - x
        images = [
            image + k * period
            for k in range(-_IMAGES, _IMAGES + 1)
            for image in (x, mirror)
        ]
        logs = jnp.stack([-0.5 * ((image - center) / scale) ** 2 for image in images])
        return jnp.sum(jax.nn.logsumexp(logs, 0).reshape(x.shape[0], -1), axis=1)
