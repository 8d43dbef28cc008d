"""The data as a modeler has them: trajectories, checked."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from effgen.core.contract.masked import with_nan


_FEWEST, _MOSTLY, _FEW = 8, 0.5, 0.25
_NO_HOLD = (
    "{} a function, which is evaluated at any time: leave `hold` out, or pass samples, "
    "`(obs, inputs)`."
)


class Trajectory(NamedTuple):
    """One measured trajectory.

    Arguments:
        ts: The times of the samples, `(obs,)`, in order. A time that stands twice is a
            jump of the inputs.
        ys: The samples, `(obs, outputs)`, NaN where missing.
        inputs: Known `u`, `(obs, inputs)`, or a function of `t` to `(inputs,)`, or
            `None`. Samples stay past their ends. Jumps of a function are looked for,
            between samples too.
        span: The first and the last time of the trajectory; by default those of `ts`.
        hold: How sampled inputs continue between `ts`: `"linear"`, or `"previous"`,
            which stays until the next sample; by default that of the problem. A
            function has none.
        jumps: Times in the `span` at which inputs or the law jump. Intervals end there.
        doses: Pairs of a time and an amount, `(state,)`, that is added to the state at
            once. Samples at that time are of just before.
        follows: Whether it continues the trajectory before it in the list, as a
            `LinkConstraint` says.
    """

    ts: Float[np.ndarray, " obs"]
    ys: Float[np.ndarray, "obs outputs"]
    inputs: Any = None
    span: tuple[float, float] | None = None
    hold: str | None = None
    jumps: Sequence[float] = ()
    doses: Sequence[tuple[float, Any]] = ()
    follows: bool = False


def as_trajectories(data: Any, hold: str | None = None) -> tuple[Trajectory, ...]:
    """Return data as trajectories, checked; `hold` is that of those without their own.

    Raises:
        TypeError: For data of another type.
        ValueError: For data that cannot be, naming the trajectory and the index; for
            sampled inputs that move in steps, without a `hold`; for a `hold` where all
            inputs are functions, or jumps outside of the span.
    """
    if not isinstance(data, list | tuple):
        raise TypeError(
            f"`data` is a {type(data).__name__}: pass `(ts, ys)`, `(ts, ys, inputs)`, "
            "a `Trajectory`, or a list of these."
        )
    one = isinstance(data, tuple) and len(data) > 0 and not isinstance(data[0], tuple)
    found = [_trajectory(i, d, hold) for i, d in enumerate([data] if one else data)]
    if not found:
        raise ValueError("`data` is empty: pass at least one trajectory.")
    if hold is not None and all(callable(t.inputs) for t in found):
        raise ValueError(_NO_HOLD.format(f"`hold` is {hold!r} and all `inputs` are"))
    widths = {t.ys.shape[1] for t in found}
    if len(widths) > 1:
        raise ValueError(f"trajectories have {sorted(widths)} columns: pass as many.")
    counts = [num_inputs(t) for t in found]
    if len(set(counts)) > 1:
        raise ValueError(
            f"trajectories have {counts} inputs: pass as many for each, such as zeros."
        )
    return tuple(found)


def num_inputs(trajectory: Trajectory) -> int:
    """Return how many known inputs a trajectory has for each time."""
    if trajectory.inputs is None:
        return 0
    if callable(trajectory.inputs):
        return np.atleast_1d(np.asarray(trajectory.inputs(trajectory.ts[0]))).size
    return trajectory.inputs.shape[1]


def _trajectory(i: int, data: Any, hold: str | None) -> Trajectory:
    if not isinstance(data, tuple) or len(data) < 2:
        raise TypeError(
            f"trajectory {i} is a {type(data).__name__}: pass a tuple `(ts, ys)` or "
            "`(ts, ys, inputs)`, a `Trajectory`, or a list of these."
        )
    if len(data) > len(Trajectory._fields):
        raise TypeError(f"trajectory {i} has {len(data)} parts: pass a `Trajectory`.")
    ts, ys, inputs, span, own, jumps, doses, follows = Trajectory(*data)
    _hold_of(i, own)
    if own is not None and callable(inputs):
        told = f"`hold` of trajectory {i} is {own!r} and its `inputs` is"
        raise ValueError(_NO_HOLD.format(told))
    hold = None if callable(inputs) else _hold_of(i, hold if own is None else own)
    ts, ys = _samples(i, ts, ys)
    span = _span(i, (ts[0], ts[-1]) if span is None else span)
    _complain(i, ts, (ts < span[0]) | (ts > span[1]), f"lie in the `span` {span}")
    if inputs is not None and not callable(inputs):
        inputs = _inputs(i, ts, inputs, hold)
    rest = (_jumps(i, jumps, span), doses, _follows(i, follows))
    return Trajectory(ts, ys, inputs, span, hold, *rest)


def _samples(i: int, ts: Any, ys: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return times and samples as arrays, checked."""
    if np.asarray(ts).dtype.kind in "mM":
        raise TypeError(
            f"`ts` of trajectory {i} are dates: pass numbers in the units of the law, "
            'such as `(ts - ts[0]) / np.timedelta64(1, "h")`.'
        )
    ts, ys = _numbers(i, "ts", ts), _numbers(i, "ys", ys)
    ys = ys[:, None] if ys.ndim == 1 else ys
    if ts.shape == (0,):
        raise ValueError(
            f"trajectory {i} has no samples: pass one or more times, with NaN in `ys` "
            "where nothing is measured."
        )
    if ts.ndim != 1 or ys.shape[:1] != ts.shape or ys.ndim != 2:
        raise ValueError(
            f"trajectory {i} has `ts` of shape {ts.shape} and `ys` of {ys.shape}: pass "
            "(obs,) and (obs, outputs)."
        )
    _complain(i, ts, ~np.isfinite(ts), "be finite; a missing value is NaN in `ys`")
    _complain(i, ts, np.diff(ts, prepend=-np.inf) < 0, "be sorted")
    if np.any(np.isinf(ys)):
        where = tuple(np.argwhere(np.isinf(ys))[0].tolist())
        raise ValueError(f"`ys` of trajectory {i} is infinite at {where}: pass NaN.")
    return ts, ys


