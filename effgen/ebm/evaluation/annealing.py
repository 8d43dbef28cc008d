"""The likelihood of a run that is over: fresh walkers along its checkpoints."""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from effgen.core.contract.counts import check_count
from effgen.core.contract.keys import check_key
from effgen.core.contract.state import TrainState
from effgen.core.saving.checkpoint import restore, saved_steps
from effgen.core.weights import Estimate, conditional_ess
from effgen.ebm.contract.arguments import (
    as_rows,
    check_energies_in,
    check_energy,
    check_finite,
    check_share,
)
from effgen.ebm.contract.data_checks import check_batch
from effgen.ebm.contract.energy import Energy, energies_at
from effgen.ebm.moves.kernels import (
    AbstractKernel,
    check_admitted,
    check_kernel,
    followed,
)
from effgen.ebm.walkers.islands import (
    check_walkers,
    first_walkers,
    islands,
    resampled_below,
)
from effgen.ebm.walkers.particles import KernelState
from effgen.ebm.walkers.populations import knows_partition, reweighted
from effgen.ebm.walkers.weighted_walkers import Walkers


# Halvings of a step's length, to a relative 1e-7; and the shortest step there is.
_HALVINGS = 24
_SHORTEST = 1e-5

# So many walkers find the way.
_SCOUTS = 256


def saved_models(
    directory: str | os.PathLike[str], state: TrainState, first: Energy | None = None
) -> list[Energy]:
    """Return the models of a run's checkpoints, oldest first.

    Arguments:
        directory: The folder that the run was `checkpointed` to.
        state: A state of the same trainer, whose structure the checkpoints have.
        first: The model that training began with, if it is not among them: a path
            should begin where `log Z` is known.

    Returns:
        The models, `first` before them where it is given.

    Raises:
        FileNotFoundError: If there are no checkpoints.
        ValueError: If a checkpoint is of another model.
        TypeError: If `state` is no `TrainState`, or `directory` no path.
        CorruptCheckpoint: If a checkpoint's bytes are not those written.
    """
    steps = saved_steps(directory)
    if not steps:
        raise FileNotFoundError(
            f"`directory` `{os.fspath(directory)}` holds no checkpoints: train with "
            "`effgen.checkpointed(run, directory)`."
        )
    models = [restore(directory, state, step=step).model for step in steps]
    return models if first is None else [first, *models]


def annealed(
    models: Iterable[Energy],
    walkers: Walkers,
    *,
    kernel: AbstractKernel,
    key: PRNGKeyArray,
    radius: float = 0.05,
    num_between: int = 1,
    num_moves: int = 1,
    resample_below: float = 0.5,
) -> Walkers:
    """Return fresh walkers that have followed `models`, weighted for the last.

    Between one model and the next they follow `kernel.between`. Each step leaves a
    share of them:

        conditional_ess = (1 - radius^2) * n

    So a hard path has more steps. This is annealed importance sampling along the run,
    with resampling. Fresh walkers are split into `islands`, whose spread is the error
    bar. The steps and the kernel's step size are found by scouts: copies of up to 256
    walkers, which move independently. Found on the islands themselves, they would share
    errors that the spread does not show.

    `NormalizedEnergy.from_walkers(models[-1], walkers)` is then the density.

    Arguments:
        models: Energies, as in `saved_models`, or any two. They are drawn one by one.
        walkers: Fresh ones, of known density and near the first model.
        kernel: How the walkers move.
        key: The randomness of moves and resampling.
        radius: In (0, 1); its square is the share of the walkers that a step may cost.
        num_between: The least number of steps between two models.
        num_moves: Moves a step.
        resample_below: The share of a block's walkers, in (0, 1), below which their
            effective sample size has the block resampled.

    Returns:
        Weighted samples of the last model, shape `(walkers, *shape)`.

    Raises:
        ValueError: For no models, walkers of unknown density, settings out of range, or
            a first model that the kernel refuses.
        TypeError: If `models` are no energies, `walkers` no walkers, `kernel` no
            kernel, or `key` no key.

    Source:
        Neal (2001); Carbone et al. (2023), Proposition 1, with a given path; Zhou,
        Johansen and Aston (2016) for the steps.
    """
    check_energies_in(models)
    check_walkers("walkers", walkers)
    check_kernel(kernel)
    check_key(key)
    check_share("radius", radius)
    check_count("num_between", num_between)
    check_count("num_moves", num_moves)
    check_share("resample_below", resample_below)
    remaining = iter(models)
    model = next(remaining, None)
    if model is None:
        raise ValueError("`models` is empty: pass at least the trained model.")
    if not knows_partition(walkers):
        raise ValueError(
            "`walkers` are of unknown density, so that `log Z` would be, too: draw "
            "them by `ebm.Walkers.from_gaussian`, or give `from_samples` their "
            "`log_density`."
        )
    kernel.check(model, walkers)
    walkers = reweighted(islands(walkers), model)
    scouts = kernel.begun(first_walkers(walkers, _SCOUTS), model)
    path = _Path(kernel, radius, num_between, num_moves, resample_below)
    both, count = (walkers, scouts), 0
    for following in remaining:
        check_energy("models", following)
        both, count = path.followed(model, following, both, count, key)
        model = following
    return both[0]


