"""Where a state lives: meshes of several axes, parts of the optimizer's state."""

import functools
import re
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import P
from jax.experimental import multihost_utils

import effgen as eg
from effgen.core.devices.sharding import data_axes, num_parts, place_stack
from tests.cases import CASES, KEY, Regression, arrays
from tests.core.tiny import Total


# The ways in which the optimizer's state can be split, and over how many devices.
WAYS = {
    "all": (1, "data", 8),
    "within": (2, "data", 4),
    "between": (4, "groups", 4),
    "groups": (2, ("groups", "data"), 8),
}

every_way = pytest.mark.parametrize(
    ("groups", "optimizer", "parts"), WAYS.values(), ids=WAYS
)

made = functools.cache(lambda name: CASES[name]())


def shaped(*shapes):
    """Return a state whose optimizer keeps arrays of these shapes."""
    model = {"w": jnp.ones((8, 4)), "b": jnp.ones(3)}
    return eg.TrainState.start(model, tuple(map(jnp.zeros, shapes)), jnp.ones((16, 2)))


def specs(state):
    return [x.sharding.spec for x in jax.tree.leaves(state.opt_state)]


def run(case, state, num_steps=5):
    """Return the last state and the program of a run."""
    steps = eg.train(
        case.trainer(), state, case.data, key=KEY, num_steps=num_steps, every=num_steps
    )
    (state,) = [state for state, _ in steps]
    return state, steps.job.program.compiled


@functools.cache
def regression_run(groups, optimizer):
    """Return a run of a model large enough to count its bytes."""
    x = jax.random.normal(KEY, (64, 32))
    trainer = Regression(optax.adam(1e-3))
    model = eqx.nn.MLP(32, 32, 64, 2, key=KEY)
    state = trainer.init(model, jnp.zeros((4096, 8)))
    state = eg.shard(state, eg.make_mesh(groups=groups), optimizer=optimizer)
    data = eg.Minibatches((x, x), 32)
    run = eg.train(trainer, state, data, key=KEY, num_steps=3, every=3)
    (state,) = [state for state, _ in run]
    return state, run.job.program.compiled


