"""Logs: what their lines say, and that they keep what their path is."""

import json
import os
import stat
import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import effgen as eg
from tests.core.watched_runs import BadStep, chunk, made, watched


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_one_skipped_step_is_left_out_and_counted(tmp_path):
    path = tmp_path / "log.jsonl"
    run = eg.guarded(made(trainer=BadStep()), eg.Skip())
    eg.drain(eg.logged(run, path))
    found = lines(path)
    assert [line["step"] for line in found] == [4, 8, 12]
    assert [line["loss"] for line in found] == [2.0, 2.0, 2.0]
    assert [line["twice"] for line in found] == [2.0, 2.0, 2.0]
    assert [line.get("skipped") for line in found] == [None, 1, None]


KINDS = {
    "nested": {"parts": {"a": np.ones(2), "deep": {"b": np.zeros(2)}}},
    "listed": {"pair": (np.ones(2), np.zeros(2))},
    "flags": {"flag": np.array([True, False])},
    "bfloat16": {"half": np.ones(2, jnp.bfloat16)},
    "eight bits": {"small": np.ones(2, jnp.float8_e4m3fn), "int": np.ones(2, jnp.int4)},
    "huge": {"huge": np.full(2, 1.7e308)},
    "longer": {"long": np.full(2, np.longdouble("1e400"))},
    "infinite": {"norm": np.array([np.inf, 3.0])},
    "own names": {"seconds": np.ones(2), "step": np.zeros(2)},
    "left out": {
        "complex": np.ones(2, complex),
        "vector": np.ones((2, 3)),
        "nothing": np.ones((2, 0)),
        "words": np.array(["a", "b"]),
        "objects": np.array([None, {}]),
        "none": None,
        "text": "a",
        "item": eg.RESULTS.successful,
    },
}
MEANS = {
    "nested": {"parts/a": 1.0, "parts/deep/b": 0.0},
    "listed": {"pair/0": 1.0, "pair/1": 0.0},
    "flags": {"flag": 0.5},
    "bfloat16": {"half": 1.0},
    "eight bits": {"small": 1.0, "int": 1.0},
    "huge": {"huge": None},
    "longer": {"long": None},
    "infinite": {"norm": 3.0},
    "own names": {"metrics/seconds": 1.0, "metrics/step": 0.0},
    "left out": {},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_metric_is_shown_or_left_out(kind, tmp_path, capsys):
    run = eg.progress(eg.logged(made(2), tmp_path / "log.jsonl"))
    chunks = watched(run, run.wrappers[0](iter([chunk(0, 2, **KINDS[kind])]), run.job))
    assert len(list(chunks)) == 1
    (line,) = lines(tmp_path / "log.jsonl")
    assert line.pop("step") == 2
    assert line.pop("seconds") >= 0
    assert line == MEANS[kind]
    history = eg.History(KINDS[kind], np.arange(1, 3))
    assert len(history.to_pandas().columns) == len(MEANS[kind])


def test_a_metric_may_change_its_shape(tmp_path):
    path = tmp_path / "log.jsonl"
    chunks = [
        chunk(0, 2, boundary=False, loss=np.ones(2), each=np.ones((2, 4))),
        chunk(2, 3, boundary=False, loss=np.ones(1), each=np.ones((1, 3))),
        chunk(3, 4, each=np.full(1, 5.0), new=np.ones(1)),
    ]
    assert list(watched(eg.logged(made(), path), chunks)) == chunks
    (line,) = lines(path)
    assert (line["loss"], line["each"], line["new"]) == (1.0, 5.0, 1.0)


ENDS = {
    "the last chunk is none of the run's yields": lambda chunks: list(chunks),
    "the loop is left": lambda chunks: (next(chunks), next(chunks), chunks.close()),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_the_last_steps_are_logged_however_the_run_ends(end, tmp_path):
    path = tmp_path / "log.jsonl"
    chunks = [
        chunk(0, 4, loss=np.ones(4)),
        chunk(4, 6, boundary=False, loss=np.zeros(2)),
    ]
    end(watched(eg.logged(made(), path), chunks))
    assert [(line["step"], line["loss"]) for line in lines(path)] == [(4, 1.0), (6, 0)]


def test_a_failure_leaves_the_steps_before_it_in_the_log(tmp_path):
    path = tmp_path / "log.jsonl"
    with pytest.raises(eg.TrainingError):
        eg.drain(eg.logged(made(trainer=BadStep()), path))
    assert [line["step"] for line in lines(path)] == [4, 6]


def test_paths_are_those_of_the_call(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    run = eg.tensorboard(eg.logged(made(), "runs/log.jsonl"), "board")
    for _ in run:
        os.chdir(tmp_path / "elsewhere")
    assert len(lines(tmp_path / "runs" / "log.jsonl")) == 3
    assert len(list((tmp_path / "board").iterdir())) == 1
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_log_keeps_what_its_path_is(tmp_path):
    target, link = tmp_path / "scratch" / "log.jsonl", tmp_path / "log.jsonl"
    link.symlink_to(target)
    state, _ = eg.drain(eg.logged(made(), link))
    target.chmod(0o640)
    inode = target.stat().st_ino
    eg.drain(eg.logged(made(4, state=state), link))
    eg.drain(eg.logged(made(4), os.devnull))
    assert link.is_symlink()
    assert target.stat().st_ino == inode
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert [line["step"] for line in lines(target)] == [4, 8, 12, 16]
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_only_what_a_log_wrote_is_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    kept = ["# by hand", '{"step": 0, "loss": 1}', "7", '{"other": 99}']
    gone = ['{"step": 3, "loss": 1}', '{"step": "x"}', '{"step": 0, "lo']
    mixed = [kept[0], gone[0], kept[1], gone[1], kept[2], gone[2], kept[3]]
    path.write_text("".join(line + "\n" for line in mixed) + '{"st')
    eg.drain(eg.logged(made(4), path))
    found = path.read_text().splitlines()
    assert found[:4] == kept
    assert json.loads(found[4])["step"] == 4
    assert len(found) == 5


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
def test_a_full_disk_stops_no_run():
    run = eg.logged(made(), "/dev/full")
    with pytest.warns(eg.RunWarning, match="/dev/full.*No space.*step 4 ") as caught:
        state, _ = eg.drain(run)
    assert len(caught) == 1
    assert int(state.step) == 12


def test_a_removed_log_is_made_again(tmp_path):
    path = tmp_path / "deep" / "log.jsonl"
    for state, _ in eg.logged(made(), path):
        if int(state.step) == 8:
            path.unlink()
            path.parent.rmdir()
    assert [line["step"] for line in lines(path)] == [12]


def test_a_log_that_cannot_be_trimmed_is_appended_to(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("effgen.core.watching.logs._trim", refused)
    with pytest.warns(eg.RunWarning, match="removal of what an earlier run wrote"):
        eg.drain(eg.logged(made(), tmp_path / "log.jsonl"))
    assert len(lines(tmp_path / "log.jsonl")) == 3


fifos = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")


@fifos
def test_nobody_waits_for_a_pipe_without_a_reader(tmp_path):
    os.mkfifo(tmp_path / "log")
    with pytest.warns(eg.RunWarning, match="step 4 is missing") as caught:
        eg.drain(eg.logged(made(), tmp_path / "log"))
    assert len(caught) == 1


@fifos
def test_a_pipe_s_reader_gets_every_line(tmp_path):
    os.mkfifo(tmp_path / "log")
    got = []
    ready = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    eg.drain(eg.logged(made(), tmp_path / "log"))
    reader = threading.Thread(target=lambda: got.append(os.read(ready, 1 << 16)))
    reader.start()
    reader.join()
    os.close(ready)
    assert [json.loads(line)["step"] for line in got[0].splitlines()] == [4, 8, 12]


def test_no_steps_leave_no_lines(tmp_path):
    run = eg.progress(eg.tensorboard(eg.logged(made(0), tmp_path / "log"), tmp_path))
    eg.drain(run)
    assert (tmp_path / "log").read_text() == ""
