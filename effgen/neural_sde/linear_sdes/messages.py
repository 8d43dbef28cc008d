"""Messages from the future, and the law of the linear SDE given all observations.

`h(t, x) = p(observations from t on | X_t = x)` is, for a linear SDE and Gaussian
observations, `exp(constant + shift . x - x . precision x / 2)`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .gaussian import Gaussian
from .transitions import MOST_ELIMINATED, Transition


class Site(NamedTuple):
    """A Gaussian factor, `log s(x) = constant + shift . x - x . precision x / 2`.

    Attributes:
        precision: Shape `(state, state)`. It may be singular.
        shift: Shape `(state,)`.
        constant: A scalar, in nats.
    """

    precision: Float[Array, "state state"]
    shift: Float[Array, " state"]
    constant: Float[Array, ""]

    def log_value(self, x: Float[Array, " state"]) -> Float[Array, ""]:
        """Return `log s(x)`.

        Arguments:
            x: A state, shape `(state,)`.

        Returns:
            A scalar, in nats.
        """
        return self.constant + self.shift @ x - 0.5 * x @ self.precision @ x


class Guide(NamedTuple):
    """One step of the linear SDE given all that is observed after it.

        X' = matrix X + offset + reduction move + root z,    z ~ N(0, I)
        E e = control X + control_offset - feedback move

    The prior has `X' = prior(X) + move + prior_root e`, `e ~ N(0, I)`. Given the future
    `e` has the mean above, which is the optimal linear control of the step. `move =
    push g` is that of a drift `g` beside the linear one. It changes the log-likelihood
    of the future by `move . (score - slope X - curvature move / 2)`, exactly.

    Attributes:
        matrix: Shape `(state, state)`.
        offset: Shape `(state,)`.
        root: Shape `(state, noise)`.
        control: Shape `(noise, state)`.
        control_offset: Shape `(noise,)`.
        gain: From `g` to the mean of `e` that makes its move, shape `(noise, state)`.
        prior_root: The prior's root, shape `(state, noise)`.
        square: The precision of `e` given the future, shape `(noise, noise)`.
        half_log: Half the logarithm of its determinant.
        push: From `g` to its move, shape `(state, state)`.
        reduction: Shape `(state, state)`.
        feedback: Shape `(noise, state)`.
        score: Shape `(state,)`.
        slope: Shape `(state, state)`.
        curvature: Shape `(state, state)`.
    """

    matrix: Float[Array, "state state"]
    offset: Float[Array, " state"]
    root: Float[Array, "state noise"]
    control: Float[Array, "noise state"]
    control_offset: Float[Array, " noise"]
    gain: Float[Array, "noise state"]
    prior_root: Float[Array, "state noise"]
    square: Float[Array, "noise noise"]
    half_log: Float[Array, ""]
    push: Float[Array, "state state"]
    reduction: Float[Array, "state state"]
    feedback: Float[Array, "noise state"]
    score: Float[Array, " state"]
    slope: Float[Array, "state state"]
    curvature: Float[Array, "state state"]


class Guided(NamedTuple):
    """The linear SDE given the observations: exact, and the guide of everything else.

    Attributes:
        log_evidence: `log p(y)` of the linear model, in nats.
        initial: The law of `X` at the first node given the observations.
        steps: A `Guide` for each step, stacked.
        messages: A `Site` for each node, the node's own site included.
        before: A `Site` for the start of each step, without the node's own.
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
    pressed = product(root.T, after.precision)
    square = eye + product(pressed, root)
    inverse, half_log = inverse_root(square)
    size = root.shape[0]
    half_pressed = product(inverse, pressed)
    half_shift = product(inverse, product(root.T, after.shift))
    feedback = product(inverse.T, half_pressed)
    push = product(inverse.T, half_shift)
    reduction = jnp.eye(size, dtype=root.dtype) - product(root, feedback)
    kept = product(product(reduction.T, after.precision), reduction)
    precision = kept + product(feedback.T, feedback)
    shift = product(reduction.T, after.shift)
    slope, score = product(precision, phi), shift - product(precision, mean)
    before = product(phi.T, slope)
    constant = (
        after.constant
        - half_log
        + 0.5 * half_shift @ half_shift
        + shift @ mean
        - 0.5 * mean @ product(precision, mean)
    )
    message = Site((before + before.T) / 2, product(phi.T, score), constant)
    control_offset = push - product(feedback, mean)
    return message, Guide(
        matrix=product(reduction, phi),
        offset=mean + product(root, control_offset),
        root=product(root, inverse.T),
        control=-product(feedback, phi),
        control_offset=control_offset,
        gain=transition.gain,
        prior_root=root,
        square=square,
        half_log=half_log,
        push=transition.push,
        reduction=reduction,
        feedback=feedback,
        score=score,
        slope=slope,
        curvature=precision,
    )


def product(first: Array, second: Array) -> Array:
    """Return `first @ second`, small ones as sums that a batch of them shares.

    Those over vectors are folded: in jaxlib 0.10.2 on CPUs the difference of two
    reductions, of which one has no batch, is wrong past some size in float32, and
    vectors have a batch where matrices may have none.
    """
    if max(first.shape) > MOST_ELIMINATED:
        return first @ second
    if second.ndim == 1:
        return _folded(first * second[None])
    return jnp.sum(first[:, :, None] * second[None], axis=1)


def _folded(terms: Float[Array, "rows columns"]) -> Float[Array, " rows"]:
    """Return the sum of columns, halves upon each other."""
    size = terms.shape[1]
    if size == 1:
        return terms[:, 0]
    half = size // 2
    both = terms[:, :half] + terms[:, half : 2 * half]
    found = _folded(both)
    return found if size % 2 == 0 else found + terms[:, -1]


