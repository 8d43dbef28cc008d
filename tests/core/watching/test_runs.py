"""Wrappers of a run: bars, logs, checkpoints, time; and signals between chunks."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import effgen as eg
from tests.cases import CASES, KEY, regression, regression_data


def made(num_steps=20, every=5, state=None):
    case = regression()
    state = case.state if state is None else state
    return eg.train(
        case.trainer(), state, case.data, key=KEY, num_steps=num_steps, every=every
    )


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_the_bar_shows_the_watched_metrics(capsys):
    eg.drain(eg.progress(made()))
    shown = capsys.readouterr().err
    assert "20/20" in shown
    assert "loss=" in shown


def test_a_log_has_a_line_for_each_yield(tmp_path):
    path = tmp_path / "deep" / "log.jsonl"
    losses = [m["loss"].mean() for _, m in eg.logged(made(), path)]
    assert [line["step"] for line in lines(path)] == [5, 10, 15, 20]
    np.testing.assert_allclose([line["loss"] for line in lines(path)], losses)


def test_a_resumed_log_has_no_step_twice(tmp_path):
    path = tmp_path / "log.jsonl"
    state, _ = eg.drain(eg.logged(made(10), path))
    eg.drain(eg.logged(made(10, state=state), path))
    with path.open("a") as file:
        file.write('{"step": 25, "lo')  # the process died here
    eg.drain(eg.logged(made(10, state=state), path))
    assert [line["step"] for line in lines(path)] == [5, 10, 15, 20]


def test_a_log_is_json_whatever_the_metric(tmp_path):
    case = regression()
    bad = (jnp.full((96, 3), jnp.nan), jnp.zeros((96, 1)))
    data = [regression_data(), bad, regression_data()]
    run = eg.train(case.trainer(), case.state, data, key=KEY)
    eg.drain(eg.logged(eg.guarded(run, eg.Skip()), tmp_path / "log.jsonl"))
    assert [line["loss"] is None for line in lines(tmp_path / "log.jsonl")] == [
        False,
        True,
        False,
    ]


def test_a_log_that_cannot_be_written_fails_at_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        eg.logged(made(), tmp_path / "file" / "log.jsonl")


def test_tensorboard_gets_the_scalars(tmp_path):
    eg.drain(eg.tensorboard(made(), tmp_path))
    assert any(p.name.startswith("events") for p in tmp_path.iterdir())


def test_wrappers_come_before_the_first_step():
    run = made()
    next(run)
    for wrap in (eg.progress, lambda r: eg.logged(r, os.devnull)):
        with pytest.raises((RuntimeError, OSError)):
            wrap(run)
    with pytest.raises(TypeError, match="`guard` is 'skip'"):
        eg.guarded(made(), "skip")  # pyright: ignore[reportArgumentType]


def test_checkpoints_fall_on_their_steps_and_at_the_end(tmp_path):
    eg.drain(eg.checkpointed(made(23, every=10), tmp_path, every=7, keep=9))
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == [7, 14, 21, 23]
    case = regression()
    for step in (7, 14, 21, 23):
        saved = eg.restore(tmp_path, case.state, step=step)
        straight, _ = eg.drain(made(step))
        assert eg.state_digest(saved) == eg.state_digest(straight)


def test_only_the_newest_are_kept(tmp_path):
    eg.drain(eg.checkpointed(made(50), tmp_path, every=5, keep=2))
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == [45, 50]


def test_runs_are_not_mixed(tmp_path):
    eg.drain(eg.checkpointed(made(), tmp_path, every=10))
    with pytest.raises(
        ValueError, match="already holds step 20, past this run's first"
    ):
        eg.checkpointed(made(), tmp_path, every=10)
    state = eg.resume(tmp_path, regression().state)
    eg.drain(eg.checkpointed(made(10, state=state), tmp_path, every=10))
    assert int(eg.restore(tmp_path, state).step) == 30


def test_a_failure_saves_the_last_good_state(tmp_path):
    case = regression()
    bad = (jnp.full((96, 3), jnp.nan), jnp.zeros((96, 1)))
    run = eg.train(case.trainer(), case.state, [regression_data()] * 6 + [bad], key=KEY)
    with pytest.raises(eg.TrainingError):
        eg.drain(eg.checkpointed(run, tmp_path, every=4))
    assert int(eg.restore(tmp_path, case.state).step) == 6


def test_a_directory_that_cannot_be_written_fails_at_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        eg.checkpointed(made(), tmp_path / "file" / "runs")


def test_the_ledger_adds_up(tmp_path):
    began = time.perf_counter()
    run = eg.checkpointed(eg.progress(made(40)), tmp_path, every=10)
    for _ in run:
        time.sleep(0.01)
    spent = time.perf_counter() - began
    seconds = run.ledger.seconds
    assert 0.5 * spent < sum(seconds.values()) <= 1.01 * spent
    assert seconds["evaluation"] > 0.05
    assert seconds["checkpoint"] > 0
    assert 0 < run.ledger.goodput < 1
    assert "device" in str(run.ledger)


def test_history_is_a_table_and_a_picture():
    _, history = eg.drain(made())
    table = history.to_pandas()
    assert table.index.tolist() == list(range(1, 21))
    np.testing.assert_array_equal(table["loss"], history["loss"])
    assert len(history.plot("loss").axes) == 1
    with pytest.raises(KeyError, match="nothing"):
        history.plot("nothing")


def interrupt_soon(number, delay=0.3):
    threading.Timer(delay, os.kill, (os.getpid(), number)).start()


@pytest.mark.one_case("15-result1")
@pytest.mark.parametrize(
    ("number", "result"),
    [
        (signal.SIGINT, eg.RESULTS.interrupted),
        (signal.SIGTERM, eg.RESULTS.terminated),
    ],
)
def test_a_signal_ends_the_run_between_chunks(number, result, tmp_path):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run = eg.checkpointed(made(10**8, every=10**8), tmp_path, every=10**8)
    interrupt_soon(number, 1.5)
    with pytest.warns(eg.RunWarning):
        yielded = list(run)
    ((state, metrics),) = yielded
    stop = int(state.step)
    assert 0 < stop < 10**8
    assert metrics["loss"].shape == (stop,)
    assert run.result == result
    assert handlers == (
        signal.getsignal(signal.SIGINT),
        signal.getsignal(signal.SIGTERM),
    )
    saved = eg.restore(tmp_path, state)
    assert eg.state_digest(saved) == eg.state_digest(state)


@pytest.mark.slow
def test_ctrl_c_in_fit_hands_the_state_back():
    case = regression()
    interrupt_soon(signal.SIGINT, 1.5)
    with pytest.warns(eg.RunWarning, match="Ctrl-C"):
        state, history = eg.fit(
            case.trainer(), case.state, case.data, key=KEY, num_steps=10**8
        )
    assert len(history["loss"]) == int(state.step) > 0
    assert history.result == eg.RESULTS.interrupted


def test_ctrl_c_in_the_caller_s_loop_is_the_caller_s():
    # A shell starts its background jobs with Ctrl-C ignored: set what Python expects.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    run = made(100, every=1)

    def interrupted():
        for state, _ in run:
            if int(state.step) == 3:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    signal.signal(signal.SIGINT, before)
    straight, _ = eg.drain(made(3))
    assert eg.state_digest(run.state) == eg.state_digest(straight)


SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
import jax
import effgen as eg
from tests.cases import CASES, KEY

case = CASES[sys.argv[3]]()
state = eg.resume(sys.argv[1], case.state)
total = int(sys.argv[2])
run = eg.train(case.trainer(), state, case.data, key=KEY,
               num_steps=total - int(state.step), every=50)
for state, _ in eg.checkpointed(run, sys.argv[1], every=50, keep=5):
    print(int(state.step), flush=True)
print("end", eg.state_digest(state), flush=True)
"""