def _jumps(i: int, times: Any, span: tuple[float, float]) -> tuple[float, ...]:
    found = np.sort(_numbers(i, "jumps", times).reshape(-1))
    if not np.all(np.isfinite(found)):
        raise ValueError(f"`jumps` of trajectory {i} is {times}: pass finite times.")
    outside = found[(found < span[0]) | (found > span[1])]
    if len(outside):
        raise ValueError(
            f"`jumps` of trajectory {i} has t = {outside[0]:.6g}, outside of its span "
            f"from {span[0]:.6g} to {span[1]:.6g}, where no interval ends: leave it "
            "out, or pass a longer `span`."
        )
    return tuple(found.tolist())


def _follows(i: int, follows: Any) -> bool:
    if isinstance(follows, bool | np.bool_):
        return bool(follows)
    raise TypeError(
        f"`follows` of trajectory {i} is {follows!r}: pass `True` where it goes on "
        "from the one before it in the list."
    )


def numbered(data: Any, *, hold: str | None = None) -> tuple[Trajectory, ...]:
    """Return trajectories with one more input, the last: their number, from 0.

    A law can then have parameters for each trajectory, as in
    `p["rate"][u[-1].astype(int)]`. A `Prior` may give them a common mean. A trajectory
    does not depend on the parameters of the others, but the program's border has a
    column for each of them.

    Arguments:
        data: The data, as for `Problem`.
        hold: As for `Problem`.

    Returns:
        The trajectories, for `Problem`.

    Raises:
        TypeError: For data of another type.
        ValueError: For invalid data.
    """
    found = as_trajectories(data, hold)
    return tuple(t._replace(inputs=_with_number(t, i)) for i, t in enumerate(found))


class Numbered(eqx.Module):
    """Inputs that are a function of time, with a trajectory's number as the last."""

    function: Any
    number: int

    def __call__(self, t: Any) -> Any:
        """Return the inputs at `t`, the number last, as NumPy's or JAX's array."""
        given = self.function(t)
        if isinstance(given, jax.Array):
            return jnp.append(jnp.ravel(given), float(self.number))
        return np.append(np.asarray(given, float), float(self.number))


def _with_number(trajectory: Trajectory, i: int) -> Any:
    given = trajectory.inputs
    if given is None:
        return np.full((len(trajectory.ts), 1), float(i))
    if callable(given):
        return Numbered(given, i)
    return np.concatenate([given, np.full((len(given), 1), float(i))], axis=1)


def _span(i: int, span: Any) -> tuple[float, float]:
    try:
        first, last = (float(t) for t in span)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`span` of trajectory {i} is {span!r}: pass its first and its last time."
        ) from error
    if not (np.isfinite(first) and np.isfinite(last)):
        raise ValueError(f"`span` of trajectory {i} is {span}: pass finite times.")
    if not first < last:
        raise ValueError(
            f"trajectory {i} lasts from {first} to {last}: no time. Pass samples of "
            "two times, or its first and last time as `span`."
        )
    return first, last


def _numbers(i: int, name: str, values: Any) -> np.ndarray:
    try:
        if np.iscomplexobj(values):
            raise ValueError("complex numbers")
        return np.asarray(with_nan(values), np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`{name}` of trajectory {i} is no array of real numbers ({error})."
        ) from error


def _hold_of(i: int, hold: str | None) -> str | None:
    if hold not in (None, "linear", "previous"):
        raise ValueError(
            f"`hold` of trajectory {i} is {hold!r}: pass 'linear' or 'previous'."
        )
    return hold


def _inputs(i: int, ts: np.ndarray, inputs: Any, hold: str | None) -> np.ndarray:
    inputs = _numbers(i, "inputs", inputs)
    inputs = inputs[:, None] if inputs.ndim == 1 else inputs
    if (
        inputs.shape[:1] != ts.shape
        or inputs.ndim != 2
        or not np.all(np.isfinite(inputs))
    ):
        raise ValueError(
            f"`inputs` of trajectory {i} has shape {inputs.shape}: pass finite "
            f"numbers, ({len(ts)}, inputs), or a function of the time."
        )
    if hold is None and np.all(np.diff(ts) > 0):
        _refuse_steps(i, inputs)
    return inputs


def _refuse_steps(i: int, inputs: np.ndarray) -> None:
    """Raise `ValueError` for inputs that move in steps: ramps would be another law."""
    changes = np.diff(inputs, axis=0) != 0
    stays = ~changes
    looks = changes.any(0) & (stays.mean(0) > _MOSTLY) & (len(inputs) >= _FEWEST)
    levels = np.array([len(np.unique(u)) for u in inputs.T])
    if np.any(looks & (levels < _FEW * len(inputs))):
        column = int(np.argmax(looks & (levels < _FEW * len(inputs))))
        raise ValueError(
            f"input {column} of trajectory {i} moves in steps, and samples do not say "
            'how: pass `hold="previous"` if it stays until the next sample, or '
            '`hold="linear"` if it is linear between them.'
        )


def _complain(i: int, ts: np.ndarray, bad: np.ndarray, remedy: str) -> None:
    if np.any(bad):
        j = int(np.argmax(bad))
        raise ValueError(
            f"`ts` is {ts[j]} in trajectory {i} at index {j}: times must {remedy}."
        )
