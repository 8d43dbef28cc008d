"""Objectives: bounds on `log p(y)`, each a class, over the same model."""

import abc
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray

from effgen.core.contract.counts import check_count
from effgen.neural_sde.data.grid import Grid, make_grid
from effgen.neural_sde.data.series import Series
from effgen.neural_sde.linear_sdes.linear import driven_fully, is_regular
from effgen.neural_sde.linear_sdes.messages import marginals
from effgen.neural_sde.linear_sdes.noise import standard_normal
from effgen.neural_sde.linear_sdes.transitions import covariance_root
from effgen.neural_sde.modeling.anchors import Anchored, PriorAnchor
from effgen.neural_sde.modeling.dynamics import AbstractLatentSDE

from .paths import Step, anchor_steps_of, drift_difference, observed, simulate


_MOST_TIMES = 256  # at which a varying noise is looked at


class Bound(NamedTuple):
    """A bound on one series' `log p(y)`.

    Attributes:
        values: One for each path, shape `(paths,)`, in nats. Their mean is the bound.
        log_weights: `log p(y, path) / q(path)`, shape `(paths,)`, whose mean is the
            bound too, or `None` where no path is followed.
        log_evidence: `log p(y)` of the anchored linear model.
        fits: Whether the steps were enough.
    """

    values: Float[Array, " paths"]
    log_weights: Float[Array, " paths"] | None
    log_evidence: Float[Array, ""]
    fits: Bool[Array, ""]


class AbstractObjective(eqx.Module):
    """A bound on `log p(y)` to maximize."""

    @abc.abstractmethod
    def __call__(
        self,
        model: AbstractLatentSDE,
        series: Series,
        *,
        num_steps: int,
        num_paths: int,
        parallel: bool,
        key: PRNGKeyArray,
    ) -> Bound:
        """Return the bound of one series.

        Arguments:
            model: The latent SDE, with a `dt`.
            series: One series, with `ts` of shape `(obs,)`.
            num_steps: The size of the grid: the most steps that a series may need.
            num_paths: The number of paths.
            parallel: Whether messages run in a depth of `log(steps)`.
            key: A random key.

        Returns:
            The bound, estimated by `num_paths` paths, in nats.

        Raises:
            ValueError: For a model that has no `dt` yet, or lacks what the bound needs.
        """


def anchored_on_grid(
    model: AbstractLatentSDE, series: Series, *, num_steps: int, parallel: bool
) -> tuple[Anchored, Grid]:
    """Return a series' guide on its grid."""
    grid = grid_of(model, series, num_steps)
    return model.anchor(model, series, grid, parallel=parallel), grid


def require_step(model: AbstractLatentSDE) -> None:
    """Raise `ValueError` for a model that has no step yet."""
    if not model.dt:
        raise ValueError(
            "the model has no `dt` yet: take it from a trainer's state, or give it one "
            "by `dataclasses.replace(model, dt=...)`."
        )


def grid_of(model: AbstractLatentSDE, series: Series, num_steps: int) -> Grid:
    """Return the grid of a series."""
    require_step(model)
    return make_grid(
        series.ts, series.seen, dt=model.dt, num_steps=num_steps, t0=model.t0
    )


class AnchoredELBO(AbstractObjective):
    """The default: a bound at any step size, exact with no variance for linear models.

        elbo = log p_linear(y)
               + E sum_k [move . (score - slope X - curvature move / 2) - |w|^2 / 2]

    The notation is that of `effgen.neural_sde.Guide`. The model is the chain of
    exponential Euler steps `X' = Phi X + mu + move + noise`, `move = push drift(X)`.
    The posterior is its linear-optimal step shifted by the residual. The drift may be
    in any direction, driven by noise or not. Where sites are not the likelihood, each
    observation adds `E [log p(y | X) - log s(X)]`.
    """

    def __call__(
        self,
        model: AbstractLatentSDE,
        series: Series,
        *,
        num_steps: int,
        num_paths: int,
        parallel: bool,
        key: PRNGKeyArray,
    ) -> Bound:
        """Return the bound of one series; see `AbstractObjective`.

        Raises:
            ValueError: For a model that has no `dt` yet.
        """
        anchored, grid = anchored_on_grid(
            model, series, num_steps=num_steps, parallel=parallel
        )
        paths = simulate(model, anchored, series, grid, num_paths=num_paths, key=key)
        return Bound(
            paths.elbo, paths.log_weights, anchored.guided.log_evidence, grid.fits
        )


