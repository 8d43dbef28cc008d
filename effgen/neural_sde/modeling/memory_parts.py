"""Stationary parts: Ornstein-Uhlenbeck, Matérn, and continuous autoregressions."""

import math
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .part_steps import PartStep, general_step, returning_step
from .parts import (
    AbstractPart,
    Measures,
    PartLaw,
    as_given,
    as_leaf,
    check_positive,
    log_of,
)


class Matern(AbstractPart):
    """A Matérn process of `smoothness` 1/2, 3/2 or 5/2.

    Its covariance is that of Gaussian processes, `scale^2 k(|t - s| / length)`; of
    smoothness 1/2 it is Ornstein and Uhlenbeck's, `exp(-|t - s| / length)`.

    Source:
        Hartikainen and Särkkä (2010).
    """

    kind: ClassVar[str] = "matern"

    log_length: Float[Array, ""]
    log_scale: Float[Array, ""]
    smoothness: float = eqx.field(static=True)
    start_given: Float[Array, " given"]

    def __init__(
        self,
        smoothness: float,
        length: float | None,
        scale: float | None,
        measures: Measures,
    ) -> None:
        """Start at a length between the gap and the span of the data."""
        if smoothness not in (0.5, 1.5, 2.5):
            raise ValueError(f"`smoothness` is {smoothness}: pass 0.5, 1.5 or 2.5.")
        check_positive(self.kind, length=length, scale=scale)
        self.smoothness = float(smoothness)
        self.start_given = as_leaf(length, scale)
        self.log_length = log_of(length, math.sqrt(measures.gap * measures.span))
        self.log_scale = log_of(scale, 0.6 * measures.spread)

    def law(self) -> PartLaw:
        """Return the part as a linear SDE in companion form."""
        order = round(self.smoothness + 0.5)
        rate = jnp.sqrt(2 * self.smoothness) * jnp.exp(-self.log_length)
        scale, dtype = jnp.exp(self.log_scale), self.log_scale.dtype
        powers = rate ** jnp.arange(order, 0, -1)
        binomials = jnp.asarray([math.comb(order, k) for k in range(order)], dtype)
        matrix = jnp.eye(order, k=1, dtype=dtype).at[-1].set(-binomials * powers)
        size = math.gamma(order) ** 2 * 4**order / (2 * math.factorial(2 * order - 2))
        noise = scale * jnp.sqrt(size * rate ** (2 * order - 1))
        diffusion = jnp.zeros((order, 1), dtype).at[-1, 0].set(noise)
        root = scale * self._root(rate)
        return PartLaw(matrix, diffusion, root, jnp.eye(order, dtype=dtype)[0])

    def _root(self, rate: Array) -> Float[Array, "state state"]:
        """Return a root of the stationary covariance of `scale` one."""
        if self.smoothness == 0.5:
            return jnp.ones((1, 1), rate.dtype)
        if self.smoothness == 1.5:
            return jnp.diag(jnp.stack([jnp.ones_like(rate), rate]))
        third = rate**2 / 3
        zero = jnp.zeros_like(rate)
        rows = [
            [jnp.ones_like(rate), zero, zero],
            [zero, jnp.sqrt(third), zero],
            [-third, zero, rate**2 * math.sqrt(8) / 3],
        ]
        return jnp.stack([jnp.stack(row) for row in rows])

    def step(self, dt: Float[Array, ""]) -> PartStep:
        """Return the exact step: in closed form of smoothness 1/2."""
        if self.smoothness != 0.5:
            return general_step(*self.law()[:2], dt)
        rate = jnp.exp(-self.log_length)
        noise = jnp.exp(self.log_scale) * jnp.sqrt(2 * rate)
        return returning_step(rate, noise, dt)

    def parameters(self) -> dict[str, Array]:
        """Return `length` in units of time and `scale` in the data's."""
        return {"length": jnp.exp(self.log_length), "scale": jnp.exp(self.log_scale)}

    def started(self, measures: Measures) -> "Matern":
        """Return the part with start values where none were given."""
        length, scale = as_given(self.start_given)
        return Matern(self.smoothness, length, scale, measures)


