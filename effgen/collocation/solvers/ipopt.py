"""Ipopt, through cyipopt: settings, linear solvers, and one solve with its trace."""

import functools
import time
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import equinox as eqx
import numpy as np

from effgen.collocation.program.points import Functions, Limits, Point, Solved, Trace
from effgen.core.outcome.results import RESULTS


RESULT_OF = {
    2: RESULTS.infeasible,
    4: RESULTS.diverging,
    -2: RESULTS.restoration_failed,
    -3: RESULTS.step_failed,
    -10: RESULTS.too_many_equations,
    -13: RESULTS.evaluation_failed,
}
"""Ipopt's failures by status; limits and early ends are none."""

_OUT_OF_TIME = "The limit of time is reached."

_OWN = {
    "tol": "`tol` of the trainer",
    "max_iter": "`max_iter` of the trainer",
    "max_wall_time": "`max_seconds` of the trainer",
    "max_cpu_time": "`max_seconds` of the trainer",
    "hessian_approximation": "`curvature` of the trainer",
    "linear_solver": "`Ipopt(linear_solver=)`",
    "mu_strategy": "`Ipopt(mu_strategy=)`",
}
_STRATEGIES = ("monotone", "adaptive")


class Ipopt(eqx.Module):
    """Ipopt's own settings; tolerance and limits are the trainer's.

    Arguments:
        linear_solver: One of Ipopt's, by its name; by default the first of
            `linear_solvers()`.
        mu_strategy: How the barrier falls, `"monotone"` or `"adaptive"`.
        options: Any other of Ipopt's options, by name.

    Raises:
        ValueError: For another `mu_strategy`, for `options` that are no mapping, or for
            an option that the trainer or this class sets.

    Source:
        Wächter and Biegler (2006); Ipopt's list of options.
    """

    linear_solver: str | None = None
    mu_strategy: str = "monotone"
    options: Mapping[str, Any] = eqx.field(default_factory=dict)

    def __check_init__(self) -> None:
        """Raise `ValueError` for settings out of range."""
        if self.mu_strategy not in _STRATEGIES:
            raise ValueError(
                f"`mu_strategy` is {self.mu_strategy!r}: pass one of {_STRATEGIES}."
            )
        if not isinstance(self.options, Mapping):
            raise ValueError(f"`options` is {self.options!r}: pass a dict of options.")
        for name in self.options:
            if name in _OWN:
                raise ValueError(f"`options` has {name!r}: set {_OWN[name]} instead.")

    def check(self) -> None:
        """Check the settings against this machine's Ipopt.

        Raises:
            ValueError: For a linear solver that cannot be loaded, or an option that
                Ipopt does not know.
            ImportError: Without cyipopt.
        """
        solver = self.linear_solver
        if solver is not None and not can_load(solver):
            raise ValueError(
                f"`linear_solver` is {solver!r}, which Ipopt cannot load here: choose "
                f"one of {linear_solvers()}, or install its library."
            )
        problem = _parabola()
        try:
            _set_options(problem, self.options)
        finally:
            problem.close()

    def chosen(self, *, tol: float, max_iter: int) -> dict[str, Any]:
        """Return all that Ipopt is told.

        Arguments:
            tol: The tolerance on the scaled optimality conditions.
            max_iter: The most iterations.

        Returns:
            Ipopt's options, by name.
        """
        own = {
            "tol": float(tol),
            "max_iter": int(max_iter),
            "linear_solver": self.linear_solver or linear_solvers()[0],
            "mu_strategy": self.mu_strategy,
        }
        return own | dict(self.options)


_HSL = ("ma57", "ma27", "ma97", "ma86")
_ENDS_KEPT = (0, 1, 3, 5, 6, -1, -4, -5)


def result_of(status: int) -> Any:
    """Return the `RESULTS` item of Ipopt's status."""
    if status in _ENDS_KEPT:
        return RESULTS.successful
    return RESULT_OF.get(status, RESULTS.solver_failed)


