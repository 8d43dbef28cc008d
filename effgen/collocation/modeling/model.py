"""What is trained: physical parameters and networks, as one pytree of arrays."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree


class Model(eqx.Module):
    """What is trained: physical parameters and networks, two pytrees.

    Arguments:
        parameters: The physical parameters, in their own units.
        networks: Any Equinox modules.
    """

    parameters: PyTree
    networks: PyTree


def as_model(model: Any) -> Model:
    """Return a `Model`, a pair `(parameters, networks)`, or networks alone as one."""
    if isinstance(model, Model):
        return model
    if isinstance(model, tuple) and len(model) == 2:
        return Model(*model)
    return Model({}, model)


def in_double(tree: PyTree) -> PyTree:
    """Return `tree` with its inexact arrays in float64."""
    return jax.tree.map(
        lambda x: x.astype(jnp.float64) if eqx.is_inexact_array(x) else x, tree
    )


def as_numbers(model: Any) -> Model:
    """Return a `Model` with its numbers as arrays, which are trained.

    Of the parameters, integers too: `{"rate": 1}` is a number like any other. In
    networks an integer is a size or an index, and stays.

    Raises:
        TypeError: For complex parameters.
    """
    given = as_model(model)
    parameters = jax.tree.map(_number, given.parameters)
    fractions = float | np.floating | np.ndarray
    networks = jax.tree.map(
        lambda x: jnp.asarray(x) if isinstance(x, fractions) else x, given.networks
    )
    return Model(parameters, networks)


def _number(leaf: Any) -> Any:
    numeric = isinstance(leaf, int | float | complex | np.generic | np.ndarray | Array)
    if not numeric or np.asarray(leaf).dtype == bool:
        return leaf
    if np.iscomplexobj(leaf):
        raise TypeError(
            f"a parameter is {leaf}: pass its real and imaginary parts as two numbers."
        )
    whole = jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.integer)
    return jnp.asarray(leaf, float) if whole else jnp.asarray(leaf)


def as_trained(model: Any) -> Model:
    """Return `as_numbers(model)` in float64."""
    return in_double(as_numbers(model))


def names_of_model(model: Model) -> list[str]:
    """Return what each number of the raveled model is called, such as `rate[2]`."""
    parts = (model.parameters, model.networks)
    names = []
    for part, prefix in zip(parts, ("parameters", "networks"), strict=True):
        arrays = eqx.filter(part, eqx.is_inexact_array)
        for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            name = name if name and prefix == "parameters" else f"{prefix}.{name}"
            name = name.rstrip(".")
            index = [str(list(map(int, i))) for i in np.ndindex(leaf.shape)]
            names += [name] if leaf.ndim == 0 else [name + i for i in index]
    return names


def check_numbers(model: Model) -> None:
    """Raise `ValueError` for a number of the model that is not finite, by name."""
    leaves = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    parts = [np.ravel(np.asarray(leaf)) for leaf in leaves]
    values = np.concatenate([np.zeros(0), *parts])
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        name = names_of_model(model)[bad[0]]
        raise ValueError(f"{name} of the model is {values[bad[0]]}: pass a number.")