class Autoregression(AbstractPart):
    """A continuous autoregression of order `p`, stable whatever its parameters.

    Its characteristic polynomial is a product of `s^2 + damping s + stiffness`, and of
    `s + rate` where `p` is odd. `scale` is its standard deviation.

    Source:
        Kelly, Becker, Sobolewska, Siemiginowska and Uttley (2014).
    """

    kind: ClassVar[str] = "car"

    log_damping: Float[Array, " pairs"]
    log_stiffness: Float[Array, " pairs"]
    log_rate: Float[Array, " odd"]
    log_scale: Float[Array, ""]
    order: int = eqx.field(static=True)
    start_given: Float[Array, " given"]

    def __init__(self, order: int, scale: float | None, measures: Measures) -> None:
        """Start at roots between the gap's and the span's rates, each underdamped."""
        if not isinstance(order, int) or not 1 <= order <= 8:
            raise ValueError(f"`order` is {order}: pass a whole number from 1 to 8.")
        check_positive(self.kind, scale=scale)
        self.order, self.start_given = order, as_leaf(scale)
        ends = np.log([4 / measures.span, 1 / measures.gap])
        rates = np.exp(np.linspace(ends[0], ends[1], order // 2 + order % 2 + 2)[1:-1])
        pairs = rates[order % 2 :]
        self.log_damping = log_of(None, 1.0) + jnp.log(jnp.asarray(pairs))
        self.log_stiffness = 2 * jnp.log(jnp.asarray(pairs))
        self.log_rate = jnp.log(jnp.asarray(rates[: order % 2]))
        self.log_scale = log_of(scale, 0.7 * measures.spread)

    def law(self) -> PartLaw:
        """Return the part as a linear SDE in companion form."""
        order, dtype = self.order, self.log_scale.dtype
        polynomial = jnp.ones(1, dtype)
        for a, b in zip(self.log_damping, self.log_stiffness, strict=True):
            factor = jnp.stack([jnp.ones((), dtype), jnp.exp(a), jnp.exp(b)])
            polynomial = jnp.convolve(polynomial, factor)
        for c in self.log_rate:
            factor = jnp.stack([jnp.ones((), dtype), jnp.exp(c)])
            polynomial = jnp.convolve(polynomial, factor)
        matrix = jnp.eye(order, k=1, dtype=dtype).at[-1].set(-polynomial[:0:-1])
        unit = self._stationary(matrix)
        size = jnp.exp(self.log_scale) / jnp.sqrt(unit[0, 0])
        diffusion = jnp.zeros((order, 1), dtype).at[-1, 0].set(size)
        root = size * jnp.linalg.cholesky(unit)
        return PartLaw(matrix, diffusion, root, jnp.eye(order, dtype=dtype)[0])

    def _stationary(self, matrix: Array) -> Float[Array, "state state"]:
        """Return the covariance of unit noise, `A S + S A^T + e e^T = 0`.

        In units of time in which the rates are about one: their powers differ by many
        orders of magnitude otherwise.
        """
        order = self.order
        logs = jnp.concatenate([self.log_rate, self.log_stiffness])
        unit = jnp.exp(jnp.sum(logs) / order)
        sizes = unit ** jnp.arange(order)
        scaled = matrix * sizes[None] / sizes[:, None] / unit
        eye = jnp.eye(order, dtype=matrix.dtype)
        last = eye[-1]
        system = jnp.kron(eye, scaled) + jnp.kron(scaled, eye)
        found = jnp.linalg.solve(system, -jnp.outer(last, last).reshape(-1))
        found = found.reshape(order, order)
        found = (found + found.T) / 2 / (unit * sizes[-1] ** 2)
        return found * sizes[:, None] * sizes[None]

    def step(self, dt: Float[Array, ""]) -> PartStep:
        """Return the exact step, by its exponential."""
        return general_step(*self.law()[:2], dt)

    def parameters(self) -> dict[str, Array]:
        """Return factors of the polynomial, and `scale` in units of the data."""
        pairs = enumerate(zip(self.log_damping, self.log_stiffness, strict=True), 1)
        found = {}
        for i, (damping, stiffness) in pairs:
            found[f"damping_{i}"] = jnp.exp(damping)
            found[f"stiffness_{i}"] = jnp.exp(stiffness)
        if self.order % 2:
            found["rate"] = jnp.exp(self.log_rate[0])
        return found | {"scale": jnp.exp(self.log_scale)}

    def started(self, measures: Measures) -> "Autoregression":
        """Return the part with start values where none were given."""
        (scale,) = as_given(self.start_given)
        return Autoregression(self.order, scale, measures)
