"""The accelerator's script: it runs on a CPU, and loses nothing to a failure."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import benchmarks.__main__ as table
from benchmarks import accelerator, cache_headlines, headlines, roofline, stepping
from benchmarks.headline_sizes import SMALL


def figures(name, sizes=SMALL):
    found = {}
    headlines.measured(name, sizes, found.update)
    assert found["left_out"] == {}
    return found["figures"]


def numbers(tree):
    return [x for x in jax.tree.leaves(tree) if isinstance(x, float)]


@pytest.mark.slow
def test_an_evaluation_is_measured_and_right():
    found = figures("collocation")["evaluation"]
    assert all(math.isfinite(x) for x in numbers(found))
    assert found["largest_relative_difference"] < 1e-12
    assert not jax.config.jax_enable_x64


def test_a_pass_is_measured(monkeypatch):
    monkeypatch.setattr(cache_headlines, "PASSES", ("two-level", "Gumbel-max"))
    size = SMALL.passes["G2"]
    found = cache_headlines.one_pass(SMALL, size)
    assert all(x > 0 for x in numbers(found["milliseconds"]))
    assert set(found["peer_over_ours"]) == {"Gumbel-max"}
    assert found["roofline"]["flops"] == 2 * 256 * 8 * 4
    assert found["rows"] == 256


@pytest.mark.one_case("retrieval_cache-G3")
@pytest.mark.parametrize(
    ("name", "part"),
    [("ebm", "step"), ("neural_sde", "step"), ("retrieval_cache", "G3")],
)
def test_steps_are_stated_as_the_trainers_take_them(name, part, monkeypatch):
    stated = []

    def shaped(*given):
        steps, arrays, data = stepping.program(*given)
        if not stated:  # ours; the peers' steps are what tests of their own take
            jax.eval_shape(steps, arrays, data)
        stated.append(steps)
        return stepping.Stepper(lambda: jnp.ones(1), 0.0, roofline.Demand(1.0, 1.0))

    for module in (headlines, cache_headlines):
        monkeypatch.setattr(module, "stepper", shaped)
    found = headlines.SECTIONS[name](SMALL)[part]()
    assert len(stated) == len(found["milliseconds"]) == 2


def test_a_stepper_takes_its_steps_and_counts_one():
    from tests.core.tiny import Total

    class Ones:
        def batch_at(self, step, key):
            return jnp.ones(3)

    state = Total().init(jnp.zeros(()))
    taken = stepping.stepper(Total(), state, Ones(), 4)
    for _ in range(2):
        assert taken.take()["loss"].tolist() == [3.0] * 4
    assert taken.demand.bytes > 0


def test_a_roofline_is_the_larger_of_two_times():
    most = {"flops, float32": 100.0, "bytes": 10.0}
    found = roofline.described(roofline.Demand(50.0, 20.0), most, 4.0)
    assert found["bound_by"] == "memory"
    assert found["share_of_roofline"] == 0.5
    found = roofline.described(roofline.Demand(500.0, 20.0), most, 10.0)
    assert (found["bound_by"], found["least_milliseconds"]) == ("arithmetic", 5e3)


def test_what_fails_is_said_and_loses_nothing_else(monkeypatch):
    def broken():
        raise ImportError("No module named 'blackjax'")

    parts = {"first": broken, "second": lambda: {"milliseconds": 1.0}}
    monkeypatch.setitem(headlines.SECTIONS, "ebm", lambda sizes: parts)
    saved = []
    headlines.measured("ebm", SMALL, lambda x: saved.append(json.dumps(x)))
    last = json.loads(saved[-1])
    assert last["left_out"] == {"first": "ImportError: No module named 'blackjax'"}
    assert last["figures"] == {"second": {"milliseconds": 1.0}}
    assert len(saved) == 2


def test_each_section_has_its_time_and_the_record_is_saved_after_each():
    given, saved = [], []

    def launch(name, seconds):
        given.append(seconds)
        time.sleep(0.01)
        return {"failed": name} if name == "ebm" else {"accelerator": True, "a": 1}

    accelerator.whole(launch, lambda record: saved.append(json.dumps(record)), 100.0)
    assert len(saved) == 4
    last = json.loads(saved[-1])
    assert list(last["sections"]) == list(headlines.SECTIONS)
    assert last["sections"]["ebm"] == {"failed": "ebm"}
    assert last["accelerator"] is True
    # What one leaves, the next ones have.
    assert given == pytest.approx([20, 45, 60, 100], abs=1)


def test_a_section_that_hangs_or_dies_is_stopped_and_named(monkeypatch):
    hangs = [sys.executable, "-c", "import time; time.sleep(60)"]
    dies = [sys.executable, "-c", "import os; os.abort()"]
    popen = subprocess.Popen
    for command, reason in ((hangs, "stopped after"), (dies, "ended with")):
        fake = lambda *_, command=command, **rest: popen(command, **rest)
        monkeypatch.setattr(subprocess, "Popen", fake)
        found = accelerator.launched("ebm", 0.5, small=True)
        assert reason in found["failed"]
        assert found["figures"] == {}


def test_a_cpu_s_figures_never_replace_an_accelerator_s(tmp_path):
    path = tmp_path / "accelerator.json"
    there, not_there = {"accelerator": True}, {"accelerator": False}
    assert accelerator.kept(path, not_there) == path
    accelerator.written(path, there)
    assert accelerator.kept(path, there) == path
    assert accelerator.kept(path, not_there) != path


def test_the_table_shows_an_accelerator_s_figures_alone(tmp_path):
    path = tmp_path / "accelerator.json"
    ratio = {"median": 2.0}
    sections = {
        "ebm": {"figures": {"step": {"peer_over_ours": {"PCD": ratio}}}},
        "collocation": {"figures": {"evaluation": {"host_over_device": ratio}}},
        "neural_sde": {"figures": {}, "failed": "stopped after its 1 seconds"},
    }
    record = {"accelerator": True, "machine": {"device": "H"}, "sections": sections}
    accelerator.written(path, record)
    assert table._headlines(path) == [
        ("H, ebm, step: PCD's time over ours", "2"),
        ("H, collocation, evaluation: the host's time over ours", "2"),
    ]
    accelerator.written(path, record | {"accelerator": False})
    assert table._headlines(path) == []


@pytest.mark.slow
def test_the_whole_script_runs_without_an_accelerator(tmp_path):
    path = tmp_path / "accelerator.json"
    command = [sys.executable, "-m", "benchmarks.accelerator", "--small"]
    subprocess.run(
        [*command, "--to", path, "--limit", "3600"],
        cwd=Path(__file__).parents[1],
        check=True,
    )
    record = json.loads(path.read_text())
    assert record["note"].startswith("no accelerator at hand")
    for name in headlines.SECTIONS:
        found = record["sections"][name]
        assert found["sizes"] == "small"
        assert found["left_out"] == {}
        assert found["figures"]
