"""Solutions: states at a mesh's nodes, and multipliers, carried to another mesh."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import ArrayLike, Bool, Float, Int

from effgen.collocation.modeling.clocks import mesh_rates, mesh_times, true_times
from effgen.collocation.modeling.problem import Table

from .mesh import Mesh, node_times, within
from .radau_points import radau


OTHER_MESH = (
    "the state was not solved on this transcription: take one step of `train` with it "
    "first."
)


class Solution(eqx.Module):
    """All trajectories' states as polynomials, one for each interval.

    At the time of a dose the states are those of just before.

    Attributes:
        edges: The edges of each trajectory's intervals, `(edges,)`, in units of time.
        positions: The states at the nodes of all trajectories, `(nodes, state)`, in
            their own units.
        stages: The number of stages of each interval.
        scale: What residuals of each output were divided by, `(outputs,)`, where it was
            estimated; else `None`.
        shifts: What doses add where an interval starts, `(intervals, state)`; `None`
            without doses.
        switches: The time of each switch, with the sample before, where it stands on
            the mesh, and the sample after, `(switches, 4)`; `None` without switches.
            `edges` are on the mesh's clock.
        renewed: Which states begin an interval anew, `(intervals, state)`: algebraic
            ones after a jump; `None` of none.
    """

    edges: tuple[Float[Table, " edges"], ...]
    positions: Float[Table, "nodes state"]
    stages: int = eqx.field(static=True)
    scale: Float[Table, " outputs"] | None = None
    shifts: Float[Table, "intervals state"] | None = None
    switches: Float[Table, "switches 4"] | None = None
    renewed: Bool[Table, "intervals state"] | None = None

    def __call__(
        self, ts: ArrayLike, trajectory: int = 0
    ) -> Float[np.ndarray, "ts state"]:
        """Return the states at `ts`.

        Between nodes the error is of order `stages + 1` in the interval's length, at
        its end of order `2 stages - 1`.

        Arguments:
            ts: Times within the trajectory, a number or `(ts,)`.
            trajectory: Which trajectory, counted from 0.

        Returns:
            The states, `(ts, state)`, in their units.

        Raises:
            ValueError: For times outside of the trajectory, or a trajectory that is not
                there.
        """
        return self.on_mesh(self.mesh_times(ts, trajectory)[0], trajectory)

    def on_mesh(
        self, ts: Float[np.ndarray, " ts"], trajectory: int
    ) -> Float[np.ndarray, "ts state"]:
        """Return the states at times on the mesh's clock, which are inside of it."""
        _, basis, _ = self._at(trajectory, ts)
        at_start = basis[:, 0] == 1  # of the first interval: else it is the end of one
        found = self.with_first_dose(ts, trajectory)
        return np.where(at_start[:, None], self._starts(trajectory), found)

    def with_first_dose(
        self, ts: Float[np.ndarray, " ts"], trajectory: int
    ) -> Float[np.ndarray, "ts state"]:
        """Return the same, at the start after a dose there, as slopes are."""
        interval, basis, _ = self._at(trajectory, ts)
        return np.einsum("tk,tkn->tn", basis, self.at_points(interval))

    def derivative(
        self, ts: ArrayLike, trajectory: int = 0
    ) -> Float[np.ndarray, "ts state"]:
        """Return the polynomials' derivatives at `ts`.

        Arguments:
            ts: Times within the trajectory, a number or `(ts,)`.
            trajectory: Which trajectory, counted from 0.

        Returns:
            The derivatives, `(ts, state)`, in the states' units by time.

        Raises:
            ValueError: For times outside of the trajectory, or a trajectory that is not
                there.
        """
        there, rate = self.mesh_times(ts, trajectory)
        return self.derivative_on_mesh(there, trajectory) * rate[:, None]

    def derivative_on_mesh(
        self, ts: Float[np.ndarray, " ts"], trajectory: int
    ) -> Float[np.ndarray, "ts state"]:
        """Return the derivatives by the mesh's clock, at times on it."""
        interval, basis, lengths = self._at(trajectory, ts)
        table = full_differentiation(self.stages) / lengths[:, None, None]
        slopes = np.einsum("tk,tkl->tl", basis, table)
        return np.einsum("tl,tln->tn", slopes, self.at_points(interval))

    def nodes(self, trajectory: int = 0) -> Float[np.ndarray, " nodes"]:
        """Return the times of a trajectory's nodes.

        Arguments:
            trajectory: Which trajectory, counted from 0.

        Returns:
            The times, `(nodes,)`: the start, and the stages of each interval in turn.

        Raises:
            ValueError: For a trajectory that is not there.
        """
        there = node_times(self.edges_of(trajectory), self.stages)
        return true_times(self._switches(), there)

    def rows_at_nodes(
        self, trajectory: int
    ) -> tuple[Float[np.ndarray, " nodes"], Float[np.ndarray, "nodes state"]]:
        """Return the times of a trajectory's nodes, and the derivatives there.

        Arguments:
            trajectory: Which trajectory, counted from 0.

        Returns:
            The times, `(nodes,)`, where an interval ends of just before, as a law that
            switches there is still the old one; and the derivatives, `(nodes, state)`,
            in the states' units by time.
        """
        edges = self.edges_of(trajectory)
        there = node_times(edges, self.stages)
        ts = true_times(self._switches(), there)
        ends = slice(self.stages, None, self.stages)
        ts[ends] = np.nextafter(ts[ends], -np.inf)
        rate = mesh_rates(self._switches(), there, edges[0])
        return ts, self.derivative_on_mesh(there, trajectory) * rate[:, None]

    def mesh_times(
        self, ts: ArrayLike, trajectory: int
    ) -> tuple[Float[np.ndarray, " ts"], Float[np.ndarray, " ts"]]:
        """Return times on the mesh's clock, and its rate there.

        They differ around switches alone.

        Arguments:
            ts: Times within the trajectory, a number or `(ts,)`.
            trajectory: Which trajectory, counted from 0.

        Returns:
            The times on the mesh, and the rate by time, each `(ts,)`.

        Raises:
            ValueError: For times outside of the trajectory, or a trajectory that is not
                there.
        """
        times = np.atleast_1d(np.asarray(ts, np.float64))
        if times.ndim != 1:
            raise ValueError(f"`ts` has shape {times.shape}: pass a number, or (ts,).")
        edges = self.edges_of(trajectory)
        there, rate = mesh_times(self._switches(), times, edges[0])
        if not np.all((there >= edges[0]) & (there <= edges[-1])):
            first, last = true_times(self._switches(), edges[[0, -1]])
            raise ValueError(
                f"`ts` leaves the trajectory, from {first} to {last}: simulate the "
                "model to go beyond."
            )
        return there, rate

    def _switches(self) -> np.ndarray | None:
        return None if self.switches is None else np.asarray(self.switches)

    def at_points(
        self, intervals: Int[np.ndarray, " rows"]
    ) -> Float[np.ndarray, "rows points state"]:
        """Return the states at the points of intervals: the start and the stages.

        Arguments:
            intervals: Indices of intervals, `(rows,)`, counted over all trajectories.

        Returns:
            The states, `(rows, stages + 1, state)`, in their units; the start's after a
                dose or jump there. Of states that begin anew, the start is what the
                polynomial of the stages is there.
        """
        counts = np.array([len(e) - 1 for e in self.edges])
        owner = np.searchsorted(np.cumsum(counts), intervals, side="right")
        first = intervals * self.stages + owner  # each trajectory has a start besides
        points = first[:, None] + np.arange(self.stages + 1)
        found = np.asarray(self.positions)[points]
        if self.shifts is not None:
            found[:, 0] += np.asarray(self.shifts)[intervals]
        if self.renewed is not None:
            anew = np.einsum("k,rkn->rn", _from_stages(self.stages), found[:, 1:])
            chosen = np.asarray(self.renewed)[intervals]
            found[:, 0] = np.where(chosen, anew, found[:, 0])
        return found

    def _starts(self, i: int) -> Float[np.ndarray, " state"]:
        first = sum(1 + (len(e) - 1) * self.stages for e in self.edges[:i])
        return np.asarray(self.positions)[first]

    def edges_of(self, trajectory: int) -> Float[np.ndarray, " edges"]:
        """Return the edges of a trajectory's intervals, on the mesh's clock.

        Arguments:
            trajectory: Which trajectory, counted from 0.

        Returns:
            The edges, `(edges,)`.

        Raises:
            ValueError: For a trajectory that is not there.
        """
        num = len(self.edges)
        if not 0 <= trajectory < num:
            raise ValueError(
                f"`trajectory` is {trajectory}: there are {num}, counted from 0."
            )
        return np.asarray(self.edges[trajectory])

    def _at(self, i: int, ts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return each time's interval, the basis of its points, and its length."""
        edges = np.asarray(self.edges[i])
        at, share = within(edges, ts)
        first = sum(len(e) - 1 for e in self.edges[:i])
        return first + at, radau(self.stages).basis(share), np.diff(edges)[at]


def _from_stages(stages: int) -> Float[np.ndarray, " stages"]:
    """Return the stages' Lagrange polynomials at the interval's start."""
    nodes, own = radau(stages).nodes, np.eye(stages, dtype=bool)
    away = np.where(own, 1.0, nodes[:, None] - nodes)
    return np.prod(np.where(own, 1.0, -nodes / away), axis=1)


def full_differentiation(stages: int) -> Float[np.ndarray, "points points"]:
    """Return the derivatives of the points' Lagrange polynomials at all points."""
    scheme = radau(stages)
    points, weights = scheme.points, scheme.barycentric
    first = np.zeros(stages + 1)
    first[1:] = weights[1:] / weights[0] / (points[0] - points[1:])
    first[0] = -first[1:].sum()
    return np.concatenate([first[None], scheme.differentiation])


class Multipliers(NamedTuple):
    """Ipopt's multipliers of everything, in the shapes of what they belong to.

    `costate = defects / weights`, an adjoint of the ODE, is a function of the time.

    Attributes:
        defects: Of the equations at the stages, `(intervals, stages, state)`.
        starts: Of the algebraic equations at starts, `(trajectories, algebraic)`.
        path: Of the path constraints, `(nodes, path)`.
        boundary: Of the boundary constraints, `(trajectories, boundary)`.
        model: Of the model constraints, `(rows,)`.
        links: Of the link constraints, `(links, link)`.
        lower: Of the states' lower bounds, `(nodes, state)`.
        upper: Of the states' upper bounds, `(nodes, state)`.
        model_lower: Of the raveled model's lower bounds, `(model,)`.
        model_upper: Of the raveled model's upper bounds, `(model,)`.
    """

    defects: Float[Table, "intervals stages state"]
    starts: Float[Table, "trajectories algebraic"]
    path: Float[Table, "nodes path"]
    boundary: Float[Table, "trajectories boundary"]
    model: Float[Table, " rows"]
    links: Float[Table, "links link"]
    lower: Float[Table, "nodes state"]
    upper: Float[Table, "nodes state"]
    model_lower: Float[Table, " model"]
    model_upper: Float[Table, " model"]


def check_positions(solution: Solution, num_states: int) -> None:
    """Raise `ValueError` for states of another number, or of other nodes."""
    nodes = sum(1 + (len(e) - 1) * solution.stages for e in solution.edges)
    shape = np.shape(solution.positions)
    if shape != (nodes, num_states):
        raise ValueError(
            f"the guess has `positions` of shape {shape}, and the problem's states at "
            f"its nodes are {(nodes, num_states)}: make it by `transcription.guess()`."
        )


def same_mesh(solution: Solution, mesh: Mesh) -> bool:
    """Return whether a solution lives on a mesh."""
    alike = (solution.stages, len(solution.edges)) == (mesh.stages, len(mesh.edges))
    return alike and all(
        np.array_equal(np.asarray(a), b) for a, b in zip(solution.edges, mesh.edges)
    )


def solution_on(
    mesh: Mesh,
    positions: Float[Table, "nodes state"],
    scale: Float[Table, " outputs"] | None = None,
    switches: Float[Table, "switches 4"] | None = None,
) -> Solution:
    """Return the solution that states at a mesh's nodes are."""
    shifts = mesh.shifts if np.any(mesh.shifts) else None
    renewed = mesh.renewed if np.any(mesh.renewed) else None
    return Solution(
        mesh.edges, positions, mesh.stages, scale, shifts, switches, renewed
    )


def prolonged(
    solution: Solution, mesh: Mesh, guess: Callable[[], Solution]
) -> Solution:
    """Return the solution on another mesh; past its ends, if there is any, a guess."""
    times, edges = np.concatenate(mesh.times), solution.edges
    owner = np.repeat(np.arange(len(edges)), [len(ts) for ts in mesh.times])
    first, last = (np.array([e[k] for e in edges])[owner] for k in (0, -1))
    known = (times >= first) & (times <= last)
    positions = np.zeros((mesh.num_nodes, solution.positions.shape[1]))
    if not known.all():
        positions[:] = np.asarray(guess().positions)
    for i in range(len(edges)):
        mine = known & (owner == i)
        positions[mine] = solution.on_mesh(times[mine], i)
    return solution_on(mesh, positions, solution.scale)


def prolonged_multipliers(
    multipliers: Multipliers, old: Mesh, new: Mesh
) -> Multipliers:
    """Return multipliers on another mesh: densities in time, linear between nodes."""
    found = {name: np.asarray(value) for name, value in multipliers._asdict().items()}
    before, after = (radau(mesh.stages).weights[None, :, None] for mesh in (old, new))
    size = found["defects"].shape[-1]
    costate = (found["defects"] / before).reshape(-1, size)
    there = _interpolated(costate, old, new)
    found["defects"] = there.reshape(*new.inner.shape, size) * after
    for name in ("path", "lower", "upper"):
        value = found[name]
        density = value[old.inner.reshape(-1)] / _shares(old)
        found[name] = np.zeros((new.num_nodes, value.shape[1]))
        there = _interpolated(density, old, new) * _shares(new)
        found[name][new.inner.reshape(-1)] = there
        found[name][new.starts] = value[old.starts]
    return Multipliers(**found)


def _shares(mesh: Mesh) -> Float[np.ndarray, "collocated 1"]:
    shares = mesh.lengths[:, None] * radau(mesh.stages).weights
    return shares.reshape(-1, 1)


def _interpolated(
    values: Float[np.ndarray, "collocated columns"], old: Mesh, new: Mesh
) -> Float[np.ndarray, "collocated columns"]:
    """Interpolate between stages in time, trajectory by trajectory; zero past them."""
    nodes, wanted = old.inner.reshape(-1), new.inner.reshape(-1)
    found = np.zeros((len(wanted), values.shape[1]))
    for i in range(len(old.starts)):
        here = (nodes >= old.starts[i]) & (nodes <= old.ends[i])
        there = (wanted >= new.starts[i]) & (wanted <= new.ends[i])
        at, known = new.ts[wanted[there]], old.ts[nodes[here]]
        for c in range(values.shape[1]):
            found[there, c] = np.interp(at, known, values[here, c])
        found[there] *= (at <= old.ts[old.ends[i]])[:, None]
    return found
