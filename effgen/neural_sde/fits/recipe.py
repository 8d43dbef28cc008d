"""The recipe of forecasts: structure by evidence, a network beside it, both stacked."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import ArrayLike, PRNGKeyArray

from effgen.core.contract.counts import check_count
from effgen.core.contract.keys import check_key
from effgen.core.data.batches import Minibatches
from effgen.core.outcome.results import TrainingError
from effgen.core.running.verbs import fit
from effgen.neural_sde.bounds.trainer import LatentSDETrainer
from effgen.neural_sde.data.frames import as_doubles
from effgen.neural_sde.data.grid import usual_gap
from effgen.neural_sde.modeling.checks import check_rounding
from effgen.neural_sde.modeling.model import LatentSDE
from effgen.neural_sde.modeling.structure import Structure

from .curvature import drawn_models
from .dated import dated
from .driven import with_network
from .peak import with_offset
from .selection import Candidate, candidates, ranked
from .sensors import warn_of_own_sums
from .stacking import Stack, origins_of, stack, values_of
from .weight_prior import weight_prior


_MOST_STRUCTURES, _NUM_ORIGINS = 3, 6
_NUM_DRAWN = 16  # models of a structure
_NETWORK = 0.5
_BEHIND = 5.0  # nats: such a structure would have a weight below one percent
_RETURNING = ("matern", "cycle", "car")


def forecaster(
    ts: ArrayLike,
    ys: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    horizon: int,
    key: PRNGKeyArray,
    season_period: float | None = None,
    structures: Sequence[Structure] | None = None,
    num_steps: int = 250,
    unit: str = "s",
) -> Stack:
    """Fit what forecasts a record: linear models and a network, stacked.

    1. Every structure is fitted by its exact evidence. Those stay whose
       `log p(y) - parameters log(values) / 2` is at most 5 nats below the most, and of
       these at most three. Sixteen models of each are drawn from the posterior density
       of its parameters.
    2. `network` begins at the best structure with a part that returns to a mean, moves
       such parts alone, and sees all but levels and trends. Its parameters have a
       normal prior about where they begin, so it stays linear where few values say
       otherwise.
    3. `stack` weighs them by how each, fitted to the record's earlier part, forecast
       its later one. A member with much less evidence gets next to no weight. A priori
       the network has one half, and the structures share the other in proportion to
       `exp(criterion)`, as averaging by evidence would.

    Arguments:
        ts: Times of one series in order, shape `(obs,)`: numbers, or dates as
            `datetime64` or an index of pandas, which forecasts keep.
        ys: Values, shape `(obs,)` or `(obs, sensors)`, or of pandas. All sensors read
            one sum of parts, each with its own offset and noise.
        mask: Where there is a value, of the shape of `ts` or `ys`. NaN are missing too.
        horizon: How many times ahead forecasts are to reach.
        key: A random key.
        season_period: The season's period in the unit of time, or `None` for no season.
            Of dates it is in `unit`.
        structures: What is tried; `None`: those of `candidates`.
        num_steps: How many steps the network is trained.
        unit: The unit in which dates are counted, one of NumPy's.

    Returns:
        The models with their weights, which forecast together.

    Raises:
        ValueError: For a record shorter than two horizons, or whose part before the
            first of the times from which forecasts are judged has fewer than three
            times or a column that does not vary; for values that float32 rounds, no
            structures, and a `season_period` beside `structures` or that the times
            can't show.
        TypeError: For values that are no structures, and for an invalid key.

    Warns:
        RunWarning: For sensors that have more evidence each with a sum of its own.

    Source:
        Hoeting, Madigan, Raftery and Volinsky (1999), of the shares.
    """
    check_key(key)
    check_count("num_steps", num_steps)
    if structures is not None:
        check_structures(structures)
        if season_period is not None:
            raise ValueError(
                "`season_period` is for the structures of `candidates`, and "
                "`structures` are given: add `season(period)` to each of these."
            )
    ts, ys, clock, labels = dated(ts, ys, unit)
    there = None if mask is None else np.asarray(mask)
    values = values_of(ts, ys, there)
    check_record(ts, values, horizon)
    if structures is None:
        structures = candidates(ts, ys, mask, season_period=season_period)
    kept = supported(ranked(structures, ts, ys, mask))
    warn_of_own_sums(kept[0], ts, values)
    fitting = functools.partial(
        members,
        structures=[c.structure for c in kept],
        dt=step_length(ts),
        num_steps=num_steps,
    )
    found = stack(
        fitting,
        ts,
        ys,
        mask,
        horizon=horizon,
        key=key,
        num_origins=_NUM_ORIGINS,
        shares=shares_of(kept),
    )
    return dataclasses.replace(found, clock=clock, labels=labels)


def check_record(ts: np.ndarray, values: np.ndarray, horizon: int) -> None:
    """Raise `ValueError` for a record that can't be fitted and judged.

    Arguments:
        ts: Times, shape `(obs,)`.
        values: NaN where missing, shape `(obs, sensors)`.
        horizon: How many times ahead forecasts are to reach.
    """
    first = int(origins_of(values, horizon, _NUM_ORIGINS)[0])
    early, there = values[:first], np.isfinite(values[:first])
    where = f"before {ts[first]}, from where on forecasts are judged"
    if len(np.unique(ts[:first][there.any(axis=1)])) < 3:
        raise ValueError(
            f"`ys` has values at fewer than three times {where}: pass a longer record, "
            "or a shorter `horizon`."
        )
    low = np.min(early, axis=0, initial=np.inf, where=there)
    high = np.max(early, axis=0, initial=-np.inf, where=there)
    _check_ranges(low, high, where)


def _check_ranges(low: np.ndarray, high: np.ndarray, where: str) -> None:
    """Raise `ValueError` for a column that does not vary, or not in our precision."""
    size, spread = np.maximum(np.abs(low), np.abs(high)), high - low
    constant = np.flatnonzero(~(spread > 1e-12 * size))
    if len(constant):
        raise ValueError(
            f"`ys` does not vary in column {constant[0]} {where}: nothing determines "
            "its scale. Leave the column out, or pass a longer record."
        )
    check_rounding(low, high)


def check_structures(structures: Any) -> None:
    """Raise `TypeError` or `ValueError` for values that are no structures."""
    several = isinstance(structures, Sequence)
    if not several or not all(isinstance(x, Structure) for x in structures):
        raise TypeError(
            "`structures` must be a list of sums of parts, such as [level() + ou()]."
        )
    if not structures:
        raise ValueError("`structures` are empty: pass at least one.")
    if any(x.input_matrix is not None for x in structures):
        raise ValueError(
            "`structures` have an `input_matrix`, and forecasters take no inputs: use "
            "`fit_linear` and `with_network`, which do."
        )


def supported(found: Sequence[Candidate]) -> Sequence[Candidate]:
    """Return the best candidates, those not far behind the first."""
    near = [c for c in found if c.criterion > found[0].criterion - _BEHIND]
    return near[:_MOST_STRUCTURES]


def shares_of(kept: Sequence[Candidate]) -> dict[str, float]:
    """Return what each member counts before the record is looked at again."""
    logs = np.array([c.criterion for c in kept])
    shares = np.exp(logs - logs.max())
    network = _NETWORK if returning(kept) is not None else 0.0
    shares = (1 - network) * shares / shares.sum()
    found = dict(
        zip(names_of([c.structure for c in kept]), map(float, shares), strict=True)
    )
    return found | ({"network": network} if network else {})


def names_of(structures: Sequence[Structure]) -> list[str]:
    """Return the sums of the parts' names, numbered where several are the same."""
    names = [" + ".join(structure.names) for structure in structures]
    before = [names[:i].count(name) for i, name in enumerate(names)]
    return [f"{n} ({k + 1})" if k else n for n, k in zip(names, before, strict=True)]


