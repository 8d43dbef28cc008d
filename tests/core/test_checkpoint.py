"""Checkpoints: bit for bit, verified, and never a wrong one."""

import shutil
import subprocess
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from tests.cases import KEY, Regression, arrays, jarzynski, regression


def odd_state():
    model = {
        "float": jnp.array([1.5, -0.0, jnp.inf], jnp.float32),
        "half": jnp.arange(5, dtype=jnp.bfloat16),
        "bool": jnp.array([True, False]),
        "empty": jnp.zeros((0, 3)),
        "scalar": jnp.array(3, jnp.int8),
        "complex": jnp.array([1 + 2j], jnp.complex64),
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


@pytest.mark.parametrize(("saved", "restored"), [(8, 1), (1, 8), (8, 2), (4, 8)])
def test_a_checkpoint_fits_any_mesh(saved, restored, tmp_path):
    case = jarzynski()

    def placed(num):
        if num == 1:
            return case.state
        return eg.shard(case.state, eg.make_mesh(jax.devices()[:num]))

    eg.save(tmp_path, placed(saved))
    back = eg.restore(tmp_path, placed(restored))
    assert eg.state_digest(back) == eg.state_digest(case.state)
    positions = back.memory.walkers.positions
    assert len(positions.sharding.device_set) == restored
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


@pytest.mark.parametrize(("like", "match"), other_states())
def test_a_checkpoint_of_something_else_is_told_leaf_by_leaf(like, match, tmp_path):
    eg.save(tmp_path, regression().state)
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


def damage_cases():
    """Return kinds of damage, the file's number, and where in it."""
    rng = np.random.default_rng(0)
    kinds = ("truncate", "delete", "empty")
    flips = [("flip", i % 12, rng.random()) for i in range(60)]
    return [(kind, i, 0.5) for kind in kinds for i in range(12)] + flips


@pytest.mark.parametrize(("kind", "number", "where"), damage_cases())
def test_damage_is_found_or_harmless(kind, number, where, two_steps, tmp_path):
    original, (fifth, tenth) = two_steps
    directory = tmp_path / "copy"
    shutil.copytree(original, directory)
    files = files_of(directory)
    path = files[number % len(files)]
    content = bytearray(path.read_bytes())
    if kind == "delete":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif content:
        bit = int(where * len(content) * 8)
        content[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(content)
    state, older = restored_or_older(directory, fifth)
    assert eg.state_digest(state) == eg.state_digest(fifth if older else tenth)


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
    partial = directory / "15.orbax-checkpoint-tmp-1"
    shutil.copytree(directory / "10", partial)
    state = eg.restore(directory, fifth)
    assert eg.state_digest(state) == eg.state_digest(tenth)
    case = regression()
    run = eg.train(case.trainer(), state, case.data, key=KEY, num_steps=1)
    eg.drain(eg.checkpointed(run, directory, every=5))
    assert not partial.exists()


def test_saving_copies_what_the_next_chunk_changes(tmp_path):
    case = regression()
    run = eg.train(case.trainer(), case.state, case.data, key=KEY, num_steps=400)
    states = [s for s, _ in eg.checkpointed(run, tmp_path, every=1, keep=400)]
    for state in states[::37]:
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