def load() -> ModuleType:
    """Return cyipopt.

    Raises:
        ImportError: Without it; the message has the commands that install it.
    """
    try:
        import cyipopt
    except ImportError as error:  # absent, or without the libraries it was built with
        raise ImportError(
            f"`effgen.collocation` solves by Ipopt, through cyipopt ({error}): run "
            "`pip install cyipopt-wheels==1.7.0.dev0` (wheels with Ipopt 3.14 and "
            "MUMPS inside), or `conda install -c conda-forge cyipopt`, or, where Ipopt "
            "and its headers are installed, `pip install 'cyipopt>=1.6'`."
        ) from error
    return cyipopt


def linear_solvers() -> tuple[str, ...]:
    """Return the common linear solvers that this machine's Ipopt loads, best first.

    Returns:
        Names for `Ipopt(linear_solver=...)`: some of `ma57`, `ma27`, `ma97`, `ma86` and
            `mumps`.

    Raises:
        ImportError: Without cyipopt.
    """
    return tuple(name for name in (*_HSL, "mumps") if can_load(name))


@functools.cache
def can_load(name: str) -> bool:
    """Return whether Ipopt can load a linear solver."""
    # Without HSL, asking for some of its solvers ends the process: ask for one that
    # fails well, and for the rest only if it is there.
    if name in _HSL and name != "ma27" and not can_load("ma27"):
        return False
    return _loads(name)


def time_limit(seconds: float) -> dict[str, float]:
    """Return the option that ends a solve: by the clock on the wall where there is one.

    Ipopt before 3.14 knows the processor's time alone.
    """
    if not np.isfinite(seconds):
        return {}
    name = "max_wall_time" if _knows("max_wall_time", 1.0) else "max_cpu_time"
    return {name: max(float(seconds), 1e-9)}


@functools.cache
def _knows(option: str, value: Any) -> bool:
    problem = _parabola()
    try:
        problem.add_option(option, value)
    except TypeError:
        return False
    finally:
        problem.close()
    return True


def _loads(name: str) -> bool:
    """Solve `min (z - 1)^2` with it."""
    problem = _parabola()
    try:
        for option, value in _QUIET.items():
            problem.add_option(option, value)
        problem.add_option("hessian_approximation", "limited-memory")
        problem.add_option("linear_solver", name)
        _, info = problem.solve(np.zeros(1))
    except (TypeError, RuntimeError):
        return False
    finally:
        problem.close()
    return info["status"] == 0


def _parabola() -> Any:
    class Parabola:
        def objective(self, z: np.ndarray) -> float:
            return float((z[0] - 1) ** 2)

        def gradient(self, z: np.ndarray) -> np.ndarray:
            return 2 * (z - 1)

        def constraints(self, z: np.ndarray) -> np.ndarray:
            return np.zeros(0)

        def jacobian(self, z: np.ndarray) -> np.ndarray:
            return np.zeros(0)

    one = np.ones(1)
    return load().Problem(1, 0, Parabola(), -9 * one, 9 * one, one[:0], one[:0])


_QUIET = {
    "print_level": 0,
    "sb": "yes",
    "bound_relax_factor": 0.0,  # bounds are to hold, not nearly
}
_MUMPS = {
    # Approximate minimum degree: Ipopt's choice, nested dissection, takes up to 1.5
    # times as long for a border of parameters (`benchmarks/linear_solves.py`). To leave
    # out MUMPS's scaling as well is slower where it is wide, and loses the inertia of
    # stiff problems.
    "mumps_pivot_order": 0,
}
_WARM = {
    "warm_start_init_point": "yes",
    "warm_start_bound_push": 1e-9,
    "warm_start_bound_frac": 1e-9,
    "warm_start_slack_bound_push": 1e-9,
    "warm_start_slack_bound_frac": 1e-9,
    "warm_start_mult_bound_push": 1e-9,
    "mu_init": 1e-4,
}


