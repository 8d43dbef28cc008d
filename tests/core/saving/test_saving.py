"""`checkpointed`: what a run saves of itself, however it ends, and its best."""

import contextlib
import json
import os
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import effgen as eg
from effgen.core.saving.checkpoint import saved_steps
from tests.cases import KEY
from tests.core.tiny import Total, ones


class Counting:
    """An iterator that can be set back, over 0, 1, 2, ..."""

    def __init__(self):
        self.next = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.next += 1
        return np.full(1, self.next - 1, np.float32)

    def get_state(self):
        return {"next": self.next, "bytes": b"\x00", "pair": (1, [None])}

    def set_state(self, state):
        assert state["bytes"] == b"\x00"
        assert state["pair"] == (1, [None])
        self.next = state["next"]


def run_of(data, num_steps, state=None, every=10):
    state = Total().init() if state is None else state
    num_steps = num_steps - int(state.step)
    return eg.train(Total(), state, data, key=KEY, num_steps=num_steps, every=every)


def leave_at(run, step, how):
    for state, _ in run:
        if int(state.step) == step:
            if how is not None:
                raise how
            break


@pytest.mark.parametrize("how", [None, ValueError, KeyboardInterrupt])
def test_leaving_the_body_is_an_end_like_any_other(how, tmp_path):
    run = eg.checkpointed(run_of(eg.Stream(Counting()), 100), tmp_path, every=500)
    with contextlib.suppress(ValueError, KeyboardInterrupt):
        leave_at(run, 50, how)
    run.close()
    data = eg.Stream(Counting())
    state = eg.resume(tmp_path, Total().init(), data=data)
    assert int(state.step) == 50
    # The next batch is the one after the last that was used.
    state, history = eg.fit(Total(), state, data, key=KEY, num_steps=3)
    np.testing.assert_array_equal(history["loss"], [50, 51, 52])
    assert float(state.model) == sum(range(53))


class Failing(Total):
    """Fails at step 57."""

    def step(self, state, batch, *, key):
        new, metrics = Total.step(self, state, batch, key=key)
        return new, {"loss": jnp.where(state.step == 57, jnp.nan, metrics["loss"])}


def test_a_failure_is_saved_with_the_position_of_its_state(tmp_path):
    data = eg.Stream(Counting())
    run = eg.train(Failing(), Total().init(), data, key=KEY, num_steps=99, every=50)
    with pytest.raises(eg.TrainingError):
        eg.drain(eg.checkpointed(run, tmp_path, every=1_000))
    data = eg.Stream(Counting())
    state = eg.resume(tmp_path, Total().init(), data=data)
    assert int(state.step) == data.iterator.next == 57
    assert float(state.model) == sum(range(57))


def test_data_that_are_not_set_back_are_told_of(tmp_path):
    eg.drain(eg.checkpointed(run_of(eg.Stream(Counting()), 20), tmp_path))
    with pytest.warns(eg.RunWarning, match=r"says where its data stood.*data=data"):
        state = eg.resume(tmp_path, Total().init())
    assert int(state.step) == 20


def test_a_run_that_goes_on_with_another_key_is_told(tmp_path):
    eg.drain(eg.checkpointed(run_of(ones, 20), tmp_path))
    state = eg.resume(tmp_path, Total().init())
    for key, told in ((KEY, False), (jax.random.key(7), True)):
        run = eg.train(Total(), state, ones, key=key, num_steps=5)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            eg.checkpointed(run, tmp_path)
        assert (
            any("from step 20 with another `key`" in str(w.message) for w in caught)
            == told
        )


