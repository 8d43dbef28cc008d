"""A law with a network or without: solved both ways, and chosen by the evidence."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from effgen.core.counts import check_count
from effgen.core.results import TrainingError
from effgen.core.state import TrainState
from effgen.core.train import fit

from .laplace import Evidence, check_one_prior, evidence
from .model import Model, as_trained
from .problem import Problem
from .trainer import CollocationTrainer
from .transcription import Transcription


_LEAST_CORRELATION = 0.05
_FARTHEST = 30.0  # by what factor one turn moves the weights' precision
_MOST_HALVINGS = 3
_SETTLED = 0.1


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
        keys = jax.random.split(key, 3)
        self.first = jax.random.normal(keys[0], (width, inputs)) / np.sqrt(inputs)
        self.bias = jax.random.normal(keys[1], (width,)) * 0.5
        self.last = jax.random.normal(keys[2], (width,)) * 0.3
        full = lambda v: tuple(
            np.broadcast_to(np.asarray(v, float), (inputs,)).tolist()
        )
        self.center, self.scale = full(center), full(scale)

    def __call__(self, x: Float[Array, " inputs"]) -> Float[Array, ""]:
        """Return the deviation at one input.

        Arguments:
            x: The input, `(inputs,)`, or a scalar for one input.

        Returns:
            A scalar, in the units of what it is added to.
        """
        unit = (jnp.reshape(x, -1) - jnp.array(self.center)) / jnp.array(self.scale)
        return self.last @ jnp.tanh(self.first @ unit + self.bias)


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
    """

    state: TrainState
    transcription: Transcription
    evidence: Evidence | None
    plain: Evidence
    network: bool


def without_networks(transcription: Transcription, model: PyTree) -> Transcription:
    """Return the transcription of the law with all weights of the networks at zero."""
    zero = jax.tree.map(
        lambda w: np.zeros(w.shape) if eqx.is_inexact_array(w) else w,
        as_trained(model).networks,
    )
    problem = transcription.problem
    held = lambda function: None if function is None else Without(function, zero)
    constraints = tuple(
        c._replace(function=Without(c.function, zero)) for c in problem.constraints
    )
    names = ("vector_field", "observe", "lagrange", "mayer", "penalty")
    parts = tuple(held(getattr(problem, name)) for name in names)
    where = lambda p: (*(getattr(p, name) for name in names), p.constraints)
    new = eqx.tree_at(
        where, problem, (*parts, constraints), is_leaf=lambda leaf: leaf is None
    )
    return eqx.tree_at(lambda t: t.problem, transcription, new)


def choose(
    trainer: CollocationTrainer,
    model: PyTree,
    transcription: Transcription,
    *,
    key: PRNGKeyArray,
    num_solves: int = 6,
) -> Choice:
    """Fit the law without its networks and with them; keep what the evidence prefers.

    Without networks, all their weights are held at zero. So the networks should be a
    deviation from a law that the parameters have, such as `Deviation`. With networks,
    the fit begins at that solution. The weights' prior follows MacKay's fixed point,
    `alpha <- gamma / |w|^2`. A step in `log(alpha)` that lowers the evidence is halved,
    and the best is kept. If residuals are correlated by `rho`, each counts for `(1 -
    rho) / (1 + rho)`.

    Arguments:
        trainer: The trainer of both fits.
        model: A `Model`, a pair `(parameters, networks)`, or networks alone.
        transcription: The problem on its mesh.
        key: A JAX random key for `fit`.
        num_solves: The most solves in each search for the weights' prior.

    Returns:
        The chosen law, with the evidence of both.

    Raises:
        TrainingError: If the law without networks cannot be fitted.
        ValueError: For a model without networks, a weight decay that is not one
            number, or no number of solves.

    Source:
        MacKay (1992).
    """
    model = as_trained(model)
    if not jax.tree.leaves(eqx.filter(model.networks, eqx.is_inexact_array)):
        raise ValueError(
            "the model has no networks: pass `Model(parameters, networks)`, such as a "
            "`Deviation`, to choose with or without."
        )
    check_count("num_solves", num_solves)
    check_one_prior(transcription.problem)
    level = transcription.before_finer()
    bare = without_networks(level, model)
    start = trainer.init(Model(model.parameters, None), bare.guess())
    plain, _ = fit(trainer, start, iter([bare]), key=key)
    shown = evidence(bare, plain)
    begun = trainer.init(Model(plain.model.parameters, model.networks), plain.memory)
    best = _weighed(trainer, begun, level, shown, 0.0, key, num_solves)
    rho = 0.0 if best is None else best[2].correlation
    if best is not None and rho > _LEAST_CORRELATION:
        shown = evidence(bare, plain, correlation=rho)
        again = _weighed(trainer, best[0], best[1], best[2], rho, key, num_solves)
        best = best if again is None else again
    found = None if best is None else best[2]
    if best is not None and best[2].log_evidence > shown.log_evidence:
        level = dataclasses.replace(best[1], final=True)
        return Choice(best[0], level, found, shown, network=True)
    bare = dataclasses.replace(bare, final=True)
    return Choice(plain, bare, found, shown, network=False)


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
    alpha, best, halvings = before.precision or 1.0, None, 0
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
            alpha = float(np.sqrt(alpha * best[2].precision))
            continue
        gain = np.inf if best is None else found.log_evidence - best[2].log_evidence
        best, state, deviation = (new, here, found), new, found.noise
        if gain < _SETTLED and halvings == 0:
            break
        halvings, weights = 0, _squares(new.model.networks)
        wanted = max(found.effective, 1e-12) / max(weights, 1e-30)
        wide = (found.precision / _FARTHEST, found.precision * _FARTHEST)
        alpha = float(np.clip(wanted, *wide))
    return best


def _with_precision(
    level: Transcription, alpha: float, noise: np.ndarray, rho: float
) -> Transcription:
    """Return the transcription whose weight decay is this prior of the weights."""
    problem: Problem = level.problem
    count = sum(int(np.sum(~np.isnan(t.ys))) for t in problem.data)
    tau = (1 - rho) / (1 + rho)
    variance = float(np.exp(2 * np.mean(np.log(noise / problem.scale))))
    decay = np.asarray(alpha * variance / (tau * max(count, 1)))
    return eqx.tree_at(lambda t: t.problem.weight_decay, level, decay)


def _squares(networks: PyTree) -> float:
    leaves = jax.tree.leaves(eqx.filter(networks, eqx.is_inexact_array))
    return float(sum(jnp.sum(w**2) for w in leaves))
