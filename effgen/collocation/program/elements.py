"""How linear operations carry dependence on, element by element."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse


Rows = Any
"""A sparse matrix, elements by inputs, or `None`: no element depends on any input."""

Known = Callable[[], Any] | None
"""What a value is, computed where it is asked for; `None` where arguments decide."""

_ELEMENTWISE = {
    *("add", "add_any", "sub", "neg", "mul", "div", "select_n", "copy", "copy_p"),
    *("convert_element_type", "reduce_precision", "real", "imag", "complex", "conj"),
}
_MOVES = {"rev", "concatenate", "stack", "unstack", "split", "tile", "pad"}
_BY_INDEX = {"gather": 1, "dynamic_slice": 1, "dynamic_update_slice": 2}
_SCATTERS = {"scatter", "scatter-add"}


def carried(eqn: Any, given: list[tuple[Rows, Known]]) -> list[Rows] | None:
    """Return what the outputs depend on by the operation's rule; `None` without one."""
    name, rows = eqn.primitive.name, [row for row, _ in given]
    if name in _ELEMENTWISE:
        return _elementwise(eqn, rows)
    if name in ("reshape", "squeeze", "expand_dims"):
        return rows[:1]
    if name in _PLACED:
        return [taken(rows[0], _PLACED[name](_ids(eqn)[0], eqn.params))]
    if name in _MOVES:
        return _moved(eqn, rows, [jnp.asarray(i, float) for i in _ids(eqn)])
    if name in _BY_INDEX:
        return _by_index(eqn, given, rows, _BY_INDEX[name])
    if name in _SCATTERS:
        return _scattered(eqn, given, rows)
    rule = _RULES.get(name)
    return None if rule is None else rule(eqn, given)


def size(atom: Any) -> int:
    """Return how many elements a variable has."""
    return int(np.prod(atom.aval.shape))


def _ids(eqn: Any) -> list[np.ndarray]:
    """Return a number for each element of all operands, one after the other."""
    sizes = [size(atom) for atom in eqn.invars]
    first = np.cumsum([0, *sizes])
    rows = zip(first, sizes, eqn.invars)
    return [(a + np.arange(n)).reshape(atom.aval.shape) for a, n, atom in rows]


def taken(rows: Rows, ids: np.ndarray) -> Rows:
    """Return the rows of some elements, in their order."""
    return None if rows is None else rows[ids.ravel()]


def union(*rows: Rows) -> Rows:
    """Return what elements depend on by any of some ways."""
    there = [row for row in rows if row is not None]
    return sum(there[1:], start=there[0]) if there else None


def grouped(rows: Rows, group: np.ndarray, num: int) -> Rows:
    """Return the union of elements of each of `num` groups."""
    if rows is None:
        return None
    one = np.ones(group.size, bool)
    shape = (num, group.size)
    elements = np.arange(group.size)
    return scipy.sparse.csr_matrix((one, (group.ravel(), elements)), shape) @ rows


def _all(rows: Rows) -> Rows:
    """Return the union of all elements, as one."""
    return grouped(rows, np.zeros(rows.shape[0], int), 1)


def everywhere(eqn: Any, rows: list[Rows]) -> list[Rows]:
    """Return rows by which every output depends on all that any operand does."""
    one = union(*(_all(row) for row in rows if row is not None))
    return [taken(one, np.zeros(size(v), int)) for v in eqn.outvars]


def _elementwise(eqn: Any, rows: list[Rows]) -> list[Rows] | None:
    num, found = size(eqn.outvars[0]), []
    for row in rows:
        if row is not None and row.shape[0] != num:
            if row.shape[0] != 1:
                return None
            row = taken(row, np.zeros(num, int))
        found.append(row)
    return [union(*found)]


def _broadcast(ids: np.ndarray, params: dict[str, Any]) -> np.ndarray:
    shape = np.ones(len(params["shape"]), int)
    shape[list(params["broadcast_dimensions"])] = ids.shape
    return np.broadcast_to(ids.reshape(shape), params["shape"])


def _sliced(ids: np.ndarray, params: dict[str, Any]) -> np.ndarray:
    strides = params["strides"] or (1,) * ids.ndim
    ends = zip(params["start_indices"], params["limit_indices"], strides)
    return ids[tuple(slice(*end) for end in ends)]


_PLACED = {
    "broadcast_in_dim": _broadcast,
    "slice": _sliced,
    "transpose": lambda ids, params: ids.transpose(params["permutation"]),
}


