"""Ready parts of linear SDEs: what each moves, and where its parameters start."""

import abc
import math
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from effgen.neural_sde.linear_sdes.gaussian import as_float

from .part_steps import PartStep, slope_step, turning, turning_step, walk_step


class Measures(NamedTuple):
    """What start values are taken from, in the units of time and data.

    Attributes:
        span: Of the times.
        gap: The median time between observations.
        spread: The standard deviation of the values.
    """

    span: float
    gap: float
    spread: float


UNIT = Measures(1.0, 0.01, 1.0)


class PartLaw(NamedTuple):
    """A part's `dX = matrix X dt + diffusion dW`, its first law's root, what it shows.

    `reads . X` is the part's share in the values.
    """

    matrix: Float[Array, "state state"]
    diffusion: Float[Array, "state brownian"]
    root: Float[Array, "state state"]
    reads: Float[Array, " state"]


class AbstractPart(eqx.Module):
    """A component of a structural model. Positive parameters are kept by logarithms.

    Arrays named `start_...` are not trained: `start_scales` are deviations of the first
    law, and `start_given` what `started` begins at.
    """

    kind: eqx.AbstractClassVar[str]
    # Names of parameters whose fields are not `log_...` of the name.
    kept_as: ClassVar[dict[str, str]] = {}

    @abc.abstractmethod
    def law(self) -> PartLaw:
        """Return the part as a linear SDE."""

    @abc.abstractmethod
    def step(self, dt: Float[Array, ""]) -> PartStep:
        """Return the exact step of length `dt`."""

    @abc.abstractmethod
    def parameters(self) -> dict[str, Array]:
        """Return its parameters in the units of time and data."""

    @abc.abstractmethod
    def started(self, measures: Measures) -> "AbstractPart":
        """Return the part with start values where none were given."""


def log_of(value: float | None, start: float) -> Array:
    """Return the logarithm of what was given, or of the start value."""
    return jnp.log(as_float(start if value is None else value))


def as_leaf(*values: float | None) -> Float[Array, " given"]:
    """Return what was given, zero for nothing: programs serve any start values."""
    return as_float(np.array([value or 0.0 for value in values]))


def as_given(leaf: Float[Array, " given"]) -> list[float | None]:
    """Return what was given, `None` for nothing."""
    return [float(value) or None for value in leaf]


def check_positive(kind: str, **values: float | None) -> None:
    """Raise `ValueError` for a value that is not positive."""
    for name, value in values.items():
        if value is None:
            continue
        number = isinstance(value, int | float | np.number)
        if not (number and np.isfinite(value) and value > 0):
            raise ValueError(
                f"`{name}` of `{kind}` is {value}: pass a positive number."
            )


def as_harmonics(harmonics: int) -> int:
    """Return how many harmonics there are.

    Raises:
        ValueError: For a number that is not whole.
    """
    if int(harmonics) != harmonics:
        raise ValueError(f"`harmonics` is {harmonics}: pass a whole number.")
    return int(harmonics)


class Level(AbstractPart):
    """A random walk, `dX = noise dW`."""

    kind: ClassVar[str] = "level"

    log_noise: Float[Array, ""]
    start_given: Float[Array, " given"]
    start_scales: Float[Array, " state"]

    def __init__(self, noise: float | None, measures: Measures) -> None:
        """Start at a walk over one deviation of the data in their span."""
        check_positive(self.kind, noise=noise)
        self.start_given = as_leaf(noise)
        self.log_noise = log_of(noise, measures.spread / math.sqrt(measures.span))
        self.start_scales = as_float(np.array([3 * measures.spread]))

    def law(self) -> PartLaw:
        """Return the part as a linear SDE."""
        one = jnp.ones((1, 1), self.log_noise.dtype)
        return PartLaw(
            0 * one, jnp.exp(self.log_noise) * one, self.start_scales[0] * one, one[0]
        )

    def step(self, dt: Float[Array, ""]) -> PartStep:
        """Return the exact step, in closed form."""
        del dt
        return walk_step(jnp.exp(self.log_noise))

    def parameters(self) -> dict[str, Array]:
        """Return `noise`, in data units per root of time."""
        return {"noise": jnp.exp(self.log_noise)}

    def started(self, measures: Measures) -> "Level":
        """Return the part with start values where none were given."""
        (noise,) = as_given(self.start_given)
        return Level(noise, measures)


