"""A problem whose networks are held at zero."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from effgen.collocation.modeling.model import as_trained
from effgen.collocation.modeling.phases import Retimed
from effgen.collocation.modeling.problem import Problem
from effgen.collocation.program.transcription import Transcription


class Without(eqx.Module):
    """A function of a problem with its networks held where they are."""

    function: Any
    networks: PyTree

    def __call__(self, *given: Any) -> Any:
        """Return the function with the networks last, whatever is given for them."""
        return self.function(*given[:-1], self.networks)


def without_networks(transcription: Transcription, model: PyTree) -> Transcription:
    """Return the transcription of the law with all weights of the networks at zero."""
    bare = bare_problem(transcription.problem, as_trained(model).networks)
    return eqx.tree_at(lambda t: t.problem, transcription, bare)


def bare_problem(problem: Problem, networks: PyTree) -> Problem:
    """Return the problem with all weights of the networks at zero."""
    zero = jax.tree.map(
        lambda w: np.zeros(w.shape) if eqx.is_inexact_array(w) else w, networks
    )
    held = lambda function: _held(function, zero)
    constraints = tuple(
        c._replace(function=held(c.function)) for c in problem.constraints
    )
    priors = tuple(p._replace(function=held(p.function)) for p in problem.priors)
    names = ("vector_field", "mesh_field", "observe", "lagrange", "mayer", "penalty")
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