def _stacked(eqn: Any, rows: list[Rows]) -> Rows:
    """Return the rows of all operands, one after the other, and an empty one last."""
    width = next(row.shape[1] for row in rows if row is not None)
    empty = lambda n: scipy.sparse.csr_matrix((n, width), dtype=bool)
    sizes = [size(atom) for atom in eqn.invars]
    parts = [empty(n) if r is None else r for r, n in zip(rows, sizes)]
    return scipy.sparse.vstack([*parts, empty(1)], format="csr")


def _moved(eqn: Any, rows: list[Rows], operands: list[Any]) -> list[Rows]:
    """Carry out the operation on the elements' numbers: where does each end?"""
    found = eqn.primitive.bind(*operands, **eqn.params)
    whole = _stacked(eqn, rows)
    outputs = found if eqn.primitive.multiple_results else [found]
    return [taken(whole, _numbers(ids, whole)) for ids in outputs]


def _numbers(ids: Any, whole: Rows) -> np.ndarray:
    """Return numbers of elements; what is filled in depends on nothing."""
    last = whole.shape[0] - 1
    return np.nan_to_num(np.asarray(ids), nan=last).clip(0, last).astype(int)


def _by_index(
    eqn: Any, given: list[tuple[Rows, Known]], rows: list[Rows], num: int
) -> list[Rows] | None:
    """Move elements to where the indices say, if these depend on no argument."""
    indices = [value for _, value in given[num:] if value is not None]
    if len(indices) < len(given) - num:
        return None
    ids = [jnp.asarray(i, float) for i in _ids(eqn)[:num]]
    return _moved(eqn, rows, [*ids, *(jnp.asarray(value()) for value in indices)])


def _scattered(
    eqn: Any, given: list[tuple[Rows, Known]], rows: list[Rows]
) -> list[Rows] | None:
    """Put updates where the indices say, if they are known and no two meet."""
    known = given[1][1]
    if known is None:
        return None
    operand, _, updates = (jnp.asarray(i, float) for i in _ids(eqn))
    names = ("indices_are_sorted", "unique_indices", "mode")
    how = {name: eqn.params[name] for name in names}
    where = eqn.params["dimension_numbers"]
    indices = jnp.asarray(known())
    whole = _stacked(eqn, rows)
    found = jax.lax.scatter(operand, indices, updates, where, **how)
    ids = _numbers(found, whole)
    if not np.isin(np.asarray(updates), ids).all():
        return None
    kept = rows[0] if eqn.primitive.name == "scatter-add" else None
    return [union(taken(whole, ids), kept)]


def _summed(eqn: Any, given: list[tuple[Rows, Known]]) -> list[Rows]:
    shape, num = eqn.invars[0].aval.shape, size(eqn.outvars[0])
    axes = eqn.params["axes"]
    kept = [1 if i in axes else n for i, n in enumerate(shape)]
    group = np.broadcast_to(np.arange(num).reshape(kept), shape)
    return [grouped(given[0][0], group, num)]


def _product(eqn: Any, given: list[tuple[Rows, Known]]) -> list[Rows]:
    """Each output depends on a row of the left and a column of the right."""
    contracted, batched = eqn.params["dimension_numbers"]
    sides = zip(eqn.invars, given, contracted, batched)
    rows, free = zip(*(_lines(v, row, *axes) for v, (row, _), *axes in sides))
    batch = np.arange(size(eqn.outvars[0]) // max(free[0] * free[1], 1))[:, None, None]
    left = batch * free[0] + np.arange(free[0])[None, :, None]
    right = batch * free[1] + np.arange(free[1])[None, None]
    lines = np.broadcast_arrays(left, right)
    return [union(*(taken(row, line) for row, line in zip(rows, lines)))]


def _lines(
    atom: Any, rows: Rows, contracted: Sequence[int], batched: Sequence[int]
) -> tuple[Rows, int]:
    """Return the union over what a product sums, and how many lines a batch has."""
    shape, joint = atom.aval.shape, (*batched, *contracted)
    kept = [*batched, *(i for i in range(len(shape)) if i not in joint)]
    sizes = [shape[i] for i in kept]
    num = int(np.prod(sizes))
    own = num // max(int(np.prod([shape[i] for i in batched])), 1)
    lines = np.arange(num).reshape(sizes + [1] * len(contracted))
    order = [*kept, *contracted]
    lines = np.broadcast_to(lines, [shape[i] for i in order])
    return grouped(rows, lines.transpose(np.argsort(order)), num), own


_RULES = {"reduce_sum": _summed, "dot_general": _product}
