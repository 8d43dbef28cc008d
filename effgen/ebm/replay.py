"""The likelihood of a run that is over: fresh walkers along its checkpoints."""

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from effgen.core.checkpoint import restore, saved_steps
from effgen.core.loops import repeat
from effgen.core.state import TrainState
from effgen.core.weights import Estimate

from .checks import check_count, check_share
from .evaluation import Energy
from .kernels import AbstractKernel
from .learning import followed
from .walkers import Walkers, resampled_below


def saved_models(
    directory: str | os.PathLike[str], state: TrainState, first: Energy | None = None
) -> list[Energy]:
    """Return the models of a run's checkpoints, oldest first.

    **Arguments:** `directory`, that the run was `checkpointed` to; `state`, one of the
    same trainer, whose structure the checkpoints have; `first`, the model that training
    began with, if it is not among them: a path should begin where `log Z` is known.

    **Raises:** as `effgen.restore`.
    """
    steps = saved_steps(directory)
    if not steps:
        raise FileNotFoundError(
            f"`directory` `{os.fspath(directory)}` holds no checkpoints: train with "
            "`effgen.checkpointed(run, directory)`."
        )
    models = [restore(directory, state, step=step).model for step in steps]
    return models if first is None else [first, *models]


def replay(
    models: Iterable[Energy],
    walkers: Walkers,
    *,
    kernel: AbstractKernel,
    key: PRNGKeyArray,
    num_between: int = 100,
    num_moves: int = 1,
    resample_below: float = 0.5,
) -> Walkers:
    """Return fresh walkers that have followed `models`, weighted for the last.

    Between one model and the next their parameters go in a straight line, in
    `num_between` steps: any path will do, and a fixed one makes `Z` unbiased whatever
    the walkers do. This is annealed importance sampling along the run, with resampling.
    `NormalizedEnergy.from_walkers(models[-1], walkers)` is then the density.

    **Arguments:** `models`, as of `saved_models`; `walkers`, fresh, of known density
    and near the first model; `kernel`; `num_between`; `num_moves` a step;
    `resample_below`, as of the trainers.

    **Raises:** `ValueError` for no models, or settings out of range.

    **Source:** Neal (2001); Carbone et al. (2023), Proposition 1, with a given path.
    """
    check_count("num_between", num_between)
    check_count("num_moves", num_moves)
    check_share("resample_below", resample_below)
    remaining = iter(models)
    model = next(remaining, None)
    if model is None:
        raise ValueError("`models` is empty: pass at least the trained model.")
    kernel.check(model, walkers)
    walkers = _weighted(walkers, model)
    for i, following in enumerate(remaining):
        walkers = _between(
            kernel,
            model,
            following,
            walkers,
            (num_between, num_moves, resample_below),
            jax.random.fold_in(key, i),
        )
        model = following
    return walkers


class Sandwich(NamedTuple):
    """`log Z` from both sides: `lower` by fresh walkers, `upper` back from data.

    In expectation the first is too small; the second is too large if the data are
    samples of the model, and says nothing certain if they are not.
    """

    lower: Estimate
    upper: Estimate


def sandwich(
    models: Sequence[Energy],
    walkers: Walkers,
    data: Float[Array, "examples *shape"],
    *,
    kernel: AbstractKernel,
    key: PRNGKeyArray,
    num_between: int = 100,
    num_moves: int = 1,
) -> Sandwich:
    """Return `log Z` of the last model by a run forward, and by one back from `data`.

        lower = log mean(exp(forward weights)), up from the walkers' density
        upper = log Z_start - log mean(exp(backward weights)), down from the data

    The closer the two, the better the path is followed; both gain by more steps.

    **Arguments:** as `replay`; `data`, examples that stand in for exact samples.

    **Source:** Grosse, Ancha and Roy (2016); Burda, Grosse and Salakhutdinov (2015).
    """
    keys = jax.random.split(key)
    settings = {"num_between": num_between, "num_moves": num_moves}
    forward = replay(models, walkers, kernel=kernel, key=keys[0], **settings)
    start = _estimate(_weighted(walkers, models[0]))
    samples = _as_exact(models[-1], data)
    backward = replay(models[::-1], samples, kernel=kernel, key=keys[1], **settings)
    back = _estimate(backward)
    error = jnp.hypot(back.standard_error, start.standard_error)
    return Sandwich(_estimate(forward), Estimate(start.value - back.value, error))


@eqx.filter_jit
def _weighted(walkers: Walkers, model: Energy) -> Walkers:
    return walkers.reweighted(model)


_estimate = jax.jit(Walkers.estimate)


@eqx.filter_jit
def _as_exact(model: Energy, data: Float[Array, "examples *shape"]) -> Walkers:
    # Weights of one for the last model, whose log Z is the unknown: here, zero.
    walkers = Walkers.from_samples(data, jnp.zeros(data.shape[0])).reweighted(model)
    return eqx.tree_at(
        lambda w: w.log_weights, walkers, jnp.zeros_like(walkers.log_weights)
    )


@eqx.filter_jit
def _between(
    kernel: AbstractKernel,
    old: Energy,
    new: Energy,
    walkers: Walkers,
    settings: tuple[int, int, float],
    key: PRNGKeyArray,
) -> Walkers:
    num_between, num_moves, resample_below = settings

    def at(share: Float[Array, ""]) -> Energy:
        def between(a: Array, b: Array) -> Array:
            return a + share.astype(a.dtype) * (b - a) if eqx.is_inexact_array(a) else b

        return jax.tree.map(between, old, new)

    def body(i: Int[Array, ""], walkers: Walkers) -> Walkers:
        keys = jax.random.split(jax.random.fold_in(key, i))
        model = at((i + 1) / num_between)
        moved = followed(kernel, walkers, model, i, num_moves, key=keys[0])
        return resampled_below(resample_below, moved, key=keys[1])

    return repeat(body, walkers, num_between)
