"""The trainer: one step is one nonlinear program solved by Ipopt, warm."""

import time
import warnings
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from effgen.collocation.assessment.cautions import warn_of_solution, warn_of_unused
from effgen.collocation.assessment.noise import reweighed
from effgen.collocation.modeling.clocks import switches_of
from effgen.collocation.modeling.model import as_trained, check_numbers
from effgen.collocation.modeling.problem import Problem
from effgen.collocation.program.curvature import AbstractCurvature, ExactHessian
from effgen.collocation.program.evaluator import Evaluator
from effgen.collocation.program.points import Limits, Point, Solved, Trace
from effgen.collocation.program.products import check_products
from effgen.collocation.program.transcription import (
    Transcription,
    limits_of,
    packed,
    shapes_of,
    unpacked,
    weighed,
)
from effgen.collocation.program.violations import (
    check_finite,
    check_others,
    check_shapes,
    check_size,
    not_finite,
    worst_violation,
)
from effgen.collocation.solvers import attempts, ipopt
from effgen.collocation.states.mesh import make_mesh
from effgen.collocation.states.solution import (
    Solution,
    check_positions,
    prolonged,
    prolonged_multipliers,
    same_mesh,
    solution_on,
)
from effgen.core.contract.state import Metrics, TrainState
from effgen.core.contract.trainer import AbstractHostTrainer
from effgen.core.devices.interrupts import requested
from effgen.core.outcome.results import RESULTS, RunWarning
from effgen.core.running.reports import report


_MOST_WEIGHINGS = 6
_INVALID = -13  # Ipopt's status of a number that is not finite


