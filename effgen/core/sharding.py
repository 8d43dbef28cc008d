"""One rule for a mesh: memory and batches are split, the model is whole or split."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from .state import TrainState


def make_mesh(devices: Sequence[Any] | None = None, *, model: int = 1) -> Mesh:
    """Return a mesh over `devices`, by default over all of them in all processes.

    **Arguments:** `devices`; `model`, over how many devices to split the model itself
    (1 keeps it whole on each).

    **Returns:** a mesh with the axis `"data"`, and `"model"` where it is split. Its
    axes are `AxisType.Auto`: under JAX's default, explicit axes, gathers, resampling
    and differential equation solvers are refused.

    **Raises:** `ValueError` if `model` does not divide the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    if model < 1 or len(devices) % model:
        raise ValueError(
            f"`model` is {model}, which does not divide {len(devices)} devices: pass "
            "one of their divisors."
        )
    if model == 1:
        return Mesh(np.array(devices), ("data",), (AxisType.Auto,))
    grid = np.array(devices).reshape(-1, model)
    return Mesh(grid, ("data", "model"), (AxisType.Auto,) * 2)


def shard(state: TrainState, mesh: Mesh) -> TrainState:
    """Place `state` on `mesh`: memory split over its first axis, the rest replicated.

    Every array of the memory is split along its leading axis (walkers, cached items);
    scalars are replicated. With a second mesh axis, parameters and the optimizer's
    state are split over that, each along its longest divisible axis. `train` then
    splits the batches like the memory and keeps everything where it is.

    Works the same in several processes, each of which holds the same `state`.

    **Raises:** `ValueError` if a leading axis of the memory cannot be split evenly.
    """
    mesh = _auto(mesh)
    _check_memory(state.memory, mesh)

    def place(tree: PyTree, spec: Any) -> PyTree:
        arrays, rest = eqx.partition(tree, eqx.is_array)
        return eqx.combine(
            jax.tree.map(lambda x: _placed(x, NamedSharding(mesh, spec(x))), arrays),
            rest,
        )

    return TrainState(
        model=place(state.model, lambda x: _model_spec(x, mesh)),
        opt_state=place(state.opt_state, lambda x: _model_spec(x, mesh)),
        memory=place(state.memory, lambda x: _leading_spec(x, mesh)),
        step=place(state.step, lambda _: PartitionSpec()),
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that every device of `mesh` holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def mesh_of(tree: PyTree) -> Mesh | None:
    """Return the mesh that the arrays of `tree` live on, or `None` for one device."""
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1:
            return sharding.mesh  # pyright: ignore[reportReturnType]
    return None


def replicate(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Return `tree` with every array held whole by every device of `mesh`, if any."""
    if mesh is None:
        return tree
    return jax.tree.map(
        lambda x: _placed(x, replicated(mesh)) if eqx.is_array(x) else x, tree
    )


def constrain_batch(batch: PyTree, mesh: Mesh | None) -> PyTree:
    """Split a traced batch over the mesh's first axis where its size allows."""
    if mesh is None:
        return batch
    return jax.tree.map(
        lambda x: jax.lax.with_sharding_constraint(
            x, NamedSharding(mesh, _even_spec(x, mesh))
        ),
        batch,
    )


def place_stack(stack: PyTree, mesh: Mesh | None) -> PyTree:
    """Move a stack of host batches, `(steps, rows, ...)`, to where the state is.

    In several processes each brings its own rows, and the batch is their union.
    """
    if mesh is None:
        return jax.tree.map(jnp.asarray, stack)
    axis = mesh.axis_names[0]
    sharding = NamedSharding(mesh, PartitionSpec(None, axis))

    def place(x: Any) -> Any:
        if x.ndim < 2 or (x.shape[1] * jax.process_count()) % mesh.shape[axis]:
            return _placed(x, replicated(mesh))
        return jax.make_array_from_process_local_data(sharding, np.asarray(x))

    return jax.tree.map(place, stack)


def _auto(mesh: Mesh) -> Mesh:
    types = (AxisType.Auto,) * len(mesh.axis_names)
    return Mesh(mesh.devices, mesh.axis_names, types)


def _placed(x: Any, sharding: NamedSharding) -> Any:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        words = _placed(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(x))
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return jax.jit(jnp.copy, out_shardings=sharding)(x)
    if not sharding.is_fully_addressable:
        # Every process holds the same `x` and brings what its own devices need of it.
        whole = np.array(x)
        return jax.make_array_from_callback(whole.shape, sharding, lambda i: whole[i])
    return jax.device_put(jnp.copy(x), sharding)  # `device_put` alone may alias `x`


def _model_spec(x: Any, mesh: Mesh) -> PartitionSpec:
    if len(mesh.axis_names) < 2:
        return PartitionSpec()
    name = mesh.axis_names[1]
    axes = [i for i, size in enumerate(x.shape) if size % mesh.shape[name] == 0]
    if not axes:
        return PartitionSpec()
    longest = max(axes, key=lambda i: x.shape[i])
    return PartitionSpec(*(name if i == longest else None for i in range(x.ndim)))


def _leading_spec(x: Any, mesh: Mesh) -> PartitionSpec:
    return PartitionSpec(mesh.axis_names[0]) if x.ndim else PartitionSpec()


def _even_spec(x: Any, mesh: Mesh) -> PartitionSpec:
    even = x.ndim and x.shape[0] % mesh.shape[mesh.axis_names[0]] == 0
    return _leading_spec(x, mesh) if even else PartitionSpec()


def _check_memory(memory: PyTree, mesh: Mesh) -> None:
    size = mesh.shape[mesh.axis_names[0]]
    arrays = eqx.filter(memory, eqx.is_array)
    for path, leaf in jax.tree_util.tree_flatten_with_path(arrays)[0]:
        if leaf.ndim and leaf.shape[0] % size:
            rows = leaf.shape[0]
            nearest = max(size, round(rows / size) * size)
            raise ValueError(
                f"`state.memory{jax.tree_util.keystr(path)}` has {rows} rows, which "
                f"{size} devices cannot share evenly: use {nearest}."
            )
