"""A law with a network or without: solved both ways, and chosen by the evidence."""

import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray, PyTree

from effgen.collocation.assessment.cautions import warn_of_state
from effgen.collocation.assessment.laplace import (
    Evidence,
    check_squares,
    evidence,
    groups,
)
from effgen.collocation.modeling.model import Model, as_trained
from effgen.collocation.modeling.problem import Problem
from effgen.collocation.program.transcription import Transcription
from effgen.core.contract.counts import check_count
from effgen.core.contract.state import TrainState
from effgen.core.running.verbs import fit

from .bare_law import bare_problem, without_networks
from .generalization import Extrapolation, extrapolation, known_starts
from .refinement import accuracy, finer, fitted_until_fine
from .trainer import CollocationTrainer, check_double
from .weights_prior import (
    Start,
    Weighed,
    gains,
    likeliest,
    searched,
    settled,
    starts_of,
)


_LEAST_CORRELATION = 0.05


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


def choose(
    trainer: CollocationTrainer,
    model: PyTree | list[PyTree],
    transcription: Transcription,
    *,
    key: PRNGKeyArray,
    num_solves: int = 6,
    num_rounds: int = 6,
    held_out: Problem | None = None,
) -> Choice:
    """Fit the law without its networks and with them; keep what the evidence prefers.

    Without networks, all their weights are held at zero. So the networks should be a
    deviation from a law that the parameters have, such as `GaussianProcess` or
    `Deviation`. With networks, the fit begins at that solution. If it stays farther
    from the samples than smoothed data are, it begins at these too, and goes on from
    where the evidence is higher. The weights' prior follows MacKay's fixed point,
    `alpha <- gamma / |w|^2`. A step in `log(alpha)` that lowers the evidence is halved,
    and the best is kept. If residuals are correlated by `rho`, each counts for `(1 -
    rho) / (1 + rho)`. If `weight_decay` is a pytree, each leaf is a group with its own
    `alpha`.

    A network can absorb the mesh's error. So the mesh is refined until its error is
    below a tenth of the noise, first by the law without networks, then by that with
    them, and both are fitted on the finer mesh.

    Arguments:
        trainer: The trainer of both fits.
        model: A `Model`, a pair `(parameters, networks)`, or networks alone. A list of
            these has networks to choose from, such as a `GaussianProcess` of each of
            several lengthscales: those with the highest evidence on the first mesh
            stand for all.
        transcription: The problem on its first mesh.
        key: A JAX random key for `fit`.
        num_solves: The most solves in each search for the weights' prior.
        num_rounds: The most meshes. With 1 the mesh stays as it is.
        held_out: Trajectories that `transcription` does not have, the second problem of
            `collocation.held_out`. Both laws are simulated on them, and the results
            stand beside the evidence, which alone decides.

    Returns:
        The chosen law, with the evidence of both.

    Raises:
        RuntimeError: If JAX computes in float32.
        TrainingError: If the law without networks cannot be fitted.
        TypeError: For a `held_out` that is no `Problem`.
        ValueError: For a model without networks, models whose parameters differ, a
            `weight_decay` that does not fit their tree, a `misfit` other than
            `Squares`, an invalid `num_solves`, or trajectories held out that have other
            states, or whose start is not known.

    Warns:
        RunWarning: If the mesh of the chosen law is too coarse, or if the data do not
            determine some parameters.

    Source:
        MacKay (1992).
    """
    check_double()
    models = _checked_models(model)
    check_count("num_solves", num_solves)
    check_count("num_rounds", num_rounds)
    check_squares(transcription.problem)
    for each in models:
        groups(transcription.problem, each.networks)
    _check_held_out(held_out, transcription.problem, models[0])
    laws = _fitted(trainer, models, transcription, key, num_solves, num_rounds)
    state, level = laws.chosen()
    warn_of_state(level, state)
    level = dataclasses.replace(level, final=True)
    unseen = _unseen(held_out, models[0].networks, laws)
    found = None if laws.best is None else laws.best[2]
    return Choice(state, level, found, laws.shown, laws.network, *unseen)


