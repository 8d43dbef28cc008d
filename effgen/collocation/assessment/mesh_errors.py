"""The error of the outputs by the mesh, relative to their noise.

The states' polynomials meet the equations at the nodes. Between them is a residual; its
integral, carried through the linearized equations of all intervals, is the error of the
states to first order.
"""

import itertools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from numpy.polynomial.legendre import leggauss

from effgen.collocation.modeling.inputs import inputs_at, knots
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
    local = np.abs(q).max(axis=(1, 2))
    if problem.num_algebraic:
        own = np.abs(between[:, problem.num_states - problem.num_algebraic :])
        np.maximum.at(local, np.asarray(nlp.samples.interval), own.max(axis=1))
    return MeshError(ratio, share, local)


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
    # A sample's integral begins at the point before it.
    before = np.searchsorted(points, share, side="right") - 1
    turns = _turns(problem, mesh)
    whole = _pieces(
        np.repeat([points], len(turns), axis=0), np.arange(len(turns)), turns
    )
    ends = np.stack([points[before], share], axis=1)
    pieces = [whole, _pieces(ends, interval[off], turns)]
    at, weights = leggauss(_GAUSS)
    at, weights = (at + 1) / 2, weights / 2
    rows = np.repeat(np.concatenate([p.interval for p in pieces]), _GAUSS)
    shares = [p.start[:, None] + (p.stop - p.start)[:, None] * at for p in pieces]
    found = _field(problem, mesh, nlp, solution, rows, np.concatenate(shares).ravel())
    means = np.einsum("g,pgn->pn", weights, found.reshape(-1, _GAUSS, found.shape[1]))
    parts = np.split(means, [len(whole.interval)])
    gaps = len(points) - 1
    integral = np.zeros((len(turns) * gaps, problem.num_states))
    jump = np.searchsorted(points, (whole.start + whole.stop) / 2) - 1
    size = whole.stop - whole.start
    np.add.at(integral, whole.interval * gaps + jump, parts[0] * size[:, None])
    q = np.cumsum(integral.reshape(len(turns), gaps, -1), axis=1)
    q *= mesh.lengths[:, None, None]
    own = np.zeros((len(off), problem.num_states))
    size = pieces[1].stop - pieces[1].start
    np.add.at(own, pieces[1].of, parts[1] * size[:, None])
    own *= mesh.lengths[interval[off]][:, None]
    padded = np.concatenate([np.zeros_like(q[:, :1]), q], axis=1)[interval[off]]
    own += padded[np.arange(len(off)), before]
    between = np.zeros((len(basis), problem.num_states))
    between[off] = own - np.einsum("sk,skn->sn", basis[off], padded)
    if problem.num_algebraic and len(off):
        states = np.einsum("sk,skn->sn", basis[off], solution.at_points(interval[off]))
        ts, inputs = _given(problem, mesh, interval[off], share)
        visited = (ts, states, inputs)
        between[off] = _with_algebraic(problem, nlp.template, visited, between[off])
    return q, between


class _Pieces(NamedTuple):
    """Parts of intervals, in shares of their length; `of` numbers what they are of."""

    of: np.ndarray
    interval: np.ndarray
    start: np.ndarray
    stop: np.ndarray


def _pieces(ends: np.ndarray, interval: np.ndarray, turns: list[np.ndarray]) -> _Pieces:
    """Return stretches between `ends`, `(any, points)`, cut where inputs turn."""
    turned = np.array([len(here) > 0 for here in turns])[interval]
    whole, some = np.flatnonzero(~turned), np.flatnonzero(turned)
    cuts = [
        np.unique(np.append(ends[i], _inside(ends[i], turns[interval[i]])))
        for i in some
    ]
    counts = np.array([len(cut) - 1 for cut in cuts], int)
    of = np.append(np.repeat(whole, ends.shape[1] - 1), np.repeat(some, counts))
    start = np.concatenate([ends[whole, :-1].ravel(), *(cut[:-1] for cut in cuts)])
    stop = np.concatenate([ends[whole, 1:].ravel(), *(cut[1:] for cut in cuts)])
    return _Pieces(of, np.asarray(interval, int)[of], start, stop)


