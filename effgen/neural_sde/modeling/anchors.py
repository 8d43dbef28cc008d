"""Anchors: the linear SDE that guides the posterior of a nonlinear one."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from effgen.core.contract.counts import check_count
from effgen.neural_sde.data.grid import Grid
from effgen.neural_sde.data.series import Series
from effgen.neural_sde.linear_sdes.gaussian import Gaussian, as_float
from effgen.neural_sde.linear_sdes.linear import forced
from effgen.neural_sde.linear_sdes.messages import (
    Guide,
    Guided,
    Site,
    at_nodes,
    condition,
    guided,
    marginals,
)
from effgen.neural_sde.linear_sdes.transitions import (
    Coefficients,
    Transition,
    constant_transition,
)

from .dynamics import AbstractLatentSDE


class Anchored(NamedTuple):
    """A series' guide.

    The prior's own steps make the chain, whatever the anchor; its messages only propose
    where they lead.

    Attributes:
        guided: The anchor given the observations.
        sites: The Gaussian factors of these, stacked.
        chain: The prior's linear steps given the anchor's messages, stacked.
        mismatch: The message back through a step of the prior over that through a step
            of the anchor, or `None` where the anchor is the prior.
        slopes: The prior's linear drift less the anchor's: its matrices, or `None`.
        biases: The same, of the biases.
    """

    guided: Guided
    sites: Site
    chain: Guide
    mismatch: Site | None
    slopes: Float[Array, "steps state state"] | None
    biases: Float[Array, "steps state"] | None


class AbstractAnchor(eqx.Module):
    """A rule that chooses the linear SDE that guides the posterior.

    Any choice gives a bound on `log p(y)`. The nearer the linear SDE is to the
    posterior, the tighter is the bound.
    """

    @abc.abstractmethod
    def __call__(
        self, model: AbstractLatentSDE, series: Series, grid: Grid, *, parallel: bool
    ) -> Anchored:
        """Return the guide of one series.

        Arguments:
            model: The latent SDE.
            series: One series, with `ts` of shape `(obs,)`.
            grid: The grid of its steps.
            parallel: Whether messages run in a depth of `log(steps)`.

        Returns:
            The anchor given the observations, and the prior's steps that it guides.
        """


class PriorAnchor(AbstractAnchor):
    """The prior's own linear part as the anchor: the default.

    It is learned with the prior.
    """

    def __call__(
        self, model: AbstractLatentSDE, series: Series, grid: Grid, *, parallel: bool
    ) -> Anchored:
        """Return the guide of one series; see `AbstractAnchor`."""
        transitions = prior_transitions(model, series, grid)
        found, sites = _conditioned(model, series, grid, transitions, parallel)
        anchored = Anchored(found, sites, found.steps, None, None, None)
        return cast(anchored, series.ys.dtype)


class GivenAnchor(AbstractAnchor):
    """A given linear drift as the anchor, with the prior's noise.

        dX = (matrix X + bias) dt + sigma dW

    It is not trained.

    Arguments:
        matrix: `A`, shape `(state, state)`, one over the unit of time.
        bias: `b`, shape `(state,)`, units of the state over the unit of time.

    Raises:
        ValueError: For shapes that do not agree.
    """

    matrix: Float[Array, "state state"]
    bias: Float[Array, " state"]

    def __init__(self, matrix: ArrayLike, bias: ArrayLike) -> None:
        """Check the shapes."""
        self.matrix, self.bias = as_float(matrix), as_float(bias)
        if self.matrix.shape != self.bias.shape * 2:
            raise ValueError(
                f"`matrix` has shape {self.matrix.shape} and `bias` {self.bias.shape}: "
                "pass (state, state) and (state,)."
            )

    def __call__(
        self, model: AbstractLatentSDE, series: Series, grid: Grid, *, parallel: bool
    ) -> Anchored:
        """Return the guide of one series; see `AbstractAnchor`."""
        num_steps = grid.starts.shape[0]
        about = jax.lax.stop_gradient((self.matrix, self.bias))
        matrices, biases = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (num_steps, *x.shape)), about
        )
        return _about(model, series, grid, matrices, biases, parallel)


class RelinearizedAnchor(AbstractAnchor):
    """The prior's drift linearized about the current posterior, step by step.

        A = E d drift / dx,    b = E drift - A E x

    The means are over the linear posterior's law at the start of each step, by
    cubature. The posterior is then computed anew. After the last observation the
    prior's own linear part is kept. No gradient flows through `A` and `b`.

    Arguments:
        num_sweeps: How often the drift is linearized and the posterior computed.

    Raises:
        ValueError: For fewer than one sweep.

    Source:
        Archambeau, Cornford, Opper and Shawe-Taylor (2007), equation 13.
    """

    num_sweeps: int = 2

    def __check_init__(self) -> None:
        """Check the number."""
        check_count("num_sweeps", self.num_sweeps)

    def __call__(
        self, model: AbstractLatentSDE, series: Series, grid: Grid, *, parallel: bool
    ) -> Anchored:
        """Return the guide of one series; see `AbstractAnchor`."""
        found = PriorAnchor()(model, series, grid, parallel=parallel)
        inputs = step_inputs(series, grid)
        for _ in range(self.num_sweeps):
            means, covariances = marginals(found.guided, parallel=parallel)
            about = jax.vmap(
                lambda t, u, m, p: _statistical(model, t, u, m, p),
                in_axes=(0, None if series.inputs is None else 0, 0, 0),
            )(grid.starts, inputs, means[:-1], covariances[:-1])
            matrices, biases = _where_useful(
                model, series, grid, jax.lax.stop_gradient(about)
            )
            found = _about(model, series, grid, matrices, biases, parallel)
        return found


def _where_useful(
    model: AbstractLatentSDE, series: Series, grid: Grid, about: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Return the prior's own linear part after the last observation, `about` before.

    Nothing guides there, and without data a linearization feeds on its own spread.
    """
    guided = grid.until_next > 0
    inputs = step_inputs(series, grid)
    prior = jax.lax.stop_gradient(_prior_steps(model.linear, grid.starts, inputs))
    return (
        jnp.where(guided[:, None, None], about[0], prior[0]),
        jnp.where(guided[:, None], about[1], prior[1]),
    )


