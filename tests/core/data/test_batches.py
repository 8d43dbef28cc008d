"""Sources of batches: on the device, on disk, in turn."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import effgen as eg
from effgen.core.data.rows import check_width
from effgen.core.data.shuffle import shuffled
from tests.cases import KEY, regression, regression_data
from tests.core.tiny import Total


@eqx.filter_jit
def taken(batches, step):
    return batches.batch_at(step, key=KEY)


def epoch(batches, number, length):
    steps = range(number * length, (number + 1) * length)
    return np.concatenate([np.asarray(taken(batches, jnp.array(i))) for i in steps])


@pytest.mark.parametrize(("rows", "size"), [(12, 4), (13, 4), (100, 7), (5, 5), (1, 1)])
def test_an_epoch_visits_each_row_at_most_once(rows, size):
    batches = eg.Minibatches(jnp.arange(rows), size)
    first, second = (epoch(batches, i, rows // size) for i in (0, 1))
    assert len(set(first.tolist())) == len(first) == rows // size * size
    if rows > 10:
        assert first.tolist() != second.tolist()


def test_left_over_rows_change_with_the_epoch():
    batches = eg.Minibatches(jnp.arange(13), 4)
    left = {
        (set(range(13)) - set(epoch(batches, i, 3).tolist())).pop() for i in range(9)
    }
    assert len(left) > 3


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 100, 1000, 1025])
def test_shuffled_is_a_permutation(size):
    order = jax.jit(lambda e: shuffled(jnp.arange(size), size, e, key=KEY))
    for number in range(3):
        assert sorted(order(number).tolist()) == list(range(size))


def test_shuffled_is_uniform():
    # Where row 0 and the pair (row 0, row 1) go, over many epochs, by chi-square.
    size, epochs = 7, 20_000
    order = jax.vmap(lambda e: shuffled(jnp.arange(size), size, e, key=KEY))
    table = np.asarray(order(jnp.arange(epochs)))
    for column in range(size):
        counts = np.bincount(table[:, column], minlength=size)
        chi_square = ((counts - epochs / size) ** 2 / (epochs / size)).sum()
        assert chi_square < 30  # six degrees of freedom: one in 25,000
    pairs = np.bincount(table[:, 0] * size + table[:, 1], minlength=size * size)
    pairs = pairs[pairs > 0]
    expected = epochs / (size * (size - 1))
    assert len(pairs) == size * (size - 1)
    assert ((pairs - expected) ** 2 / expected).sum() < 90  # 41 degrees of freedom


def test_batches_are_rows_of_every_leaf():
    x, y = regression_data()
    batch = eg.Minibatches({"x": x, "y": y}, 8)(KEY)
    for row, value in zip(batch["x"], batch["y"], strict=True):
        np.testing.assert_allclose(jnp.sin(row.sum()), value[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("arrays", "size", "error", "match"),
    [
        ((np.zeros(4), np.zeros(5)), 2, ValueError, r"arrays\[0\]: 4, arrays\[1\]: 5"),
        (np.zeros(4), 5, ValueError, "`batch_size` is 5 but there are 4 rows"),
        (np.zeros(4), 0, ValueError, "between 1 and 4"),
        (np.zeros(4), 2.0, TypeError, "`batch_size` is 2.0"),
        (np.array(["a"]), 1, TypeError, "encode it as numbers"),
        (np.zeros(()), 1, ValueError, "is a scalar"),
        ([1.0, 2.0], 1, TypeError, "is a float"),
        ((), 1, ValueError, "holds no array"),
        (np.zeros((0, 3)), 1, ValueError, "has no rows"),
        (np.arange(4) + 2**40, 2, ValueError, "the device keeps int32"),
    ],
)
def test_arrays_that_make_no_batches_are_named(arrays, size, error, match):
    with pytest.raises(error, match=match):
        eg.Minibatches(arrays, size)


def test_a_memory_map_stays_on_disk(tmp_path):
    rows = np.memmap(tmp_path / "x", np.float32, "w+", shape=(20, 3))
    rows[:] = np.arange(60).reshape(20, 3)
    with pytest.raises(TypeError, match=r"effgen\.HostMinibatches"):
        eg.Minibatches(rows, 4)
    batches = eg.HostMinibatches(rows, 4)
    seen = np.concatenate([batches.batch_at(i, key=KEY) for i in range(5)])
    np.testing.assert_array_equal(np.sort(seen, axis=0), rows)
    assert not np.array_equal(seen, rows)


def test_a_column_s_rows_are_taken_by_position():
    """Its labels are in another order, as after a sort."""
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"x": np.arange(6.0), "y": np.arange(6)})
    frame = frame.sort_values("x", ascending=False)
    arrays = {"x": frame["x"], "y": frame["y"].to_numpy()}
    for batches in (eg.Minibatches(arrays, 6), eg.HostMinibatches(arrays, 6)):
        batch = batches.batch_at(0, key=KEY)
        np.testing.assert_array_equal(batch["x"], batch["y"])
    with pytest.raises(TypeError, match=r"`arrays\['x'\]` has dtype "):
        eg.HostMinibatches({"x": frame["y"].astype(str)}, 2)


class Tensor:
    """An array of another library: rows that would be taken for batches."""

    shape, dtype = (8, 2), "float32"

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return np.zeros(2, np.float32)


@pytest.mark.parametrize("data", [Tensor(), (Tensor(), Tensor())])
def test_a_tensor_is_one_batch(data):
    with pytest.raises(TypeError, match="is one batch and not a source"):
        eg.fit(Total(), Total().init(), data, key=KEY)


def test_an_array_of_another_library_is_named():
    tensor = Tensor()
    tensor.dtype = "float33"
    with pytest.raises(TypeError, match="`arrays` has dtype float33"):
        eg.HostMinibatches(tensor, 2)


def test_minibatches_on_the_host_have_no_end():
    batches = eg.HostMinibatches(np.zeros((6, 2)), 2)
    with pytest.raises(ValueError, match=r"`num_steps` is needed: .* HostMin"):
        eg.fit(Total(), Total().init(), batches, key=KEY)


class Broken:
    """A dataset whose third item fails, as of a list that is too short."""

    def __len__(self):
        return 9

    def __getitem__(self, index):
        return np.float32([[1, 2, 3][index]])


def broken_iterator():
    dataset = Broken()
    for i in range(9):
        yield dataset[i]


@pytest.mark.parametrize("make", [Broken, broken_iterator])
def test_an_index_error_of_the_data_is_no_end(make):
    with pytest.raises(eg.TrainingError, match="the data raised IndexError") as caught:
        eg.fit(Total(), Total().init(), make(), key=KEY)
    assert caught.value.result == eg.RESULTS.data_failed
    assert caught.value.step == 3


class Exhausted(eg.AbstractHostBatches):
    """Its data end as they should, or by what ends iterators."""

    def __init__(self, error):
        self.error = error

    def batch_at(self, step, *, key):
        if step == 3:
            raise self.error
        return np.ones(1, np.float32)


def test_batches_on_the_host_end_by_an_index_error():
    state, _ = eg.fit(Total(), Total().init(), Exhausted(IndexError()), key=KEY)
    assert int(state.step) == 3
    with pytest.raises(eg.TrainingError, match="`batch_at` raised StopIteration"):
        eg.fit(Total(), Total().init(), Exhausted(StopIteration()), key=KEY)


def test_a_function_that_ignores_its_key_is_refused():
    """It would be traced once, and one batch would serve for all steps."""
    rng, rows = np.random.default_rng(0), np.arange(96.0)

    def picked(key):
        return jnp.asarray(rows[rng.integers(96, size=4)])

    def scaled(key):
        return jax.random.normal(key, (4,)) * rng.normal()

    for draw in (picked, scaled):
        with pytest.raises(ValueError, match="gives other batches for the same key"):
            eg.train(Total(), Total().init(), draw, key=KEY, num_steps=2)

    def counted(key):  # as of libraries that number what they trace
        picks = jnp.asarray([rng.normal(), 1.0], jnp.float32)
        return jax.random.normal(key, (4,)) * picks[1]

    eg.train(Total(), Total().init(), counted, key=KEY, num_steps=2)
    with pytest.raises(ZeroDivisionError):  # of its own, from the run
        eg.fit(Total(), Total().init(), lambda key: 1 / 0, key=KEY, num_steps=1)
    constant = jnp.asarray(rows).at[0].set(jnp.nan)  # and the same at every step
    eg.train(Total(), Total().init(), lambda key: constant, key=KEY, num_steps=2)


def test_arrays_may_be_written_to_once_batches_are_made():
    rows = np.zeros((64, 16), np.float32)
    batches = eg.Minibatches(rows, 64)
    rows[:] = 1
    assert float(batches.batch_at(0, key=KEY).sum()) == 0


def host_case(tmp_path):
    case = regression()
    x, y = (np.asarray(a) for a in regression_data())
    disk = np.memmap(tmp_path / "x", np.float32, "w+", shape=x.shape)
    disk[:] = x
    return case._replace(data=eg.HostMinibatches((disk, y), 16))


def mapped_case(tmp_path):
    import grain

    case = regression()
    x, y = (np.asarray(a) for a in regression_data())
    rows = grain.MapDataset.source(list(zip(x, y, strict=True)))
    return case._replace(data=rows.shuffle(seed=1).batch(16).repeat(100))


def list_case(tmp_path):
    case = regression()
    made = [taken(case.data, jnp.array(i)) for i in range(40)]
    return case._replace(data=made)


@pytest.mark.parametrize("make", [host_case, mapped_case, list_case])
def test_host_sources_resume_by_their_step(make, tmp_path):
    case = make(tmp_path)
    whole, _ = eg.fit(case.trainer(), case.state, case.data, key=KEY, num_steps=31)
    half, _ = eg.fit(case.trainer(), case.state, case.data, key=KEY, num_steps=13)
    rest, _ = eg.fit(case.trainer(), half, case.data, key=KEY, num_steps=18)
    assert eg.state_digest(whole) == eg.state_digest(rest)


def grain_stream():
    import grain

    x, y = (np.asarray(a) for a in regression_data())
    rows = grain.MapDataset.source(list(zip(x, y, strict=True))).shuffle(seed=1)
    return eg.Stream(rows.repeat(50).to_iter_dataset().batch(16))


@pytest.mark.slow
def test_a_stream_s_state_is_saved_and_set_back(tmp_path):
    case = regression()
    whole, _ = eg.fit(case.trainer(), case.state, grain_stream(), key=KEY, num_steps=31)
    run = eg.train(
        case.trainer(), case.state, grain_stream(), key=KEY, num_steps=13, every=5
    )
    eg.drain(eg.checkpointed(run, tmp_path, every=10))
    stream = grain_stream()
    state = eg.resume(tmp_path, case.state, data=stream)
    assert int(state.step) == 13
    rest, _ = eg.fit(case.trainer(), state, stream, key=KEY, num_steps=18)
    assert eg.state_digest(whole) == eg.state_digest(rest)


def test_a_generator_gives_no_more_than_is_asked():
    case = regression()
    batch, taken = regression_data(), []

    def generate():
        for i in itertools.count():
            taken.append(i)
            yield batch

    stream = generate()
    state, _ = eg.fit(case.trainer(), case.state, stream, key=KEY, num_steps=70)
    assert len(taken) == 70
    eg.fit(case.trainer(), state, stream, key=KEY, num_steps=5)
    assert len(taken) == 75


def test_batches_of_other_sizes_are_taken():
    case = regression()
    x, y = regression_data()
    data = [(x[:16], y[:16]), (x[:16], y[:16]), (x[:7], y[:7]), (x[:16], y[:16])]
    _, history = eg.fit(case.trainer(), case.state, iter(data), key=KEY)
    assert history["loss"].shape == (4,)


def test_data_that_end_early_say_so():
    case = regression()
    with pytest.warns(eg.RunWarning, match="ended before `num_steps`"):
        state, history = eg.fit(
            case.trainer(), case.state, [regression_data()] * 3, key=KEY, num_steps=9
        )
    assert int(state.step) == 3
    assert history.result == eg.RESULTS.data_exhausted


def test_a_source_that_raises_loses_nothing():
    case = regression()

    def generate():
        yield from [regression_data()] * 3
        raise OSError("the disk went away")

    with pytest.raises(eg.TrainingError, match="the disk went away") as caught:
        eg.fit(case.trainer(), case.state, generate(), key=KEY)
    assert caught.value.result == eg.RESULTS.data_failed
    assert int(caught.value.state.step) == 3


def test_integers_too_wide_for_the_device_stop_a_run():
    """Three good batches, then numbers that JAX would wrap around."""
    batches = [np.full(2, 2**31 - 1), np.full(2, -(2**31)), np.zeros(2, np.int64)]
    batches.append(np.full(2, 2**31))
    state, _ = eg.fit(Total(), Total().init(), batches[:3], key=KEY)
    assert float(state.model) == 0  # in float32 the two cancel
    with pytest.raises(eg.TrainingError, match="to 2147483648, and"):
        eg.fit(Total(), Total().init(), batches[2:], key=KEY)


def test_wide_integers_of_jax_pass_from_a_thread_without_them():
    """`enable_x64` holds in one thread; batches are read in another."""
    with jax.enable_x64(True):
        wide = jnp.full(2, 2**40)
    assert wide.dtype == jnp.int64
    check_width("batch", wide)


@pytest.mark.slow
def test_a_function_of_a_key_is_a_source():
    case = regression()

    def draw(key):
        x = jax.random.normal(key, (16, 3))
        return x, x.sum(axis=1, keepdims=True)

    _, history = eg.fit(case.trainer(), case.state, draw, key=KEY, num_steps=20)
    assert len(set(history["loss"].tolist())) == 20


def test_masked_entries_are_refused():
    """NumPy's arrays lose their mask, and what is under it is a value."""
    x = np.ma.masked_array(np.ones((8, 2), np.float32), np.eye(8, 2))
    for batches in (eg.Minibatches, eg.HostMinibatches):
        with pytest.raises(ValueError, match="`arrays` is a masked array with 2"):
            batches(x, 4)
    with pytest.raises(eg.TrainingError, match="`batch` is a masked array"):
        eg.fit(Total(), Total().init(), [x, x], key=KEY)
    with pytest.raises(ValueError, match="masked"):
        eg.extrapolate(np.ma.masked_array(np.ones(50), np.arange(50) == 3), at=99)


def test_a_sequence_past_its_end_is_told_of():
    """Epochs by a loop over `fit` train in the first alone."""
    batches = [jnp.ones(1)] * 3
    state, _ = eg.fit(Total(), Total().init(), batches, key=KEY)
    with pytest.warns(eg.RunWarning, match="3 batches.*at step 3"):
        again, _ = eg.fit(Total(), state, batches, key=KEY)
    assert int(again.step) == 3