class Trend(AbstractPart):
    """A level whose slope is a random walk, `dX = slope dt + noise dW`."""

    kind: ClassVar[str] = "trend"

    log_noise: Float[Array, ""]
    log_slope_noise: Float[Array, ""]
    start_given: Float[Array, " given"]
    start_scales: Float[Array, " state"]

    def __init__(
        self, noise: float | None, slope_noise: float | None, measures: Measures
    ) -> None:
        """Start at slopes that change by one deviation of the data in their span."""
        check_positive(self.kind, noise=noise, slope_noise=slope_noise)
        span, spread = measures.span, measures.spread
        self.start_given = as_leaf(noise, slope_noise)
        self.log_noise = log_of(noise, 0.5 * spread / math.sqrt(span))
        self.log_slope_noise = log_of(slope_noise, 2 * spread / span**1.5)
        self.start_scales = as_float(np.array([3 * spread, 5 * spread / span]))

    def law(self) -> PartLaw:
        """Return the part as a linear SDE."""
        dtype = self.log_noise.dtype
        noise = jnp.exp(jnp.stack([self.log_noise, self.log_slope_noise]))
        root = jnp.diag(self.start_scales)
        matrix = jnp.asarray([[0, 1], [0, 0]], dtype)
        return PartLaw(matrix, jnp.diag(noise), root, jnp.asarray([1, 0], dtype))

    def step(self, dt: Float[Array, ""]) -> PartStep:
        """Return the exact step, in closed form."""
        return slope_step(jnp.exp(self.log_noise), jnp.exp(self.log_slope_noise), dt)

    def parameters(self) -> dict[str, Array]:
        """Return `noise` and `slope_noise`, per root of time."""
        return {
            "noise": jnp.exp(self.log_noise),
            "slope_noise": jnp.exp(self.log_slope_noise),
        }

    def started(self, measures: Measures) -> "Trend":
        """Return the part with start values where none were given."""
        noise, slope_noise = as_given(self.start_given)
        return Trend(noise, slope_noise, measures)


class Cycle(AbstractPart):
    """A damped oscillation, `dX = (-damping I + 2 pi / period J) X dt + noise dW`.

    `noise = scale sqrt(2 damping)`, so that `scale` is its standard deviation.
    """

    kind: ClassVar[str] = "cycle"

    log_period: Float[Array, ""]
    log_damping: Float[Array, ""]
    log_scale: Float[Array, ""]
    start_given: Float[Array, " given"]

    def __init__(
        self,
        period: float,
        damping: float | None,
        scale: float | None,
        measures: Measures,
    ) -> None:
        """Start at a damping of a tenth of the angular rate."""
        check_positive(self.kind, period=period, damping=damping, scale=scale)
        self.start_given = as_leaf(period, damping, scale)
        self.log_period = log_of(period, 1.0)
        self.log_damping = log_of(damping, 0.2 * math.pi / period)
        self.log_scale = log_of(scale, 0.7 * measures.spread)

    def _motion(self) -> tuple[Array, Array, Array]:
        """Return the damping, the angular rate as one of a list, and the noise."""
        rates = 2 * jnp.pi * jnp.exp(-self.log_period)[None]
        damping = jnp.exp(self.log_damping)
        return damping, rates, jnp.exp(self.log_scale) * jnp.sqrt(2 * damping)

    def law(self) -> PartLaw:
        """Return the part as a linear SDE."""
        damping, rates, noise = self._motion()
        eye = jnp.eye(2, dtype=noise.dtype)
        root = jnp.exp(self.log_scale) * eye
        return PartLaw(turning(rates) - damping * eye, noise * eye, root, eye[0])

    def step(self, dt: Float[Array, ""]) -> PartStep:
        """Return the exact step, in closed form."""
        return turning_step(*self._motion(), dt)

    def parameters(self) -> dict[str, Array]:
        """Return `period`, `damping` (one over time) and `scale` (data units)."""
        return {
            "period": jnp.exp(self.log_period),
            "damping": jnp.exp(self.log_damping),
            "scale": jnp.exp(self.log_scale),
        }

    def started(self, measures: Measures) -> "Cycle":
        """Return the part with start values where none were given."""
        period, damping, scale = as_given(self.start_given)
        assert period is not None
        return Cycle(period, damping, scale, measures)