def members(
    ts: ArrayLike,
    ys: ArrayLike,
    mask: ArrayLike | None,
    key: PRNGKeyArray,
    *,
    structures: Sequence[Structure],
    dt: float,
    num_steps: int,
) -> dict[str, LatentSDE | Sequence[LatentSDE]]:
    """Return models of each structure, in their order, and the network's.

    A structure's models are drawn from the posterior density of its parameters, which
    include the mean. For a short record, forecasts of the fit alone have bands that are
    too narrow.
    """
    found = ranked(structures, ts, ys, mask)
    keys = jax.random.split(key, 2 + len(structures))
    linear: dict[str, Any] = {}
    names = names_of(structures)
    for name, structure, own in zip(names, structures, keys[2:], strict=True):
        peak = next(c.peak for c in found if c.structure is structure)
        drawn = drawn_models(with_offset(peak), _NUM_DRAWN, key=own)
        linear[name] = [dataclasses.replace(model, dt=dt) for model in drawn]
    base = returning(found)
    if base is None:
        return linear
    network = network_of(
        dataclasses.replace(base.model, dt=dt), ts, ys, mask, key=keys[0]
    )
    network = trained(network, ts, ys, mask, num_steps=num_steps, key=keys[1])
    return {**linear, "network": network}


def returning(found: Sequence[Candidate]) -> Candidate | None:
    """Return the best candidate with a part that returns to a mean, if there is one."""
    return next((c for c in found if _parts(c.structure, _RETURNING)), None)