def _statistical(
    model: AbstractLatentSDE, t: Array, u: Array | None, mean: Array, covariance: Array
) -> tuple[Array, Array]:
    """Return the linearization of the drift over a Gaussian, by `2 state` points."""
    size = mean.shape[0]
    values, vectors = jnp.linalg.eigh(covariance)
    root = vectors * jnp.sqrt(jnp.maximum(values, 0))[None]
    points = jnp.concatenate([root.T, -root.T]) * jnp.sqrt(size) + mean[None]
    drift = lambda x: model.prior_drift(t, x, u)
    matrix = jax.vmap(jax.jacfwd(drift))(points).mean(0)
    return matrix, jax.vmap(drift)(points).mean(0) - matrix @ mean


def _about(
    model: AbstractLatentSDE,
    series: Series,
    grid: Grid,
    matrices: Array,
    biases: Array,
    parallel: bool,  # noqa: FBT001
) -> Anchored:
    """Return the guide about `matrices x + biases`, constant in each step."""
    linear, starts, lengths, dtype = _cast(model, grid)
    prior = _prior_steps(linear, starts, step_inputs(series, grid))
    steps = Coefficients(matrices.astype(dtype), biases.astype(dtype), prior.diffusion)
    transitions = jax.vmap(lambda c, dt: constant_transition(c, dt, c.bias))(
        steps, lengths
    )
    found, sites = _conditioned(model, series, grid, transitions, parallel)
    chain, mismatch = _along_prior(
        found, transitions, prior_transitions(model, series, grid)
    )
    slopes, biases = prior.matrix - steps.matrix, prior.bias - steps.bias
    anchored = Anchored(found, sites, chain, mismatch, slopes, biases)
    return cast(anchored, series.ys.dtype)


