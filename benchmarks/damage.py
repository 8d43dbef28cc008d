"""Damaged checkpoints: is every flipped bit, cut or lost file found, or harmless?

Counts, not times. The newest of two checkpoints is damaged and restored by us, and by
orbax alone.
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
from tests.cases import KEY, regression


NUM_FLIPS = 1000
NUM_CUTS = 100


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
    weighted = sizes / sizes.sum() if kind == "flip" else None
    path = files[rng.choice(len(files), p=weighted)]
    content = bytearray(path.read_bytes())
    if kind == "delete":
        path.unlink()
    elif kind == "truncate":
        path.write_bytes(content[: rng.integers(0, max(1, len(content)))])
    else:
        bit = int(rng.integers(len(content) * 8))
        content[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(content)
    return copy


def damages(kind: str, num: int) -> dict[str, int]:
    """Return what became of `num` damaged checkpoints: ours, and orbax alone."""
    directory, (fifth, tenth) = two_checkpoints()
    older, newer = eg.state_digest(fifth), eg.state_digest(tenth)
    reference = orbax_bytes(directory)
    rng = np.random.default_rng(0)
    names = ("harmless", "fell_back", "wrong", "refused")
    counts = dict.fromkeys((*names, "orbax_alone_wrong", "orbax_alone_refused"), 0)
    for _ in range(num):
        copy = damaged(directory, kind, rng)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                digest = eg.state_digest(eg.restore(copy, fifth))
            found = {newer: "harmless", older: "fell_back"}.get(digest, "wrong")
        except Exception:
            found = "refused"
        counts[found] += 1
        try:
            wrong = not np.array_equal(orbax_bytes(copy), reference)
            counts["orbax_alone_wrong"] += wrong
        except Exception:
            counts["orbax_alone_refused"] += 1
        shutil.rmtree(copy.parent)
    return counts


def orbax_bytes(directory: Path) -> np.ndarray:
    """Return the newest checkpoint's arrays as orbax alone reads them."""
    import orbax.checkpoint as ocp

    checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    kinds = {"bytes": ocp.RestoreArgs(np.ndarray)}
    args = ocp.args.Composite(arrays=ocp.args.PyTreeRestore(restore_args=kinds))
    return checkpointer.restore(directory / "10", args=args)["arrays"]["bytes"]


if __name__ == "__main__":
    measure.write(
        "damage",
        {
            "flips": damages("flip", NUM_FLIPS),
            "truncations": damages("truncate", NUM_CUTS),
            "deletions": damages("delete", NUM_CUTS),
        },
    )