@jax.custom_jvp
def inverse_root(
    square: Float[Array, "noise noise"],
) -> tuple[Float[Array, "noise noise"], Float[Array, ""]]:
    """Return `C^-1` and `log|C|`, `square = C C^T`.

    Small matrices are eliminated row by row, in operations that a batch shares: a call
    of a library for each matrix costs several times what the arithmetic does.
    Derivatives are closed forms, so that nothing is eliminated backward.
    """
    size = square.shape[0]
    eye = jnp.eye(size, dtype=square.dtype)
    if size > MOST_ELIMINATED:
        factor = jnp.linalg.cholesky(square)
        found = jax.scipy.linalg.solve_triangular(factor, eye, lower=True)
        return found, jnp.sum(jnp.log(jnp.diagonal(factor)))
    rest = jnp.concatenate([square, eye], axis=1)
    rows, pivots = [], []
    for i in range(size):
        pivots.append(rest[0, i])
        row = rest[0] * jax.lax.rsqrt(pivots[-1])
        rows.append(row[size:])
        rest = rest[1:] - row[i + 1 : size, None] * row[None]
    return jnp.stack(rows), 0.5 * jnp.sum(jnp.log(jnp.stack(pivots)))


@inverse_root.defjvp
def _inverse_root_jvp(
    primals: tuple[Array], tangents: tuple[Array]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    inverse, log = inverse_root(*primals)
    inner = product(product(inverse, tangents[0]), inverse.T)
    half = jnp.tril(inner, -1) + 0.5 * jnp.diag(jnp.diagonal(inner))
    return (inverse, log), (-product(half, inverse), 0.5 * jnp.trace(inner))


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

    Arguments:
        initial: The law of `X` at the first node.
        transitions: The steps, stacked along `steps`.
        sites: A factor for each of the `steps + 1` nodes, stacked.
        parallel: Whether to run in a depth of `log(steps)` (for GPUs), at several times
            the work.

    Returns:
        The linear SDE given the sites.

    Source:
        The backward information filter; in parallel, Särkkä and García-Fernández
        (2021), section IV.
    """
    run = _in_parallel if parallel else _in_sequence
    messages, added, first = run(transitions, sites)
    constants = jnp.cumsum((added + sites.constant[1:])[::-1])[::-1]
    # The steps are now independent: one pass gives guides, where they are wanted.
    after = jax.tree.map(lambda x: x[1:], messages)
    before, steps = jax.vmap(guided)(transitions, after)
    before = before._replace(constant=constants)
    last = jnp.zeros_like(constants[:1])
    constants = jnp.concatenate([constants, last]) + sites.constant
    messages = messages._replace(constant=constants)
    # Not `messages[0]`: of the evidence alone, no message is then kept.
    first = first._replace(constant=constants[0])
    evidence, law = guided(at_once(initial), first)
    law = Gaussian(law.offset, law.root)
    return Guided(evidence.constant, law, steps, messages, before)


def at_once(initial: Gaussian) -> Transition:
    """Return the first state's law as a step from anywhere."""
    size, noise = initial.root.shape
    zero = lambda *shape: jnp.zeros(shape, initial.mean.dtype)
    return Transition(
        zero(size, size),
        initial.mean,
        initial.root,
        zero(noise, size),
        zero(size, size),
    )


def _without_constant(site: Site) -> Site:
    return site._replace(constant=jnp.zeros_like(site.constant))


def _in_sequence(
    transitions: Transition, sites: Site
) -> tuple[Site, Float[Array, " steps"], Site]:
    """Return messages without constants, what each step adds to it, and the first."""
    sites = _without_constant(sites)
    last = jax.tree.map(lambda x: x[-1], sites)

    def back(after: Site, step: tuple[Transition, Site]) -> tuple[Site, tuple]:
        before = guided(step[0], after)[0]
        message = multiplied(_without_constant(before), step[1])
        return message, (message, before.constant)

    earlier = jax.tree.map(lambda x: x[:-1], sites)
    first, (messages, added) = jax.lax.scan(
        jax.checkpoint(back), last, (transitions, earlier), reverse=True
    )
    join = lambda a, b: jnp.concatenate([a, b[None]])
    return jax.tree.map(join, messages, last), added, first


class _Element(NamedTuple):
    """Several steps at once: the law of the last state given the first, and `h`."""

    matrix: Array
    offset: Array
    covariance: Array
    precision: Array
    shift: Array


def _in_parallel(
    transitions: Transition, sites: Site
) -> tuple[Site, Float[Array, " steps"], Site]:
    """Return messages without constants, what each step adds to it, and the first."""
    sites = _without_constant(sites)
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
    messages = multiplied(
        Site(
            jnp.concatenate([found.precision, nothing.precision]),
            jnp.concatenate([found.shift, nothing.shift]),
            jnp.zeros_like(sites.constant),
        ),
        sites,
    )
    after = jax.tree.map(lambda x: x[1:], messages)
    added = jax.vmap(guided)(transitions, after)[0].constant
    return messages, added, jax.tree.map(lambda x: x[0], messages)


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
    """Return mean and covariance of `X` at each node given all observations.

    Arguments:
        guided: The linear SDE given the observations, from `condition`.
        parallel: Whether to run in a depth of `log(steps)` (for GPUs).

    Returns:
        Means, shape `(nodes, state)`, and covariances, shape `(nodes, state, state)`.
    """
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
