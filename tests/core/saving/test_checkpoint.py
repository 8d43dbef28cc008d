"""Checkpoints: bit for bit, verified, and never a wrong one."""

import functools
import json
import shutil
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen.core.saving.checkpoint import saved_steps
from effgen.core.saving.manifest import sealed
from effgen.core.saving.writer import CheckpointWriter
from tests.cases import KEY, Regression, arrays, jarzynski, regression
from tests.core.tiny import Total, ones


def odd_state():
    model = {
        "float": jnp.array([1.5, -0.0, jnp.inf], jnp.float32),
        "half": jnp.arange(5, dtype=jnp.bfloat16),
        "bool": jnp.array([True, False]),
        "empty": jnp.zeros((0, 3)),
        "scalar": jnp.array(3, jnp.int8),
        "complex": jnp.array([1 + 2j], jnp.complex64),
        "int4": jnp.array([-3, 7, 1], jnp.int4),
        "float8": jnp.ones((2, 1), jnp.float8_e4m3fn),
        "odd float8": jnp.ones(3, jnp.float8_e4m3b11fnuz),
        "numpy": np.arange(3.0),
        "function": jnp.tanh,
        "number": 0.5,
    }
    memory = {"keys": jax.random.split(jax.random.key(3), 4), "none": None}
    return eg.TrainState.start(model, optax.EmptyState(), memory)


def test_every_kind_of_array_comes_back(tmp_path):
    state = odd_state()
    eg.save(tmp_path, state)
    back = eg.restore(tmp_path, odd_state())
    assert eg.state_digest(back) == eg.state_digest(state)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    drawn = jax.vmap(jax.random.normal)(back.memory["keys"])
    np.testing.assert_array_equal(
        drawn, jax.vmap(jax.random.normal)(state.memory["keys"])
    )
    with pytest.raises(FileExistsError, match="already holds step 0"):
        eg.save(tmp_path, state)


@functools.cache
def started():
    return jarzynski()


@pytest.mark.one_case("1-8")
@pytest.mark.parametrize(("saved", "restored"), [(8, 1), (1, 8), (8, 2), (4, 8)])
def test_a_checkpoint_fits_any_mesh(saved, restored, tmp_path):
    case = started()

    def placed(num):
        if num == 1:
            return case.state
        return eg.shard(case.state, eg.make_mesh(jax.devices()[:num]))

    eg.save(tmp_path, placed(saved))
    back = eg.restore(tmp_path, placed(restored))
    assert eg.state_digest(back) == eg.state_digest(case.state)
    positions = back.memory.walkers.positions
    assert len(positions.sharding.device_set) == restored
    if restored == 2:  # and trains on; once, for each mesh is compiled anew
        eg.fit(case.trainer(), back, case.data, key=KEY, num_steps=2)


def test_nothing_saved_is_said(tmp_path):
    state = regression().state
    with pytest.raises(FileNotFoundError, match="has no checkpoint: it holds none"):
        eg.restore(tmp_path / "absent", state)
    eg.save(tmp_path, state)
    with pytest.raises(FileNotFoundError, match=r"of step 7: it holds steps \[0\]"):
        eg.restore(tmp_path, state, step=7)
    assert eg.resume(tmp_path / "absent", state) is state


def other_states():
    case = regression()
    wider = case.trainer().init(eqx.nn.MLP(3, 1, 9, 1, key=KEY))
    walkers = case.trainer().init(case.state.model, jnp.zeros((9, 2)))
    sgd = Regression(optax.sgd(0.1)).init(case.state.model)
    return [
        (wider, r"state.model.layers\[0\].weight: float32\[8, 3\] in the checkpoint, "),
        (walkers, r"state.memory: float32\[8, 2\] in the checkpoint, float32\[9, 2\]"),
        (sgd, r"mu.layers\[0\].weight: float32\[8, 3\] in the checkpoint, absent"),
    ]


