"""Data that are slow, hang, end, come in two shapes, or can be set back."""

import itertools
import json
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import effgen as eg
from effgen.core.running import device_run
from effgen.core.saving.positions import decoded
from tests.cases import KEY
from tests.core.tiny import OnHost, Total


def run(data, num_steps=None, every=1, **settings):
    return eg.train(
        Total(),
        Total().init(),
        data,
        key=KEY,
        num_steps=num_steps,
        every=every,
        **settings,
    )


def test_slow_data_are_read_one_ahead():
    taken = []

    def slow():
        for i in itertools.count():
            taken.append(i)
            time.sleep(0.02)
            yield np.ones(1, np.float32)

    made = run(slow(), 1000)
    next(made)
    assert len(taken) <= 3  # one used, one ahead, one that is being read
    made.close()
    seen = len(taken)
    time.sleep(0.1)
    assert len(taken) <= seen + 1


def test_fast_data_go_in_stacks():
    sizes = []

    def placed(stack, mesh, place=device_run.place_stack):
        sizes.append(len(stack))
        return place(stack, mesh)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_run, "place_stack", placed)
        eg.drain(run([np.ones(2, np.float32)] * 1000))
    assert sum(sizes) == 1000
    assert max(sizes) == 64


@pytest.mark.parametrize("kinds", [2, 7])
def test_alternating_shapes_move_their_own_bytes(kinds):
    moved = []

    def placed(stack, mesh, place=device_run.place_stack):
        moved.append(stack.nbytes)
        return place(stack, mesh)

    batches = [np.full(3 + i % kinds, i, np.float32) for i in range(100)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_run, "place_stack", placed)
        _state, history = eg.drain(run(iter(batches)))
    assert sum(moved) == sum(batch.nbytes for batch in batches)
    np.testing.assert_allclose(history["loss"], [batch.sum() for batch in batches])


def test_data_that_hang_are_named_after_the_patience(tmp_path):
    release = threading.Event()

    def hangs():
        yield from [np.ones(1, np.float32)] * 5
        release.wait(20)

    made = eg.checkpointed(run(hangs(), 10, patience=0.3), tmp_path, every=100)
    with pytest.raises(eg.TrainingError, match="no batch for `patience`") as caught:
        eg.drain(made)
    release.set()
    assert caught.value.result == eg.RESULTS.data_stalled
    assert caught.value.step == 5 == int(eg.restore(tmp_path, Total().init()).step)
    with pytest.raises(ValueError, match="`patience` is 0"):
        run(hangs(), patience=0)
    with pytest.raises(ValueError, match="`patience` is 0"):
        eg.fit(Total(), Total().init(), hangs(), key=KEY, patience=0)


def test_patience_is_for_a_batch_where_a_whole_stack_is_awaited():
    """`Rollback` waits for all of a stack; its batches come one by one."""

    def slow():
        for _ in range(12):
            time.sleep(0.1)
            yield np.ones(1, np.float32)

    made = eg.guarded(run(slow(), 12, patience=0.6), eg.Rollback())
    state, _ = eg.drain(made)
    assert int(state.step) == 12


class Live:
    """An iterator that hands out its own state, and goes on in one it is given."""

    def __init__(self):
        self.state = {"next": 0}

    def __iter__(self):
        return self

    def __next__(self):
        self.state["next"] += 1
        return np.float32([self.state["next"] - 1])

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = state


def test_a_live_state_is_not_read_ahead_of_what_was_used(tmp_path):
    made = run(Live(), 50, every=10)
    eg.drain(eg.checkpointed(made, tmp_path, every=20, keep=9))
    for step in (20, 40):
        data = eg.Stream(Live())
        path = tmp_path / str(step) / "manifest.json"
        data.set_state(decoded(json.loads(path.read_text())["position"]))
        _, history = eg.fit(Total(), Total().init(), data, key=KEY, num_steps=2)
        assert history["loss"].tolist() == [step, step + 1]


@pytest.mark.parametrize("trainer", [Total(), OnHost()])
def test_batches_in_one_buffer_are_told_apart(trainer):
    """The next one is written over the last, which was read ahead and not used."""

    def reusing():
        buffer = np.zeros(4, np.float32)
        for i in range(200):
            buffer[:] = i
            yield {"x": buffer}["x"][:2]

    run = eg.train(trainer, trainer.init(), reusing(), key=KEY)
    _, history = eg.drain(run)
    assert history["loss"].tolist() == [2 * i for i in range(200)]


class Reused(eg.AbstractHostBatches):
    """One buffer, written over by each step's batch."""

    def __init__(self):
        self.buffer = np.zeros(2, np.float32)

    def batch_at(self, step, *, key):
        self.buffer[:] = step
        return self.buffer


class ByIndex:
    """A sequence with one buffer."""

    def __init__(self):
        self.buffer = np.zeros(2, np.float32)

    def __len__(self):
        return 200

    def __getitem__(self, step):
        if step >= 200:
            raise IndexError(step)
        self.buffer[:] = step
        return self.buffer


def of_matrices():
    """A stream with one buffer that is a matrix."""
    buffer = np.zeros((1, 2), np.float32).view(np.matrix)
    for i in range(200):
        buffer[:] = i
        yield buffer


@pytest.mark.parametrize("data", [Reused, ByIndex, of_matrices])
def test_batches_by_step_in_one_buffer_are_told_apart(data):
    _, history = eg.fit(Total(), Total().init(), data(), key=KEY, num_steps=200)
    assert history["loss"].tolist() == [2 * i for i in range(200)]


@pytest.mark.parametrize("data", [np.zeros((8, 2)), {"x": 1}, "rows", 3])
def test_a_stream_is_of_several_batches(data):
    with pytest.raises(TypeError, match=r"`iterable` is a .*: pass an iterable of"):
        eg.Stream(data)


