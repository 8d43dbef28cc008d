"""Two processes on one machine: the same results, one log, one set of checkpoints."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import effgen as eg
from tests.cases import CASES, KEY, arrays, jarzynski


ROOT = Path(__file__).parents[2]

SCRIPT = """
import os, sys, warnings
warnings.simplefilter("ignore")
import jax
port, directory = sys.argv[1], sys.argv[3]
rank, num_steps = int(sys.argv[2]), int(sys.argv[4])
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(
    f"localhost:{port}", num_processes=2, process_id=rank, heartbeat_timeout_seconds=10
)
import effgen as eg
from tests.cases import CASES, KEY

case = CASES[sys.argv[5]]()
state = eg.shard(case.state, eg.make_mesh())
state = eg.resume(directory + "/checkpoints", state)
run = eg.train(case.trainer(), state, case.data, key=KEY,
               num_steps=num_steps - int(state.step), every=10)
run = eg.logged(eg.progress(run), directory + "/log.jsonl")
for state, _ in eg.checkpointed(run, directory + "/checkpoints", every=10):
    print("step", int(state.step), flush=True)
print("end", int(state.step), flush=True)
"""


def processes(directory, num_steps, case="jarzynski"):
    """Start both; the coordinator's port is drawn, for none of ours opens a socket."""
    port = random.SystemRandom().randint(20_000, 60_000)
    ours = ("XLA_FLAGS", "PJRT_NPROC")
    environment = {k: v for k, v in os.environ.items() if k not in ours}
    started = []
    for rank in range(2):
        command = [sys.executable, "-c", SCRIPT, str(port), str(rank)]
        started.append(
            subprocess.Popen(
                [*command, str(directory), str(num_steps), case],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env=environment,
            )
        )
    return started


def finished(started):
    """Return each one's output; stop both if they take too long."""
    try:
        return [process.communicate(timeout=150) for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()


def last_step(out):
    return int(out.splitlines()[-1].split()[1])


@pytest.mark.parametrize("name", ["jarzynski", "negative_cache"])
def test_two_processes_train_as_one(tmp_path, name):
    outputs = finished(processes(tmp_path, 20, name))
    assert all("end 20" in out for out, _ in outputs), outputs
    assert "step" in outputs[0][1]
    assert "%" not in outputs[1][1]  # one bar
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2
    # Their checkpoint opens in one process, and equals the run of one process.
    case = CASES[name]()
    whole, _ = eg.fit(case.trainer(), case.state, case.data, key=KEY, num_steps=20)
    saved = eg.restore(tmp_path / "checkpoints", case.state)
    for a, b in zip(arrays(saved.model), arrays(whole.model), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    # And theirs opens one that one process wrote.
    outputs = finished(processes(tmp_path, 30, name))
    assert all("end 30" in out for out, _ in outputs), outputs
    whole, _ = eg.fit(case.trainer(), whole, case.data, key=KEY, num_steps=10)
    saved = eg.restore(tmp_path / "checkpoints", case.state)
    for a, b in zip(arrays(saved.model), arrays(whole.model), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def wait_for_steps(process, step):
    for line in process.stdout:
        if line.startswith("step") and int(line.split()[1]) >= step:
            return


def test_a_signal_to_one_stops_both_at_one_step(tmp_path):
    started = processes(tmp_path, 10**8)
    wait_for_steps(started[0], 20)
    started[1].send_signal(signal.SIGTERM)
    outputs = finished(started)
    assert [process.returncode for process in started] == [0, 0], outputs
    steps = {last_step(out) for out, _ in outputs}
    assert len(steps) == 1
    saved = eg.restore(tmp_path / "checkpoints", jarzynski().state)
    assert {int(saved.step)} == steps


def test_when_one_dies_the_other_ends_and_nothing_saved_is_lost(tmp_path):
    started = processes(tmp_path, 10**8)
    wait_for_steps(started[0], 20)
    started[1].kill()
    began = time.monotonic()
    outputs = finished(started)
    assert time.monotonic() - began < 120
    assert started[0].returncode not in (0, None), outputs
    assert outputs[0][1]  # it says why
    saved = eg.restore(tmp_path / "checkpoints", jarzynski().state)
    assert int(saved.step) >= 10
    assert jax.process_count() == 1
