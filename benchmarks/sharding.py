"""What splitting the optimizer's state saves and costs, on eight simulated devices.

The model is a perceptron of 7.4 MB under adam, its memory 16 MB; the devices are two
groups of four. Bytes are those of the compiled program, by device; collectives are read
from its text. What crosses the groups is the size of what a device gives to collectives
whose members are in both.
"""

import os


os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import math
import re
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import effgen as eg
from benchmarks import measure


KEY = jax.random.key(0)
GROUP_SIZE = 4
WAYS: dict[str, dict[str, Any]] = {
    "whole": {"optimizer": ()},
    "within groups": {"optimizer": "data"},
    "over all": {"optimizer": ("groups", "data")},
}
ITEM_SIZES = {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "pred": 1}


class Regression(eg.AbstractTrainer):
    """Least squares, with a memory of rows that are moved."""

    optim: optax.GradientTransformation

    def init(self, model, memory=None):
        return eg.TrainState.start(model, eg.init_opt_state(self.optim, model), memory)

    def step(self, state, batch, *, key):
        def mean_square(model):
            return jnp.mean((jax.vmap(model)(batch) - jnp.sin(batch)) ** 2)

        loss, gradients = eqx.filter_value_and_grad(mean_square)(state.model)
        model, opt_state = eg.apply_gradients(
            self.optim, gradients, state.opt_state, state.model, value=loss
        )
        return state.advance(model, opt_state, 0.9 * state.memory), {"loss": loss}


class Collective(NamedTuple):
    """One collective operation of a compiled step."""

    kind: str
    nbytes: int
    crosses: bool


def collectives(text: str) -> list[Collective]:
    """Return what a program's text says that its loop sends."""
    found = []
    for line in text.splitlines():
        match = re.search(r"= (.*?) (all-\w+|reduce-scatter)(?:-start)?\(", line)
        if match is None or "while/body" not in line or "while/cond" in line:
            continue
        shapes = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
        nbytes = sum(ITEM_SIZES[d] * _size(shape) for d, shape in shapes)
        found.append(Collective(match[2], nbytes, crosses(line)))
    return found


def _size(shape: str) -> int:
    return math.prod(int(n) for n in shape.split(",") if n)


def crosses(line: str) -> bool:
    """Return whether the members of a collective's first group are in two groups."""
    groups = {i // GROUP_SIZE for i in first_members(line)}
    return len(groups) > 1


def first_members(line: str) -> list[int]:
    """Return the first members of a collective, in any of XLA's three notations."""
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return [int(i) for i in listed[1].split(",")]
    axes = re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{('[^}]*)\}", line)
    if axes:
        sizes = {name: int(n) for name, n in re.findall(r"('\w+')=(\d+)", axes[1])}
        order = re.search(r"device_ids=\((.*?)\)[ ,)]", line)
        ids = _ordered(order[1] if order else "[8]").reshape(*sizes.values())
        members = set(axes[2].split(","))
        return ids[tuple(slice(None) if n in members else 0 for n in sizes)].ravel()
    tiled = re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\]\S*?),? ", line)
    assert tiled, line
    return _ordered(tiled[3]).reshape(int(tiled[1]), int(tiled[2]))[0]


def _ordered(notation: str) -> np.ndarray:
    """Return the devices in an order such as `[2,4]T(1,0)`."""
    sizes, *turned = re.findall(r"[\d,]*\d", notation)
    ids = np.arange(_size(sizes)).reshape([int(n) for n in sizes.split(",")])
    return ids.transpose([int(n) for n in turned[0].split(",")]) if turned else ids


def figures(state: eg.TrainState, run: Any) -> dict[str, Any]:
    """Return the bytes a device and the collectives of a step."""
    compiled = run.job.program.compiled
    sent = collectives(compiled.as_text())
    kinds = sorted({one.kind for one in sent})
    return {
        "model_bytes": _held(state.model),
        "optimizer_bytes": _held(state.opt_state),
        "memory_bytes": _held(state.memory),
        "argument_bytes": compiled.memory_analysis().argument_size_in_bytes,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "collectives": {k: sum(one.kind == k for one in sent) for k in kinds},
        "bytes_in_collectives": sum(one.nbytes for one in sent),
        "bytes_across_groups": sum(one.nbytes for one in sent if one.crosses),
    }


def _held(tree: Any) -> int:
    leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    return sum(x.addressable_shards[0].data.nbytes for x in leaves)


def parameters(state: eg.TrainState) -> np.ndarray:
    """Return all parameters in a row."""
    leaves = jax.tree.leaves(eqx.filter(state.model, eqx.is_array))
    return np.concatenate([np.asarray(x).ravel() for x in leaves])


def ways() -> list[dict[str, Any]]:
    """Return the figures of each way, and how far its result is from one device's."""
    trainer = Regression(optax.adam(1e-3))
    model = eqx.nn.MLP(256, 256, 512, 7, key=KEY)
    first = trainer.init(model, jnp.ones((2**16, 64)))
    data = eg.Minibatches(jax.random.normal(KEY, (256, 256)), 64)
    train = lambda state: eg.train(trainer, state, data, key=KEY, num_steps=10)
    truth = parameters(eg.drain(train(first))[0])
    rows = []
    for name, way in WAYS.items():
        run = train(eg.shard(first, eg.make_mesh(groups=2), **way))
        state, _ = eg.drain(run)
        apart = np.linalg.norm(parameters(state) - truth) / np.linalg.norm(truth)
        rows.append({"way": name, **figures(state, run), "distance": float(apart)})
    return rows


if __name__ == "__main__":
    measure.write("sharding", {"devices": 8, "groups": 2, "ways": ways()})
