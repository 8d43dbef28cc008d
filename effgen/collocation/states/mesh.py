"""Meshes: intervals of every trajectory, their nodes, and where samples lie in them."""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Bool, Float, Int

from effgen.collocation.modeling.doses import shifts_at
from effgen.collocation.modeling.inputs import inputs_at, jumps, sampled_inputs
from effgen.collocation.modeling.phases import followers
from effgen.collocation.modeling.problem import Problem, Table, Trajectory
from effgen.core.contract.counts import check_count

from .radau_points import radau


_NEAR = 1e-5


class Mesh(eqx.Module):
    """The intervals of all trajectories, one after the other.

    The nodes of a trajectory are its start and the stages of its intervals in turn.

    Attributes:
        edges: The edges of each trajectory's intervals, `(edges,)`, in units of time.
        stages: The number of stages of each interval.
        left: The node where each interval starts, `(intervals,)`.
        inner: The nodes of its stages, `(intervals, stages)`.
        lengths: The intervals' lengths, `(intervals,)`.
        starts: The first node of each trajectory, `(trajectories,)`.
        ends: The last node of each trajectory, `(trajectories,)`.
        links: The last node of a trajectory and the first of the one that follows it,
            `(links, 2)`.
        ts: The nodes' times, `(nodes,)`; where an interval ends, of just before.
        inputs: The inputs there, `(nodes, inputs)`.
        shifts: What doses add to the state where each interval starts,
            `(intervals, state)`.
        renewed: Which states begin an interval anew: algebraic ones after a jump,
            `(intervals, state)`. The node there is of before.
    """

    edges: tuple[Float[np.ndarray, " edges"], ...]
    stages: int
    left: Int[np.ndarray, " intervals"]
    inner: Int[np.ndarray, "intervals stages"]
    lengths: Float[np.ndarray, " intervals"]
    starts: Int[np.ndarray, " trajectories"]
    ends: Int[np.ndarray, " trajectories"]
    links: Int[np.ndarray, "links 2"]
    ts: Float[np.ndarray, " nodes"]
    inputs: Float[np.ndarray, "nodes inputs"]
    shifts: Float[np.ndarray, "intervals state"]
    renewed: Bool[np.ndarray, "intervals state"]

    @property
    def num_nodes(self) -> int:
        """The number of nodes of all trajectories."""
        return len(self.ts)

    @property
    def times(self) -> list[Float[np.ndarray, " nodes"]]:
        """The nodes' times of each trajectory."""
        return np.split(self.ts, self.starts[1:])

    @property
    def first_intervals(self) -> Int[np.ndarray, " trajectories"]:
        """The interval with which each trajectory starts."""
        return np.flatnonzero(np.isin(self.left, self.starts))


class Samples(NamedTuple):
    """The data, and in which interval and how the states there follow from its points.

    `x(ts) = basis @ x[points of the interval]`.
    """

    ts: Float[Table, " samples"]
    ys: Float[Table, "samples outputs"]
    mask: Table
    inputs: Float[Table, "samples inputs"]
    interval: Int[Table, " samples"]
    basis: Float[Table, "samples points"]


def uniform_edges(problem: Problem, intervals: int) -> list[np.ndarray]:
    """Return edges of intervals that are equal over all trajectories, up to rounding.

    Arguments:
        problem: The problem whose trajectories are cut.
        intervals: How many intervals the longest trajectory has.

    Returns:
        One array of edges, `(edges,)`, for each trajectory, in units of time.

    Raises:
        ValueError: Unless `intervals` is a positive integer.
    """
    check_count("intervals", intervals)
    spans = [_span(t) for t in problem.data]
    longest = max(b - a for a, b in spans)
    counts = [max(1, round(intervals * (b - a) / longest)) for a, b in spans]
    return [np.linspace(a, b, n + 1) for (a, b), n in zip(spans, counts, strict=True)]


def aligned_edges(problem: Problem, every: int = 1) -> list[np.ndarray]:
    """Return edges at each `every`-th sample, so that samples fall on nodes.

    Arguments:
        problem: The problem whose samples are taken.
        every: From how many samples to the next edge; a positive integer.

    Returns:
        One array of edges, `(edges,)`, for each trajectory, in units of time. The ends
            of the span are among them.

    Raises:
        ValueError: Unless `every` is a positive integer.
    """
    check_count("every", every)
    edges = []
    for trajectory in problem.data:
        inside = np.unique(np.concatenate([trajectory.ts[::every], _span(trajectory)]))
        edges.append(inside)
    return edges