def _along_prior(
    found: Guided, anchor: Transition, prior: Transition
) -> tuple[Guide, Site]:
    """Return the prior's steps given the anchor's messages, and their mismatch."""
    after = jax.tree.map(lambda x: x[1:], found.messages)
    after = after._replace(constant=jnp.zeros_like(after.constant))
    message, chain = jax.vmap(guided)(prior, after)
    own, _ = jax.vmap(guided)(anchor, after)
    return chain, jax.tree.map(jnp.subtract, message, own)


def _prior_steps(linear: Any, starts: Array, inputs: Array | None) -> Coefficients:
    """Return the prior's coefficients at the start of each step, inputs in `b`."""
    found = jax.vmap(linear.coefficients)(starts)
    if inputs is None:
        return found
    force = jax.vmap(lambda b, u: forced(b, linear.input_matrix, u))
    return found._replace(bias=force(found.bias, inputs))


def step_inputs(series: Series, grid: Grid) -> Float[Array, "steps inputs"] | None:
    """Return the inputs that hold during each step."""
    if series.inputs is None:
        return None
    return series.inputs[jnp.clip(grid.gap - 1, 0, series.inputs.shape[0] - 1)]


def prior_transitions(
    model: AbstractLatentSDE, series: Series, grid: Grid
) -> Transition:
    """Return the prior's linear steps, stacked; of one length in a gap, made once."""
    linear, starts, lengths, dtype = _cast(model, grid)
    inputs = series.inputs
    if not linear.time_invariant:
        inputs = step_inputs(series, grid)
        return _steps(linear, starts, lengths, inputs, dtype)
    if inputs is not None:
        inputs = jnp.concatenate([inputs[:1], inputs])
    starts, lengths = grid.gap_starts.astype(dtype), grid.gap_lengths.astype(dtype)
    per_gap = _steps(linear, starts, lengths, inputs, dtype)
    return jax.tree.map(lambda x: x[grid.gap], per_gap)


def _steps(
    linear: Any, starts: Array, lengths: Array, inputs: Array | None, dtype: Any
) -> Transition:
    if inputs is None:
        return jax.vmap(linear.transition)(starts, lengths)
    return jax.vmap(linear.transition)(starts, lengths, inputs.astype(dtype))


def _cast(model: AbstractLatentSDE, grid: Grid) -> tuple[Any, Array, Array, Any]:
    dtype = grid.lengths.dtype if model.message_dtype is None else model.message_dtype
    linear = cast(model.linear, dtype)
    return linear, grid.starts.astype(dtype), grid.lengths.astype(dtype), dtype


def cast(tree: Any, dtype: Any) -> Any:
    """Return `tree` with its floating point arrays in `dtype`."""
    return jax.tree.map(
        lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, tree
    )


def _conditioned(
    model: AbstractLatentSDE,
    series: Series,
    grid: Grid,
    transitions: Transition,
    parallel: bool,  # noqa: FBT001
) -> tuple[Guided, Site]:
    """Condition on the decoder's sites, in the messages' precision."""
    dtype = transitions.offset.dtype
    initial: Gaussian = cast(model.linear.initial, dtype)
    num_nodes = grid.starts.shape[0] + 1

    def given(sites: Site) -> Guided:
        nodes = at_nodes(cast(sites, dtype), grid.nodes, num_nodes)
        return condition(initial, transitions, nodes, parallel=parallel)

    def smoother(sites: Site | None) -> tuple[Array, Array]:
        if sites is None:
            size, num = initial.mean.shape[0], grid.nodes.shape[0]
            shapes = ((num, size, size), (num, size), (num,))
            sites = Site(*(jnp.zeros(shape, dtype) for shape in shapes))
        means, covariances = marginals(given(sites), parallel=parallel)
        working = series.ys.dtype
        at = lambda x: x[grid.nodes].astype(working)
        return at(means), at(covariances)

    cast_series = series._replace(ys=series.ys.astype(dtype))
    sites = model.decoder.sites(
        cast_series if model.decoder.exact else series, smoother
    )
    return given(sites), sites
