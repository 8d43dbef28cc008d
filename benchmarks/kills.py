"""`kill -9` at random instants: is anything finished lost, or anything wrong read?

Counts, not times. A child trains and saves without pause and is killed; what it left is
read by the parent, and compared with the run that was never killed.
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


NUM_KILLS = int(sys.argv[1]) if len(sys.argv) > 1 else 200

CHILD = """
import sys
import jax, effgen as eg
from tests.cases import KEY, regression

case = regression()
state = eg.resume(sys.argv[1], case.state)
run = eg.train(case.trainer(), state, case.data, key=KEY, num_steps=10**8, every=None)
print("ready", flush=True)
for state, _ in eg.checkpointed(run, sys.argv[1], every=20, keep=3, best="loss"):
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
    names = ("kills", "lost", "wrong", "unreadable", "half_written", "mid_run")
    counts = dict.fromkeys(names, 0)
    directory = Path(tempfile.mkdtemp())
    for _ in range(NUM_KILLS):
        finished = kill_once(directory, rng)
        counts["kills"] += 1
        counts["mid_run"] += bool(finished)
        counts["half_written"] += any(
            not (directory / str(step) / "manifest.json").exists()
            for step in committed(directory)
        )
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


if __name__ == "__main__":
    from benchmarks import measure

    measure.write("kills", kills())
