"""The contract that every trainer is held to."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen.core.running.program import compiled_program
from tests.cases import CASES, KEY, Regression, Traces, arrays, regression
from tests.conftest import both_drivers


# One or two of each kind; the others are held to the same in `make slow`.
ALWAYS = {
    *("regression", "jarzynski", "rbm", "latent_sde"),
    *("derivative_matching", "negative_cache", "in_batch"),
}


def cases(always):
    marks = {name: [] if name in always else [pytest.mark.slow] for name in CASES}
    return [pytest.param(name, marks=marks[name]) for name in CASES]


@pytest.fixture(scope="module", params=cases(ALWAYS))
def case(request):
    """Return one case after another: what tests share is made and compiled once."""
    return CASES[request.param]()


@pytest.fixture(scope="module")
def step(case):
    return eqx.filter_jit(case.trainer().step)


@pytest.fixture(scope="module")
def batch(case):
    return eqx.filter_jit(case.data.batch_at)(jnp.array(0), key=KEY)


def run(case, state, num_steps, every=7):
    """Train through `train`, in yields of `every`; return the last state's digest."""
    run = eg.train(
        case.trainer(), state, case.data, key=KEY, num_steps=num_steps, every=every
    )
    return [state for state, _ in run][-1]


# The others' steps are shown to be pure by runs that are cut, to the bit.
MAPPED = {"regression", "jarzynski"}


@pytest.mark.parametrize("case", cases(MAPPED | {"negative_cache"}), indirect=True)
def test_step_is_pure(case, step, batch):
    before = arrays(case.state)
    first, first_metrics = step(case.state, batch, key=KEY)
    second, second_metrics = step(case.state, batch, key=KEY)
    assert eg.state_digest(first) == eg.state_digest(second)
    for a, b in zip(arrays(first_metrics), arrays(second_metrics), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(before, arrays(case.state), strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(first.step) == int(case.state.step) + 1


def test_cutting_and_resuming_change_no_bit_and_take_one_program(case):
    check_cutting(case)


# An RBM's walkers are split as others are.
@pytest.mark.parametrize("case", cases(ALWAYS - {"rbm"}), indirect=True)
def test_sharded_equals_unsharded(case):
    mesh = eg.make_mesh()
    whole = run(case, case.state, 10)
    split = run(case, eg.shard(case.state, mesh), 10)
    for a, b in zip(arrays(whole.model), arrays(split.model), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    leaves = [x for x in jax.tree.leaves(split.memory) if eqx.is_array(x) and x.ndim]
    leaves = [x for x in leaves if len(x) > 1]  # one number, as of one block, is whole
    assert all(len(x.sharding.device_set) == 8 for x in leaves)
    assert all(not x.is_fully_replicated for x in leaves)


@pytest.mark.parametrize(
    ("name", "driver"),
    [
        ("regression", "scan"),
        ("regression", "dispatch"),
        pytest.param("negative_cache", "dispatch", marks=pytest.mark.slow),
        pytest.param("images", "scan", marks=pytest.mark.slow),
        pytest.param("images", "dispatch", marks=pytest.mark.slow),
        pytest.param("latent_sde", "dispatch", marks=pytest.mark.slow),
    ],
    indirect=["driver"],
)
def test_either_driver_changes_no_bit(name, driver):
    check_cutting(CASES[name]())


def check_cutting(case):
    compiled_program.cache_clear()
    before = arrays((case.state, case.data))
    whole = eg.state_digest(run(case, case.state, 40))
    for every in (1, 100):
        assert eg.state_digest(run(case, case.state, 40, every)) == whole
    for stop in (1, 13, 39):
        state = run(case, case.state, stop)
        assert eg.state_digest(run(case, state, 40 - stop)) == whole
    state, _ = eg.fit(case.trainer(), case.state, case.data, key=KEY, num_steps=40)
    assert eg.state_digest(state) == whole
    assert compiled_program.cache_info().misses == 1
    for a, b in zip(before, arrays((case.state, case.data)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_step_s_python_runs_once(tmp_path):
    compiled_program.cache_clear()
    case, traces = regression(), Traces()
    trainer = Regression(optax.adam(1e-3), traces)
    state = trainer.init(case.state.model)
    for num_steps, every in ((1, 1), (25, 10), (13, 100)):
        made = eg.train(
            trainer, state, case.data, key=KEY, num_steps=num_steps, every=every
        )
        made = eg.logged(eg.progress(made), tmp_path / f"{num_steps}.jsonl")
        eg.drain(eg.checkpointed(made, tmp_path / f"{num_steps}", every=4))
    state = eg.restore(tmp_path / "25", state)
    eg.fit(trainer, state, case.data, key=KEY, num_steps=9)
    assert len(traces) == 1


@pytest.mark.parametrize("every", [1, 7, 100])
@both_drivers
def test_resume_is_exact_from_every_step(driver, every):
    case = regression()
    whole = eg.state_digest(run(case, case.state, 61))
    steps = eg.train(
        case.trainer(), case.state, case.data, key=KEY, num_steps=60, every=1
    )
    states = [state for state, _ in steps]
    assert [int(s.step) for s in states] == list(range(1, 61))
    for state in states[:: 1 if every == 100 else 7]:
        rest = 61 - int(state.step)
        assert eg.state_digest(run(case, state, rest, every)) == whole


@pytest.mark.parametrize("case", cases(MAPPED), indirect=True)
def test_seeds_can_be_mapped(case, step, batch):
    keys = jax.random.split(KEY, 3)

    @eqx.filter_jit
    def mapped(state, keys):
        return eqx.filter_vmap(lambda key: case.trainer().step(state, batch, key=key))(
            keys
        )

    states, _ = mapped(case.state, keys)
    one, _ = step(case.state, batch, key=keys[1])
    second = jax.tree.map(lambda x: x[1], eqx.filter(states, eqx.is_array))
    for a, b in zip(arrays(second), arrays(one), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
