"""Kills, flipped bits, lost files: is anything finished lost, or anything wrong read?

Counts, not times. A child trains and saves without pause; it is killed with `kill -9`
at a random instant, and what it left is read by the parent. Then single bits of a
checkpoint are flipped, files cut and removed; orbax alone is put to the same flips.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np


NUM_KILLS = 200
NUM_FLIPS = 1000
NUM_CUTS = 100

CHILD = """
import sys
import jax, effgen as eg
from tests.cases import KEY, regression

case = regression()
state = eg.resume(sys.argv[1], case.state)
run = eg.train(case.trainer(), state, case.data, key=KEY, num_steps=10**8, every=None)
print("ready", flush=True)
for state, _ in eg.checkpointed(run, sys.argv[1], every=20, keep=3):
    pass
"""


def committed(directory: Path) -> list[int]:
    """Return the steps whose directories have their final names."""
    names = [entry.name for entry in directory.iterdir()] if directory.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def kill_once(directory: Path, rng: random.Random) -> list[int]:
    """Start a child, kill it at a random instant, return what was committed then."""
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", CHILD, str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert child.stdout is not None
    child.stdout.readline()
    # From the moment training starts (its compilation included) to well into saving.
    time.sleep(rng.uniform(0.0, 1.5))
    child.send_signal(signal.SIGSTOP)
    finished = committed(directory)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    return finished


def kills() -> dict[str, int]:
    """Return the counts of the campaign of kills."""
    import effgen as eg
    from tests.cases import KEY, regression

    rng, case = random.Random(0), regression()
    digests: dict[int, str] = {0: eg.state_digest(case.state)}
    truth = case.state
    counts = {"kills": 0, "lost": 0, "wrong": 0, "unreadable": 0, "mid_run": 0}
    directory = Path(tempfile.mkdtemp())
    for _ in range(NUM_KILLS):
        finished = kill_once(directory, rng)
        counts["kills"] += 1
        counts["mid_run"] += bool(finished)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                state = eg.resume(directory, case.state)
        except Exception as error:
            print("unreadable:", error)
            counts["unreadable"] += 1
            continue
        step = int(state.step)
        counts["lost"] += bool(finished) and step < finished[-1]
        while int(truth.step) < step:
            truth, _ = eg.fit(case.trainer(), truth, case.data, key=KEY, num_steps=20)
            digests[int(truth.step)] = eg.state_digest(truth)
        counts["wrong"] += eg.state_digest(state) != digests.get(step)
        if step > 40_000:  # the truth must be trained too: start over in time
            shutil.rmtree(directory)
            directory, truth = Path(tempfile.mkdtemp()), case.state
    return counts


def two_checkpoints() -> tuple[Path, Any, list[Any]]:
    """Return a directory with the checkpoints of steps 5 and 10, and both states."""
    import effgen as eg
    from tests.cases import KEY, regression

    case, directory = regression(), Path(tempfile.mkdtemp())
    run = eg.train(
        case.trainer(), case.state, case.data, key=KEY, num_steps=10, every=5
    )
    states = [s for s, _ in eg.checkpointed(run, directory, every=5)]
    return directory, case, states


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
    import effgen as eg

    directory, case, (fifth, tenth) = two_checkpoints()
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
                digest = eg.state_digest(eg.restore(copy, case.state))
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
    from benchmarks import measure

    figures: dict[str, Any] = {"flips": damages("flip", NUM_FLIPS)}
    figures["truncations"] = damages("truncate", NUM_CUTS)
    figures["deletions"] = damages("delete", NUM_CUTS)
    measure.write("faults", figures)
    measure.write("faults", {"kill_9": kills(), **figures})
