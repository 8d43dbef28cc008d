"""Where the derivatives' nonzeros are: found once for a mesh, in numpy."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from .dependence import derivative_pattern
from .derivatives import HessianBlocks, JacobianBlocks
from .nlp import (
    NLP,
    boundary_terms,
    constraint_shapes,
    link_terms,
    model_terms,
    node_terms,
    unravel,
)


_Block = tuple[Any, Any, Any]  # rows, columns, and where entries are


class Pattern(NamedTuple):
    """Rows and columns of the entries, and where they are among the flat blocks."""

    rows: Int[np.ndarray, " entries"]
    columns: Int[np.ndarray, " entries"]
    keep: Int[np.ndarray, " entries"]


class Dependence(NamedTuple):
    """Which terms of a node, and outputs of a sample, depend on states and model."""

    states: Bool[np.ndarray, "terms state"]
    model: Bool[np.ndarray, "terms model"]
    output_states: Bool[np.ndarray, "outputs state"]
    output_model: Bool[np.ndarray, "outputs model"]


def dependence(nlp: NLP) -> Dependence:
    """Return what depends on what, for any values: see `dependence.py`."""
    problem, template = nlp.problem, nlp.template
    size = problem.num_states

    def terms(z: Array, t: Array, u: Array) -> Array:
        return node_terms(problem, unravel(template, z[size:]), t, z[:size], u)

    def outputs(z: Array, t: Array, u: Array) -> Array:
        model = unravel(template, z[size:])
        given = (model.parameters, model.networks)
        return problem.outputs(t, z[:size] * problem.nominal, u, *given) / 1.0

    z = jnp.concatenate([jnp.ones(size), nlp.flat()])
    given = (z, nlp.ts[0], nlp.inputs[0])
    found = [derivative_pattern(function, *given) for function in (terms, outputs)]
    return Dependence(
        *(part for whole in found for part in (whole[:, :size], whole[:, size:]))
    )


def unused(nlp: NLP, depends: Dependence) -> Int[np.ndarray, " unused"]:
    """Return which numbers of the model no equation, output, cost or penalty moves.

    What is only compared, or rounded to an index, has no derivative anywhere.
    """
    flat, ends = nlp.flat(), jnp.ones((2, nlp.problem.num_states))
    used = depends.model.any(0) | depends.output_model.any(0)

    def of_model(flat: Array) -> Array:
        bare = eqx.tree_at(lambda n: n.problem.weight_decay, nlp, 0.0)
        return model_terms(bare, flat)

    problem, num = nlp.problem, nlp.num
    if problem.penalty is not None or problem.priors or num.model:
        used |= derivative_pattern(of_model, flat).any(0)
    if problem.mayer is not None or num.boundary:
        used |= derivative_pattern(lambda p: boundary_terms(nlp, ends, p), flat).any(0)
    if num.link:
        used |= derivative_pattern(lambda p: link_terms(nlp, ends, p), flat).any(0)
    return np.flatnonzero(~used)


def jacobian_pattern(nlp: NLP, depends: Dependence) -> Pattern:
    """Return the entries of the constraints' Jacobian."""
    index = _Index(nlp)
    size, algebraic = index.size, nlp.problem.num_algebraic
    points = index.points.shape[1]
    by_states, by_model = depends.states, depends.model
    start = slice(size - algebraic, size)
    nodes = np.arange(len(nlp.ts))
    defects, starts, path, boundary, model_rows, links = _row_numbers(nlp)
    own = np.arange(points)[None] == np.arange(1, points)[:, None]
    differential = np.arange(size) < size - algebraic
    inner, first = index.points[:, 1:], np.asarray(nlp.starts)
    both = np.stack([first, np.asarray(nlp.ends)], axis=1)
    everywhere = np.ones((), bool)
    blocks = dict[str, _Block](
        differentiation=(
            defects[:, :, None],
            index.states(index.points)[:, None],
            ~own[None, :, :, None] & differential,
        ),
        field_states=(
            defects[..., None],
            index.states(inner)[:, :, None],
            by_states[:size] | np.eye(size, dtype=bool),
        ),
        field_model=(defects[..., None], index.model, by_model[:size]),
        start_states=(
            starts[..., None],
            index.states(first)[:, None],
            by_states[start],
        ),
        start_model=(starts[..., None], index.model, by_model[start]),
        path_states=(
            path[..., None],
            index.states(nodes)[:, None],
            by_states[size:-1],
        ),
        path_model=(path[..., None], index.model, by_model[size:-1]),
        boundary_states=(
            boundary[..., None, None],
            index.states(both)[:, None],
            everywhere,
        ),
        boundary_model=(boundary[..., None], index.model, everywhere),
        model=(model_rows[:, None], index.model, everywhere),
        link_states=(
            links[..., None, None],
            index.states(np.asarray(nlp.links))[:, None],
            everywhere,
        ),
        link_model=(links[..., None], index.model, everywhere),
    )
    return _pattern(blocks, JacobianBlocks._fields)