def test_a_checkpoint_of_something_else_is_told_leaf_by_leaf(tmp_path):
    eg.save(tmp_path, regression().state)
    for like, match in other_states():
        with pytest.raises(ValueError, match=match):
            eg.restore(tmp_path, like)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """Return a directory with the checkpoints of steps 5 and 10, and their states."""
    directory = tmp_path_factory.mktemp("two")
    case = regression()
    run = eg.train(
        case.trainer(), case.state, case.data, key=KEY, num_steps=10, every=5
    )
    states = [state for state, _ in eg.checkpointed(run, directory, every=5)]
    return directory, states


def restored_or_older(directory, like):
    """Restore, and say whether the newest was passed over."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = eg.restore(directory, like)
    return state, any("fell back to step 5" in str(w.message) for w in caught)


def files_of(directory):
    return sorted(p for p in (directory / "10").rglob("*") if p.is_file())


def damaged(content, kind, older):
    """Return what a file holds after damage; `older` is the file of the step before."""
    if kind == "truncate":
        return content[: len(content) // 2]
    return {"empty": b"", "append": content + b"\0", "swap": older}[kind]


KINDS = ("delete", "empty", "truncate", "append", "swap")


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_found(kind, number, two_steps, tmp_path):
    original, (fifth, _) = two_steps
    directory = tmp_path / "copy"
    shutil.copytree(original, directory)
    path = files_of(directory)[number]
    if kind == "delete":
        path.unlink()
    else:
        older = directory / "5" / path.name
        path.write_bytes(damaged(path.read_bytes(), kind, older.read_bytes()))
    state, older = restored_or_older(directory, fifth)
    assert older
    assert eg.state_digest(state) == eg.state_digest(fifth)


@pytest.mark.parametrize("number", [0, 1])
def test_a_flipped_bit_is_found_or_harmless(number, two_steps, tmp_path):
    original, (fifth, tenth) = two_steps
    directory = tmp_path / "copy"
    shutil.copytree(original, directory)
    path = files_of(directory)[number]
    content = path.read_bytes()
    for bit in np.random.default_rng(0).integers(len(content) * 8, size=40):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(flipped)
        state, older = restored_or_older(directory, fifth)
        assert eg.state_digest(state) == eg.state_digest(fifth if older else tenth)
        assert older or path.suffix == ".json"  # in its white space


def test_damage_is_named_and_a_step_asked_for_is_not_replaced(two_steps, tmp_path):
    original, (fifth, _) = two_steps
    directory = tmp_path / "copy"
    shutil.copytree(original, directory)
    largest = max(files_of(directory), key=lambda path: path.stat().st_size)
    content = largest.read_bytes()
    largest.write_bytes(content[: len(content) // 2] + bytes(len(content) // 2))
    with pytest.warns(eg.RunWarning, match="fell back to step 5; step 10: "):
        eg.restore(directory, fifth)
    with pytest.raises(eg.CorruptCheckpoint, match="step 10"):
        eg.restore(directory, fifth, step=10)
    # A run that goes on from step 5 moves the damaged one aside, and saves its own.
    case = regression()
    with pytest.warns(eg.RunWarning, match="fell back"):
        state = eg.resume(directory, case.state)
    run = eg.train(case.trainer(), state, case.data, key=KEY, num_steps=5, every=5)
    eg.drain(eg.checkpointed(run, directory, every=5))
    assert int(eg.restore(directory, state).step) == 10


def test_no_good_checkpoint_is_an_error(two_steps, tmp_path):
    original, (fifth, _) = two_steps
    directory = tmp_path / "copy"
    shutil.copytree(original / "10", directory / "10")
    for path in files_of(directory):
        path.write_bytes(b"nonsense")
    with pytest.raises(eg.CorruptCheckpoint, match="has no good checkpoint"):
        eg.restore(directory, fifth)


def test_a_half_written_checkpoint_is_no_checkpoint(two_steps, tmp_path):
    original, (fifth, tenth) = two_steps
    directory = tmp_path / "copy"
    shutil.copytree(original, directory)
    partials = [directory / ".partial-15-0", directory / "15.orbax-checkpoint-tmp-1"]
    for partial in partials:
        shutil.copytree(directory / "10", partial)
    state = eg.restore(directory, fifth)
    assert eg.state_digest(state) == eg.state_digest(tenth)
    case = regression()
    run = eg.train(case.trainer(), state, case.data, key=KEY, num_steps=1)
    eg.drain(eg.checkpointed(run, directory, every=5))
    assert not any(partial.exists() for partial in partials)


def test_saving_copies_what_the_next_chunk_changes(tmp_path):
    case = regression()
    run = eg.train(case.trainer(), case.state, case.data, key=KEY, num_steps=100)
    states = [s for s, _ in eg.checkpointed(run, tmp_path, every=1, keep=100)]
    for state in states[::9]:
        saved = eg.restore(tmp_path, case.state, step=int(state.step))
        for a, b in zip(arrays(saved), arrays(state), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of three megabytes, or skip where that is not allowed."""
    if shutil.which("mount") is None:
        pytest.skip("no mount command")
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_full_disk_ends_the_run_and_loses_nothing(small_disk):
    case = regression()
    memory = jax.random.normal(KEY, (4096, 64))  # a megabyte
    start = case.trainer().init(case.state.model, memory)
    run = eg.train(case.trainer(), start, case.data, key=KEY, num_steps=50, every=5)
    run = eg.checkpointed(run, small_disk, every=5, keep=9)
    with pytest.raises(eg.TrainingError, match="could not be written") as caught:
        eg.drain(run)
    assert caught.value.result == eg.RESULTS.checkpoint_failed
    assert int(caught.value.state.step) < 50
    saved = eg.restore(small_disk, start)
    assert int(saved.step) >= 5
    straight, _ = eg.fit(
        case.trainer(), start, case.data, key=KEY, num_steps=int(saved.step)
    )
    assert eg.state_digest(saved) == eg.state_digest(straight)


