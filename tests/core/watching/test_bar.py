"""Bars: what they show, and that they never stop a run."""

import io
import sys

import pytest

import effgen as eg
from tests.core.tiny import OnHost
from tests.core.watched_runs import made


class Broken(io.StringIO):
    """A stream whose reader has gone."""

    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")


def test_a_bar_s_broken_pipe_stops_no_run(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Broken())
    with pytest.warns(eg.RunWarning, match="bar cannot be drawn .*Broken pipe") as seen:
        state, _ = eg.drain(eg.progress(made()))
    assert len(seen) == 1
    assert int(state.step) == 12


def test_without_a_standard_error_there_is_no_bar(monkeypatch):
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed):
        monkeypatch.setattr(sys, "stderr", stream)
        state, _ = eg.drain(eg.progress(made()))
        assert int(state.step) == 12


def test_a_bar_counts_all_steps_and_shows_the_watched(capsys):
    bar = eg.progress(made(trainer=OnHost()))
    assert int(eg.drain(bar)[0].step) == 12
    shown = capsys.readouterr().err
    assert "12/12" in shown
    assert "loss=1" in shown


@pytest.mark.parametrize(
    "wrap",
    [
        eg.progress,
        lambda run: eg.logged(run, "log.jsonl"),
        lambda run: eg.tensorboard(run, "board"),
        lambda run: eg.guarded(run, eg.Skip()),
    ],
)
def test_what_is_no_run_is_refused_and_writes_nothing(wrap, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError, match=r"`run` is a list: pass what `effgen\.train"):
        wrap([made()])
    assert not list(tmp_path.iterdir())
