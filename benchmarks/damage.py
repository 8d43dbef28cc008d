"""Damaged checkpoints: is every flipped bit, cut or lost file found, or harmless?

Counts, not times. The newest of two checkpoints is damaged and restored by us; and the
same arrays, saved a leaf at a time by orbax, are damaged likewise and restored by it.
"""

import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

import effgen as eg
from benchmarks import measure
from effgen.core.contract.state import named_arrays
from tests.cases import KEY, regression


NUM_FLIPS = 500
NUM_OTHERS = 50
OTHERS = ("truncate", "delete", "append", "swap")


def two_checkpoints() -> tuple[Path, list[Any]]:
    """Return a directory with the checkpoints of steps 5 and 10, and both states."""
    case, directory = regression(), Path(tempfile.mkdtemp())
    walkers = jax.random.normal(KEY, (4096, 64))  # a megabyte, as real states have
    state = case.trainer().init(case.state.model, walkers)
    run = eg.train(case.trainer(), state, case.data, key=KEY, num_steps=10, every=5)
    states = [s for s, _ in eg.checkpointed(run, directory, every=5)]
    return directory, states


def damaged(directory: Path, kind: str, rng: np.random.Generator) -> Path:
    """Return a copy of `directory` whose newest checkpoint is damaged."""
    copy = Path(tempfile.mkdtemp()) / "copy"
    shutil.copytree(directory, copy)
    files = sorted(p for p in (copy / "10").rglob("*") if p.is_file())
    sizes = np.array([p.stat().st_size for p in files], float)
    # Half of the flips anywhere in the bytes, half in any file: in manifests as well.
    weighted = sizes / sizes.sum() if kind == "flip" and rng.random() < 0.5 else None
    path = files[rng.choice(len(files), p=weighted)]
    content = bytearray(path.read_bytes())
    if kind == "delete":
        path.unlink()
    elif kind == "truncate":
        path.write_bytes(content[: rng.integers(0, max(1, len(content)))])
    elif kind == "append":
        path.write_bytes(content + rng.bytes(rng.integers(1, 100)))
    elif kind == "swap":
        others = sorted(p for p in (copy / "5").rglob("*") if p.is_file())
        path.write_bytes(others[rng.integers(len(others))].read_bytes())
    elif content:
        bit = int(rng.integers(len(content) * 8))
        content[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(content)
    return copy


def ours(kind: str, num: int) -> dict[str, int]:
    """Return what became of `num` damaged checkpoints."""
    directory, (fifth, tenth) = two_checkpoints()
    older, newer = eg.state_digest(fifth), eg.state_digest(tenth)
    rng = np.random.default_rng(0)
    counts = dict.fromkeys(("harmless", "fell_back", "wrong", "refused"), 0)
    for _ in range(num):
        copy = damaged(directory, kind, rng)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                digest = eg.state_digest(eg.restore(copy, fifth))
            found = {newer: "harmless", older: "fell_back"}.get(digest, "wrong")
        except Exception as error:
            print("refused:", error)
            found = "refused"
        counts[found] += 1
        shutil.rmtree(copy.parent)
    return counts


def orbax_alone(kind: str, num: int) -> dict[str, int]:
    """Return what orbax makes of the same damage to the same arrays."""
    import orbax.checkpoint as ocp

    states, directory = two_checkpoints()[1], Path(tempfile.mkdtemp()) / "orbax"
    checkpointer, rng = ocp.PyTreeCheckpointer(), np.random.default_rng(0)
    trees = [named_arrays(state) for state in states]
    for step, tree in zip((5, 10), trees, strict=True):
        checkpointer.save(directory / str(step), tree)
    counts = dict.fromkeys(("harmless", "wrong", "refused"), 0)
    for _ in range(num):
        copy = damaged(directory, kind, rng)
        try:
            found = checkpointer.restore(copy / "10")
            same = all(np.array_equal(found[k], trees[1][k]) for k in trees[1])
            counts["harmless" if same else "wrong"] += 1
        except Exception:
            counts["refused"] += 1
        shutil.rmtree(copy.parent)
    return counts


def campaigns() -> dict[str, dict[str, dict[str, int]]]:
    """Return the counts by kind of damage."""
    nums = {"flip": NUM_FLIPS} | dict.fromkeys(OTHERS, NUM_OTHERS)
    return {
        kind: {"ours": ours(kind, num), "orbax_alone": orbax_alone(kind, num)}
        for kind, num in nums.items()
    }


if __name__ == "__main__":
    measure.write("damage", campaigns())