class _Path(eqx.Module):
    """How a way from one model to the next is divided into steps."""

    kernel: AbstractKernel
    radius: float
    num_between: int
    num_moves: int
    resample_below: float

    def followed(
        self,
        old: Energy,
        new: Energy,
        both: tuple[Walkers, Walkers],
        count: int,
        key: PRNGKeyArray,
    ) -> tuple[tuple[Walkers, Walkers], int]:
        """Return walkers and scouts at `new`, and how many steps there were in all."""
        share = jnp.zeros((), both[0].log_weights.dtype)
        while float(share) < 1:
            both, share = _stepped(self, old, new, both, share, jnp.asarray(count), key)
            count += 1
        return both, count

    def length(
        self, old: Energy, new: Energy, walkers: Walkers, share: Float[Array, ""]
    ) -> Float[Array, ""]:
        """Return how far the next step goes, by bisection of the conditional ESS.

        The increments are those of the path's slope at `share`: of the geometric path,
        exactly.
        """

        def energies(share: Float[Array, ""]) -> Float[Array, " walkers"]:
            return energies_at(self.kernel.between(old, new, share), walkers.positions)

        _, slopes = jax.jvp(energies, (share,), (jnp.ones_like(share),))
        # Where the energy becomes infinite, walkers are lost to a step of any length.
        lost = ~jnp.isfinite(slopes)

        def left(length: Float[Array, ""]) -> Float[Array, ""]:
            increments = jnp.where(lost, -jnp.inf, -length * slopes)
            return conditional_ess(walkers.joint_log_weights, increments)

        enough = (1 - self.radius**2) * left(jnp.zeros_like(share))
        longest = jnp.minimum(1 - share, 1 / self.num_between).astype(share.dtype)

        def halved(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends
            middle = 0.5 * (low + high)
            good = left(middle) >= enough
            return jnp.where(good, middle, low), jnp.where(good, high, middle)

        ends = jnp.zeros_like(share), longest
        found, _ = jax.lax.fori_loop(0, _HALVINGS, halved, ends)
        found = jnp.where(left(longest) >= enough, longest, found)
        return jnp.maximum(found, jnp.minimum(_SHORTEST, longest))


@eqx.filter_jit
def _stepped(
    path: _Path,
    old: Energy,
    new: Energy,
    both: tuple[Walkers, Walkers],
    share: Float[Array, ""],
    count: Int[Array, ""],
    key: PRNGKeyArray,
) -> tuple[tuple[Walkers, Walkers], Float[Array, ""]]:
    walkers, scouts = both
    share = share + path.length(old, new, scouts, share)
    share = jnp.where(share > 1 - _SHORTEST, 1.0, share)
    model = path.kernel.between(old, new, share)

    def moved(
        walkers: Walkers, key: PRNGKeyArray, leader: KernelState | None = None
    ) -> Walkers:
        keys = jax.random.split(key)
        after = followed(
            path.kernel,
            walkers,
            model,
            count,
            path.num_moves,
            key=keys[0],
            leader=leader,
        )
        return resampled_below(path.resample_below, after, key=keys[1])

    keys = jax.random.split(jax.random.fold_in(key, count))
    led = moved(walkers, keys[0], scouts.kernel_state)
    return (led, moved(scouts, keys[1])), share


class Sandwich(NamedTuple):
    """`log Z` from both sides, in nats: by fresh walkers, and back from data.

    Attributes:
        lower: By fresh walkers; in expectation too small.
        upper: Back from data; in expectation too large if the data are samples of the
            model. If they are not, it says nothing certain.
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
    radius: float = 0.05,
    num_between: int = 1,
    num_moves: int = 1,
    resample_below: float = 0.5,
) -> Sandwich:
    """Return `log Z` of the last model by a run forward, and by one back from `data`.

        lower = log mean(exp(forward weights)), up from the walkers' density
        upper = log Z_start - log mean(exp(backward weights)), down from the data

    The closer the two are, the better the path was followed. More steps bring them
    closer.

    Arguments:
        models: Energies, as in `annealed`, all of them held at once.
        walkers: Fresh ones, of known density and near the first model.
        data: Examples that stand in for exact samples of the last model, shape
            `(examples, *shape)`.
        kernel: How the walkers move.
        key: The randomness of moves and resampling.
        radius: In (0, 1); its square is the share of the walkers that a step may cost.
        num_between: The least number of steps between two models.
        num_moves: Moves a step.
        resample_below: As for `annealed`.

    Returns:
        Both estimates with one standard error each, in nats.

    Raises:
        ValueError: As `annealed`, and for data that are not finite, not of the
            walkers' shape, fewer than 2, of infinite energy, or where walkers of the
            kernel can never be.
        TypeError: As `annealed`, and for data that are no numbers.

    Source:
        Grosse, Ancha and Roy (2016); Burda, Grosse and Salakhutdinov (2015).
    """
    check_energies_in(models)
    check_walkers("walkers", walkers)
    check_key(key)
    check_kernel(kernel)
    data, models = as_rows("data", data), list(models)
    check_batch(data, walkers.positions.shape[1:])
    check_finite("data", data)
    if len(data) < 2:
        raise ValueError(f"`data` has {len(data)} row(s): pass at least 2 examples.")
    if not models:
        raise ValueError("`models` is empty: pass at least the trained model.")
    check_admitted("`data` has", kernel, models[-1], data)
    keys = jax.random.split(key)
    settings: dict[str, Any] = {
        "kernel": kernel,
        "radius": radius,
        "num_between": num_between,
        "num_moves": num_moves,
        "resample_below": resample_below,
    }
    forward = annealed(models, walkers, key=keys[0], **settings)
    start = _estimate(reweighted(walkers, models[0]))
    samples = _as_exact(models[-1], data)
    if outside := int(jnp.sum(jnp.isneginf(samples.log_weights))):
        raise ValueError(
            f"`data` has {outside} row(s) to which the last of `models` gives an "
            "energy that is not finite, so that it never draws them: leave them out, "
            "or mend their labels."
        )
    # Weights of one for the last model, whose log Z is the unknown: here, zero.
    even = jnp.zeros_like(samples.log_weights)
    samples = dataclasses.replace(samples, log_weights=even, walls=walkers.walls)
    backward = annealed(models[::-1], samples, key=keys[1], **settings)
    back = _estimate(backward)
    error = jnp.hypot(back.standard_error, start.standard_error)
    return Sandwich(_estimate(forward), Estimate(start.value - back.value, error))


_estimate = jax.jit(Walkers.estimate)


@eqx.filter_jit
def _as_exact(model: Energy, data: Float[Array, "examples *shape"]) -> Walkers:
    return Walkers.from_samples(data, jnp.zeros(data.shape[0])).reweighted(model)
