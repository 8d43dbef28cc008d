"""A law with a network or without: solved both ways, and chosen by the evidence."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from effgen.collocation.assessment.cautions import warn_of_state
from effgen.collocation.assessment.laplace import (
    Evidence,
    check_squares,
    evidence,
    groups,
)
from effgen.collocation.modeling.model import Model, as_trained
from effgen.collocation.modeling.phases import Retimed
from effgen.collocation.modeling.problem import Problem
from effgen.collocation.program.nlp import ravel
from effgen.collocation.program.transcription import Transcription
from effgen.core.contract.counts import check_count
from effgen.core.contract.state import TrainState
from effgen.core.outcome.results import TrainingError
from effgen.core.running.verbs import fit

from .generalization import Extrapolation, extrapolation
from .trainer import CollocationTrainer, check_double


_LEAST_CORRELATION = 0.05
_FARTHEST = 30.0  # by what factor one turn moves the weights' precision
_MOST_HALVINGS = 3
_SETTLED = 0.1
_LEAST_GAIN = 1e-3  # in nats; a smaller gain may be rounding of weights that are zero


class Deviation(eqx.Module):
    """A network whose last weights at zero make it zero: `law + deviation` is `law`.

        last @ tanh(first (x - center) / scale + bias)

    The weights `first`, `bias` and `last` are drawn at random and trained.

    Arguments:
        inputs: The number of inputs of the network.
        width: The number of hidden units.
        center: What is subtracted from the inputs, a number or `(inputs,)`, in their
            units; not trained.
        scale: What the inputs are divided by, a number or `(inputs,)`, in their units;
            not trained.
        key: The JAX random key of the weights.

    Raises:
        ValueError: For sizes that are no counts, or a `center` or `scale` out of range.
    """

    first: Float[Array, "width inputs"]
    bias: Float[Array, " width"]
    last: Float[Array, " width"]
    center: tuple[float, ...] = eqx.field(static=True)
    scale: tuple[float, ...] = eqx.field(static=True)

    def __init__(
        self,
        inputs: int,
        width: int = 8,
        *,
        center: Any = 0.0,
        scale: Any = 1.0,
        key: PRNGKeyArray,
    ) -> None:
        """Draw the weights."""
        check_count("inputs", inputs)
        check_count("width", width)
        keys = jax.random.split(key, 3)
        self.first = jax.random.normal(keys[0], (width, inputs)) / np.sqrt(inputs)
        self.bias = jax.random.normal(keys[1], (width,)) * 0.5
        self.last = jax.random.normal(keys[2], (width,)) * 0.3
        self.center = _full("center", center, inputs)
        self.scale = _full("scale", scale, inputs)
        if not all(s > 0 for s in self.scale):
            raise ValueError(f"`scale` is {scale}: pass positive numbers.")

    def __call__(self, x: Float[Array, " inputs"]) -> Float[Array, ""]:
        """Return the deviation at one input.

        Arguments:
            x: The input, `(inputs,)`, or a scalar for one input.

        Returns:
            A scalar, in the units of what it is added to.

        Raises:
            ValueError: For another number of inputs.
        """
        given = jnp.reshape(x, -1)
        if len(given) != len(self.center):
            raise ValueError(
                f"`x` has shape {jnp.shape(x)}: pass ({len(self.center)},), the inputs "
                "of the `Deviation`."
            )
        unit = (given - jnp.array(self.center)) / jnp.array(self.scale)
        return self.last @ jnp.tanh(self.first @ unit + self.bias)


def _full(name: str, value: Any, size: int) -> tuple[float, ...]:
    array = np.asarray(value, float)
    if array.shape not in ((), (1,), (size,)) or not np.all(np.isfinite(array)):
        raise ValueError(
            f"`{name}` is {value}: pass a finite number, or ({size},) of them."
        )
    return tuple(np.broadcast_to(array, (size,)).tolist())


class Without(eqx.Module):
    """A function of a problem with its networks held where they are."""

    function: Any
    networks: PyTree

    def __call__(self, *given: Any) -> Any:
        """Return the function with the networks last, whatever is given for them."""
        return self.function(*given[:-1], self.networks)


class Choice(NamedTuple):
    """The law that was chosen, as `choose` returns it.

    Attributes:
        state: The trained state, for `simulate`, `covariance` and the like.
        transcription: The transcription that `state` was solved on.
        evidence: The evidence of the law with its networks; `None` where no fit with
            them succeeded.
        plain: The evidence of the law without networks.
        network: Whether the chosen law has its networks.
        unseen: How the law with its networks fares on the trajectories held out; `None`
            without such, or where no fit with networks succeeded.
        plain_unseen: The same of the law without networks.
    """

    state: TrainState
    transcription: Transcription
    evidence: Evidence | None
    plain: Evidence
    network: bool
    unseen: Extrapolation | None = None
    plain_unseen: Extrapolation | None = None


def without_networks(transcription: Transcription, model: PyTree) -> Transcription:
    """Return the transcription of the law with all weights of the networks at zero."""
    bare = _bare(transcription.problem, as_trained(model).networks)
    return eqx.tree_at(lambda t: t.problem, transcription, bare)


def _bare(problem: Problem, networks: PyTree) -> Problem:
    zero = jax.tree.map(
        lambda w: np.zeros(w.shape) if eqx.is_inexact_array(w) else w, networks
    )
    held = lambda function: _held(function, zero)
    constraints = tuple(
        c._replace(function=held(c.function)) for c in problem.constraints
    )
    priors = tuple(p._replace(function=held(p.function)) for p in problem.priors)
    names = ("vector_field", "observe", "lagrange", "mayer", "penalty")
    parts = tuple(held(getattr(problem, name)) for name in names)
    where = lambda p: (*(getattr(p, name) for name in names), p.constraints, p.priors)
    return eqx.tree_at(
        where, problem, (*parts, constraints, priors), is_leaf=lambda leaf: leaf is None
    )


def _held(function: Any, networks: PyTree) -> Any:
    """Return a function with its networks held; the mesh's clock stays outermost."""
    if function is None:
        return None
    if isinstance(function, Retimed):
        return dataclasses.replace(
            function, function=_held(function.function, networks)
        )
    return Without(function, networks)


