"""A path of models with known `log Z`, and how far walkers along it are off."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from effgen import ebm


NUM_STEPS = 40
NUM_WALKERS = 512
NUM_REPLICATES = 64


class Mixture(eqx.Module):
    """Two Gaussians, masses 1/4 and 3/4, whose energy carries a known offset."""

    centers: Float[Array, "2 2"]
    precision: Float[Array, ""]
    offset: Float[Array, ""]

    def __call__(self, x: Float[Array, " 2"]) -> Float[Array, ""]:
        """Return the energy; `Z = exp(offset)`."""
        squares = jnp.sum((x[None] - self.centers) ** 2, axis=1)
        masses = jnp.log(jnp.array([0.25, 0.75]))
        log_density = jax.nn.logsumexp(masses - 0.5 * self.precision * squares)
        return -(log_density + jnp.log(self.precision / (2 * jnp.pi))) - self.offset


def model_at(t: Float[Array, ""]) -> Mixture:
    """Return the model at `t` in [0, 1]: one Gaussian at 0, two modes apart at 1."""
    apart = jnp.array([[-3.0, 0.5], [1.5, -0.5]])
    return Mixture(t * apart, 1.0 + 0.5 * t, 2.0 * t)


Move = Callable[
    [ebm.Walkers, Mixture, Mixture, Float[Array, ""], PRNGKeyArray], ebm.Walkers
]
Resample = Callable[[ebm.Walkers, PRNGKeyArray], ebm.Walkers]


def exact_resample(walkers: ebm.Walkers, key: PRNGKeyArray) -> ebm.Walkers:
    """Resample below half, as the trainers do."""
    from effgen.ebm.walkers.islands import resampled_below

    return resampled_below(0.5, walkers, key=key)


def z_scores(
    move: Move,
    step_size: float,
    *,
    resample: Resample = exact_resample,
    num_blocks: int | None = None,
    num_walkers: int = NUM_WALKERS,
) -> tuple[float, float]:
    """Return how many standard errors `Z` and one mode's unnormalized mass are off.

    Both have exact expectations for any number of walkers: `Z` at the end is
    `exp(2)`, and the integral over the left mode `exp(2) / 4` (its own tail past the
    half-way line is below the noise). The errors are those of independent replicates.
    """
    keys = jax.random.split(jax.random.key(0), NUM_REPLICATES)
    ratios, masses = _replicates(
        move, resample, jnp.asarray(step_size), keys, num_blocks, num_walkers
    )
    return _score(ratios, 1.0), _score(masses, _left_mass())


@eqx.filter_jit
def _replicates(
    move: Move,
    resample: Resample,
    step_size: Array,
    keys: Array,
    num_blocks: int | None,
    num_walkers: int,
) -> tuple[Array, Array]:
    def one(key: PRNGKeyArray) -> tuple[Array, Array]:
        return _replicate(move, resample, step_size, key, num_blocks, num_walkers)

    return jax.lax.map(one, keys)


def _replicate(
    move: Move,
    resample: Resample,
    step_size: Array,
    key: PRNGKeyArray,
    num_blocks: int | None,
    num_walkers: int,
) -> tuple[Array, Array]:
    start, *keys = jax.random.split(key, NUM_STEPS + 1)
    walkers = ebm.Walkers.from_gaussian(start, num_walkers, (2,))
    walkers = walkers.reweighted(model_at(jnp.array(0.0)))
    if num_blocks:
        walkers = walkers.in_blocks(num_blocks)

    def body(
        walkers: ebm.Walkers, inputs: tuple[Array, Array]
    ) -> tuple[ebm.Walkers, None]:
        i, key = inputs
        old, new = model_at(i / NUM_STEPS), model_at((i + 1) / NUM_STEPS)
        move_key, resample_key = jax.random.split(key)
        walkers = move(walkers, old, new, step_size, move_key)
        return resample(walkers, resample_key), None

    steps = jnp.arange(NUM_STEPS, dtype=jnp.float32)
    walkers, _ = jax.lax.scan(body, walkers, (steps, jnp.stack(keys)))
    booked = walkers.log_partition
    if num_blocks:
        booked = jnp.repeat(booked, num_walkers // num_blocks)
    weights = jnp.exp(booked + walkers.log_weights - 2.0)
    return jnp.mean(weights), jnp.mean(weights * (walkers.positions[:, 0] < -0.75))


def _left_mass() -> float:
    from scipy.stats import norm

    scale = 1 / np.sqrt(1.5)
    return 0.25 * norm.cdf(-0.75, -3.0, scale) + 0.75 * norm.cdf(-0.75, 1.5, scale)


def _score(values: Array, truth: float) -> float:
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():
        return np.inf
    error = values.std(ddof=1) / np.sqrt(len(values))
    return float(abs(values.mean() - truth) / max(error, 1e-6))
