"""One rule for a mesh: memory and batches are split, the model is whole or split."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from effgen.core.contract.counts import check_count
from effgen.core.contract.state import TrainState, check_kind

from .agreement import check_same


# The slow one of two data axes, by whose name they are told from data and model.
_GROUPS = "groups"


def make_mesh(
    devices: Sequence[Any] | None = None, *, model: int = 1, groups: int = 1
) -> Mesh:
    """Return a mesh over `devices`, by default over all of them in all processes.

    Arguments:
        devices: In an order in which neighbors are near, as JAX lists them; `None` for
            all.
        model: Over how many devices to split the model itself; 1 keeps it whole on
            each.
        groups: Into how many groups to divide the devices, fast within and slow
            between, such as machines of several GPUs. Memory and batches are split over
            all groups; the optimizer's state can be split within each (`shard`).

    Returns:
        A mesh with the axis `"data"`, before it `"groups"` where there are several,
            and after it `"model"` where that is split. Its axes are `AxisType.Auto`:
            under JAX's default, explicit axes, gathers, resampling and differential
            equation solvers are refused.

    Raises:
        TypeError: If `devices` are not several.
        ValueError: If there are none, or if `model * groups` is not a divisor of their
            number.
    """
    if devices is not None and not isinstance(devices, Iterable):
        raise TypeError(
            f"`devices` is {devices!r}: pass several, such as `jax.devices()[:4]`."
        )
    devices = list(jax.devices() if devices is None else devices)
    if not devices:
        raise ValueError("`devices` has none: pass one or more, or None for all.")
    for name, number in (("model", model), ("groups", groups)):
        _check_divides(name, number, len(devices))
    _check_divides("model * groups", model * groups, len(devices))
    sizes = {_GROUPS: groups, "data": len(devices) // (model * groups), "model": model}
    axes = {name: n for name, n in sizes.items() if n > 1 or name == "data"}
    grid = np.array(devices).reshape(*axes.values())
    return Mesh(grid, tuple(axes), (AxisType.Auto,) * len(axes))


def shard(
    state: TrainState, mesh: Mesh, *, optimizer: str | Sequence[str] = ()
) -> TrainState:
    """Place `state` on `mesh`: memory split over its first axis, the rest replicated.

    Every array of the memory is split along its leading axis (walkers, cached items).
    Scalars are replicated. If the mesh has a model axis, parameters and the optimizer's
    state are split over it, each along its longest divisible axis. `train` then splits
    the batches like the memory, and keeps every array where it is.

    The mesh's first axis is for data and its second for the model; where the first is
    called `"groups"`, the first two are for data.

    With `optimizer`, each device keeps and updates a part of the optimizer's state
    only, and the parameters are gathered after each update. Adam's state then takes
    `1 / devices` of the memory, for one gathering more a step.

    It works the same in several processes, each of which holds the same `state`.

    Arguments:
        state: A trainer's; its arrays stay usable.
        mesh: From `make_mesh`, or one of your own.
        optimizer: The data axes over which the optimizer's state is split: `"data"`,
            within each group if there are several, or `("groups", "data")`, over all.
            An array is split along its longest axis that divides; one that has none
            stays whole.

    Returns:
        The state with its arrays on the mesh.

    Raises:
        TypeError: If `state` is no `TrainState` or `mesh` no mesh.
        ValueError: If a leading axis of the memory cannot be split evenly, if
            `optimizer` names what is no data axis, if the mesh's axes are in another
            order or more, or if processes hold different states.

    Source:
        Rajbhandari et al. (2020), stage 1; within groups, Wu et al. (2024).
    """
    check_kind(state)
    _check_mesh(mesh)
    mesh = _auto(mesh)
    axes = (optimizer,) if isinstance(optimizer, str) else tuple(optimizer)
    _check_memory(state.memory, mesh)
    _check_axes(axes, mesh)
    check_same("state", state)

    def place(tree: PyTree, spec: Any) -> PyTree:
        arrays, rest = eqx.partition(tree, eqx.is_array)
        return eqx.combine(
            jax.tree.map(lambda x: _placed(x, NamedSharding(mesh, spec(x))), arrays),
            rest,
        )

    # What else there is beside the model is of its shape, and as the optimizer's.
    specs = {
        "model": lambda x: _model_spec(x, mesh),
        "memory": lambda x: _leading_spec(x, mesh),
        "step": lambda _: PartitionSpec(),
    }
    split = lambda x: _split_further(x, _model_spec(x, mesh), mesh, axes)
    fields = [field.name for field in dataclasses.fields(state)]
    return TrainState(
        **{name: place(getattr(state, name), specs.get(name, split)) for name in fields}
    )


def data_axes(mesh: Mesh) -> tuple[str, ...]:
    """Return the axes of `mesh` that memory and batches are split over, slow first."""
    return mesh.axis_names[: 2 if mesh.axis_names[0] == _GROUPS else 1]


def num_parts(mesh: Mesh) -> int:
    """Return into how many parts `mesh` splits memory and batches."""
    return _size(mesh, data_axes(mesh))


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
    """Split a traced batch over the mesh's data axes where its size allows."""
    if mesh is None:
        return batch
    return jax.tree.map(
        lambda x: jax.lax.with_sharding_constraint(
            x, NamedSharding(mesh, _even_spec(x, mesh))
        ),
        batch,
    )


