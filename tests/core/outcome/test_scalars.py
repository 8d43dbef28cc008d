"""Means over the sound steps of a window."""

import numpy as np

from effgen.core.outcome.scalars import mean, scalars
from effgen.core.watching.window import Window
from tests.core.watched_runs import chunk


def test_what_a_skipped_step_reported_does_not_count():
    window = Window(3)
    window.add(chunk(0, 2, loss=np.ones(2), norm=np.ones(2)), 3)
    window.add(chunk(2, 3, loss=np.array([np.nan]), norm=np.array([1e9])), 4)
    assert (window.stop, window.num_skipped) == (3, 1)
    assert window.means() == {"loss": 1.0, "norm": 1.0}
    window.clear()
    window.add(chunk(3, 4, loss=np.array([np.nan])), 5)
    assert window.means() == {"loss": None}


def test_a_mean_does_not_depend_on_how_steps_are_cut():
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    whole, parts = Window(0), Window(0)
    whole.add(chunk(0, 1000, loss=values), 0)
    for start in range(0, 1000, 7):
        part = values[start : start + 7]
        parts.add(chunk(start, start + len(part), loss=part), 0)
    assert whole.means() == parts.means()


def test_metrics_that_are_no_mapping_have_no_scalars():
    assert scalars(None) == {}
    assert np.isnan(mean(np.array([np.inf])))