def script(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )


def trained(case, num_steps):
    run = eg.train(case.trainer(), case.state, case.data, key=KEY, num_steps=num_steps)
    return eg.drain(run)[0]


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (signal.SIGTERM, "regression"),
        (signal.SIGKILL, "regression"),
        pytest.param(signal.SIGKILL, "negative_cache", marks=pytest.mark.slow),
    ],
)
def test_a_killed_script_goes_on_where_it_was(number, name, tmp_path):
    first = script(tmp_path, 10**9, name)
    assert first.stdout is not None
    for line in first.stdout:
        if int(line) >= 500:
            break
    os.kill(first.pid, number)
    out = first.stdout.read()
    first.stdout.close()
    first.wait()
    case = CASES[name]()
    if number == signal.SIGTERM:
        assert first.returncode == 0
        digest = out.splitlines()[-1].split()[1]
        assert eg.state_digest(eg.restore(tmp_path, case.state)) == digest
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = eg.restore(tmp_path, case.state)
    assert int(state.step) >= 400
    straight = trained(case, int(state.step))
    assert eg.state_digest(state) == eg.state_digest(straight)
    total = int(state.step) + 77
    second = script(tmp_path, total, name)
    out, _ = second.communicate()
    whole = trained(case, total)
    assert out.splitlines()[-1] == f"end {eg.state_digest(whole)}"


def test_compilations_can_be_kept(tmp_path, monkeypatch):
    before = jax.config.jax_compilation_cache_dir  # pyright: ignore
    monkeypatch.chdir(tmp_path)
    path = eg.cache_compilations("kept")
    try:
        # Wherever the process goes, and though much was compiled before.
        assert path == tmp_path / "kept"
        assert jax.config.jax_compilation_cache_dir == str(path)  # pyright: ignore
        jax.jit(lambda x: x * 3.25 + 1.5)(jnp.ones(7)).block_until_ready()
        assert list(path.iterdir())
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()
