"""Inner products of the energy's gradients between examples, without the gradients."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend import core as jex
from jaxtyping import Array, Float

from effgen.ebm.contract.energy import Energy, takes_one_example


def gram(
    energy: Energy, positions: Float[Array, "examples *shape"]
) -> Float[Array, "examples examples"]:
    """Return `K[i, j] = <d energy(positions[i]), d energy(positions[j])>`.

    The gradient of a matrix that one vector is multiplied by is an outer product, `a
    d'`, of the vector and of the gradient at the product. So its part of `K` is `(A A')
    * (D D')`, and no gradient is ever formed. Which matrices are so is read off the
    energy's program: they enter one product, with one vector, and nothing else. Of all
    other parameters the gradients of the examples are formed.
    """
    params, fixed = eqx.partition(energy, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(params)

    one = takes_one_example(energy, positions.shape[1:], positions.dtype)

    def energy_of(leaves: list[Array], x: Array) -> Array:
        model = eqx.combine(structure.unflatten(leaves), fixed)
        return model(x) if one else model(x[None])[0]

    program = jax.make_jaxpr(energy_of)(leaves, positions[0])
    products = _products(program.jaxpr, len(leaves))
    taps = {at: _zeros(program.jaxpr.eqns[at].outvars[0]) for at in products}
    rest = [x for i, x in enumerate(leaves) if i not in products.values()]

    def tapped(variables: Any, x: Array) -> tuple[Array, dict[int, Array]]:
        taps, rest = variables
        others = iter(rest)
        matrices = set(products.values())
        full = [x if i in matrices else next(others) for i, x in enumerate(leaves)]
        return _evaluated(program, taps, products, [*full, x])

    of_one = jax.grad(tapped, has_aux=True)
    (ends, gradients), starts = jax.vmap(of_one, (None, 0))((taps, rest), positions)
    parts = [_inner(starts[at]) * _inner(ends[at]) for at in products]
    start = jnp.zeros((len(positions),) * 2, positions.dtype)
    return sum([*parts, *map(_inner, gradients)], start)


def _inner(rows: Float[Array, "examples *shape"]) -> Float[Array, "examples examples"]:
    flat = rows.reshape(len(rows), -1)
    return flat @ flat.T


def _zeros(variable: Any) -> Array:
    return jnp.zeros(variable.aval.shape, variable.aval.dtype)


def _products(jaxpr: Any, num: int) -> dict[int, int]:
    """Return which equations multiply one of the first `num` inputs with a vector.

    By the equation's place: the input's. Only of matrices that enter nothing else.
    """
    found = {}
    for i, variable in enumerate(jaxpr.invars[:num]):
        uses = [at for at, e in enumerate(jaxpr.eqns) if variable in _variables(e)]
        if variable in jaxpr.outvars or len(uses) != 1:
            continue
        equation = jaxpr.eqns[uses[0]]
        # A product of two parameters has no vector of the example's own.
        alone = not _both(equation, jaxpr.invars[:num])
        if alone and _with_vector(equation, variable):
            found[uses[0]] = i
    return found


def _variables(equation: Any) -> list[Any]:
    return [v for v in equation.invars if not isinstance(v, jex.Literal)]


def _both(equation: Any, parameters: list[Any]) -> bool:
    return all(v in parameters for v in equation.invars)


def _with_vector(equation: Any, matrix: Any) -> bool:
    """Return whether the other factor is one vector, axes of size one aside."""
    if equation.primitive.name != "dot_general":
        return False
    (contracted, _), (batched, _) = equation.params["dimension_numbers"]
    if batched or len(contracted) != 1:
        return False
    left, right = (v.aval for v in equation.invars)
    length = left.shape[contracted[0]]
    other = right if equation.invars[0] is matrix else left
    return len(matrix.aval.shape) == 2 and other.size == length


def _evaluated(
    program: Any, taps: dict[int, Array], products: dict[int, int], inputs: list[Array]
) -> tuple[Array, dict[int, Array]]:
    """Return the program's value, each product with its tap added, and its vectors."""
    jaxpr = program.jaxpr
    values = dict(zip(jaxpr.constvars, program.consts, strict=True))
    values |= dict(zip(jaxpr.invars, inputs, strict=True))
    vectors, begun = {}, 0
    for at in sorted(products):
        values |= _run(jaxpr.eqns[begun : at + 1], values)
        (vectors[at],) = (
            values[v]
            for v in _variables(jaxpr.eqns[at])
            if v is not jaxpr.invars[products[at]]
        )
        values[jaxpr.eqns[at].outvars[0]] += taps[at]
        begun = at + 1
    values |= _run(jaxpr.eqns[begun:], values)
    return values[jaxpr.outvars[0]], vectors


def _run(equations: list[Any], values: dict[Any, Array]) -> dict[Any, Array]:
    """Return what the equations compute of `values`."""
    used = dict.fromkeys(v for e in equations for v in _variables(e) if v in values)
    new = [v for e in equations for v in e.outvars if not isinstance(v, jex.DropVar)]
    about = jex.DebugInfo("gram", "effgen", None, None)
    part = jex.Jaxpr((), list(used), new, equations, debug_info=about)
    closed = jex.ClosedJaxpr(part, ())  # pyright: ignore[reportPrivateImportUsage]
    run = jex.jaxpr_as_fun(closed)
    return dict(zip(new, run(*(values[v] for v in used)), strict=True))
