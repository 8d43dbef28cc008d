"""The error of the outputs by the mesh, relative to their noise.

The states' polynomials meet the equations at the nodes. Between them is a residual; its
integral, carried through the linearized equations of all intervals, is the error of the
states to first order.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from numpy.polynomial.legendre import leggauss

from effgen.collocation.modeling.inputs import inputs_at
from effgen.collocation.modeling.misfits import influence
from effgen.collocation.modeling.model import Model
from effgen.collocation.modeling.problem import Problem
from effgen.collocation.program.elimination import (
    Eliminated,
    SampleJacobian,
    sample_residuals,
)
from effgen.collocation.program.nlp import NLP
from effgen.collocation.program.transcription import Transcription
from effgen.collocation.states.mesh import Mesh
from effgen.collocation.states.radau_points import radau
from effgen.collocation.states.solution import Solution, full_differentiation


_GAUSS = 4  # points between two nodes, as many as resolve a default interval's residual
_PART = 0.1  # of the noise: below it the mesh's error is no part of the answer's
_EXACT = 1e-4  # of an output's deviation: as near as data without noise are met
_AT_LEAST = 0.2  # of the largest interval's part: an interval that matters


class MeshError(NamedTuple):
    """The error that a mesh makes, for a model and starts as they are.

    Attributes:
        ratio: The root mean square of the error at samples, divided by the residuals'
            own, `(outputs,)`.
        share: The same, divided by the output's standard deviation in the data,
            `(outputs,)`.
        local: What each interval adds to the states, divided by `nominal`,
            `(intervals,)`.
    """

    ratio: Float[np.ndarray, " outputs"]
    share: Float[np.ndarray, " outputs"]
    local: Float[np.ndarray, " intervals"]

    @property
    def excess(self) -> float:
        """By how much the largest error is above a tenth of the noise; 1 is none."""
        allowed = np.minimum(self.ratio / _PART, self.share / _EXACT)
        return float(np.max(allowed, initial=0.0))

    def marked(self) -> np.ndarray:
        """Return the intervals to refine, those that make most of the error.

        Returns:
            Their indices, counted over all trajectories, the worst first.
        """
        order = np.argsort(-self.local)
        return order[self.local[order] >= _AT_LEAST * self.local.max(initial=0.0)]


def mesh_error(
    transcription: Transcription,
    nlp: NLP,
    through: Eliminated,
    jacobian: SampleJacobian,
    solution: Solution,
) -> MeshError | None:
    """Return the error of a solution's mesh; `None` where it is not finite.

    With `q(t)` the integral of `vector_field - dx/dt` from an interval's start, the
    error `e` follows from `e(t) = e(start) + integral of (d vector_field / dx) e + q`,
    solved on the mesh itself.

    Source:
        Zadunaisky (1976); Dutt, Greengard and Rokhlin (2000).
    """
    problem, mesh = transcription.problem, transcription.mesh
    z = nlp.joined(np.asarray(solution.positions))
    q, between = _accumulated(transcription, nlp, solution)
    if not (np.all(np.isfinite(q)) and np.all(np.isfinite(between))):
        return None
    inner = radau(mesh.stages).differentiation[:, 1:]
    right = np.zeros(through.by_free.shape[0])
    forced = np.einsum("jk,ikn->ijn", inner, q).ravel()
    right[: len(forced)] = forced[: len(right)]
    moved = np.zeros(len(z))
    moved[through.rest] = through.factors.solve(right)
    error = jacobian.along(nlp, moved[:, None])[..., 0]
    error = error + np.einsum("son,sn->so", jacobian.states, between)
    residuals = np.asarray(sample_residuals(nlp, jnp.asarray(z)))
    mask, count = np.asarray(nlp.samples.mask), float(nlp.counted)
    # Outliers would inflate the noise, so they enter by their costs' derivatives.
    pulls, _ = influence(nlp.problem.misfit, residuals * np.sqrt(count))
    mean = lambda v: np.sqrt(
        count * np.sum(np.where(mask, v, 0) ** 2, 0) / np.maximum(mask.sum(0), 1)
    )
    size = mean(error)
    ratio = size / np.maximum(mean(pulls / np.sqrt(count)), 1e-300)
    share = size * np.asarray(problem.scale) / problem.spread
    return MeshError(ratio, share, np.abs(q).max(axis=(1, 2)))


def _accumulated(
    transcription: Transcription, nlp: NLP, solution: Solution
) -> tuple[
    Float[np.ndarray, "intervals stages state"], Float[np.ndarray, "samples state"]
]:
    """Return `q / nominal` at the nodes, and at samples what `q` there has besides."""
    problem, mesh = transcription.problem, transcription.mesh
    points = radau(mesh.stages).points
    basis = np.asarray(nlp.samples.basis)
    interval = np.asarray(nlp.samples.interval)
    on_node = np.abs(basis).max(axis=1) == 1
    off = np.flatnonzero(~on_node & (np.abs(basis).sum(axis=1) > 0))
    share = _shares(transcription)[off]
    at, weights = leggauss(_GAUSS)
    at, weights = (at + 1) / 2, weights / 2
    gaps = np.diff(points)
    inside = (points[:-1, None] + gaps[:, None] * at).ravel()
    whole = np.arange(len(mesh.lengths))
    # A sample's integral begins at the point before it.
    before = np.searchsorted(points, share, side="right") - 1
    gap = share - points[before]
    there = points[before][:, None] + gap[:, None] * at
    rows = np.concatenate(
        [np.repeat(whole, len(inside)), np.repeat(interval[off], _GAUSS)]
    )
    shares = np.concatenate([np.tile(inside, len(whole)), there.ravel()])
    found = _field(problem, mesh, nlp, solution, rows, shares)
    num = len(whole) * len(inside)
    parts = found[:num].reshape(len(whole), len(gaps), _GAUSS, -1)
    integral = np.einsum("g,j,ijgn->ijn", weights, gaps, parts)
    q = np.cumsum(integral, axis=1) * mesh.lengths[:, None, None]
    rest = found[num:].reshape(len(off), _GAUSS, problem.num_states)
    own = np.einsum("g,sgn->sn", weights, rest)
    own *= (gap * mesh.lengths[interval[off]])[:, None]
    padded = np.concatenate([np.zeros_like(q[:, :1]), q], axis=1)[interval[off]]
    own += padded[np.arange(len(off)), before]
    between = np.zeros((len(basis), problem.num_states))
    between[off] = own - np.einsum("sk,skn->sn", basis[off], padded)
    return q, between


def _shares(transcription: Transcription) -> Float[np.ndarray, " samples"]:
    """Return at what share of its interval each sample is."""
    mesh, samples = transcription.mesh, transcription.samples
    starts = np.concatenate([e[:-1] for e in mesh.edges])[samples.interval]
    return np.clip((samples.ts - starts) / mesh.lengths[samples.interval], 0, 1)


def _field(
    problem: Problem,
    mesh: Mesh,
    nlp: NLP,
    solution: Solution,
    rows: np.ndarray,
    shares: np.ndarray,
) -> Float[np.ndarray, "rows state"]:
    """Return `(vector_field - dx/dt) / nominal` in intervals; zero if algebraic."""
    basis = radau(mesh.stages).basis(shares)
    positions = solution.at_points(rows)
    states = np.einsum("rk,rkn->rn", basis, positions)
    table = np.einsum("rk,kl->rl", basis, full_differentiation(mesh.stages))
    slopes = np.einsum("rl,rln->rn", table, positions) / mesh.lengths[rows, None]
    starts = np.concatenate([e[:-1] for e in mesh.edges])
    ts = starts[rows] + mesh.lengths[rows] * shares
    counts = [len(e) - 1 for e in mesh.edges]
    owner = np.repeat(np.arange(len(counts)), counts)[rows]
    inputs = np.zeros((len(rows), mesh.inputs.shape[1]))
    for i, trajectory in enumerate(problem.data):
        inputs[owner == i] = inputs_at(trajectory, ts[owner == i])
    field = field_at(problem.vector_field, nlp.template, ts, states, inputs)
    found = (field - slopes) / problem.nominal
    found[:, problem.num_states - problem.num_algebraic :] = 0
    return found


def field_at(
    field: Any, model: Model, ts: np.ndarray, states: np.ndarray, inputs: np.ndarray
) -> Float[np.ndarray, "rows state"]:
    """Return `vector_field` at rows of times, states and inputs, compiled."""
    return np.asarray(_field_at(field, model, *map(jnp.asarray, (ts, states, inputs))))


@eqx.filter_jit
def _field_at(field: Any, model: Model, ts: Any, states: Any, inputs: Any) -> Any:
    given = (model.parameters, model.networks)
    return jax.vmap(lambda t, x, u: jnp.asarray(field(t, x, u, *given)))(
        ts, states, inputs
    )
