"""Messages from the future, and the law of the linear SDE given all observations.

`h(t, x) = p(observations from t on | X_t = x)` is, for a linear SDE and Gaussian
observations, `exp(constant + shift . x - x . precision x / 2)`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .gaussian import Gaussian
from .transitions import Transition


class Site(NamedTuple):
    """A Gaussian factor, `log s(x) = constant + shift . x - x . precision x / 2`."""

    precision: Float[Array, "state state"]
    shift: Float[Array, " state"]
    constant: Float[Array, ""]

    def log_value(self, x: Float[Array, " state"]) -> Float[Array, ""]:
        """Return `log s(x)`."""
        return self.constant + self.shift @ x - 0.5 * x @ self.precision @ x


class Guide(NamedTuple):
    """One step of the linear SDE given all that is observed after it.

    `X' = matrix X + offset + keep move + root z`, `z` standard normal, where the prior
    has `X' = prior(X) + move + root_prior e`, `e` standard normal: given the future,
    `e` has mean `pull X + pull_offset - feedback move`, which is the optimal linear
    control of the step. `move = push g` is that of a drift `g` beside the linear one,
    which changes the likelihood of the future by `move . (level - slope X - curvature
    move / 2)`, exactly.

    `factor` is the Cholesky factor of the precision of `e`, `root factor^T` the prior's
    root, and `gain` takes `g` to the mean of `e` that makes its move.
    """

    matrix: Float[Array, "state state"]
    offset: Float[Array, " state"]
    root: Float[Array, "state noise"]
    pull: Float[Array, "noise state"]
    pull_offset: Float[Array, " noise"]
    gain: Float[Array, "noise state"]
    factor: Float[Array, "noise noise"]
    push: Float[Array, "state state"]
    keep: Float[Array, "state state"]
    feedback: Float[Array, "noise state"]
    level: Float[Array, " state"]
    slope: Float[Array, "state state"]
    curvature: Float[Array, "state state"]


class Guided(NamedTuple):
    """The linear SDE given the observations: exact, and the guide of everything else.

    **Attributes:** `log_evidence`, `log p(y)` of the linear model; `initial`, the law
    of `X` at the first node; `steps`, a stacked `Guide`; `messages`, one for each node,
    the node's own site included; `before`, one for each step's start, without it.
    """

    log_evidence: Float[Array, ""]
    initial: Gaussian
    steps: Guide
    messages: Site
    before: Site


def guided(transition: Transition, after: Site) -> tuple[Site, Guide]:
    """Carry a message back through a step, and condition the step on it.

    With `L = root`, `B = I + L^T precision L`: one Cholesky factor of `B`, which is at
    least the identity whatever the noise, and neither a covariance nor a precision is
    inverted. The new precision is a sum of squares (Joseph's form).
    """
    phi, mean, root = transition.matrix, transition.offset, transition.root
    eye = jnp.eye(root.shape[1], dtype=root.dtype)
    pressed = root.T @ after.precision
    factor = jnp.linalg.cholesky(eye + pressed @ root)
    solve = functools.partial(jax.scipy.linalg.cho_solve, (factor, True))
    right = jnp.concatenate([pressed, (root.T @ after.shift)[:, None]], axis=1)
    solved = solve(right)
    feedback, push = solved[:, :-1], solved[:, -1]
    keep = jnp.eye(root.shape[0], dtype=root.dtype) - root @ feedback
    precision = keep.T @ after.precision @ keep + feedback.T @ feedback
    shift = keep.T @ after.shift
    constant = (
        after.constant
        - jnp.sum(jnp.log(jnp.diagonal(factor)))
        + 0.5 * after.shift @ (root @ push)
        + shift @ mean
        - 0.5 * mean @ precision @ mean
    )
    slope, level = precision @ phi, shift - precision @ mean
    before = phi.T @ slope
    message = Site((before + before.T) / 2, phi.T @ level, constant)
    pull_offset = push - feedback @ mean
    triangular = functools.partial(
        jax.scipy.linalg.solve_triangular, factor, lower=True
    )
    return message, Guide(
        matrix=keep @ phi,
        offset=mean + root @ pull_offset,
        root=triangular(root.T).T,
        pull=-feedback @ phi,
        pull_offset=pull_offset,
        gain=transition.gain,
        factor=factor,
        push=transition.push,
        keep=keep,
        feedback=feedback,
        level=level,
        slope=slope,
        curvature=precision,
    )


def at_nodes(sites: Site, nodes: Int[Array, " obs"], num_nodes: int) -> Site:
    """Return the product of the sites at each node; of none, it is one."""
    return jax.tree.map(
        lambda x: jax.ops.segment_sum(x, nodes, num_nodes, indices_are_sorted=True),
        sites,
    )


def condition(
    initial: Gaussian, transitions: Transition, sites: Site, *, parallel: bool = False
) -> Guided:
    """Condition a linear SDE on sites, exactly.

    **Arguments:** `initial`, the law at the first node; `transitions`, stacked,
    `steps`; `sites`, stacked, one for each of the `steps + 1` nodes; `parallel`,
    whether to run in a depth of `log(steps)` (for GPUs), at several times the work.

    **Source:** the recursion is the backward information filter; in parallel,
    Särkkä and García-Fernández (2021), section IV.
    """
    backward = _in_parallel if parallel else _in_sequence
    messages, before, steps = backward(transitions, sites)
    size = initial.mean.shape[0]
    start = Transition(
        jnp.zeros((size, size), initial.mean.dtype),
        initial.mean,
        initial.root,
        jnp.zeros((initial.root.shape[1], size), initial.mean.dtype),
        jnp.zeros((size, size), initial.mean.dtype),
    )
    first = jax.tree.map(lambda x: x[0], messages)
    evidence, law = guided(start, first)
    law = Gaussian(law.offset, law.root)
    return Guided(evidence.constant, law, steps, messages, before)


def _in_sequence(transitions: Transition, sites: Site) -> tuple[Site, Site, Guide]:
    last = jax.tree.map(lambda x: x[-1], sites)

    def back(after: Site, step: tuple[Transition, Site]):
        transition, site = step
        before, guide = guided(transition, after)
        message = multiplied(before, site)
        return message, (message, before, guide)

    earlier = jax.tree.map(lambda x: x[:-1], sites)
    _, (messages, before, guides) = jax.lax.scan(
        back, last, (transitions, earlier), reverse=True
    )
    messages = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), messages, last)
    return messages, before, guides


class _Element(NamedTuple):
    """Several steps at once: the law of the last state given the first, and `h`."""

    matrix: Array
    offset: Array
    covariance: Array
    precision: Array
    shift: Array


def _in_parallel(transitions: Transition, sites: Site) -> tuple[Site, Site, Guide]:
    later = jax.tree.map(lambda x: x[1:], sites)
    message, guide = jax.vmap(guided)(transitions, later)
    covariance = guide.root @ jnp.swapaxes(guide.root, -1, -2)
    elements = _Element(
        guide.matrix, guide.offset, covariance, message.precision, message.shift
    )
    found = jax.lax.associative_scan(
        lambda b, a: jax.vmap(_combined)(a, b), elements, reverse=True
    )
    nothing = jax.tree.map(lambda x: jnp.zeros_like(x[:1]), sites)
    whole = multiplied(
        Site(
            jnp.concatenate([found.precision, nothing.precision]),
            jnp.concatenate([found.shift, nothing.shift]),
            jnp.zeros_like(sites.constant),
        ),
        sites._replace(constant=jnp.zeros_like(sites.constant)),
    )
    # The steps are now independent: one more pass gives guides and what each adds.
    after = jax.tree.map(lambda x: x[1:], whole)
    steps, guides = jax.vmap(guided)(transitions, after)
    added = jnp.concatenate([steps.constant, jnp.zeros_like(steps.constant[:1])])
    constants = jnp.cumsum((added + sites.constant)[::-1])[::-1]
    whole = whole._replace(constant=constants)
    return whole, steps._replace(constant=constants[:-1] - sites.constant[:-1]), guides


def _combined(first: _Element, second: _Element) -> _Element:
    eye = jnp.eye(first.matrix.shape[0], dtype=first.matrix.dtype)
    between = jnp.linalg.inv(eye + first.covariance @ second.precision)
    through = second.matrix @ between
    back = first.matrix.T @ between.T
    covariance = through @ first.covariance @ second.matrix.T + second.covariance
    precision = back @ second.precision @ first.matrix + first.precision
    return _Element(
        through @ first.matrix,
        through @ (first.offset + first.covariance @ second.shift) + second.offset,
        (covariance + covariance.T) / 2,
        (precision + precision.T) / 2,
        back @ (second.shift - second.precision @ first.offset) + first.shift,
    )


def multiplied(first: Site, second: Site) -> Site:
    """Return the product of two factors."""
    return jax.tree.map(jnp.add, first, second)


def marginals(
    guided: Guided, *, parallel: bool = False
) -> tuple[Float[Array, "nodes state"], Float[Array, "nodes state state"]]:
    """Return mean and covariance of `X` at each node given all observations."""
    steps = guided.steps
    noise = steps.root @ jnp.swapaxes(steps.root, -1, -2)
    start = (guided.initial.mean, guided.initial.covariance)

    def forward(carry: tuple[Array, Array], step: tuple[Array, Array, Array]):
        matrix, offset, noise = step
        mean = matrix @ carry[0] + offset
        covariance = matrix @ carry[1] @ matrix.T + noise
        return (mean, covariance), (mean, covariance)

    affine = (steps.matrix, steps.offset, noise)
    if parallel:
        combined = jax.lax.associative_scan(jax.vmap(_composed), affine)
        later = jax.vmap(lambda step: forward(start, step)[0])(combined)
    else:
        _, later = jax.lax.scan(forward, start, affine)
    mean, covariance = jax.tree.map(
        lambda a, b: jnp.concatenate([a[None], b]), start, later
    )
    return mean, covariance


def _composed(first: tuple[Array, ...], second: tuple[Array, ...]) -> tuple[Array, ...]:
    matrix = second[0] @ first[0]
    offset = second[0] @ first[1] + second[1]
    return matrix, offset, second[0] @ first[2] @ second[0].T + second[2]