class Laws(NamedTuple):
    """The law without networks and with them, fitted on one mesh.

    Attributes:
        plain: The state without networks.
        bare: Its transcription.
        shown: Its evidence, beside that of `best`.
        best: State, transcription and evidence with networks; `None` where no such fit
            succeeded.
    """

    plain: TrainState
    bare: Transcription
    shown: Evidence
    best: Weighed | None

    @property
    def network(self) -> bool:
        """Whether the evidence prefers the law with its networks."""
        return self.best is not None and gains(self.best[2], self.shown)

    def chosen(self) -> tuple[TrainState, Transcription]:
        """Return the state of the law that the evidence prefers, and what it solves."""
        if self.best is None or not self.network:
            return self.plain, self.bare
        return self.best[:2]


def _checked_models(model: PyTree | list[PyTree]) -> list[Model]:
    models = [as_trained(m) for m in (model if isinstance(model, list) else [model])]
    if not models:
        raise ValueError("`model` is an empty list: pass one model or more.")
    for each in models:
        if not jax.tree.leaves(eqx.filter(each.networks, eqx.is_inexact_array)):
            raise ValueError(
                "the model has no networks: pass `Model(parameters, networks)`, such "
                "as a `Deviation`, to choose with or without."
            )
        if not eqx.tree_equal(each.parameters, models[0].parameters):
            raise ValueError(
                "the parameters of the models differ: pass models that differ in "
                "their networks only."
            )
    return models


def _fitted(
    trainer: CollocationTrainer,
    models: list[Model],
    transcription: Transcription,
    key: PRNGKeyArray,
    num_solves: int,
    num_rounds: int,
) -> Laws:
    """Fit both laws on a mesh that is fine enough for both.

    It is refined by the law without networks, whose fits are cheap. But the noise of a
    law that does not fit is too large, so then by the law with them.
    """
    bare = without_networks(transcription, models[0])
    constant = Model(models[0].parameters, None)
    plain, bare, _ = fitted_until_fine(
        trainer,
        trainer.init(constant, bare.guess(constant)),
        bare,
        key=key,
        num_rounds=num_rounds,
    )
    problem = transcription.problem
    laws = _both(trainer, models, problem, bare, plain, None, key, num_solves)
    for _ in range(num_rounds - 1):
        following = _finer_by_network(laws)
        if following is None:
            break
        bare = dataclasses.replace(following, problem=bare.problem)
        plain, _ = fit(trainer, plain, iter([bare.before_finer()]), key=key)
        laws = _both(trainer, models, problem, bare, plain, laws.best, key, num_solves)
    return laws


def _finer_by_network(laws: Laws) -> Transcription | None:
    """Return a finer mesh for the law with networks; `None` where it needs none."""
    if laws.best is None:
        return None
    state, level, _ = laws.best
    return finer(level, state, accuracy(level, state))


def _both(
    trainer: CollocationTrainer,
    models: list[Model],
    problem: Problem,
    bare: Transcription,
    plain: TrainState,
    before: Weighed | None,
    key: PRNGKeyArray,
    num_solves: int,
) -> Laws:
    """Fit the law with networks beside the one without, both on one mesh.

    It begins from `before`, the same law on another mesh, or anew.
    """
    level = dataclasses.replace(bare, problem=problem, final=False)
    shown = evidence(bare, plain)
    if before is None:
        begun = [starts_of(trainer, m, level, plain, shown) for m in models]
    else:
        begun = [[Start.after(before)]]
    best = likeliest(
        [searched(trainer, each, level, shown, key, num_solves) for each in begun]
    )
    rho = 0.0 if best is None else best[2].correlation
    if best is not None and rho > _LEAST_CORRELATION:
        shown = evidence(bare, plain, correlation=rho)
        again = settled(trainer, Start.after(best), best[1], rho, key, num_solves)
        best = best if again is None else again
    return Laws(plain, bare, shown, best)


def _check_held_out(held_out: Problem | None, problem: Problem, model: Model) -> None:
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
    known_starts(held_out, model)


def _unseen(
    problem: Problem | None, networks: PyTree, laws: Laws
) -> tuple[Extrapolation | None, Extrapolation | None]:
    """Return how both laws fare on the trajectories held out, if there are any."""
    if problem is None:
        return None, None
    bare = bare_problem(problem, networks)
    plain = extrapolation(bare, laws.plain.model, laws.plain.memory)
    if laws.best is None:
        return None, plain
    state = laws.best[0]
    return extrapolation(problem, state.model, state.memory), plain
