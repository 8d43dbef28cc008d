"""The program's functions as Ipopt calls them: compiled, on a device, copied back."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .compiled import values
from .curvature import AbstractCurvature
from .derivatives import first_derivatives, hessian
from .nlp import NLP, constraint_shapes
from .pattern import dependence, hessian_pattern, jacobian_pattern
from .points import Functions


class Evaluator:
    """Functions of one program, and how many bytes they copied."""

    def __init__(self, nlp: NLP, curvature: AbstractCurvature) -> None:
        """Find the patterns; nothing is compiled yet."""
        self.nlp, self.curvature = nlp, curvature
        self.depends = depends = dependence(nlp)
        self.jacobian_pattern = jacobian_pattern(nlp, depends)
        # Of many parameters the pattern alone is too large: only where it is used.
        self.hessian_pattern, self.pairs = None, ()
        if curvature.blocks is not None:
            self.hessian_pattern, pairs = hessian_pattern(nlp, depends)
            self.pairs = tuple(map(tuple, pairs.tolist()))
            self._keep_hessian = jnp.asarray(self.hessian_pattern.keep)
        self.copied_bytes = 0
        self._last: dict[str, tuple[np.ndarray, Any]] = {}
        self._keep = jnp.asarray(self.jacobian_pattern.keep)

    def functions(self) -> Functions:
        """Return what Ipopt calls."""
        exact = self.hessian_pattern is not None
        return Functions(
            lambda z: float(self._values(z)[0]),
            lambda z: self._first(z)[0],
            lambda z: self._values(z)[1],
            lambda z: self._first(z)[1],
            self._hessian if exact else None,
            self.jacobian_pattern,
            self.hessian_pattern,
        )

    def sizes(self) -> dict[str, int]:
        """Return sizes, and the bytes copied so far."""
        rows, hessian = self.jacobian_pattern.rows, self.hessian_pattern
        states = len(self.nlp.ts) * self.nlp.problem.num_states
        return {
            "variables": states + self.nlp.flat().shape[0],
            "constraints": sum(math.prod(s) for s in constraint_shapes(self.nlp)),
            "jacobian_entries": len(rows),
            "hessian_entries": 0 if hessian is None else len(hessian.rows),
            "copied_bytes": self.copied_bytes,
        }

    def _hessian(
        self, z: np.ndarray, multipliers: np.ndarray, factor: float
    ) -> np.ndarray:
        given = (jnp.asarray(multipliers), jnp.asarray(float(factor)))
        chosen = (self.pairs, self._keep_hessian, self.curvature.blocks)
        return self._run(hessian, z, *given, *chosen)

    def _values(self, z: np.ndarray) -> tuple[np.ndarray, ...]:
        return self._once("values", values, z)

    def _first(self, z: np.ndarray) -> tuple[np.ndarray, ...]:
        return self._once("first", first_derivatives, z, self._keep)

    def _once(self, name: str, function: Any, z: np.ndarray, *more: Any) -> Any:
        """Evaluate where Ipopt has not asked just before: it asks for one at a time."""
        point, found = self._last.get(name, (None, None))
        if point is None or not np.array_equal(point, z):
            found = self._run(function, z, *more)
            self._last[name] = (z.copy(), found)
        return found

    def _run(self, function: Any, z: np.ndarray, *more: Any) -> Any:
        found = jax.tree.map(np.asarray, function(self.nlp, jnp.asarray(z), *more))
        self.copied_bytes += z.nbytes + sum(x.nbytes for x in jax.tree.leaves(found))
        return found