def test_an_iterator_that_is_used_up_is_told_of():
    data = iter([np.ones(1, np.float32)] * 3)
    state, _ = eg.fit(Total(), Total().init(), data, key=KEY)
    for given in (data, iter([])):
        with pytest.warns(eg.RunWarning, match="`data` had no batch, and no step"):
            again, _ = eg.fit(Total(), state, given, key=KEY)
        assert int(again.step) == 3
    with pytest.warns(eg.RunWarning, match="`data` had no batch"):
        eg.fit(Total(), Total().init(), [], key=KEY)
    with pytest.warns(eg.RunWarning, match="3 batches.*at step 3"):
        eg.fit(Total(), state, [np.ones(1, np.float32)] * 3, key=KEY)


def test_no_more_is_taken_than_asked_run_after_run():
    taken = []

    def counted():
        for i in itertools.count():
            taken.append(i)
            yield np.float32([i])

    data, state, seen = counted(), Total().init(), []
    for num in (1, 5, 64, 3, 130):
        state, history = eg.fit(Total(), state, data, key=KEY, num_steps=num)
        seen.extend(history["loss"].tolist())
        assert len(taken) == len(seen)
    assert seen == list(range(203))


class Loader:
    """A loader as torch's stateful ones: its own state, a new iterator each time."""

    def __init__(self):
        self.start = self.given = 0

    def __iter__(self):
        self.given = self.start
        for i in range(self.start, 100):
            self.given = i + 1
            yield np.float32([i])
        self.start = 0

    def state_dict(self):
        return {"given": self.given}

    def load_state_dict(self, state):
        self.start = state["given"]


class Numbers:
    """An iterator with grain's two methods."""

    def __init__(self):
        self.next = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.next += 1
        return np.float32([self.next - 1])

    def get_state(self):
        return {"next": self.next}

    def set_state(self, state):
        self.next = state["next"]


@pytest.mark.parametrize("make", [Loader, Numbers, lambda: eg.Stream(Loader())])
def test_resume_sets_back_what_can_be(make, tmp_path):
    eg.drain(eg.checkpointed(run(make(), 13), tmp_path, every=5))
    data = make()
    data = eg.Stream(data) if isinstance(data, Loader) else data
    state = eg.resume(tmp_path, Total().init(), data=data)
    _, history = eg.fit(Total(), state, data, key=KEY, num_steps=4)
    assert history["loss"].tolist() == [13, 14, 15, 16]


def test_resume_raises_where_data_cannot_be_set_back(tmp_path):
    eg.drain(eg.checkpointed(run(iter([np.ones(1)] * 9), 5), tmp_path, every=5))
    fresh = (np.ones(1) for _ in range(9))
    with pytest.raises(ValueError, match="`data`, a generator, cannot be set back"):
        eg.resume(tmp_path, Total().init(), data=fresh)
    with pytest.raises(ValueError, match="says nothing of where `data` was"):
        eg.resume(tmp_path, Total().init(), data=Numbers())
    # What is indexed by the step needs no setting; and nothing saved, nothing set.
    indexed = eg.Minibatches(np.ones((4, 1)), 2)
    assert int(eg.resume(tmp_path, Total().init(), data=indexed).step) == 5
    assert int(eg.resume(tmp_path / "new", Total().init(), data=fresh).step) == 0


@pytest.mark.parametrize("trainer", [Total(), OnHost()])
def test_a_failed_rollback_s_position_is_its_state_s(trainer, tmp_path):
    class Bad(type(trainer)):
        def step(self, state, batch, *, key):
            state, metrics = super().step(state, batch, key=key)
            loss = jnp.where(state.step == 58, jnp.nan, metrics["loss"])
            return state, {"loss": loss}

    bad = Bad()
    made = eg.train(bad, bad.init(), Numbers(), key=KEY, num_steps=200, every=50)
    made = eg.checkpointed(eg.guarded(made, eg.Rollback(2)), tmp_path, every=1000)
    with pytest.raises(eg.TrainingError) as caught:
        eg.drain(made)
    assert caught.value.step == int(caught.value.state.step) == 57
    assert len(caught.value.history["loss"]) == 57
    data = Numbers()
    state = eg.resume(tmp_path, bad.init(), data=data)
    assert int(state.step) == data.next == 57


def test_a_metric_whose_shape_changes_is_kept():
    class Each(Total):
        def step(self, state, batch, *, key):
            state, metrics = Total.step(self, state, batch, key=key)
            return state, metrics | {"each": batch}

    batches = [np.full(4, i, np.float32) for i in range(5)] + [np.ones(3, np.float32)]
    state, history = eg.fit(Each(), Total().init(), batches, key=KEY)
    assert int(state.step) == 6
    assert history["loss"].shape == (6,)
    assert [row.shape for row in history["each"]] == [(4,)] * 5 + [(3,)]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ((np.ones((4, 2)), np.ones(4)), "`data` is a tuple, which is one batch"),
        (lambda: (yield 1), "makes a generator: call it"),
    ],
)
def test_what_is_no_source_is_named(data, match):
    with pytest.raises(TypeError, match=match):
        run(data)


def test_batches_are_converted_in_the_caller_s_mode():
    with jax.enable_x64(True):
        data = [np.full(2, 2.0**-40)] * 3
        _, history = eg.fit(Wide(), Total().init(), data, key=KEY)
    assert history["width"].tolist() == [8, 8, 8]


class Wide(Total):
    def step(self, state, batch, *, key):
        state, metrics = Total.step(self, state, batch, key=key)
        return state, metrics | {"width": batch.dtype.itemsize}