def test_other_tools_read_the_arrays(tmp_path):
    load_file = pytest.importorskip("safetensors.numpy").load_file
    state = odd_state()
    eg.save(tmp_path, state)
    found = load_file(tmp_path / "0" / "arrays-0-of-1.safetensors")
    np.testing.assert_array_equal(found[".model['float']"], state.model["float"])
    assert found[".model['half']"].dtype == jnp.bfloat16
    assert found[".model['empty']"].shape == (0, 3)
    np.testing.assert_array_equal(
        found[".memory['keys']"], jax.random.key_data(state.memory["keys"])
    )


def large(num):
    """Return a state of eight megabytes in `num` arrays."""
    arrays = [jnp.full((8 // num, 1 << 18), float(i)) for i in range(num)]
    return eg.TrainState(None, None, arrays, jnp.zeros((), jnp.int32))


class Peak:
    """How far what numpy holds rises in the body, in the state's eight megabytes.

    What is still held at its end is the body's result: a CPU's arrays may be numpy's.
    """

    def __enter__(self):
        tracemalloc.start()
        self.base = tracemalloc.get_traced_memory()[0]
        return self

    def __exit__(self, *_):
        now, peak = tracemalloc.get_traced_memory()
        self.states = (peak - max(self.base, now)) / (8 << 20)
        tracemalloc.stop()


def test_saving_and_restoring_copy_little(tmp_path):
    state = large(8)
    with Peak() as saving:
        eg.save(tmp_path / "one", state)
    with Peak() as restoring:
        restored = jax.block_until_ready(eg.restore(tmp_path / "one", state))
    with Peak() as digesting:
        eg.state_digest(state)
    # One copy on the host while the thread writes, also where saves follow each other.
    writer = CheckpointWriter(tmp_path / "two")
    with Peak() as background:
        for step in range(3):
            writer.save(eqx.tree_at(lambda state: state.step, state, jnp.int32(step)))
        writer.close()
    for peak, most in ((saving, 0.2), (restoring, 0.3), (digesting, 0.2)):
        assert peak.states < most
    assert eg.state_digest(restored) == eg.state_digest(state)
    assert background.states < 1.2


def test_a_part_is_restored(two_steps):
    directory, (_, tenth) = two_steps
    case = regression()
    other = Regression(optax.sgd(0.1)).init(case.state.model)
    with pytest.raises(ValueError, match=r'only=\["memory", "model", "step"\]'):
        eg.restore(directory, other)
    state = eg.restore(directory, other, only=["model", "step"])
    assert int(state.step) == 10
    assert eg.state_digest(state.model) == eg.state_digest(tenth.model)
    assert jax.tree.structure(state) == jax.tree.structure(other)
    begun = eg.restore(directory, other, only="model")
    assert int(begun.step) == 0
    eg.fit(Regression(optax.sgd(0.1)), state, case.data, key=KEY, num_steps=2)


def test_a_model_is_restored_in_its_own_precision(two_steps):
    directory, (_, tenth) = two_steps
    half = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16) if eqx.is_array(x) else x, tenth.model
    )
    model = eg.restore_model(directory, half)
    for a, b in zip(arrays(model), arrays(half), strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_array_equal(a, b)
    wider = eqx.nn.MLP(3, 1, 9, 1, key=KEY)
    with pytest.raises(ValueError, match=r"layers\[0\].weight: float32\[8, 3\] in the"):
        eg.restore_model(directory, wider)
    # A whole state is not cast in silence.
    with pytest.raises(ValueError, match=r"float32\[8\] in the checkpoint, bfloat16"):
        eg.restore(directory, eqx.tree_at(lambda state: state.model, tenth, half))


def test_wrong_arguments_are_named(two_steps):
    directory, (_, state) = two_steps
    with pytest.raises(TypeError, match="`directory` is a TrainState: pass the path"):
        eg.restore(state, directory)
    with pytest.raises(TypeError, match="`like` is a MLP: pass a state"):
        eg.restore(directory, state.model)
    with pytest.raises(TypeError, match="`like` is a whole state: pass its model"):
        eg.restore_model(directory, state)
    with pytest.raises(ValueError, match="`only` is 'weights': choose from model, opt"):
        eg.restore(directory, state, only="weights")
    with pytest.raises(TypeError, match="`state` is a MLP: pass a `TrainState`"):
        eg.save(directory, state.model)


def test_a_newer_format_is_refused_by_name(two_steps, tmp_path):
    original, (fifth, _) = two_steps
    directory = tmp_path / "copy"
    shutil.copytree(original, directory)
    path = directory / "10" / "manifest.json"
    body = {k: v for k, v in json.loads(path.read_text()).items() if k != "sha256"}
    newer = body | {"format": 3, "versions": {"effgen": "9.9"}}
    path.write_text(json.dumps(sealed(newer)))
    match = r"has format 3, of effgen 9\.9; this effgen.*upgrade effgen"
    with pytest.raises(ValueError, match=match):
        eg.restore(directory, fifth)
    # Nor is it moved out of the way of a run.
    case = regression()
    run = eg.train(case.trainer(), fifth, case.data, key=KEY, num_steps=1)
    with pytest.raises(ValueError, match=match):
        eg.checkpointed(run, directory)
    assert path.exists()


FIRST_FORMAT = Path(__file__).parent / "first_format"


def first_format():
    """Return the state that effgen 0.1.0 saved as step 3, through orbax."""
    model = {
        "half": jnp.arange(3, dtype=jnp.bfloat16),
        "empty": jnp.zeros((0, 3)),
        "keys": jax.random.split(jax.random.key(3), 2),
        "number": 0.5,
    }
    memory, step = jnp.arange(6.0).reshape(2, 3), jnp.asarray(3, jnp.int32)
    return eg.TrainState(model, None, memory, step)


class Settable:
    """An iterator that notes where it is set to."""

    position = None

    def __iter__(self):
        return self

    def __next__(self):
        raise StopIteration

    def get_state(self):
        return self.position

    def set_state(self, state):
        self.position = state


def test_the_first_format_is_read(tmp_path):
    pytest.importorskip("tensorstore")
    shutil.copytree(FIRST_FORMAT, tmp_path, dirs_exist_ok=True)
    expected, data = first_format(), Settable()
    like = jax.tree.map(
        lambda x: x[::-1] if eqx.is_array(x) and x.ndim else x, expected
    )
    state = eg.resume(tmp_path, like, data=data)
    assert eg.state_digest(state) == eg.state_digest(expected)
    assert data.position == b"\x01\x02"
    assert eg.restore_model(tmp_path, like.model)["half"].dtype == jnp.bfloat16
    # Damage is found there as well.
    for path in (tmp_path / "3" / "arrays").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-20] + bytes(20))
    with pytest.raises(eg.CorruptCheckpoint, match="step 3"):
        eg.restore(tmp_path, like)