def choose(
    trainer: CollocationTrainer,
    model: PyTree,
    transcription: Transcription,
    *,
    key: PRNGKeyArray,
    num_solves: int = 6,
    held_out: Problem | None = None,
) -> Choice:
    """Fit the law without its networks and with them; keep what the evidence prefers.

    Without networks, all their weights are held at zero. So the networks should be a
    deviation from a law that the parameters have, such as `Deviation`. With networks,
    the fit begins at that solution. The weights' prior follows MacKay's fixed point,
    `alpha <- gamma / |w|^2`. A step in `log(alpha)` that lowers the evidence is halved,
    and the best is kept. If residuals are correlated by `rho`, each counts for `(1 -
    rho) / (1 + rho)`. If `weight_decay` is a pytree, each leaf is a group with its own
    `alpha`.

    Arguments:
        trainer: The trainer of both fits.
        model: A `Model`, a pair `(parameters, networks)`, or networks alone.
        transcription: The problem on its mesh.
        key: A JAX random key for `fit`.
        num_solves: The most solves in each search for the weights' prior.
        held_out: Trajectories that `transcription` does not have, the second problem of
            `collocation.held_out`. Both laws are simulated on them, and the results
            stand beside the evidence, which alone decides.

    Returns:
        The chosen law, with the evidence of both.

    Raises:
        RuntimeError: If JAX computes in float32.
        TrainingError: If the law without networks cannot be fitted.
        TypeError: For a `held_out` that is no `Problem`.
        ValueError: For a model without networks, a `weight_decay` that does not fit
            their tree, a `misfit` other than `Squares`, an invalid `num_solves`, or
            trajectories held out that have other states.

    Warns:
        RunWarning: If the mesh of the chosen law is too coarse, or if the data do not
            determine some parameters.

    Source:
        MacKay (1992).
    """
    check_double()
    model = as_trained(model)
    if not jax.tree.leaves(eqx.filter(model.networks, eqx.is_inexact_array)):
        raise ValueError(
            "the model has no networks: pass `Model(parameters, networks)`, such as a "
            "`Deviation`, to choose with or without."
        )
    check_count("num_solves", num_solves)
    check_squares(transcription.problem)
    groups(transcription.problem, model.networks)
    _check_held_out(held_out, transcription.problem)
    level = transcription.before_finer()
    bare = without_networks(level, model)
    constant = Model(model.parameters, None)
    start = trainer.init(constant, bare.guess(constant))
    plain, _ = fit(trainer, start, iter([bare]), key=key)
    shown = evidence(bare, plain)
    begun = trainer.init(Model(plain.model.parameters, model.networks), plain.memory)
    best = _searched(trainer, begun, level, shown, key, num_solves)
    rho = 0.0 if best is None else best[2].correlation
    if best is not None and rho > _LEAST_CORRELATION:
        shown = evidence(bare, plain, correlation=rho)
        again = _weighed(trainer, best[0], best[1], best[2], rho, key, num_solves)
        best = best if again is None else again
    found = None if best is None else best[2]
    network = best is not None and _gains(best[2], shown)
    state, level = (plain, bare) if best is None or not network else best[:2]
    warn_of_state(level, state)
    level = dataclasses.replace(level, final=True)
    unseen = _unseen(held_out, model.networks, best, plain)
    return Choice(state, level, found, shown, network, *unseen)