def step_length(ts: ArrayLike) -> float:
    """Return the median gap, a little more: rounding of times makes no step two."""
    return 1.001 * usual_gap(ts)


def network_of(
    base: LatentSDE,
    ts: ArrayLike,
    ys: ArrayLike,
    mask: ArrayLike | None,
    *,
    key: PRNGKeyArray,
) -> LatentSDE:
    """Return a linear fit with a network that moves what returns to a mean."""
    assert isinstance(base.linear, Structure)
    moves = _parts(base.linear, _RETURNING)
    sees = [*moves, *_parts(base.linear, ("season", "periodic"))]
    return with_network(base, ts, ys, mask, key=key, sees=sees, moves=moves)


def trained(
    model: LatentSDE,
    ts: ArrayLike,
    ys: ArrayLike,
    mask: ArrayLike | None,
    *,
    num_steps: int,
    key: PRNGKeyArray,
) -> LatentSDE:
    """Return a model trained by the anchored bound; if that fails, the last good one.

    Each parameter has a normal prior around its start: see `weight_prior`.
    """
    trainer = LatentSDETrainer(_optimizer(num_steps), model.dt, num_paths=4)
    data = Minibatches(_batch(ts, ys, mask), 1)
    state = trainer.init(model)
    try:
        state, _ = fit(trainer, state, data, key=key, num_steps=num_steps)
    except TrainingError as error:
        state = error.state
    return state.model


@functools.lru_cache(maxsize=8)
def _optimizer(num_steps: int) -> optax.GradientTransformation:
    """Return the optimizer of a network; it is cached, so that programs are shared."""
    rate = optax.cosine_decay_schedule(5e-3, num_steps)
    return optax.chain(
        optax.clip_by_global_norm(100.0), weight_prior(), optax.adam(rate)
    )


def _batch(ts: ArrayLike, ys: ArrayLike, mask: ArrayLike | None) -> tuple[Any, Any]:
    ts, ys = np.asarray(ts), as_doubles(ys)
    if mask is not None:
        ys = np.where(np.asarray(mask, bool), ys, np.nan)
    return np.asarray(ts, jnp.result_type(float))[None], ys.astype(
        jnp.result_type(float)
    )[None]


def _parts(structure: Structure, kinds: Sequence[str]) -> list[str]:
    """Return the names of a structure's parts of some kinds."""
    return [
        name
        for name, part in zip(structure.names, structure.parts, strict=True)
        if part.kind in kinds
    ]
