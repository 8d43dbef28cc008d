"""Langevin proposals, clipped and preconditioned, and the ratio that weighs them."""

from numbers import Real
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from effgen.ebm.contract.arguments import as_rows, check_finite, traced
from effgen.ebm.contract.energy import Energy
from effgen.ebm.walkers.particles import Particles

from .step_sizes import check_step_size


class Langevin(eqx.Module):
    """The proposal `new = x - h L L^T clipped + sqrt(2 h) L noise` and its density.

    `clipped` is the gradient, cut to norm `clip`. The drift is a function of the
    position alone, which is all that exactness asks of it.

    Arguments:
        clip: As in `ULA`.
        scale: `L`, as in `ULA`.
    """

    clip: float | None
    scale: Float[Array, "..."] | None

    def proposed(
        self,
        old: Particles,
        energy: Energy,
        h: Float[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> tuple[Particles, Float[Array, " walkers"], Float[Array, " walkers"]]:
        """Return where walkers would go, `log_ratio` of each, and the squared drifts.

            log_ratio = energies - energy(new)
                + log_proposal'(new -> x) - log_proposal(x -> new)
                = energies - energy(new) + (new - x) . (clipped + clipped') / 2
                + h / 4 * (|L^T clipped|^2 - |L^T clipped'|^2)

        The proposal from `x` is that of the energy that they carry, the one
        from `new` that of `energy`.

        Source:
            Carbone et al. (2023), equation 15, for a general drift.
        """
        x = old.positions
        clipped = self._clipped(old.gradients)
        across = self._across(clipped)
        noise = jax.random.normal(key, x.shape, x.dtype)
        to = x + self._along(jnp.sqrt(2 * h) * noise - h * across)
        # By where they get, which is rounded: far from 0 that is another place.
        new, change = Particles.of(energy, to), to - x
        new_clipped = self._clipped(new.gradients)
        new_squares = _squares(self._across(new_clipped))
        # Gathered so that large energies cancel before they are added.
        ratios = (
            old.energies
            - new.energies
            + 0.5 * _dot(change, clipped + new_clipped)
            + 0.25 * h * (_squares(across) - new_squares)
        )
        return new, ratios, new_squares

    def squares(
        self, gradients: Float[Array, "walkers *shape"]
    ) -> Float[Array, " walkers"]:
        """Return the squared norms of the clipped, preconditioned gradients."""
        return _squares(self._across(self._clipped(gradients)))

    def _clipped(self, gradients: Float[Array, "walkers *shape"]) -> Array:
        if self.clip is None:
            return gradients
        norms = jnp.sqrt(_squares(gradients)).reshape(-1, *[1] * (gradients.ndim - 1))
        # An infinite norm cuts nothing; a gradient of 0 stays so.
        norms = jnp.maximum(norms, jnp.finfo(norms.dtype).tiny)
        return gradients * jnp.minimum(1.0, self.clip / norms)

    def _across(self, x: Float[Array, "walkers *shape"]) -> Array:
        return self._scaled(x, transposed=True)

    def _along(self, x: Float[Array, "walkers *shape"]) -> Array:
        return self._scaled(x, transposed=False)

    def _scaled(self, x: Float[Array, "walkers *shape"], *, transposed: bool) -> Array:
        if self.scale is None:
            return x
        check_scale(self.scale, x.shape[1:])
        scale = jnp.asarray(self.scale, x.dtype)
        if scale.shape == x.shape[1:]:
            return x * scale[None]
        matrix = scale if transposed else scale.T
        return (x.reshape(x.shape[0], -1) @ matrix).reshape(x.shape)


def check_langevin(step_size: Any, clip: float | None, scale: Any = None) -> None:
    """Raise on a step size or a norm that is not positive, or a scale of no use."""
    check_step_size(step_size)
    number = isinstance(clip, Real) and not isinstance(clip, bool)
    if clip is not None and not (number and float(clip) > 0):
        raise ValueError(f"`clip` is {clip!r}: pass a norm > 0, or `None`.")
    if scale is not None and not traced(scale):
        check_finite("scale", jnp.atleast_1d(as_rows("scale", scale)))
        _check_invertible(np.asarray(scale, np.float64))


def _check_invertible(scale: np.ndarray) -> None:
    """Raise on a preconditioner that leaves a direction without any move.

    A square one may be a matrix, or one number for each entry of a square example.
    """
    square = scale.ndim == 2 and scale.shape[0] == scale.shape[1]
    if not scale.all() and not (square and np.linalg.matrix_rank(scale) == len(scale)):
        raise ValueError(
            "`scale` is 0 in some direction, in which walkers would never move: pass "
            "deviations above 0, or a matrix that has an inverse."
        )


def check_scale(scale: Any, shape: tuple[int, ...]) -> None:
    """Raise on a preconditioner that fits no example of `shape`."""
    size = 1
    for axis in shape:
        size *= axis
    if jnp.shape(scale) not in (shape, (size, size)):
        raise ValueError(
            f"`scale` has shape {jnp.shape(scale)}: pass an array of the shape of an "
            f"example, {shape}, or a matrix, {(size, size)}."
        )


def _squares(x: Float[Array, "walkers *shape"]) -> Float[Array, " walkers"]:
    return _dot(x, x)


def _dot(
    a: Float[Array, "walkers *shape"], b: Float[Array, "walkers *shape"]
) -> Float[Array, " walkers"]:
    return jnp.sum((a * b).reshape(a.shape[0], -1), axis=1)
