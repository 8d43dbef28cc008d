"""What a function's derivative depends on: found on its jaxpr, whatever the values.

The derivative along `v` is linear in `v`, so few operations carry `v` on: sums,
products with numbers, and moves of elements. Each has a rule here. Any other operation
counts as one whose outputs all depend on all of its inputs: no entry is ever lost.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jaxtyping import Array, Bool, Float

from .elements import Known, Rows, carried, everywhere, grouped, size, taken, union


_CALLS = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"}


def derivative_pattern(
    function: Callable[..., Array], x: Float[Array, " inputs"], *rest: Array
) -> Bool[np.ndarray, "outputs inputs"]:
    """Return where the Jacobian of `function(x, *rest)` by `x` may not be zero.

    True for all values of `x` and `rest`: a branch that is not taken counts as well.

    Source:
        Walther (2012), of dependence by propagation; Hill and Dalle (2025).
    """

    def along(v: Array, x: Array, *rest: Array) -> Array:
        return jax.jvp(lambda x: function(x, *rest), (x,), (v,))[1]

    closed, out = jax.make_jaxpr(along, return_shape=True)(x, x, *rest)
    rows = [scipy.sparse.identity(x.size, "bool", "csr"), *[None] * (1 + len(rest))]
    ((found, _),) = _walk(closed, [(row, None) for row in rows])
    shape = (int(np.prod(out.shape)), x.size)
    return np.zeros(shape, bool) if found is None else found.toarray()


def _walk(closed: Any, given: Sequence[tuple[Rows, Known]]) -> list[Any]:
    """Return what each output depends on, and its value where that is known."""
    jaxpr, there = closed.jaxpr, {}
    there.update(zip(jaxpr.invars, given, strict=True))
    constants = [(None, lambda c=c: c) for c in closed.consts]
    there.update(zip(jaxpr.constvars, constants, strict=True))

    def read(atom: Any) -> tuple[Rows, Known]:
        if isinstance(atom, jex.Literal):
            return None, lambda: atom.val
        return there[atom]

    for eqn in jaxpr.eqns:
        found = _outputs(eqn, [read(atom) for atom in eqn.invars])
        for variable, (rows, known) in zip(eqn.outvars, found, strict=True):
            real = jnp.issubdtype(variable.aval.dtype, jnp.inexact)
            there[variable] = (rows if real else None, known)
    return [read(atom) for atom in jaxpr.outvars]


def _outputs(eqn: Any, given: list[tuple[Rows, Known]]) -> list[tuple[Rows, Known]]:
    if eqn.primitive.name in _CALLS:
        return _walk(_closed(eqn.params), given)
    rows = [row for row, _ in given]
    known = _computed(eqn, [value for _, value in given])
    if all(row is None for row in rows):
        return [(None, value) for value in known]
    rule = _LOOPS.get(eqn.primitive.name, carried)
    found = rule(eqn, given)
    if found is None:
        found = everywhere(eqn, rows)
    return list(zip(found, known, strict=True))


def _closed(params: dict[str, Any]) -> Any:
    inner = params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]
    if hasattr(inner, "consts"):
        return inner
    return jex.ClosedJaxpr(inner, ())  # pyright: ignore[reportPrivateImportUsage]


def _computed(eqn: Any, given: list[Known]) -> list[Known]:
    """Return values of what depends on no argument, such as literal indices."""
    if any(value is None for value in given):
        return [None] * len(eqn.outvars)
    kept: list[Any] = []

    def value(i: int) -> Any:
        if not kept:
            pairs = zip(given, eqn.invars, strict=True)
            operands = [jnp.asarray(v(), a.aval.dtype) for v, a in pairs if v]
            found = eqn.primitive.bind(*operands, **eqn.params)
            kept.extend(found if eqn.primitive.multiple_results else [found])
        return kept[i]

    return [lambda i=i: value(i) for i in range(len(eqn.outvars))]


def _branched(eqn: Any, given: list[tuple[Rows, Known]]) -> list[Rows]:
    found = [_walk(branch, given[1:]) for branch in eqn.params["branches"]]
    return [union(*(row for row, _ in out)) for out in zip(*found)]


def _until_settled(carry: list[Rows], step: Callable[..., list[Rows]]) -> list[Rows]:
    """Return the carry's rows with all that any number of turns adds."""
    count = lambda rows: sum(0 if row is None else row.nnz for row in rows)
    while True:
        found = [union(a, b) for a, b in zip(carry, step(carry), strict=True)]
        if count(found) == count(carry):
            return found
        carry = found


def _unknown(rows: Sequence[Rows]) -> list[tuple[Rows, Known]]:
    return [(row, None) for row in rows]


def _looped(eqn: Any, given: list[tuple[Rows, Known]]) -> list[Rows]:
    first, num = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    rows = [row for row, _ in given[first:]]
    body = eqn.params["body_jaxpr"]
    turn = lambda carry: [r for r, _ in _walk(body, _unknown([*rows[:num], *carry]))]
    return _until_settled(rows[num:], turn)


def _scanned(eqn: Any, given: list[tuple[Rows, Known]]) -> list[Rows]:
    body, length = eqn.params["jaxpr"], max(eqn.params["length"], 1)
    # What is cut along its first axis is told by its shape: names differ by version.
    cut = lambda outer, inner: sum(
        a.aval.shape != b.shape for a, b in zip(outer, inner, strict=True)
    )
    carried = len(eqn.outvars) - cut(eqn.outvars, body.out_avals)
    first = len(eqn.invars) - cut(eqn.invars, body.in_avals)
    turns = lambda atom: np.tile(np.arange(size(atom) // length), length)
    rows = [row for row, _ in given]
    constants, carry = rows[: first - carried], rows[first - carried : first]
    each = [
        grouped(row, turns(atom), size(atom) // length)
        for row, atom in zip(rows[first:], eqn.invars[first:], strict=True)
    ]
    turn = lambda carry: [
        row for row, _ in _walk(body, _unknown([*constants, *carry, *each]))
    ]
    carry = _until_settled(carry, lambda carry: turn(carry)[:carried])
    later = zip(turn(carry)[carried:], eqn.outvars[carried:], strict=True)
    return [*carry, *(taken(row, turns(atom)) for row, atom in later)]


_LOOPS = {
    "cond": _branched,
    "while": _looped,
    "scan": _scanned,
}