class Season(AbstractPart):
    """Undamped oscillations of one period and its fractions, of varying amplitude.

    `dX_k = 2 pi k / period J X_k dt + noise dW`, `k = 1 ... harmonics`.
    """

    kind: ClassVar[str] = "season"

    log_noise: Float[Array, ""]
    period: float = eqx.field(static=True)
    harmonics: int = eqx.field(static=True)
    start_given: Float[Array, " given"]
    start_scales: Float[Array, " state"]

    def __init__(
        self, period: float, harmonics: int, noise: float | None, measures: Measures
    ) -> None:
        """Start at amplitudes that vary by a twentieth of a deviation a period."""
        check_positive(self.kind, period=period, harmonics=harmonics, noise=noise)
        self.period, self.harmonics = float(period), as_harmonics(harmonics)
        self.start_given = as_leaf(noise)
        self.log_noise = log_of(noise, 0.05 * measures.spread / math.sqrt(period))
        self.start_scales = as_float(np.array([2 * measures.spread]))

    def law(self) -> PartLaw:
        """Return the part as a linear SDE."""
        dtype, size = self.log_noise.dtype, 2 * self.harmonics
        eye = jnp.eye(size, dtype=dtype)
        reads = jnp.tile(jnp.asarray([1, 0], dtype), self.harmonics)
        noise = jnp.exp(self.log_noise)
        root = self.start_scales[0] * eye
        return PartLaw(turning(self._rates()), noise * eye, root, reads)

    def step(self, dt: Float[Array, ""]) -> PartStep:
        """Return the exact step, in closed form."""
        noise = jnp.exp(self.log_noise)
        return turning_step(jnp.zeros_like(noise), self._rates(), noise, dt)

    def _rates(self) -> Float[Array, " pairs"]:
        """Return the angular rate of each oscillation."""
        rates = 2 * math.pi / self.period * np.arange(1, self.harmonics + 1)
        return jnp.asarray(rates, self.log_noise.dtype)

    def parameters(self) -> dict[str, Array]:
        """Return `noise`, in data units per root of time."""
        return {"noise": jnp.exp(self.log_noise)}

    def started(self, measures: Measures) -> "Season":
        """Return the part with start values where none were given."""
        (noise,) = as_given(self.start_given)
        return Season(self.period, self.harmonics, noise, measures)


class Periodic(AbstractPart):
    """A periodic function of a period that is trained: no noise moves it.

    `dX_k = 2 pi k / period J X_k dt`, `X_k(0) ~ N(0, (scale / k^2)^2 I)`, `k = 1 ...
    harmonics`. The period is `start exp(log_stretch start / (2 span))`: a stretch of
    one is half a turn at the end of the span.
    """

    kind: ClassVar[str] = "periodic"
    kept_as: ClassVar[dict[str, str]] = {"log_stretch": "period"}

    log_stretch: Float[Array, ""]
    log_scale: Float[Array, ""]
    harmonics: int = eqx.field(static=True)
    start_given: Float[Array, " given"]
    start_turns: Float[Array, ""]

    def __init__(
        self, period: float, harmonics: int, scale: float | None, measures: Measures
    ) -> None:
        """Start at the period, and at the data's deviation."""
        check_positive(self.kind, period=period, harmonics=harmonics, scale=scale)
        self.harmonics = as_harmonics(harmonics)
        self.start_given = as_leaf(period, scale)
        self.start_turns = as_float(np.array(measures.span / period))
        self.log_stretch = as_float(np.array(0.0))
        self.log_scale = log_of(scale, measures.spread)

    @property
    def period(self) -> Float[Array, ""]:
        """In the unit of time."""
        start = self.start_given[0].astype(self.log_stretch.dtype)
        return start * jnp.exp(0.5 * self.log_stretch / self.start_turns)

    def law(self) -> PartLaw:
        """Return the part as a linear SDE."""
        dtype, k = self.log_scale.dtype, np.arange(1, self.harmonics + 1)
        sizes = jnp.exp(self.log_scale) * jnp.asarray(np.repeat(k, 2) ** -2.0, dtype)
        reads = jnp.tile(jnp.asarray([1, 0], dtype), self.harmonics)
        noise = jnp.zeros((2 * self.harmonics, 1), dtype)
        return PartLaw(turning(self._rates()), noise, jnp.diag(sizes), reads)

    def step(self, dt: Float[Array, ""]) -> PartStep:
        """Return the exact step, in closed form."""
        zero = jnp.zeros_like(self.log_scale)
        return turning_step(zero, self._rates(), zero, dt)

    def _rates(self) -> Float[Array, " pairs"]:
        """Return the angular rate of each oscillation."""
        k = jnp.arange(1, self.harmonics + 1, dtype=self.log_scale.dtype)
        return 2 * jnp.pi / self.period * k

    def parameters(self) -> dict[str, Array]:
        """Return `period` in units of time, and `scale` in the data's."""
        return {"period": self.period, "scale": jnp.exp(self.log_scale)}

    def started(self, measures: Measures) -> "Periodic":
        """Return the part with start values where none were given."""
        period, scale = as_given(self.start_given)
        assert period is not None
        return Periodic(period, self.harmonics, scale, measures)