def test_relative_directories_resume(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for total in (20, 40):
        state = eg.resume("runs/one", Total().init())
        assert int(state.step) == total - 20
        run = eg.checkpointed(run_of(ones, total, state), "runs/one", every=10)
        for _ in run:
            # The run's files stay where they were, wherever the process goes.
            os.chdir("/")
        os.chdir(tmp_path)
    assert saved_steps("runs/one") == [20, 30, 40]
    eg.save("runs/two", run.state)
    assert int(eg.restore("runs/two", run.state).step) == 40


def test_only_what_is_corrupt_is_moved_aside(tmp_path):
    eg.drain(eg.checkpointed(run_of(ones, 30), tmp_path, every=10))
    first = eg.restore(tmp_path, Total().init(), step=10)
    (arrays,) = (tmp_path / "30").glob("*.safetensors")
    arrays.write_bytes(arrays.read_bytes()[:-1])
    with pytest.raises(ValueError, match="already holds step 20, past this run's"):
        eg.checkpointed(run_of(ones, 40, first), tmp_path, every=10)
    assert saved_steps(tmp_path) == [10, 20, 30]
    (arrays,) = (tmp_path / "20").glob("*.safetensors")
    arrays.unlink()
    eg.drain(eg.checkpointed(run_of(ones, 40, first), tmp_path, every=10))
    assert float(eg.restore(tmp_path, first).model) == 40


def test_what_is_not_corruption_is_raised(tmp_path, monkeypatch):
    eg.drain(eg.checkpointed(run_of(ones, 20), tmp_path, every=10))

    def broken(*arguments):
        raise MemoryError("no room")

    monkeypatch.setattr("effgen.core.saving.checkpoint.read_array", broken)
    first = run_of(ones, 10).state
    for call in (
        lambda: eg.restore(tmp_path, first),
        lambda: eg.resume(tmp_path, first),
        lambda: eg.checkpointed(run_of(ones, 40), tmp_path, every=10),
    ):
        with pytest.raises(MemoryError):
            call()
    assert saved_steps(tmp_path) == [10, 20]


def batches(losses):
    return [np.float32([loss]) for loss in losses]


def test_the_best_stays_beside_the_newest(tmp_path):
    # Means over four steps: 4, 1, 2 (which holds the least step of all), nan, 3.
    means = [[4, 4, 4, 4], [1, 1, 1, 1], [8, 0, 0, 0], [np.nan, 0, 0, 0], [3, 3, 3, 3]]
    run = run_of(batches(np.concatenate(means)), 20, every=4)
    run = eg.guarded(run, eg.Skip(at_most=5))
    eg.drain(eg.checkpointed(run, tmp_path, every=4, keep=1, best="loss"))
    assert saved_steps(tmp_path) == [8, 20]
    best = eg.restore(tmp_path, run.state, step="best")
    assert int(best.step) == 8
    assert float(eg.restore_model(tmp_path, best.model, step="best")) == 20
    # And where more is better, the mean that a nan spoils is no better.
    run = run_of(batches(np.concatenate(means)), 20, every=4)
    run = eg.guarded(run, eg.Skip(at_most=5))
    run = eg.checkpointed(run, tmp_path / "most", every=4, best="loss", mode="max")
    eg.drain(run)
    assert saved_steps(tmp_path / "most") == [4, 12, 16, 20]
    assert int(eg.restore(tmp_path / "most", best, step="best").step) == 4


def test_the_best_is_the_same_after_a_restart(tmp_path):
    losses = [5, 5, 5, 5, 2, 2, 2, 2, 1, 9, 9, 9, 3, 3, 3, 3]
    for name, ends in {"whole": [16], "cut": [2, 6, 8, 9, 11, 16]}.items():
        for end in ends:
            state = eg.resume(tmp_path / name, Total().init())
            run = run_of(batches(losses), end, state, every=1)
            run = eg.checkpointed(
                run, tmp_path / name, every=4, keep=1, best="loss", mode="min"
            )
            eg.drain(run)
        assert saved_steps(tmp_path / name) == [8, 16]
        assert int(eg.restore(tmp_path / name, state, step="best").step) == 8


def test_a_best_that_cannot_be_is_named(tmp_path):
    with pytest.raises(ValueError, match='`mode` is \'least\': pass "min" or "max"'):
        eg.checkpointed(run_of(ones, 20), tmp_path, best="loss", mode="least")
    run = eg.checkpointed(run_of(ones, 20), tmp_path, best="accuracy")
    with pytest.raises(ValueError, match=r"`best` is 'accuracy'.*choose from loss"):
        eg.drain(run)
    with pytest.raises(FileNotFoundError, match="no best checkpoint"):
        eg.restore(tmp_path, run.state, step="best")
    with pytest.raises(TypeError, match=r"`best` is \['loss'\]: pass the name"):
        eg.checkpointed(run_of(ones, 20), tmp_path / "a", best=["loss"])


def test_a_run_is_written_to_a_path_once(tmp_path):
    run = eg.checkpointed(run_of(ones, 20), tmp_path / "a")
    with pytest.raises(ValueError, match=r"`directory` is .*/a`, which this run is"):
        eg.checkpointed(run, tmp_path / "b" / ".." / "a")
    run = eg.logged(run, tmp_path / "log")
    with pytest.raises(ValueError, match=r"`path` is .*/log`, which this run is"):
        eg.logged(run, tmp_path / "log")
    eg.drain(eg.logged(eg.checkpointed(run, tmp_path / "b", every=7), os.devnull))
    assert saved_steps(tmp_path / "a") == [20]
    assert saved_steps(tmp_path / "b") == [7, 14, 20]


def test_what_a_checkpoint_has_not_cannot_be_taken(tmp_path):
    eg.save(tmp_path, eg.TrainState.start({"w": jnp.ones(2)}, None, None))
    other = eg.TrainState.start({"w": 0.5}, None, None)
    with pytest.raises(ValueError, match=r"w'\]: float32\[2\] in .*, 0.5 in `like`"):
        eg.restore(tmp_path, other)
    like = eg.TrainState.start({"w": jnp.zeros(2)}, None, None)
    with pytest.raises(ValueError, match="has no average of the model"):
        eg.restore(tmp_path, like, only=["model", "average"])
    with pytest.raises(TypeError, match="`only` is 3: pass names of fields"):
        eg.restore(tmp_path, like, only=3)  # pyright: ignore[reportArgumentType]


def test_a_failing_disk_stops_the_run_and_leaves_no_half(tmp_path, monkeypatch):
    from effgen.core.saving import writer

    write = writer.write_parts

    def full(path, parts):
        write(path, parts)
        if "10-" in str(path.parent):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "write_parts", full)
    run = eg.checkpointed(run_of(ones, 10**6, every=1), tmp_path, every=5)
    with pytest.raises(eg.TrainingError, match="No space left") as caught:
        eg.drain(run)
    assert caught.value.result == eg.RESULTS.checkpoint_failed
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["5"]


def test_the_manifest_says_who_wrote_it(tmp_path):
    eg.save(tmp_path, Total().init())
    manifest = json.loads((tmp_path / "0" / "manifest.json").read_text())
    assert manifest["format"] == 2
    assert manifest["versions"]["effgen"] == eg.__version__
    assert manifest["versions"]["jax"] == jax.__version__