class CollocationTrainer(AbstractHostTrainer):
    """States and model solved for together, without an ODE solver in the loop.

    One step: the nonlinear program of one `Transcription`, solved by Ipopt from the
    model, the states and the multipliers of the last step, carried to its mesh. The
    memory is the `Solution`, the optimizer's state its `Multipliers`.

    Arguments:
        tol: Ipopt's tolerance on the scaled optimality conditions.
        max_iter: The most iterations of one attempt; one step may take several.
        max_seconds: The most seconds of the whole step, by the clock on the wall. It
            then ends with the iterate at hand and a warning.
        curvature: `ExactHessian()`, `GaussNewton()`, or `LimitedMemory()` where
            parameters are many.
        solver: `Ipopt(...)`, with its linear solver and its other settings.

    Raises:
        TypeError: For a `solver` or a `curvature` of another type.
        ValueError: For a tolerance or limit out of range.

    Source:
        Langenkamp, Hannebohm and Bachmann (2025).
    """

    watched: ClassVar[tuple[str, ...]] = ("loss", "iterations", "dual_infeasibility")

    tol: float = 1e-8
    max_iter: int = 1_000
    max_seconds: float | None = eqx.field(default=None, kw_only=True)
    curvature: AbstractCurvature = eqx.field(default=ExactHessian(), kw_only=True)
    solver: ipopt.Ipopt = eqx.field(default=ipopt.Ipopt(), kw_only=True)

    def __check_init__(self) -> None:
        """Raise `ValueError` for settings out of range."""
        if not (np.isfinite(self.tol) and self.tol > 0):
            raise ValueError(f"`tol` is {self.tol}: pass a positive number.")
        if not isinstance(self.max_iter, int | np.integer) or self.max_iter < 0:
            raise ValueError(f"`max_iter` is {self.max_iter}: pass an integer.")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(
                f"`max_seconds` is {self.max_seconds}: pass a positive number, or None."
            )
        if not isinstance(self.solver, ipopt.Ipopt):
            raise TypeError(
                f"`solver` is {self.solver!r}: pass `collocation.Ipopt(...)`."
            )
        if not isinstance(self.curvature, AbstractCurvature):
            raise TypeError(
                f"`curvature` is {self.curvature!r}: pass `ExactHessian()`, "
                "`GaussNewton()` or `LimitedMemory()`."
            )

    def init(self, model: PyTree, memory: Solution | None = None) -> TrainState:
        """Return the first state.

        Arguments:
            model: A `Model`, a pair `(parameters, networks)`, or networks alone; in
                float64 from here on.
            memory: A guess of the states, such as `transcription.guess()`.

        Returns:
            The state at step 0.

        Raises:
            RuntimeError: If JAX computes in float32.
            TypeError: Without a guess, or for complex parameters.
            ValueError: For numbers of the model that are not finite.
        """
        check_double()
        if not isinstance(memory, Solution):
            raise TypeError(
                f"`memory` is a {type(memory).__name__}: pass a guess of the states, "
                "such as `transcription.guess()`."
            )
        trained = as_trained(model)
        check_numbers(trained)
        return TrainState.start(trained, None, memory)

    def step(
        self, state: TrainState, batch: Transcription, *, key: PRNGKeyArray
    ) -> tuple[TrainState, Metrics]:
        """Solve one program.

        Arguments:
            state: The state before.
            batch: The transcription to solve.
            key: Not used.

        Returns:
            The state one step later, and the metrics: `loss`, the objective; `status`,
                Ipopt's code, and `iterations`; `primal_infeasibility` and
                `dual_infeasibility` at the end; `seconds` of the solve, `evaluating`,
                of these in our functions, and `copied_bytes` between device and host;
                `variables`, `constraints`, `jacobian_entries`, `hessian_entries`;
                `trace`, `(max_iter + 1, 7)`, of each iteration, NaN past the end: the
                objective, the primal and dual infeasibility, the barrier, the norm and
                size of the step, and the regularization; `result`.

        Raises:
            RuntimeError: If a stored derivative is not the function's.
            TypeError: For a function of the problem that JAX cannot trace, that returns
                complex numbers, or that asks for parameters the model has not.
            ValueError: For a function of another shape, or not finite at the guess; for
                bounds that do not fit; for derivatives that do not fit into memory.

        Warns:
            RunWarning: Where Ipopt ends without an optimum; on the last transcription
                also where the mesh is too coarse, or the data leave parameters open.
        """
        mesh, solution = batch.mesh, state.memory
        multipliers = state.opt_state
        if not same_mesh(solution, mesh):
            if multipliers is not None:
                old = make_mesh(batch.problem, solution.edges, solution.stages)
                multipliers = prolonged_multipliers(multipliers, old, mesh)
            solution = prolonged(solution, mesh, batch.guess)
        batch = weighed(batch, solution)
        check_shapes(batch, state.model)
        nlp = batch.program(state.model)
        limits, shapes = limits_of(batch, nlp), shapes_of(nlp)
        z = np.clip(nlp.joined(solution.positions), limits.lower, limits.upper)
        check_size(nlp, self.curvature)
        check_finite(nlp, batch, z)
        check_others(nlp, batch, z)
        start = Point(z, *(() if multipliers is None else packed(multipliers)))
        evaluator = Evaluator(nlp, self.curvature)
        if batch.final:
            warn_of_unused(evaluator)
        seconds = np.inf if self.max_seconds is None else self.max_seconds
        deadline = time.perf_counter() + seconds
        solved = self._solved(batch, evaluator, limits, start, deadline)
        scale = solution.scale
        for _ in range(_MOST_WEIGHINGS):
            new_scale = self._reweighed(batch.problem, evaluator.nlp, limits, solved)
            if new_scale is None or time.perf_counter() > deadline:
                break
            batch = eqx.tree_at(lambda b: b.problem.scale, batch, new_scale)
            other = Evaluator(batch.program(state.model), self.curvature)
            again = self._solved(batch, other, limits, solved.point, deadline)
            if again.status not in (0, 1):
                break
            scale, evaluator, solved = new_scale, other, attempts.after(solved, again)
        x, flat = nlp.split(jnp.asarray(solved.point.z))
        positions = np.asarray(x) * batch.problem.nominal
        found = nlp.model(flat)
        moved = switches_of(batch.problem.brackets, found.parameters)
        end = solution_on(mesh, positions, scale, moved)
        multipliers = unpacked(shapes, solved.point)
        arrays = jax.tree.map(jnp.asarray, (end, multipliers))
        new = state.advance(found, arrays[1], arrays[0])
        self._warn(solved, batch, nlp, limits)
        if batch.final and attempts.sound(solved) and time.perf_counter() < deadline:
            warn_of_solution(batch, evaluator, new.memory, new.model)
        return new, self._metrics(solved, evaluator)

    def _reweighed(
        self, problem: Problem, nlp: Any, limits: Limits, solved: Solved
    ) -> np.ndarray | None:
        exact = self.curvature.blocks is not None
        if not (problem.weighs and exact and solved.status in (0, 1)):
            return None
        return reweighed(nlp, limits, solved.point, problem.spread)

    def batches(self, state: TrainState, data: Any) -> Any:
        """Return the levels that are left to a state that has taken steps.

        A state is in the midst of a list if the list's entry of its last step is on its
        mesh. Then those after it are left; else all are.

        Arguments:
            state: The state that the run begins from.
            data: A list of transcriptions, or any other iterable, which is left as it
                is.

        Returns:
            The data of the run.

        Raises:
            ValueError: For an empty list.
        """
        step = int(state.step)
        if not isinstance(data, list):
            return data
        if not data:
            raise ValueError("the list of transcriptions is empty: pass one or more.")
        if not all(isinstance(level, Transcription) for level in data):
            return data
        coarse = [other.before_finer() for other in data[:-1]]
        data = [*coarse, data[-1]]
        here = lambda level: same_mesh(state.memory, level.mesh)
        if step == 0 or (step < len(data) and here(data[step - 1])):
            return data
        # At its end the run itself says that no level is left.
        return data if step == len(data) and here(data[-1]) else iter(data)

    def check(self, state: TrainState, batch: PyTree, source: Any) -> None:
        """Raise on data that are no transcriptions.

        Arguments:
            state: The state that the run begins from.
            batch: The first of the data.
            source: Not used.

        Raises:
            RuntimeError: If JAX computes in float32.
            TypeError: For data that are no transcriptions.
            ValueError: For another number of trajectories or states than the state's,
                or settings that this machine's Ipopt does not know.
            ImportError: Without cyipopt.
        """
        check_double()
        if not isinstance(batch, Transcription):
            raise TypeError(
                f"the data yield a {type(batch).__name__}: pass a list of "
                "`collocation.transcribe(problem, ...)`."
            )
        if len(batch.mesh.edges) != len(state.memory.edges):
            raise ValueError(
                f"the state has {len(state.memory.edges)} trajectories and the "
                f"transcription {len(batch.mesh.edges)}: make the guess from its data."
            )
        check_positions(state.memory, batch.problem.num_states)
        self.solver.check()

    def _solved(
        self,
        batch: Transcription,
        evaluator: Evaluator,
        limits: Limits,
        start: Point,
        deadline: float,
    ) -> Solved:
        """Solve, with the stored derivatives checked at both ends."""
        check_products(evaluator, batch, start)
        solved = attempts.solve(
            evaluator.nlp,
            evaluator.functions(),
            limits,
            start,
            self.solver.chosen(tol=self.tol, max_iter=self.max_iter),
            deadline=deadline,
            stop=_reported,
        )
        check_products(evaluator, batch, solved.point)
        return solved

    def _warn(self, solved: Any, batch: Transcription, nlp: Any, limits: Any) -> None:
        if solved.status in (0, 1) or (solved.status == 5 and requested()):
            return
        z = solved.point.z
        worst = worst_violation(batch, nlp, limits, z)
        if solved.status == _INVALID:
            functions = Evaluator(nlp, self.curvature).functions()
            worst = not_finite(nlp, batch, functions, z) or worst
        kept = ipopt.result_of(solved.status) == RESULTS.successful
        end = "the iterate is kept, and training from it goes on"
        end = end if kept else "the step is refused, and `error.attempt` is its end"
        warnings.warn(
            f"Ipopt ended with status {solved.status} after "
            f"{max(len(solved.trace.objective) - 1, 0)} iterations "
            f"({solved.message.rstrip('.')}); {end}. {worst}",
            RunWarning,
            stacklevel=2,
        )

    def _metrics(self, solved: Any, evaluator: Evaluator) -> Metrics:
        trace = np.full((self.max_iter + 1, len(solved.trace)), np.nan)
        rows = np.stack([np.asarray(column) for column in solved.trace], axis=1)
        rows = rows[: len(trace)]
        trace[: len(rows)] = rows
        counts = evaluator.sizes()
        return {
            "loss": jnp.asarray(solved.objective),
            "status": jnp.asarray(solved.status),
            "iterations": jnp.asarray(max(len(rows) - 1, 0)),
            "primal_infeasibility": jnp.asarray(rows[-1, 1] if len(rows) else np.nan),
            "dual_infeasibility": jnp.asarray(rows[-1, 2] if len(rows) else np.nan),
            "seconds": jnp.asarray(solved.seconds),
            "evaluating": jnp.asarray(solved.evaluating),
            **{name: jnp.asarray(value) for name, value in counts.items()},
            "trace": jnp.asarray(trace),
            "result": ipopt.result_of(solved.status),
        }


def _reported(trace: Trace) -> bool:
    """Report how the solve is getting on; return whether it was asked to end."""
    report(
        f"iteration {len(trace.objective) - 1}, objective {trace.objective[-1]:.4g}, "
        f"infeasibility {trace.primal_infeasibility[-1]:.1e} primal, "
        f"{trace.dual_infeasibility[-1]:.1e} dual"
    )
    return requested()


def check_double() -> None:
    """Raise `RuntimeError` if JAX computes in float32."""
    if not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise RuntimeError(
            "collocation computes in float64 and JAX is set to float32: call "
            '`jax.config.update("jax_enable_x64", True)` first, or set '
            "JAX_ENABLE_X64=1."
        )