def _check_held_out(held_out: Problem | None, problem: Problem) -> None:
    if held_out is None:
        return
    if not isinstance(held_out, Problem):
        raise TypeError(
            f"`held_out` is a {type(held_out).__name__}: pass a problem, the second of "
            "`collocation.held_out(problem, [0])`."
        )
    if held_out.num_states != problem.num_states:
        raise ValueError(
            f"`held_out` has {held_out.num_states} states and the transcription "
            f"{problem.num_states}: pass the second of `collocation.held_out`."
        )


def _unseen(
    problem: Problem | None,
    networks: PyTree,
    best: tuple[TrainState, Transcription, Evidence] | None,
    plain: TrainState,
) -> tuple[Extrapolation | None, Extrapolation | None]:
    """Return how both laws fare on the trajectories held out, if there are any."""
    if problem is None:
        return None, None
    bare = extrapolation(_bare(problem, networks), plain.model, plain.memory)
    if best is None:
        return None, bare
    return extrapolation(problem, best[0].model, best[0].memory), bare


def _gains(found: Evidence, before: Evidence) -> bool:
    return found.log_evidence > before.log_evidence + _LEAST_GAIN


def _searched(
    trainer: CollocationTrainer,
    state: TrainState,
    level: Transcription,
    before: Evidence,
    key: PRNGKeyArray,
    num_solves: int,
) -> tuple[TrainState, Transcription, Evidence] | None:
    """Return the fit with the highest evidence, starting at the given `weight_decay`.

    A prior that is too narrow holds all weights at zero, and the iteration then does
    not widen it. In that case the search is repeated from a precision of one.
    """
    best = _weighed(trainer, state, level, before, 0.0, key, num_solves)
    if best is not None and _gains(best[2], before):
        return best
    if not any(jax.tree.leaves(before.precision)):
        return best
    wide = before._replace(precision=jax.tree.map(lambda _: 0.0, before.precision))
    again = _weighed(trainer, state, level, wide, 0.0, key, num_solves)
    both = [fit for fit in (best, again) if fit is not None]
    return max(both, key=lambda fit: fit[2].log_evidence, default=None)


def _weighed(
    trainer: CollocationTrainer,
    state: TrainState,
    level: Transcription,
    before: Evidence,
    rho: float,
    key: PRNGKeyArray,
    num_solves: int,
) -> tuple[TrainState, Transcription, Evidence] | None:
    """Return the fit of the highest evidence over the weights' prior."""
    alpha, best, halvings = _positive(before.precision), None, 0
    deviation = before.noise
    for _ in range(num_solves):
        here = _with_precision(level, alpha, deviation, rho)
        try:
            new, _ = fit(trainer, state, iter([here]), key=key)
            found = evidence(here, new, correlation=rho)
        except (TrainingError, ValueError):
            break
        if best is not None and not found.log_evidence > best[2].log_evidence:
            halvings += 1
            if halvings > _MOST_HALVINGS:
                break
            middle = lambda a, b: float(np.sqrt(a * b))
            alpha = jax.tree.map(middle, alpha, best[2].precision)
            continue
        gain = np.inf if best is None else found.log_evidence - best[2].log_evidence
        best, state, deviation = (new, here, found), new, found.noise
        if gain < _SETTLED and halvings == 0:
            break
        halvings, weights = 0, _squares(level.problem, new.model.networks)
        alpha = jax.tree.map(_wanted, found.effective, weights, found.precision)
    return best


def _positive(precision: PyTree) -> PyTree:
    return jax.tree.map(lambda alpha: alpha or 1.0, precision)


def _wanted(effective: float, weights: float, precision: float) -> float:
    wanted = max(effective, 1e-12) / max(weights, 1e-30)
    return float(np.clip(wanted, precision / _FARTHEST, precision * _FARTHEST))


def _with_precision(
    level: Transcription, alpha: PyTree, noise: np.ndarray, rho: float
) -> Transcription:
    """Return the transcription whose weight decay is this prior of the weights."""
    problem: Problem = level.problem
    count = sum(int(np.sum(~np.isnan(t.ys))) for t in problem.data)
    tau = (1 - rho) / (1 + rho)
    variance = float(np.exp(2 * np.mean(np.log(noise / problem.scale))))
    factor = variance / (tau * max(count, 1))
    decay = jax.tree.map(lambda a: np.asarray(a * factor), alpha)
    return eqx.tree_at(lambda t: t.problem.weight_decay, level, decay)


def _squares(problem: Problem, networks: PyTree) -> PyTree:
    """Return the sum of squared weights of each group, like `weight_decay`."""
    leaves, tree = jax.tree.flatten(problem.weight_decay)
    squares = np.asarray(ravel(Model(None, networks))) ** 2
    found = np.bincount(groups(problem, networks), squares, minlength=len(leaves))
    return jax.tree.unflatten(tree, found.tolist())
