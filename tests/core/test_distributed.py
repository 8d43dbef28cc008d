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
from tests.cases import CASES, KEY, arrays, regression
from tests.core.tiny import Total


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


def processes(directory, num_steps, case="regression"):
    """Start both on the script above."""
    return started_with(SCRIPT, directory, num_steps, case)


def started_with(text, directory, *arguments):
    """Start both; the coordinator's port is drawn, for none of ours opens a socket."""
    port = random.SystemRandom().randint(20_000, 60_000)
    flags = os.environ["XLA_FLAGS"].split()
    flags = [flag for flag in flags if "device_count" not in flag]
    environment = {k: v for k, v in os.environ.items() if k != "PJRT_NPROC"}
    environment["XLA_FLAGS"] = " ".join(flags)
    started = []
    for rank in range(2):
        command = [sys.executable, "-c", text, str(port), str(rank)]
        started.append(
            subprocess.Popen(
                [*command, str(directory), *map(str, arguments)],
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


@pytest.mark.parametrize(
    "name",
    [
        "regression",
        pytest.param("jarzynski", marks=pytest.mark.slow),
        pytest.param("negative_cache", marks=pytest.mark.slow),
    ],
)
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


@pytest.mark.slow
def test_a_signal_to_one_stops_both_at_one_step(tmp_path):
    started = processes(tmp_path, 10**8)
    wait_for_steps(started[0], 20)
    started[1].send_signal(signal.SIGTERM)
    outputs = finished(started)
    assert [process.returncode for process in started] == [0, 0], outputs
    steps = {last_step(out) for out, _ in outputs}
    assert len(steps) == 1
    saved = eg.restore(tmp_path / "checkpoints", regression().state)
    assert {int(saved.step)} == steps


@pytest.mark.slow
def test_when_one_dies_the_other_ends_and_nothing_saved_is_lost(tmp_path):
    started = processes(tmp_path, 10**8)
    wait_for_steps(started[0], 20)
    started[1].kill()
    began = time.monotonic()
    outputs = finished(started)
    assert time.monotonic() - began < 120
    assert started[0].returncode not in (0, None), outputs
    assert outputs[0][1]  # it says why
    saved = eg.restore(tmp_path / "checkpoints", regression().state)
    assert int(saved.step) >= 10
    assert jax.process_count() == 1


UNEVEN = """
import sys, warnings
warnings.simplefilter("ignore")
import jax
port, rank, directory = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(
    f"localhost:{port}", num_processes=2, process_id=rank, heartbeat_timeout_seconds=10
)
import threading
import jax.numpy as jnp, numpy as np
import effgen as eg
from tests.core.tiny import OnHost, Total

class Failing(OnHost):
    def step(self, state, batch, *, key):
        if rank == 1 and int(state.step) == 30:
            raise ZeroDivisionError("mine")
        return OnHost.step(self, state, batch, key=key)

class Checking(Total):
    def check(self, state, batch, source):
        if rank == 1:
            raise LookupError("refused")

def data(how):
    for i in range(1000):
        if rank == 1 and i == 30:
            if how == "ends":
                return
            if how == "raises":
                raise OSError("disk")
            if how == "hangs":
                threading.Event().wait(30)
            if how == "other shape":
                yield np.ones((6,), np.float32)
        yield np.ones((4,), np.float32)

kinds = {"fails on the host": Failing, "refuses": Checking}
for how in sys.argv[4:]:
    trainer = kinds.get(how, Total)()
    state = trainer.init(memory=jnp.zeros(8))
    if not isinstance(trainer, OnHost):
        state = eg.shard(state, eg.make_mesh())
    run = eg.train(trainer, state, data(how), key=jax.random.key(0), num_steps=300,
                   every=10, patience=3.0 if how == "hangs" else 60.0)
    run = eg.checkpointed(run, f"{directory}/{how}", every=1000)
    try:
        for state, _ in run:
            if rank == 1 and int(state.step) == 30 and how == "body raises":
                raise KeyError("mine")
            if rank == 0 and int(state.step) == 30 and how == "breaks":
                break
        name = eg.RESULTS[run.result][:25]
    except BaseException as error:
        name = f"{type(error).__name__} {str(error)[-190:]}"
    print("|", how, "|", int(run.state.step), "|", name, flush=True)
"""


@pytest.mark.slow
def test_what_ends_one_process_ends_both_at_one_step(tmp_path):
    how = {
        "ends": ("the data ended", "the data ended"),
        "raises": ("another process failed, and says why", "OSError: disk"),
        "hangs": ("no batch for `patience`", "no batch for `patience`"),
        "other shape": ("batches differ", "batches differ"),
        "fails on the host": ("another process failed, and says why", "mine"),
        "refuses": ("another process failed, and says why", "refused"),
        "body raises": ("the loop was left", "KeyError 'mine'"),
        "breaks": ("the loop was left", "the loop was left"),
    }
    outputs = finished(started_with(UNEVEN, tmp_path, *how))
    lines = [
        [line.split("|") for line in out.splitlines() if line.startswith("|")]
        for out, _ in outputs
    ]
    for name, said, first, second in zip(how, how.values(), *lines, strict=True):
        assert first[1].strip() == second[1].strip() == name
        step = 0 if name == "refuses" else 30
        assert int(first[2]) == int(second[2]) == step, (name, first, second)
        for expected, line in zip(said, (first, second), strict=True):
            assert expected.strip("'\"") in line[3], (name, line)
        if step:
            saved = eg.restore(tmp_path / name, Total().init(memory=np.zeros(8)))
            assert int(saved.step) == step