class MarginalELBO(AbstractObjective):
    """Simulation-free: the posterior is the anchor's, and steps are drawn at random.

    Without a residual, paths of the linear posterior have known Gaussian laws at every
    node. A few steps, drawn at random, estimate the sum over all of `push . (control -
    push / 2)`. Here `push` shifts a step's noise as the drift does, and `control` as
    the linear control does. Only the messages are computed in sequence. The chain is
    that of `AnchoredELBO`, so that the bounds can be compared. This one is looser, and
    needs a drift that the noise can make and noise that does not depend on the state:
    for others, and for a model with a `residual`, it raises `ValueError`.

    Arguments:
        num_times: How many steps of each series are drawn.

    Raises:
        ValueError: For fewer than one.
    """

    num_times: int = 16

    def __check_init__(self) -> None:
        """Check the number."""
        check_count("num_times", self.num_times)

    def __call__(
        self,
        model: AbstractLatentSDE,
        series: Series,
        *,
        num_steps: int,
        num_paths: int,
        parallel: bool,
        key: PRNGKeyArray,
    ) -> Bound:
        """Return the bound of one series; see `AbstractObjective`.

        Raises:
            ValueError: For a model that has no `dt` yet, that has a `residual` or a
                `diffusion`, or a drift that the noise cannot make.
        """
        check_marginal(model, series.ts)
        keys = jax.random.split(key, 3)
        anchored, grid = anchored_on_grid(
            model, series, num_steps=num_steps, parallel=parallel
        )
        laws = marginals(anchored.guided, parallel=parallel)
        # One step from each of equal parts of the grid's length, the last ones empty.
        used = jnp.maximum(grid.nodes[-1], 1)
        offset = jax.random.uniform(keys[0], (self.num_times,))
        place = (jnp.arange(self.num_times) + offset) / self.num_times
        index = jnp.minimum((place * used).astype(jnp.int32), used - 1)
        steps = jax.tree.map(
            lambda x: x[index], anchor_steps_of(anchored, series, grid)
        )
        x = _drawn(laws, index, num_paths, keys[1])
        terms = jax.vmap(lambda step, x: _term(model, step, x))(steps, x)
        values = anchored.guided.log_evidence + used * terms.mean(0)
        if not model.decoder.exact:
            x = _drawn(laws, grid.nodes, num_paths, keys[2])
            values = values + observed(model, anchored, series, x)
        return Bound(values, None, anchored.guided.log_evidence, grid.fits)


def check_marginal(model: AbstractLatentSDE, ts: ArrayLike) -> None:
    """Raise `ValueError` for a model of another bound.

    Arguments:
        model: The model.
        ts: Times at which its noise is looked at, of any shape. Where it is traced it
            is known by its shape alone.
    """
    for name in ("residual", "diffusion"):
        if getattr(model, name) is not None:
            raise ValueError(
                f"`MarginalELBO` does not see the model's `{name}`: use "
                "`AnchoredELBO`, or leave it out."
            )
    # An anchor of its own differs from the prior by a drift.
    drifts = model.drift is not None or not isinstance(model.anchor, PriorAnchor)
    if drifts and not (driven_fully(model.linear) and _is_regular(model, ts)):
        raise ValueError(
            "`MarginalELBO` compares drifts by the noise that hides them, and here it "
            "drives fewer directions than there are states: use `AnchoredELBO`."
        )


def _is_regular(model: AbstractLatentSDE, ts: ArrayLike) -> bool:
    """Return whether noise drives all directions at all times, as far as is known."""
    if model.linear.time_invariant or isinstance(ts, Tracer):
        return True
    times = np.unique(np.asarray(ts))
    times = times[
        np.linspace(0, len(times) - 1, min(len(times), _MOST_TIMES), dtype=int)
    ]
    sigmas = jax.vmap(lambda t: model.linear.coefficients(t).diffusion)(
        jnp.asarray(times)
    )
    if isinstance(sigmas, Tracer):
        return True
    return is_regular(np.asarray(sigmas))


def _drawn(
    laws: tuple[Array, Array], index: Array, num_paths: int, key: PRNGKeyArray
) -> Float[Array, "times paths state"]:
    means, covariances = (x[index] for x in laws)
    roots = jax.vmap(covariance_root)(covariances)
    shape = (*means.shape[:1], num_paths, means.shape[1])
    noise = standard_normal(key, shape, means.dtype)
    return means[:, None] + jnp.einsum("tij,tpj->tpi", roots, noise)


def _term(model: AbstractLatentSDE, step: Step, x: Array) -> Float[Array, " paths"]:
    drift = drift_difference(model, step, x)
    if drift is None:
        return jnp.zeros(x.shape[:1], x.dtype)
    push = drift @ step.guide.gain.T
    control = x @ step.guide.control.T + step.guide.control_offset[None]
    return jnp.sum(push * (control - 0.5 * push), axis=1)
