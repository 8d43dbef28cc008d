"""Which files should a checkpoint have? Four layouts, each verified and atomic.

Two states, one of 256 MB in eight arrays and one of 200 small ones, are saved and
restored by turns in one process. `plain` is effgen's own; the others do the same
duty: digests of every byte, files through to the disk, a directory that is renamed.
"""

import contextlib
import inspect
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import psutil

import effgen as eg
from benchmarks import measure
from effgen.core.saving import tensors


ROUNDS = 5
Arrays = dict[str, jax.Array]


def states() -> dict[str, Arrays]:
    """Return the two states, as arrays by name."""
    keys = jax.random.split(jax.random.key(0), 200)  # constants would compress
    large = {f"a{i}": jax.random.normal(keys[i], (32, 1 << 18)) for i in range(8)}
    small = {f"a{i}": jax.random.normal(keys[i], (32, 32)) for i in range(200)}
    return jax.block_until_ready({"256 MB in 8 arrays": large, "200 small": small})


def plain_save(path: Path, arrays: Arrays) -> None:
    eg.save(path, eg.TrainState(arrays, None, None, jnp.zeros((), jnp.int32)))


def plain_restore(path: Path, like: Arrays) -> Arrays:
    return eg.restore_model(path, like)


def npy_save(path: Path, arrays: Arrays) -> None:
    partial = path.with_suffix(".partial")
    partial.mkdir()
    for name, array in arrays.items():
        with (partial / f"{name}.npy").open("wb") as file:
            np.save(file, np.asarray(array))
            tensors.synced(file)
    commit(partial, path, arrays)


def npy_restore(path: Path, like: Arrays) -> Arrays:
    digests = json.loads((path / "manifest.json").read_text())
    return {
        name: verified(np.load(path / f"{name}.npy"), digests[name]) for name in like
    }


def leaves_save(path: Path, arrays: Arrays) -> None:
    partial = path.with_suffix(".partial")
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(partial, arrays)
    commit(partial, path, arrays)


def leaves_restore(path: Path, like: Arrays) -> Arrays:
    digests = json.loads((path / "manifest.json").read_text())
    with ocp.PyTreeCheckpointer() as checkpointer:
        kinds = ocp.checkpoint_utils.construct_restore_args(like)
        found = checkpointer.restore(path, item=like, restore_args=kinds)
    return {name: verified(found[name], digests[name]) for name in like}


def blob_save(path: Path, arrays: Arrays) -> None:
    """Save as the first format did: all bytes as one array of orbax's."""
    leaves = {name: np.array(array) for name, array in arrays.items()}
    blob = np.concatenate([leaf.reshape(-1).view(np.uint8) for leaf in leaves.values()])
    partial = path.with_suffix(".partial")
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(partial, {"bytes": blob})
    commit(partial, path, arrays)


def blob_restore(path: Path, like: Arrays) -> Arrays:
    digests = json.loads((path / "manifest.json").read_text())
    with ocp.PyTreeCheckpointer() as checkpointer:
        blob = np.asarray(checkpointer.restore(path)["bytes"])
    found, stop = {}, 0
    for name, array in like.items():
        start, stop = stop, stop + array.nbytes
        leaf = blob[start:stop].view(array.dtype).reshape(array.shape)
        found[name] = verified(leaf, digests[name])
    return found


def commit(partial: Path, path: Path, arrays: Arrays) -> None:
    """Write the digests, and rename."""
    digests = {name: tensors.digest(np.asarray(a)) for name, a in arrays.items()}
    with (partial / "manifest.json").open("wb") as file:
        file.write(json.dumps(digests).encode())
        tensors.synced(file)
    partial.rename(path)


def verified(array: Any, expected: str) -> jax.Array:
    if tensors.digest(np.asarray(array)) != expected:
        raise RuntimeError("changed")
    return jnp.array(array, copy=True)


LAYOUTS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "plain: one file in the format of safetensors": (plain_save, plain_restore),
    "one .npy an array": (npy_save, npy_restore),
    "orbax, a leaf at a time": (leaves_save, leaves_restore),
    "orbax, all bytes as one (the first format)": (blob_save, blob_restore),
}


@contextlib.contextmanager
def watched(nbytes: int) -> Iterator[dict[str, float]]:
    """Fill in wall and processor seconds, and how far memory rose, in states."""
    process, found, done = psutil.Process(), {}, threading.Event()
    base = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    began, cpu = time.perf_counter(), time.process_time()
    yield found
    found["seconds"] = time.perf_counter() - began
    found["cpu_seconds"] = time.process_time() - cpu
    done.set()
    thread.join()
    found["states_in_memory"] = (peak - base) / nbytes


def once(save: Any, restore: Any, arrays: Arrays) -> dict[str, float]:
    """Return the costs of one save and one restore."""
    directory = Path(tempfile.mkdtemp())
    nbytes = sum(array.nbytes for array in arrays.values())
    with watched(nbytes) as saving:
        save(directory / "x", arrays)
    with watched(nbytes) as restoring:
        back = jax.block_until_ready(restore(directory / "x", arrays))
    assert all((back[name] == array).all() for name, array in arrays.items())
    shutil.rmtree(directory)
    costs = {f"save_{name}": value for name, value in saving.items()}
    return costs | {f"restore_{name}": value for name, value in restoring.items()}


def costs(arrays: Arrays) -> dict[str, Any]:
    """Return the medians of each layout's costs, the layouts taking turns."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in LAYOUTS}
    for i in range(ROUNDS + 1):
        for name in list(LAYOUTS) if i % 2 else reversed(LAYOUTS):
            row = once(*LAYOUTS[name], arrays)
            if i > 0:  # the first round warms up
                rows[name].append(row)
    return {name: measure.by_seed(found) for name, found in rows.items()}


def import_seconds(text: str) -> float:
    """Return the median processor seconds of a Python that runs `text`."""
    found = []
    for _ in range(ROUNDS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", text], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(
            after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        )
    return statistics.median(found)


def lines(*sources: Any) -> int:
    """Return how many lines of `sources` are code or comment."""
    return sum(
        bool(x.strip()) for s in sources for x in inspect.getsource(s).split("\n")
    )


if __name__ == "__main__":
    shared = (commit, verified)
    measure.write(
        "checkpoints",
        {
            "rounds": ROUNDS,
            "costs": {name: costs(arrays) for name, arrays in states().items()},
            "import_cpu_seconds": {
                "jax": import_seconds("import jax"),
                "jax and orbax": import_seconds("import jax, orbax.checkpoint"),
            },
            "lines": {
                "plain, the file format": lines(tensors),
                "one .npy an array": lines(npy_save, npy_restore, *shared),
                "orbax, a leaf at a time": lines(leaves_save, leaves_restore, *shared),
                "orbax, all as one": lines(blob_save, blob_restore, *shared),
            },
        },
    )