def _inside(ends: np.ndarray, here: np.ndarray) -> np.ndarray:
    return here[(here > ends[0]) & (here < ends[-1])]


def _turns(problem: Problem, mesh: Mesh) -> list[np.ndarray]:
    """Return the shares of each interval, inside of it, at which samples turn inputs.

    Functions are smooth but for their jumps, which are edges.
    """
    found = []
    for trajectory, edges in zip(problem.data, mesh.edges, strict=True):
        sampled = isinstance(trajectory.inputs, np.ndarray)
        ts = knots(trajectory)[0] if sampled else np.zeros(0)
        after, before = (np.searchsorted(ts, edges, side) for side in ("right", "left"))
        for i, (start, stop) in enumerate(itertools.pairwise(edges)):
            found.append((ts[after[i] : before[i + 1]] - start) / (stop - start))
    return found


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
    basis, positions = radau(mesh.stages).basis(shares), solution.at_points(rows)
    states = np.einsum("rk,rkn->rn", basis, positions)
    table = np.einsum("rk,kl->rl", basis, full_differentiation(mesh.stages))
    slopes = np.einsum("rl,rln->rn", table, positions) / mesh.lengths[rows, None]
    ts, inputs = _given(problem, mesh, rows, shares)
    field = field_at(problem.mesh_field, nlp.template, ts, states, inputs)
    found = (field - slopes) / problem.nominal
    found[:, problem.num_states - problem.num_algebraic :] = 0
    return found


def _given(
    problem: Problem, mesh: Mesh, rows: np.ndarray, shares: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return times and inputs at shares of intervals."""
    starts = np.concatenate([e[:-1] for e in mesh.edges])
    ts = starts[rows] + mesh.lengths[rows] * shares
    counts = [len(e) - 1 for e in mesh.edges]
    owner = np.repeat(np.arange(len(counts)), counts)[rows]
    inputs = np.zeros((len(rows), mesh.inputs.shape[1]))
    for i, trajectory in enumerate(problem.data):
        inputs[owner == i] = inputs_at(trajectory, ts[owner == i])
    return ts, inputs


def _with_algebraic(
    problem: Problem, model: Model, visited: tuple[Any, ...], between: np.ndarray
) -> Float[np.ndarray, "samples state"]:
    """Return errors between nodes with those of algebraic states, `/ nominal`.

        e_z = -(dg / dz)^-1 (g + (dg / dx) e_x)

    The polynomials meet `g = 0` at the nodes alone.
    """
    num, sizes = problem.num_states - problem.num_algebraic, problem.nominal
    bare = problem.without_data()
    field, slopes = (np.asarray(x) for x in _linearized(bare, model, *visited))
    by_states, by_algebraic = slopes[:, num:, :num], slopes[:, num:, num:]
    moved = np.einsum("sgx,sx->sg", by_states, between[:, :num] * sizes[:num])
    right = field[:, num:] + moved
    try:
        found = -np.linalg.solve(by_algebraic, right[..., None])[..., 0]
    except np.linalg.LinAlgError:
        found = np.full_like(right, np.nan)
    return np.concatenate([between[:, :num], found / sizes[num:]], axis=1)


@eqx.filter_jit
def _linearized(problem: Any, model: Model, ts: Any, states: Any, inputs: Any) -> Any:
    """Return the law and its derivatives by the states, at rows."""
    given = (model.parameters, model.networks)

    def one(t: Any, x: Any, u: Any) -> Any:
        law = lambda x: jnp.asarray(problem.mesh_field(t, x, u, *given))
        return law(x), jax.jacfwd(law)(x)

    return jax.vmap(one)(*map(jnp.asarray, (ts, states, inputs)))


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