def test_the_first_format_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(ImportError, match="pip install orbax-checkpoint"):
        eg.restore(FIRST_FORMAT, first_format())


def test_blocks_make_the_array(tmp_path):
    state = eg.shard(
        eg.TrainState.start(jnp.zeros(2), None, jnp.arange(16.0).reshape(8, 2)),
        eg.make_mesh(jax.devices()[:4]),
    )
    eg.save(tmp_path, state)
    back = eg.restore(tmp_path, jax.tree.map(jnp.zeros_like, state))
    np.testing.assert_array_equal(back.memory, state.memory)
    assert back.memory.sharding == state.memory.sharding
    alone = eg.TrainState.start(jnp.ones(2), None, jnp.ones((8, 2)))
    np.testing.assert_array_equal(eg.restore(tmp_path, alone).memory, state.memory)


def test_an_average_comes_back_where_none_is_asked_for(tmp_path):
    state = regression().state
    average = jax.tree.map(
        lambda x: x.astype(jnp.float16) + 1 if eqx.is_array(x) else x, state.model
    )
    where = lambda state: state.average
    saved = eqx.tree_at(where, state, average, is_leaf=lambda leaf: leaf is None)
    eg.save(tmp_path, saved)
    back = eg.restore(tmp_path, state)
    assert eg.state_digest(back) == eg.state_digest(saved)
    part = eg.restore(tmp_path, state, only="average")
    assert eg.state_digest(part.average) == eg.state_digest(average)
    assert eg.restore(tmp_path, state, only="model").average is None
    # One that was saved without takes no average from nowhere.
    eg.save(tmp_path / "without", state)
    with pytest.raises(ValueError, match=r'only=\["memory", "model", "opt_state", "s'):
        eg.restore(tmp_path / "without", saved)


