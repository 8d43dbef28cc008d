"""How long a move is: a number, a schedule, or a rule fed by earlier moves."""

import abc
from collections.abc import Callable
from numbers import Real
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int

from effgen.ebm.contract.arguments import check_positive, check_share
from effgen.ebm.walkers.particles import KernelState
from effgen.ebm.walkers.weighted_walkers import Walkers


# Doublings or halvings of a first step size, which are a factor of 10^12.
_LONGEST_SEARCH = 40


class AbstractStepSizeRule(eqx.Module):
    """A rule that finds the step size while walkers move.

    A move uses the outcome of earlier moves, never its own. A step size chosen by the
    move's own outcome would not leave the model invariant. Audit walkers move with the
    training walkers' step size, on which they have no influence.

    Attributes:
        initial: The step size to begin with, where nothing else tells one.
    """

    initial: eqx.AbstractVar[float]

    @abc.abstractmethod
    def next(
        self,
        step_size: Float[Array, ""],
        acceptance: Float[Array, ""],
        squares: Float[Array, " walkers"],
        step: Int[Array, ""],
    ) -> Float[Array, ""]:
        """Return the next move's step size.

        Arguments:
            step_size: That of the last move, one number.
            acceptance: The mean acceptance of the last move, one number.
            squares: The squared norms of the (clipped, preconditioned) gradients after
                the last move, shape `(walkers,)`.
            step: The step of the training, from 0.

        Returns:
            The step size, in units of squared length.
        """


class TargetAcceptance(AbstractStepSizeRule):
    """Moves that are accepted as often as is most efficient.

        log(step_size) += gain * (acceptance - target)
        gain = max(rate, (1 + step)^(-2/3))

    The first step size is found on the walkers: `initial` is doubled or halved until
    the acceptance crosses the target.

    Arguments:
        initial: Where the search begins, in units of squared length.
        target: The acceptance, in (0, 1); 0.574 is for Langevin proposals.
        rate: The least gain, in (0, 1): the model may go on changing.

    Raises:
        ValueError: For settings out of range.

    Source:
        Roberts and Rosenthal (1998), for the target; Hoffman and Gelman (2014), for the
        search; Andrieu and Thoms (2008), for the gain.
    """

    initial: float = 0.1
    target: float = 0.574
    rate: float = 0.5

    def __check_init__(self) -> None:
        """Raise `ValueError` for settings out of range."""
        check_positive("initial", self.initial)
        check_share("target", self.target)
        check_share("rate", self.rate)

    def next(
        self,
        step_size: Float[Array, ""],
        acceptance: Float[Array, ""],
        squares: Float[Array, " walkers"],
        step: Int[Array, ""],
    ) -> Float[Array, ""]:
        """Return the next move's step size.

        Arguments:
            step_size: That of the last move, one number.
            acceptance: The mean acceptance of the last move, one number.
            squares: The squared norms of the (clipped, preconditioned) gradients after
                the last move, shape `(walkers,)`.
            step: The step of the training, from 0.

        Returns:
            The step size, in units of squared length.
        """
        gain = jnp.maximum(self.rate, (1.0 + step) ** (-2 / 3)).astype(step_size.dtype)
        return step_size * jnp.exp(gain * (acceptance - self.target))


class TargetVariance(AbstractStepSizeRule):
    r"""Unadjusted moves whose discreteness costs the weights a given variance.

        step_size -> sqrt(8 * variance) / std(|gradient|^2)

    At equilibrium the weights of unadjusted moves telescope to a quarter of the step
    size times the change of `|gradient|^2`, so their log-variance stays at `variance`
    and the effective sample size at `exp(-variance)`. For a Gaussian of precisions
    `l` this is `step_size = 2 sqrt(variance / sum(l^2))`; the default is
    `0.5 / sqrt(sum(l^2))`. The first step size is that of the walkers' first gradients.

    Arguments:
        initial: The first step size where the gradients tell none, in units of squared
            length.
        variance: The variance of the log-weights, above 0.
        rate: The weight, in (0, 1), of each move in the running average of
            `log(step_size)`.

    Raises:
        ValueError: For settings out of range.
    """

    initial: float
    variance: float = 0.0625
    rate: float = 0.05

    def __check_init__(self) -> None:
        """Raise `ValueError` for settings out of range."""
        check_positive("initial", self.initial)
        check_positive("variance", self.variance)
        check_share("rate", self.rate)

    def next(
        self,
        step_size: Float[Array, ""],
        acceptance: Float[Array, ""],
        squares: Float[Array, " walkers"],
        step: Int[Array, ""],
    ) -> Float[Array, ""]:
        """Return the next move's step size.

        Arguments:
            step_size: That of the last move, one number.
            acceptance: The mean acceptance of the last move, one number.
            squares: The squared norms of the (clipped, preconditioned) gradients after
                the last move, shape `(walkers,)`.
            step: The step of the training, from 0.

        Returns:
            The step size, in units of squared length.
        """
        best = self.best(squares)
        new = jnp.exp((1 - self.rate) * jnp.log(step_size) + self.rate * jnp.log(best))
        return jnp.where(jnp.isfinite(new) & (new > 0), new, step_size)

    def best(self, squares: Float[Array, " walkers"]) -> Float[Array, ""]:
        """Return the step size at which the moves cost `variance`.

        Arguments:
            squares: The squared norms of the gradients, shape `(walkers,)`.

        Returns:
            The step size, in units of squared length.
        """
        return jnp.sqrt(8 * self.variance) / jnp.std(squares)


