"""Leaving the loop is an end like any other; wrapped runs are one."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import effgen as eg
from tests.cases import KEY
from tests.core.tiny import OnHost, Total, ones


ROOT = Path(__file__).parents[2]


def made(num_steps=1_000, data=ones, every=10, trainer=None):
    trainer = Total() if trainer is None else trainer
    return eg.train(
        trainer, trainer.init(), data, key=KEY, num_steps=num_steps, every=every
    )


def numbers(count=10_000):
    for i in range(count):
        yield np.float32([i])


def leave(run, how, step=50):
    for state, _ in run:
        if int(state.step) == step:
            if how == "break":
                break
            raise how


@pytest.fixture(autouse=True)
def handlers_are_given_back():
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in signals]
    yield
    assert before == [signal.getsignal(number) for number in signals]


@pytest.mark.parametrize("trainer", [Total(), OnHost()])
@pytest.mark.parametrize("how", ["break", ValueError("mine"), KeyboardInterrupt()])
def test_what_ran_is_saved(how, trainer, tmp_path):
    run = eg.checkpointed(made(trainer=trainer), tmp_path, every=500)
    expected = contextlib.nullcontext() if how == "break" else pytest.raises(type(how))
    with expected:
        leave(run, how)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert run.result == eg.RESULTS.left
    assert int(eg.restore(tmp_path, trainer.init()).step) == 50 == int(run.state.step)
    with pytest.raises(RuntimeError, match="was left at step 50: go on by `train`"):
        iter(run)
    with pytest.raises(StopIteration):
        next(run)


def test_a_with_block_s_end_closes_the_run(tmp_path):
    with eg.checkpointed(made(every=3), tmp_path, every=500) as run:
        state, _ = next(run)
        next(run)
    assert int(state.step) == 3
    assert int(eg.restore(tmp_path, state).step) == 6
    run.close()
    # What was wrapped closes what it was wrapped in.
    inner = made(every=3)
    outer = eg.checkpointed(inner, tmp_path / "outer", every=500)
    next(outer)
    inner.close()
    assert int(eg.restore(tmp_path / "outer", state).step) == 3


def grain_iterator():
    import grain

    rows = grain.MapDataset.range(10_000).map(np.float32)
    return iter(rows.to_iter_dataset().batch(1))


@pytest.mark.parametrize("wrap", [lambda data: data, eg.Stream])
@pytest.mark.parametrize(
    "make",
    [
        numbers,
        grain_iterator,
        lambda: iter([np.float32([i]) for i in range(100)]),
        lambda: map(lambda i: np.float32([i]), range(10_000)),
    ],
)
@pytest.mark.parametrize("trainer", [Total(), OnHost()])
def test_the_source_stands_at_the_next_batch(make, wrap, trainer):
    data = wrap(make())
    leave(made(80, data, 1, trainer), "break", 10)
    state, history = eg.fit(trainer, trainer.init(), data, key=KEY, num_steps=3)
    assert history["loss"].tolist() == [10, 11, 12]
    # A wrapper made anew around the same iterator knows of it too.
    _, history = eg.fit(trainer, state, data, key=KEY, num_steps=70)
    assert history["loss"].tolist() == list(range(13, 83))


def test_a_source_that_can_be_set_back_is():
    data = grain_iterator()
    leave(made(80, data, 1), "break", 10)
    assert next(data).tolist() == [10]


def test_a_failed_step_s_batch_is_the_next():
    def bad():
        for i in range(100):
            yield np.float32([np.nan if i == 7 else i])

    data = bad()
    with pytest.raises(eg.TrainingError) as caught:
        eg.drain(made(80, data))
    assert caught.value.step == 7
    with pytest.raises(FloatingPointError):
        eg.replay(Total(), caught.value.state, data, key=KEY)


def test_a_source_that_cannot_be_replayed_is_refused():
    data = numbers()
    with pytest.raises(ValueError, match="not known where it is"):
        eg.replay(Total(), Total().init(), data, key=KEY)
    state, _ = eg.fit(Total(), Total().init(), data, key=KEY, num_steps=5)
    with pytest.raises(ValueError, match="at step 5, and the batch of step 0"):
        eg.replay(Total(), Total().init(), data, key=KEY)
    after, metrics = eg.replay(Total(), state, data, key=KEY)
    assert float(metrics["loss"]) == 5
    assert int(after.step) == 6


def test_wrapped_runs_are_one_run():
    def bad(key):
        return jnp.full(1, jnp.nan)

    run = made(10, data=bad, every=1)
    outer = eg.progress(eg.guarded(run, eg.Skip(at_most=10)))
    assert [int(state.step) for state, _ in outer] == list(range(1, 11))
    assert int(run.state.step) == 10
    assert run.num_skipped == outer.num_skipped == 10
    assert run.ledger is outer.ledger
    with pytest.raises(RuntimeError, match="this run was wrapped: go on with"):
        iter(run)
    with pytest.raises(RuntimeError, match="this run was wrapped"):
        next(run)
    assert list(outer) == []


def test_yields_fall_on_multiples_of_the_state_s_step():
    state, _ = eg.fit(Total(), Total().init(), ones, key=KEY, num_steps=37)
    run = eg.train(Total(), state, ones, key=KEY, num_steps=45, every=10)
    assert len(run) == 6
    assert [int(state.step) for state, _ in run] == [40, 50, 60, 70, 80, 82]
    assert len(run) == 6  # as before its first step


@pytest.mark.parametrize(("num_steps", "num"), [(0, 0), (3, 1), (None, 1), (9, 1)])
def test_the_length_is_the_number_of_yields(num_steps, num):
    state, _ = eg.fit(Total(), Total().init(), ones, key=KEY, num_steps=5)
    data = [np.ones(1, np.float32)] * 9
    run = eg.train(Total(), state, data, key=KEY, num_steps=num_steps, every=10)
    assert len(run) == num
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of data that end
        assert len(list(run)) == num


SCRIPT = """
import os, sys, time
import jax, numpy as np
import effgen as eg
from tests.core.tiny import Total, ones