def hessian_pattern(
    nlp: NLP, depends: Dependence
) -> tuple[Pattern, Int[np.ndarray, "pairs 2"]]:
    """Return the lower triangle of the Lagrangian's Hessian, and coupled points.

    Samples between nodes couple the points of their interval; samples on nodes none.
    """
    index = _Index(nlp)
    states = np.concatenate([depends.states, depends.output_states])
    model = np.concatenate([depends.model, depends.output_model])
    joint = lambda a, b: np.any(a[:, :, None] & b[:, None], axis=0)
    within = joint(states, states) | np.eye(index.size, dtype=bool)
    across, inside = joint(states, model), joint(model, model)
    inside |= np.eye(len(inside), dtype=bool)
    num = nlp.num
    ends = nlp.problem.mayer is not None or num.boundary > 0
    if ends or num.link:
        within[:], across[:], inside[:] = True, True, True
    if nlp.problem.penalty is not None or nlp.problem.priors or num.model > 0:
        inside[:] = True
    used = np.asarray(nlp.samples.basis) != 0
    coupled = used.T.astype(int) @ used.astype(int) > 0
    pairs = np.argwhere(np.tril(coupled, -1))
    lower = np.tril(np.ones((index.size, index.size), bool))
    nodes = index.states(np.arange(len(nlp.ts)))
    later, earlier = (index.states(index.points[:, pairs[:, i]]) for i in (0, 1))
    last = index.states(np.asarray(nlp.ends))
    first = index.states(np.asarray(nlp.starts))
    before, next_ = index.states(np.asarray(nlp.links)).swapaxes(0, 1)
    size = len(index.model)
    blocks = dict[str, _Block](
        nodes=(nodes[:, :, None], nodes[:, None], within & lower),
        pairs=(
            later[..., :, None],
            earlier[..., None, :],
            joint(depends.output_states, depends.output_states),
        ),
        ends=(last[:, :, None], first[:, None], np.array(ends)),
        links=(next_[:, :, None], before[:, None], np.ones((), bool)),
        border=(index.model, nodes[..., None], across),
        model=(
            index.model[:, None],
            index.model[None],
            inside & np.tril(np.ones((size, size), bool)),
        ),
    )
    return _pattern(blocks, HessianBlocks._fields), pairs


class _Index:
    """Columns of states and model."""

    def __init__(self, nlp: NLP) -> None:
        self.size = nlp.problem.num_states
        self.points = np.asarray(nlp.points)
        num = len(nlp.ts) * self.size
        self.model = num + np.arange(nlp.flat().shape[0])

    def states(self, nodes: np.ndarray) -> np.ndarray:
        return nodes[..., None] * self.size + np.arange(self.size)


def _row_numbers(nlp: NLP) -> list[np.ndarray]:
    """Return the rows of all constraints, in their shapes."""
    shapes = constraint_shapes(nlp)
    sizes = [int(np.prod(shape)) for shape in shapes]
    parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _pattern(blocks: dict[str, _Block], order: Sequence[str]) -> Pattern:
    rows, columns, keep, offset = [], [], [], 0
    for name in order:
        row, column, there = np.broadcast_arrays(*blocks[name])
        kept = np.flatnonzero(there)
        rows.append(row.reshape(-1)[kept])
        columns.append(column.reshape(-1)[kept])
        keep.append(offset + kept)
        offset += row.size
    return Pattern(*(np.concatenate(parts) for parts in (rows, columns, keep)))