def constrain_state(
    arrays: Sequence[Any], before: Sequence[Any], mesh: Mesh | None
) -> list[Any]:
    """Keep the traced arrays of a state where those of the state `before` a step are.

    A loop would be free to keep them elsewhere between its steps, such as the model
    where the optimizer's state is.
    """
    if mesh is None:
        return list(arrays)
    return [
        jax.lax.with_sharding_constraint(x, old.sharding)
        if isinstance(old.sharding, NamedSharding)
        else x
        for x, old in zip(arrays, before, strict=True)
    ]


def place_stack(stack: PyTree, mesh: Mesh | None) -> PyTree:
    """Move a stack of host batches, `(steps, rows, ...)`, to where the state is.

    In several processes each brings its own rows, and the batch is their union.

    Raises:
        ValueError: If the devices of several processes cannot share the rows evenly:
            to hold a batch whole, each would need the others' rows.
    """
    if mesh is None:
        return jax.tree.map(jnp.asarray, stack)
    sharding = NamedSharding(mesh, PartitionSpec(None, data_axes(mesh)))

    def place(x: Any) -> Any:
        rows = x.shape[1] if x.ndim > 1 else 0
        if rows and (rows * jax.process_count()) % num_parts(mesh) == 0:
            return jax.make_array_from_process_local_data(sharding, np.asarray(x))
        if rows and jax.process_count() > 1:
            raise ValueError(_uneven(rows, num_parts(mesh)))
        return _placed(x, replicated(mesh))

    return jax.tree.map(place, stack)


def _uneven(rows: int, parts: int) -> str:
    processes = jax.process_count()
    step = parts // math.gcd(parts, processes)
    return (
        f"a batch has {rows} rows in each of {processes} processes, which {parts} "
        f"parts of the mesh cannot share evenly: use a multiple of {step}."
    )


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


def _size(mesh: Mesh, axes: Sequence[str]) -> int:
    return math.prod(mesh.shape[name] for name in axes)


def _model_spec(x: Any, mesh: Mesh) -> PartitionSpec:
    names = mesh.axis_names[len(data_axes(mesh)) :][:1]
    return _split_further(x, PartitionSpec(), mesh, names)


def _split_further(
    x: Any, spec: PartitionSpec, mesh: Mesh, names: Sequence[str]
) -> PartitionSpec:
    """Return `spec` with one axis of `x` split over `names` too, the longest that is.

    Where none can be split over all of them, each is for the longest that it divides.
    """
    if not names:
        return spec
    parts = [_names(part) for part in (*spec, *[None] * (x.ndim - len(spec)))]
    lengths = [n // _size(mesh, part) for n, part in zip(x.shape, parts, strict=True)]
    even = [i for i, n in enumerate(lengths) if n and n % _size(mesh, names) == 0]
    if even:
        longest = max(even, key=lambda i: lengths[i])
        parts[longest] = (*parts[longest], *names)
        return PartitionSpec(*(part or None for part in parts))
    for name in names if len(names) > 1 else ():
        spec = _split_further(x, spec, mesh, (name,))
    return spec


def _names(part: Any) -> tuple[str, ...]:
    return (part,) if isinstance(part, str) else tuple(part or ())


def _leading_spec(x: Any, mesh: Mesh) -> PartitionSpec:
    return PartitionSpec(data_axes(mesh)) if x.size > 1 else PartitionSpec()


def _even_spec(x: Any, mesh: Mesh) -> PartitionSpec:
    even = x.ndim and x.shape[0] % num_parts(mesh) == 0
    return _leading_spec(x, mesh) if even else PartitionSpec()


def _check_divides(name: str, number: int, devices: int) -> None:
    check_count(name, number)
    if devices % number:
        raise ValueError(
            f"`{name}` is {number}, which does not divide {devices} devices: pass one "
            "of their divisors."
        )


def _check_axes(axes: tuple[str, ...], mesh: Mesh) -> None:
    if not set(axes) <= set(data_axes(mesh)) or len(set(axes)) < len(axes):
        raise ValueError(
            f"`optimizer` is {axes}, but the mesh's data axes are {data_axes(mesh)}: "
            "pass one of them, or several."
        )


def _check_mesh(mesh: Any) -> None:
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"`mesh` is a {type(mesh).__name__}: pass `effgen.make_mesh()`, or a "
            "`jax.sharding.Mesh`."
        )
    data = data_axes(mesh)
    model, more = mesh.axis_names[len(data) :][:1], mesh.axis_names[len(data) + 1 :]
    if "model" in data or "data" in model or _size(mesh, more) > 1:
        raise ValueError(
            f"`mesh` has the axes {mesh.axis_names}: the first is for data (the first "
            f"two, if it is called {_GROUPS!r}) and the next for the model. Put them "
            "in this order, and leave out other axes."
        )


def _check_memory(memory: PyTree, mesh: Mesh) -> None:
    size = num_parts(mesh)
    arrays = eqx.filter(memory, eqx.is_array)
    for path, leaf in jax.tree_util.tree_flatten_with_path(arrays)[0]:
        if leaf.size > 1 and leaf.shape[0] % size:
            rows = leaf.shape[0]
            nearest = max(size, round(rows / size) * size)
            raise ValueError(
                f"`state.memory{jax.tree_util.keystr(path)}` has {rows} rows, which "
                f"{size} devices cannot share evenly: use {nearest}."
            )
