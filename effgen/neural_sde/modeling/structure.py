"""Structural models: a linear SDE as the sum of ready parts, and the decoder of it."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from effgen.neural_sde.linear_sdes.gaussian import Gaussian
from effgen.neural_sde.linear_sdes.linear import (
    AbstractLinearSDE,
    Inputs,
    as_input_matrix,
    forced,
)
from effgen.neural_sde.linear_sdes.transitions import (
    Coefficients,
    Transition,
    from_spread,
)
from effgen.neural_sde.observing.decoders import LinearDecoder, Readout

from .memory_parts import Autoregression, Matern
from .part_steps import PartStep, side_by_side
from .parts import (
    UNIT,
    AbstractPart,
    Cycle,
    Level,
    Measures,
    PartLaw,
    Periodic,
    Season,
    Trend,
)


class Structure(AbstractLinearSDE):
    """Parts side by side, `level() + season(1.0)`: values are the sum of all shown.

    Parameters stay positive and stable in training. Given numbers are their start
    values. The others start as for data and times of unit size, until `structural`
    takes them from the data.

    Arguments:
        parts: What `level()`, `trend()`, ... hold, as a tuple.
        input_matrix: `C`, shape `(state, inputs)`, or `None` for no inputs.

    Raises:
        TypeError: For an object that is no part.
        ValueError: For an `input_matrix` of another shape.
    """

    time_invariant: ClassVar[bool] = True

    parts: tuple[AbstractPart, ...]
    input_matrix: Float[Array, "state inputs"] | None

    def __init__(
        self, parts: tuple[AbstractPart, ...], *, input_matrix: ArrayLike | None = None
    ) -> None:
        """Check the parts."""
        for part in parts:
            if not isinstance(part, AbstractPart):
                raise TypeError(f"{type(part).__name__} is no part of a structure.")
        self.parts = tuple(parts)
        self.input_matrix = None
        if input_matrix is not None:
            self.input_matrix = as_input_matrix(input_matrix, len(self.reads))

    def __add__(self, other: "Structure") -> "Structure":
        """Return both side by side, of inputs that they share.

        Raises:
            TypeError: For an object that is no structure.
            ValueError: For an `input_matrix` of another number of inputs.
        """
        if not isinstance(other, Structure):
            raise TypeError(
                f"a structure is the sum of `level()`, `trend()`, ..., and not of a "
                f"{type(other).__name__}."
            )
        if self.input_matrix is None and other.input_matrix is None:
            return Structure(self.parts + other.parts)
        sizes = [s.reads.shape[0] for s in (self, other)]
        matrices = [s.input_matrix for s in (self, other)]
        widths = sorted({m.shape[1] for m in matrices if m is not None})
        if len(widths) > 1:
            raise ValueError(
                f"parts have `input_matrix` of {widths} columns: pass one column for "
                "each input of the series, the same of all parts."
            )
        rows = [
            jnp.zeros((n, widths[0])) if m is None else m
            for m, n in zip(matrices, sizes, strict=True)
        ]
        whole = jnp.concatenate(rows)
        return Structure(self.parts + other.parts, input_matrix=whole)

    @property
    def names(self) -> tuple[str, ...]:
        """The parts' kinds, numbered where there are several of one."""
        kinds = [part.kind for part in self.parts]
        return tuple(
            f"{kind}_{kinds[: i + 1].count(kind)}" if kinds.count(kind) > 1 else kind
            for i, kind in enumerate(kinds)
        )

    @property
    def parameters(self) -> dict[str, Array]:
        """All parameters by name, `"cycle.period"`, in units of time and data."""
        return {
            f"{name}.{key}": value
            for name, part in zip(self.names, self.parts, strict=True)
            for key, value in part.parameters().items()
        }

    @property
    def reads(self) -> Float[Array, " state"]:
        """What of the state each part shows: the sum of the parts is `reads . X`."""
        return jnp.concatenate([law.reads for law in self._laws()])

    @property
    def slices(self) -> dict[str, slice]:
        """Where each part's components are in the state."""
        sizes = [law.reads.shape[0] for law in self._laws()]
        ends = np.cumsum(sizes)
        return {
            name: slice(int(end - size), int(end))
            for name, size, end in zip(self.names, sizes, ends, strict=True)
        }

    def _laws(self) -> list[PartLaw]:
        return [part.law() for part in self.parts]

    @property
    def initial(self) -> Gaussian:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The law at the first time: stationary, but wide for level, trend, season."""
        root = jax.scipy.linalg.block_diag(*(law.root for law in self._laws()))
        return Gaussian(jnp.zeros(len(root), root.dtype), root)

    def coefficients(self, t: Float[Array, ""]) -> Coefficients:
        """Return `A`, a `b` of zero, and `sigma`: see `AbstractLinearSDE`."""
        laws = self._laws()
        matrix = jax.scipy.linalg.block_diag(*(law.matrix for law in laws))
        diffusion = jax.scipy.linalg.block_diag(*(law.diffusion for law in laws))
        return Coefficients(matrix, jnp.zeros(len(matrix), matrix.dtype), diffusion)

    def transition(
        self, t: Float[Array, ""], dt: Float[Array, ""], inputs: Inputs | None = None
    ) -> Transition:
        """Return the exact step of length `dt`: see `AbstractLinearSDE`."""
        step = side_by_side([part.step(dt) for part in self.parts])
        return from_spread(
            step.flow, self._pushed(step, dt, inputs), step.mean_weight, step.spread, dt
        )

    def _pushed(self, step: PartStep, dt: Array, inputs: Inputs | None) -> Array:
        """Return where inputs take the state in a step: nowhere without any."""
        bias = jnp.zeros(len(step.flow), step.flow.dtype)
        if self.input_matrix is None:
            return bias
        return dt * step.mean_weight @ forced(bias, self.input_matrix, inputs)

    def started(self, measures: Measures) -> "Structure":
        """Return the structure with start values where none were given.

        Arguments:
            measures: The record's span and median gap, and the values' spread.

        Returns:
            The same parts.
        """
        return Structure(
            tuple(part.started(measures) for part in self.parts),
            input_matrix=self.input_matrix,
        )

    def decoder(
        self, scale: ArrayLike, *, offset: ArrayLike = 0.0, loadings: ArrayLike = 1.0
    ) -> LinearDecoder:
        """Return the decoder that reads the sum of the parts.

        Arguments:
            scale: The noise's standard deviation, as in `LinearDecoder`.
            offset: Shape `(sensors,)`, or one number for all sensors.
            loadings: How much of the sum each sensor shows, shape `(sensors,)`, or one
                number for one sensor.

        Returns:
            A linear decoder with normal noise.
        """
        rows = jnp.atleast_1d(jnp.asarray(loadings, self.reads.dtype))
        matrix = rows[:, None] * self.reads[None]
        return LinearDecoder(matrix, scale, offset=offset)

    def readout(self, *, offset: ArrayLike = 0.0, loadings: ArrayLike = 1.0) -> Readout:
        """Return the sum of the parts as a function, for the network of a `Decoder`.

        Arguments:
            offset: Shape `(sensors,)`, or one number for all sensors.
            loadings: How much of the sum each sensor shows, as in `decoder`.

        Returns:
            A linear function of the state.
        """
        rows = jnp.atleast_1d(jnp.asarray(loadings, self.reads.dtype))
        return Readout(rows[:, None] * self.reads[None], offset)


def level(*, noise: float | None = None) -> Structure:
    """Return a random walk, `dX = noise dW`.

    Arguments:
        noise: In data units per root of time; `None`: started from the data.

    Returns:
        A structure of one part.

    Raises:
        ValueError: For a number that is not positive.
    """
    return Structure((Level(noise, UNIT),))


def trend(*, noise: float | None = None, slope_noise: float | None = None) -> Structure:
    """Return a level with a slope that is a random walk.

        dX = slope dt + noise dW,    dslope = slope_noise dV

    Arguments:
        noise: In data units per root of time; `None`: started from the data.
        slope_noise: In units of the slope per root of time; `None`: as `noise`.

    Returns:
        A structure of one part.

    Raises:
        ValueError: For a number that is not positive.
    """
    return Structure((Trend(noise, slope_noise, UNIT),))


def cycle(
    period: float, *, damping: float | None = None, scale: float | None = None
) -> Structure:
    """Return a damped oscillation of about `period`; all its parameters are trained.

    Arguments:
        period: Its start value, in units of time.
        damping: The rate at which the oscillation decays, one over the unit of time;
            `None`: a tenth of its angular rate.
        scale: The standard deviation, in data units; `None`: started from the data.

    Returns:
        A structure of one part.

    Raises:
        ValueError: For a number that is not positive.
    """
    return Structure((Cycle(period, damping, scale, UNIT),))


def season(
    period: float, harmonics: int = 1, *, noise: float | None = None
) -> Structure:
    """Return undamped oscillations of exactly `period / k`, `k = 1 ... harmonics`.

    Arguments:
        period: In units of time. It is not trained.
        harmonics: How many oscillations there are.
        noise: How much their amplitudes vary, in data units per root of time;
            `None`: started from the data.

    Returns:
        A structure of one part.

    Raises:
        ValueError: For a number that is not positive, or `harmonics` that is not whole.
    """
    return Structure((Season(period, harmonics, noise, UNIT),))


def periodic(
    period: float, harmonics: int = 2, *, scale: float | None = None
) -> Structure:
    """Return a periodic function, whose period, amplitudes and phases are unknown.

    No noise moves it, so it keeps its phase. Where the period is known and the shape
    changes, take `season`; where the phase is lost after some turns, `cycle`.

    Arguments:
        period: Its start value, in units of time. Over the record it should be right to
            half a turn.
        harmonics: How many oscillations there are, of `period / k`.
        scale: The standard deviation a priori, in data units; `None`: started from the
            data.

    Returns:
        A structure of one part.

    Raises:
        ValueError: For a number that is not positive, or `harmonics` that is not whole.

    Source:
        Solin and Särkkä (2014), the state space of a periodic kernel.
    """
    return Structure((Periodic(period, harmonics, scale, UNIT),))


def ou(*, length: float | None = None, scale: float | None = None) -> Structure:
    """Return an Ornstein-Uhlenbeck process of rate `1 / length`.

    Arguments:
        length: In units of time; `None`: started from the data.
        scale: The standard deviation, in data units; `None`: started from the data.

    Returns:
        A structure of one part, which `names` calls "matern".

    Raises:
        ValueError: For a number that is not positive.
    """
    return matern(0.5, length=length, scale=scale)


def matern(
    smoothness: float = 1.5, *, length: float | None = None, scale: float | None = None
) -> Structure:
    """Return a Matérn process, whose covariance is that of Gaussian processes.

    Arguments:
        smoothness: 0.5, 1.5 or 2.5.
        length: In units of time; `None`: started from the data.
        scale: The standard deviation, in data units; `None`: started from the data.

    Returns:
        A structure of one part.

    Raises:
        ValueError: For another smoothness, or a number that is not positive.
    """
    return Structure((Matern(smoothness, length, scale, UNIT),))


def car(order: int, *, scale: float | None = None) -> Structure:
    """Return a continuous autoregression, always stable.

    Arguments:
        order: A whole number from 1 to 8.
        scale: The standard deviation, in data units; `None`: started from the data.

    Returns:
        A structure of one part.

    Raises:
        ValueError: For another order, or a `scale` that is not positive.
    """
    return Structure((Autoregression(order, scale, UNIT),))