def test_what_is_saved_now_stays_beside_newer_ones(tmp_path):
    early, _ = eg.fit(Total(), Total().init(), ones, key=KEY, num_steps=3)
    late, _ = eg.fit(Total(), early, ones, key=KEY, num_steps=3)
    eg.save(tmp_path, late, keep=1)
    eg.save(tmp_path, early, keep=1)
    assert saved_steps(tmp_path) == [3, 6]


def test_none_is_no_number_to_keep(tmp_path):
    with pytest.raises(ValueError, match="`keep` is 0: pass a positive integer"):
        eg.save(tmp_path, regression().state, keep=0)
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_other_settings_is_refused(tmp_path):
    """What is no array is no leaf, and yet part of a model."""

    class Scaled(eqx.Module):
        weight: jax.Array
        scale: float = eqx.field(static=True)

    state = lambda scale: eg.TrainState.start(Scaled(jnp.ones(2), scale), None, None)
    eg.save(tmp_path, state(1.0))
    assert eg.restore(tmp_path, state(1.0)).model.scale == 1.0
    with pytest.raises(
        ValueError, match=r"state.model.scale: 1.0 in the checkpoint, 3"
    ):
        eg.restore(tmp_path, state(3.0))
    with pytest.raises(ValueError, match=r"model.scale"):
        eg.restore_model(tmp_path, state(3.0).model)
    assert eg.restore(tmp_path, state(3.0), only=["step"]).model.scale == 3.0