def gathered(compiled):
    """Return the shapes that a program gathers."""
    found = []
    for line in compiled.as_text().splitlines():
        match = re.search(r"= (.*?) all-gather(-start)?\(", line)
        if match is not None:
            shapes = re.findall(r"\w\d+\[([\d,]*)\]", match[1])
            shapes = shapes[len(shapes) // 2 :] if match[2] else shapes
            found += [tuple(map(int, s.split(","))) if s else () for s in shapes]
    return found


def part_bytes(tree):
    """Return how many bytes of a tree the first device holds."""
    leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    return sum(x.addressable_shards[0].data.nbytes for x in leaves)


def test_a_mesh_has_the_axes_that_were_asked_for():
    assert eg.make_mesh().axis_names == ("data",)
    assert eg.make_mesh(model=2).shape == {"data": 4, "model": 2}
    mesh = eg.make_mesh(groups=2, model=2)
    assert mesh.shape == {"groups": 2, "data": 2, "model": 2}
    assert data_axes(mesh) == ("groups", "data")
    assert num_parts(mesh) == 4
    assert eg.make_mesh(groups=8).shape == {"groups": 8, "data": 1}
    # Neighbors are in one group, and share a part of the model.
    ids = np.vectorize(lambda device: device.id)(mesh.devices)
    np.testing.assert_array_equal(ids.reshape(-1), range(8))
    with pytest.raises(ValueError, match="`groups` is 3, which does not divide 8"):
        eg.make_mesh(groups=3)
    with pytest.raises(ValueError, match=r"`model \* groups` is 16"):
        eg.make_mesh(groups=4, model=4)
    with pytest.raises(ValueError, match="`groups` is 0"):
        eg.make_mesh(groups=0)


def test_a_mesh_of_one_s_own_has_two_data_axes_by_name():
    mesh = jax.make_mesh((2, 4), ("groups", "fast"))
    state = eg.shard(shaped((8,)), mesh, optimizer="fast")
    assert state.memory.sharding.spec == P(("groups", "fast"))
    assert specs(state) == [P("fast")]
    mesh = jax.make_mesh((2, 4), ("slow", "fast"))  # the second is the model's
    assert eg.shard(shaped((8,)), mesh).memory.sharding.spec == P("slow")
    assert specs(eg.shard(shaped((8,)), mesh)) == [P("fast")]


@pytest.mark.parametrize(
    ("sizes", "names"),
    [((2, 4), ("model", "data")), ((2, 2, 2), ("data", "model", "pipeline"))],
)
def test_axes_of_a_mesh_in_another_order_are_named(sizes, names):
    with pytest.raises(ValueError, match=f"`mesh` has the axes .*{names[-1]}"):
        eg.shard(shaped((8,)), jax.make_mesh(sizes, names))


def test_an_array_is_split_along_the_longest_axis_that_divides():
    shapes = ((8, 16), (8, 12), (3, 5), (), (0,), (6, 4), (24,))
    split = eg.shard(shaped(*shapes), eg.make_mesh(), optimizer="data")
    whole = P()
    expected = [P(None, "data"), P("data", None), whole, whole, whole, whole, P("data")]
    assert specs(split) == expected
    both = ("groups", "data")
    split = eg.shard(shaped(*shapes), eg.make_mesh(groups=2), optimizer=both)
    # Where no axis divides by eight, one divides by two and another by four.
    expected = [P(None, both), P(both, None), whole, whole, whole]
    assert specs(split) == [*expected, P("groups", "data"), P(both)]
    split = eg.shard(shaped(*shapes), eg.make_mesh(model=2), optimizer="data")
    assert specs(split)[0] == P("data", "model")
    assert specs(split)[6] == P(("model", "data"))
    assert split.model["w"].sharding.spec == P("model", None)


def test_by_default_the_optimizer_s_state_is_whole():
    state = eg.shard(shaped((8, 16)), eg.make_mesh(groups=2))
    assert specs(state) == [P()]
    assert state.model["w"].sharding.spec == P()
    assert state.memory.sharding.spec == P(("groups", "data"))
    assert eg.shard(shaped(()), eg.make_mesh(), optimizer="data").step.shape == ()


@pytest.mark.parametrize("wrong", ["model", "rows", ("data", "data"), ("data", "x")])
def test_axes_that_hold_no_data_are_named(wrong):
    with pytest.raises(ValueError, match="the mesh's data axes are"):
        eg.shard(shaped((8,)), eg.make_mesh(model=2), optimizer=wrong)


def test_memory_that_does_not_divide_over_groups_is_named():
    state = eg.TrainState.start({}, (), jnp.ones((12, 2)))
    with pytest.raises(ValueError, match=r"has 12 rows, which 8 devices.*use 16"):
        eg.shard(state, eg.make_mesh(groups=2))


@pytest.mark.one_case("groups")
@every_way
def test_a_way_of_splitting(groups, optimizer, parts):
    """Bytes a device, what is gathered, and the same result."""
    split, compiled = regression_run(groups, optimizer)
    whole, plain = regression_run(1, ())
    for a, b in zip(arrays(split.model), arrays(whole.model), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    check_bytes(split, compiled, parts)
    # After its update each parameter is gathered once, and nothing else is.
    assert sorted(gathered(compiled)) == sorted(x.shape for x in arrays(split.model))
    assert gathered(plain) == []
    for program in (compiled, plain):
        assert "all-reduce" in program.as_text()
        assert "all-to-all" not in program.as_text()


def check_bytes(state, compiled, parts):
    """The model is whole, the optimizer's state over `parts`, the memory over all."""
    model, opt_state = (
        sum(x.nbytes for x in arrays(tree)) for tree in (state.model, state.opt_state)
    )
    assert state.model.layers[0].weight.sharding.is_fully_replicated
    assert opt_state > 2 * model
    assert part_bytes(state.opt_state) == pytest.approx(opt_state / parts, rel=0.01)
    memory, data = state.memory.nbytes / 8, 2 * 64 * 32 * 4
    held = compiled.memory_analysis().argument_size_in_bytes
    assert held == pytest.approx(model + opt_state / parts + memory + data, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "groups", "optimizer"),
    [
        ("jarzynski", 2, ("groups", "data")),
        ("negative_cache", 2, "data"),
    ],
)
def test_trainers_in_parts_are_as_on_one_device(name, groups, optimizer):
    case = made(name)
    mesh = eg.make_mesh(groups=groups)
    split, _ = run(case, eg.shard(case.state, mesh, optimizer=optimizer))
    whole, _ = run(case, case.state)
    for a, b in zip(arrays(split.model), arrays(whole.model), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    rows = [x for x in jax.tree.leaves(split.memory) if eqx.is_array(x) and x.ndim]
    rows = [x for x in rows if len(x) > 1]  # one number, as of one block, is whole
    assert all(x.sharding.spec[0] == data_axes(mesh) for x in rows if groups > 1)


@pytest.mark.slow
def test_streams_are_split_over_groups():
    case = made("regression")
    data = [case.data.batch_at(jnp.array(i), key=KEY) for i in range(3)]
    state = eg.shard(case.state, eg.make_mesh(groups=2), optimizer="data")
    split, _ = eg.fit(case.trainer(), state, iter(data), key=KEY)
    whole, _ = eg.fit(case.trainer(), case.state, data, key=KEY)
    for a, b in zip(arrays(split.model), arrays(whole.model), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_rows_that_processes_cannot_share_are_named(monkeypatch):
    """Each would take its own rows for all, and the model would go apart."""
    mesh = eg.make_mesh()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    match = r"3 rows in each of 2 processes, which 8 parts .* a multiple of 4"
    with pytest.raises(ValueError, match=match):
        place_stack(np.zeros((1, 3, 2)), mesh)


def test_states_that_differ_between_processes_are_named(monkeypatch):
    others = lambda mine: np.stack([mine, mine + 1])
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", others)
    with pytest.raises(ValueError, match="`state` differs between processes"):
        eg.shard(shaped((8,)), eg.make_mesh())
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda x: x[None])
    assert specs(eg.shard(shaped((8,)), eg.make_mesh())) == [P()]


@pytest.mark.parametrize("name", ["trainer", "data", "key"])
def test_what_processes_have_to_share_is_named(name, monkeypatch):
    case = made("regression")
    state, seen = eg.shard(case.state, eg.make_mesh()), []

    def gathered(mine):
        seen.append(mine)
        apart = len(seen) == 1 + ["trainer", "data", "key"].index(name)
        return np.stack([mine, mine + apart])

    run = eg.train(case.trainer(), state, case.data, key=KEY, num_steps=1)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", gathered)
    with pytest.raises(ValueError, match=f"`{name}` differs between processes"):
        next(run)
    monkeypatch.undo()


@pytest.mark.parametrize("same", [True, False])
def test_rows_that_all_processes_bring_are_told_of(same, monkeypatch):
    """Two processes are played: the other says what this one does, or reads others."""
    state = eg.shard(Total().init(memory=jnp.zeros(8)), eg.make_mesh())
    data = [np.full(8, i, np.float32) for i in range(3)]
    run, seen = eg.train(Total(), state, data, key=KEY), []

    def gathered(mine):
        seen.append(mine)
        other = len(seen) == 5 and not same  # state's parts, the blocks, and the rows
        return np.stack([mine, mine + other])

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", gathered)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state, _ = eg.drain(run)
    assert float(state.model) == 24
    assert any("brings the same rows" in str(w.message) for w in caught) == same


def test_processes_that_train_apart_are_told(monkeypatch):
    state, data = Total().init(), [np.ones(1, np.float32)]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.warns(eg.RunWarning, match="`state` is on no mesh: each of 2 proc"):
        eg.train(Total(), state, data, key=KEY)


def test_checkpoints_go_from_one_placement_to_another(tmp_path):
    case = made("regression")
    state = eg.shard(case.state, eg.make_mesh(groups=2), optimizer=("groups", "data"))
    steps = eg.train(case.trainer(), state, case.data, key=KEY, num_steps=3, every=3)
    (state,) = [state for state, _ in eg.checkpointed(steps, tmp_path, every=3)]
    whole = eg.restore(tmp_path, case.state)
    within = eg.shard(case.state, eg.make_mesh(groups=2), optimizer="data")
    assert eg.state_digest(whole) == eg.state_digest(state)
    back = eg.restore(tmp_path, within)
    assert eg.state_digest(back) == eg.state_digest(state)
    assert specs(back) == specs(within)


@pytest.mark.slow
@every_way
@pytest.mark.parametrize("name", CASES)
def test_every_trainer_in_every_way(name, groups, optimizer, parts):
    case = made(name)
    split = eg.shard(case.state, eg.make_mesh(groups=groups), optimizer=optimizer)
    split, whole = run(case, split)[0], run(case, case.state)[0]
    for a, b in zip(arrays(split.model), arrays(whole.model), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