Schedule = float | Callable[[Any], ArrayLike]
"""A number, or an optax schedule: a function from the step to a number."""

StepSize = Schedule | AbstractStepSizeRule


def step_size_at(
    step_size: StepSize, walkers: Walkers, step: Int[Array, ""]
) -> Float[Array, ""]:
    """Return the step size of the move that `walkers` take at `step`."""
    dtype = walkers.positions.dtype
    if isinstance(step_size, AbstractStepSizeRule):
        found = walkers.step_size
        return jnp.where(found > 0, found, step_size.initial).astype(dtype)
    if not callable(step_size):
        return jnp.asarray(step_size, dtype)
    value = jnp.asarray(step_size(step)).astype(dtype)
    # Below 0 no walker would move any more. What is not a number stops a training.
    return jnp.where(value >= 0, value, jnp.nan)


def with_step_size(
    moved: Walkers,
    step_size: StepSize,
    used: Float[Array, ""],
    acceptance: Float[Array, ""],
    squares: Float[Array, " walkers"],
    step: Int[Array, ""],
) -> Walkers:
    """Return the moved walkers with the step size of their next move."""
    acceptance = acceptance.astype(used.dtype)
    if isinstance(step_size, AbstractStepSizeRule):
        used = step_size.next(used, acceptance, squares, step).astype(used.dtype)
    return moved.moving(KernelState(used, acceptance))


def begun_with(walkers: Walkers, step_size: Float[Array, ""]) -> Walkers:
    """Return the walkers with the step size of their next move."""
    step_size = step_size.astype(walkers.positions.dtype)
    return walkers.moving(KernelState(step_size, walkers.acceptance))


def begun_by_variance(
    walkers: Walkers, step_size: StepSize, squares: Float[Array, " walkers"]
) -> Walkers:
    """Return the walkers with the first step size of a `TargetVariance`."""
    if not isinstance(step_size, TargetVariance):
        return walkers
    best = step_size.best(squares)
    found = jnp.where(jnp.isfinite(best) & (best > 0), best, step_size.initial)
    return begun_with(walkers, found)


def searched(acceptance: Callable[[float], float], rule: TargetAcceptance) -> float:
    """Return a step size whose acceptance is the target's, to a factor of two.

    `rule.initial`, doubled or halved until the acceptance crosses the target.
    """
    found = float(rule.initial)
    large = acceptance(found) < rule.target
    for _ in range(_LONGEST_SEARCH):
        following = found / 2 if large else found * 2
        crossed = (acceptance(following) < rule.target) != large
        found = following if large or not crossed else found
        if crossed:
            break
    return found


def has_rule(kernel: Any) -> bool:
    """Return whether a kernel, or one inside of it, finds its step size by a rule."""
    is_rule = lambda x: isinstance(x, AbstractStepSizeRule)
    return any(map(is_rule, jax.tree.leaves(kernel, is_leaf=is_rule)))


def check_adjusted(kernel: str, step_size: Any) -> None:
    """Raise `ValueError` for a rule that adapts by what moves cost the weights."""
    if isinstance(step_size, TargetVariance):
        raise ValueError(
            "`step_size` is a `TargetVariance`, which is for unadjusted moves: "
            f"give `{kernel}` a `TargetAcceptance`."
        )


def check_unadjusted(kernel: str, step_size: Any) -> None:
    """Raise on a rule that waits for moves to be refused."""
    if isinstance(step_size, TargetAcceptance):
        raise ValueError(
            f"`step_size` is a `TargetAcceptance`, but `{kernel}` accepts every move: "
            "give it `TargetVariance`, or use `MALA`."
        )


def check_step_size(step_size: Any) -> None:
    """Raise on a step size that is not positive, or neither number, schedule nor rule.

    Of a schedule the first value is looked at.
    """
    if isinstance(step_size, Real) and not isinstance(step_size, bool):
        if not 0 < float(step_size) < float("inf"):
            raise ValueError(
                f"`step_size` is {step_size}: pass a number > 0, a schedule or a rule."
            )
        return
    if isinstance(step_size, AbstractStepSizeRule):
        return
    if isinstance(step_size, type) or not callable(step_size):
        kind = f"a {type(step_size).__name__}"
        if isinstance(step_size, type):
            kind = f"the class {step_size.__name__}"
        raise TypeError(
            f"`step_size` is {kind}: pass a number, an optax schedule, or a rule such "
            "as `ebm.TargetAcceptance(0.01)`."
        )
    _check_schedule(step_size)


def _check_schedule(schedule: Callable[..., Any]) -> None:
    first = jnp.asarray(schedule(jnp.zeros((), jnp.int32)))
    if first.shape or not (isinstance(first, Tracer) or 0 <= float(first) < jnp.inf):
        raise ValueError(
            f"`step_size` is a schedule that begins with {first}: it must give one "
            "number, 0 or more, at every step."
        )