def edges_at_jumps(problem: Problem, edges: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return edges with those at which inputs or the law jump.

    An edge that is a rounding away from a jump is moved there. Algebraic states jump
    with it, so that their polynomials in the next interval have no start: the samples
    in it are edges, where states are those of nodes.
    """
    found = [
        _with_jumps(np.asarray(e, np.float64), jumps(trajectory))
        for e, trajectory in zip(edges, problem.data, strict=True)
    ]
    if not problem.num_algebraic:
        return found
    return [_with_samples(e, t) for e, t in zip(found, problem.data, strict=True)]


def _with_samples(edges: np.ndarray, trajectory: Trajectory) -> np.ndarray:
    """Return edges, with the samples in intervals that begin at a jump added."""
    ts = trajectory.ts
    at, share = within(edges, ts)
    # A sample that differs from an edge by rounding is already at a node.
    inside = (share > _NEAR) & (share < 1 - _NEAR)
    chosen = _after_jumps(edges, trajectory)[at] & inside
    return np.union1d(edges, ts[chosen])


def _after_jumps(edges: np.ndarray, trajectory: Trajectory) -> np.ndarray:
    """Return which intervals begin at a jump or a dose."""
    times = np.union1d(jumps(trajectory), [time for time, _ in trajectory.doses])
    return np.isin(edges[:-1], times)


def _with_jumps(edges: np.ndarray, times: np.ndarray) -> np.ndarray:
    if not len(times) or not len(edges):
        return edges
    near = _NEAR * (edges[-1] - edges[0]) / len(edges)
    away = np.abs(edges[:, None] - times).min(axis=1) > near
    kept = edges[away | np.isin(np.arange(len(edges)), (0, len(edges) - 1))]
    return np.unique(np.concatenate([kept, times]))


def check_edges(problem: Problem, edges: Sequence[np.ndarray]) -> None:
    """Raise `ValueError` for edges that do not span their trajectories in order."""
    if len(edges) != len(problem.data) or any(np.ndim(e) != 1 for e in edges):
        raise ValueError(
            f"`edges` must be a list of one array for each of {len(problem.data)} "
            "trajectories."
        )
    for i, (trajectory, e) in enumerate(zip(problem.data, edges, strict=True)):
        rise = len(e) > 1 and np.all(np.diff(e) > 0)
        if not rise or (e[0], e[-1]) != _span(trajectory):
            raise ValueError(
                f"`edges` of trajectory {i} must rise from {_span(trajectory)[0]} to "
                f"{_span(trajectory)[1]}, its span."
            )


def make_mesh(problem: Problem, edges: Sequence[np.ndarray], stages: int) -> Mesh:
    """Return the mesh of these edges, with the inputs of the problem's trajectories."""
    first = 0
    columns: list[tuple[np.ndarray, ...]] = []
    differential = problem.num_states - problem.num_algebraic
    algebraic = np.arange(problem.num_states) >= differential
    for trajectory, e in zip(problem.data, edges, strict=True):
        e = np.asarray(e, np.float64)
        lengths = np.diff(e)
        num = len(lengths)
        ts = node_times(e, stages)
        known = inputs_at(trajectory, ts)
        known[0] = inputs_at(trajectory, ts[:1], "right")[0]
        # A law that switches at an edge is of the old branch at the interval's end.
        ts[stages::stages] = np.nextafter(e[1:], -np.inf)
        inner = first + 1 + np.arange(num * stages).reshape(num, stages)
        left = np.concatenate([[first], inner[:-1, -1]])
        ends = np.array([first, inner[-1, -1]])
        shifts = shifts_at(trajectory, e[:-1], problem.num_states)
        renewed = _after_jumps(e, trajectory)[:, None] & algebraic
        columns.append((left, inner, lengths, ends, ts, known, shifts, renewed))
        first += 1 + num * stages
    left, inner, lengths, ends, ts, inputs, shifts, renewed = (
        np.concatenate(parts) for parts in zip(*columns, strict=True)
    )
    later = followers(problem.data)
    starts, ends = ends[::2], ends[1::2]
    return Mesh(
        tuple(np.asarray(e, np.float64) for e in edges),
        stages,
        left,
        inner,
        lengths,
        starts,
        ends,
        np.stack([ends[later - 1], starts[later]], axis=1),
        ts,
        inputs,
        shifts,
        renewed,
    )


def node_times(edges: np.ndarray, stages: int) -> Float[np.ndarray, " nodes"]:
    """Return the start and the stages of each interval in turn."""
    ts = edges[:-1, None] + np.diff(edges)[:, None] * radau(stages).nodes
    ts[:, -1] = edges[1:]
    return np.concatenate([edges[:1], ts.ravel()])


def within(edges: np.ndarray, ts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return in which interval times lie, and at what share of it."""
    at = np.clip(np.searchsorted(edges, ts, side="left") - 1, 0, len(edges) - 2)
    return at, (ts - edges[at]) / (edges[at + 1] - edges[at])


def locate(mesh: Mesh, i: int, ts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the interval of each time of trajectory `i`, and its basis there."""
    edges = mesh.edges[i]
    first = sum(len(e) - 1 for e in mesh.edges[:i])
    at, share = within(edges, ts)
    # Samples meant to be at nodes are not: rounding would couple whole intervals.
    points = radau(mesh.stages).points
    nearest = points[np.argmin(np.abs(share[:, None] - points), axis=1)]
    share = np.where(np.abs(share - nearest) < 1e-12, nearest, share)
    return first + at, radau(mesh.stages).basis(share)


def make_samples(problem: Problem, mesh: Mesh) -> Samples:
    """Return the samples that have a value, and where they lie."""
    columns = []
    for i, trajectory in enumerate(problem.data):
        mask = ~np.isnan(trajectory.ys)
        seen = mask.any(axis=1)
        ts, ys, mask = trajectory.ts[seen], trajectory.ys[seen], mask[seen]
        interval, basis = locate(mesh, i, ts)
        inputs = sampled_inputs(trajectory)[seen]
        columns.append((ts, np.where(mask, ys, 0), mask, inputs, interval, basis))
    return Samples(*(np.concatenate(parts) for parts in zip(*columns, strict=True)))


def _span(trajectory: Trajectory) -> tuple[float, float]:
    assert trajectory.span is not None
    return trajectory.span