def hangs():
    for i in range(20):
        yield np.ones(1, np.float32)
    print("hanging", flush=True)
    time.sleep(60)

key, how, directory = jax.random.key(0), sys.argv[1], sys.argv[2]
data = hangs() if how == "hangs" else ones
run = eg.train(Total(), Total().init(), data, key=key, num_steps=1000, every=10)
run = eg.checkpointed(run, directory, every=1000)
if how == "never closed":
    next(run)
    sys.exit(0)
for state, _ in run:
    if how == "break" and int(state.step) == 50:
        break
print("ready", flush=True)
if how == "break":
    time.sleep(60)
"""


def script(how, directory):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, how, str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def test_scripts_end_as_python_s_do(tmp_path):
    """After `break` SIGTERM ends a script at once; data that hang hear a signal."""
    how = ("break", "hangs", "never closed")
    started = {name: script(name, tmp_path / name) for name in how}
    for name in how[:2]:
        assert started[name].stdout.readline().strip() in ("ready", "hanging")
    time.sleep(0.5)
    for name in how[:2]:
        started[name].send_signal(signal.SIGTERM)
    ends = {name: process.communicate(timeout=60) for name, process in started.items()}
    codes = {name: process.returncode for name, process in started.items()}
    assert codes == {"break": -signal.SIGTERM, "hangs": 0, "never closed": 0}, ends
    assert [err for _, err in ends.values()] == ["", "", ""]
    steps = {
        name: int(eg.restore(tmp_path / name, Total().init()).step) for name in how
    }
    assert steps == {"break": 50, "hangs": 20, "never closed": 10}


def test_nothing_is_printed_of_a_run_that_is_dropped(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = made()
        next(run)
        del run
    assert capsys.readouterr().err == ""