def solve(
    functions: Functions,
    limits: Limits,
    start: Point,
    options: Mapping[str, Any],
    *,
    scales: tuple[float, np.ndarray, np.ndarray] | None = None,
    stop: Callable[[Trace], bool] = lambda trace: False,
) -> Solved:
    """Solve from a point, warm where it has multipliers.

    `scales`, of the objective, variables and constraints, replace Ipopt's own. `stop`
    is called at every iteration with the trace so far, and may end the solve at the
    current iterate.

    Raises:
        ValueError: For an option that Ipopt does not know, by name.
    """
    cyipopt = load()
    kind = _Caller if functions.hessian is None else _CallerWithHessian
    caller = kind(functions, stop)
    problem = cyipopt.Problem(
        len(limits.lower),
        len(limits.constraints_lower),
        caller,
        limits.lower,
        limits.upper,
        limits.constraints_lower,
        limits.constraints_upper,
    )
    warm = start.constraints is not None
    chosen = _QUIET | (_WARM if warm else {})
    if options.get("linear_solver") == "mumps":
        chosen = chosen | _MUMPS
    if functions.hessian is None:
        chosen = chosen | {"hessian_approximation": "limited-memory"}
    if scales is not None:
        chosen = chosen | {"nlp_scaling_method": "user-scaling"}
        problem.set_problem_scaling(*scales)
    began = time.perf_counter()
    try:
        _set_options(problem, chosen | dict(options))
        known = (start.constraints, start.lower, start.upper) if warm else ()
        z, info = problem.solve(start.z, *(np.asarray(k) for k in known))
    finally:
        problem.close()
    end = Point(z, info["mult_g"], info["mult_x_L"], info["mult_x_U"])
    return Solved(
        end,
        int(info["status"]),
        _OUT_OF_TIME if info["status"] in (-4, -5) else info["status_msg"].decode(),
        float(info["obj_val"]),
        caller.trace,
        time.perf_counter() - began,
        caller.seconds,
    )


def _set_options(problem: Any, options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        try:
            _set_option(problem, name, value)
        except TypeError as error:
            raise ValueError(
                f"Ipopt has no option {name!r} that takes {value!r}: see its list of "
                "options."
            ) from error


def _set_option(problem: Any, name: str, value: Any) -> None:
    """Set an option; a whole number may be of a real one."""
    if isinstance(value, bool | np.bool_):
        value = "yes" if value else "no"
    value = value.item() if isinstance(value, np.generic) else value
    try:
        problem.add_option(name, value)
    except TypeError:
        if not isinstance(value, int):
            raise
        problem.add_option(name, float(value))


class _Caller:
    """What cyipopt calls. NaN and infinities become Ipopt's own evaluation errors."""

    def __init__(self, functions: Functions, stop: Callable[[Trace], bool]) -> None:
        self.functions, self.stop = functions, stop
        self.trace = Trace([], [], [], [], [], [], [])
        self.seconds = 0.0

    def _timed(self, name: str, *args: Any) -> Any:
        began = time.perf_counter()
        value = getattr(self.functions, name)(*args)
        self.seconds += time.perf_counter() - began
        if not np.all(np.isfinite(value)):
            raise load().CyIpoptEvaluationError
        return value

    def objective(self, z: np.ndarray) -> float:
        return self._timed("objective", z)

    def gradient(self, z: np.ndarray) -> np.ndarray:
        return self._timed("gradient", z)

    def constraints(self, z: np.ndarray) -> np.ndarray:
        return self._timed("constraints", z)

    def jacobian(self, z: np.ndarray) -> np.ndarray:
        return self._timed("jacobian", z)

    def jacobianstructure(self) -> tuple[np.ndarray, np.ndarray]:
        pattern = self.functions.jacobian_pattern
        return pattern.rows, pattern.columns

    def intermediate(
        self,
        mode: int,
        iteration: int,
        objective: float,
        primal: float,
        dual: float,
        barrier: float,
        step_norm: float,
        regularization: float,
        dual_size: float,
        primal_size: float,
        trials: int,
    ) -> bool:
        row = (objective, primal, dual, barrier, step_norm, primal_size, regularization)
        for column, value in zip(self.trace, row, strict=True):
            column.append(value)
        return not self.stop(self.trace)


class _CallerWithHessian(_Caller):
    """The same, with second derivatives."""

    def hessian(
        self, z: np.ndarray, multipliers: np.ndarray, factor: float
    ) -> np.ndarray:
        return self._timed("hessian", z, multipliers, factor)

    def hessianstructure(self) -> tuple[np.ndarray, np.ndarray]:
        pattern = self.functions.hessian_pattern
        assert pattern is not None
        return pattern.rows, pattern.columns
