"""The cache: what it holds, what is written to it, and what it refuses."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import effgen as eg
from effgen import retrieval_cache as rc
from effgen.retrieval_cache.cache.lookup import rows_of
from effgen.retrieval_cache.cache.refresh import StepEmbeddings, oldest
from effgen.retrieval_cache.data import content_digests
from effgen.retrieval_cache.data.pairs import Marks
from effgen.retrieval_cache.encoders.towers import in_parts
from tests.retrieval_cache.cases import KEY, corpus, drifted, filled, towers


STEP = jnp.asarray(7)


def marks_of(numbers):
    numbers = jnp.asarray(numbers, jnp.int32)
    return Marks(numbers, content_digests(numbers[:, None]))


def seen_of(model, slots, numbers, drift=1.0):
    """Return what a step on some documents has embedded."""
    slots, documents = jnp.asarray(slots, jnp.int32), jnp.asarray(numbers)[:, None]
    return StepEmbeddings(
        slots,
        model.document(slots[:, None]),
        documents,
        marks_of(numbers),
        model.document(documents),
        len(numbers),
        jnp.asarray(drift),
    )


@eqx.filter_jit
def refreshed(policy, cache, model, seen, key=KEY):
    return policy(cache, seen, model.document, STEP, key=key)


@eqx.filter_jit
def written(cache, slots, embeddings):
    return cache.written(slots, embeddings, STEP)


def fresh_rows(cache, model):
    """Return which rows hold what their document is now."""
    return set(np.flatnonzero(np.asarray(are_fresh(cache, model))).tolist())


@eqx.filter_jit
def are_fresh(cache, model):
    now = model.document(cache.items)
    return (jnp.abs(cache.rows.embeddings() - now).max(axis=1) < 1e-6) & cache.valid


def test_a_filled_cache_holds_the_corpus():
    model = towers()
    cache = filled(model)
    assert cache.capacity >= 120
    assert cache.capacity % 8 == 0
    assert int(cache.valid.sum()) == 120
    np.testing.assert_array_equal(cache.ids[:120], np.arange(120))
    np.testing.assert_allclose(
        cache.rows.embeddings()[:120], model.document(corpus()), atol=1e-6
    )
    assert fresh_rows(cache, model) == set(range(120))


def test_digests_are_of_content_alone():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 60_000, (50_000, 6))
    narrow = content_digests(jnp.asarray(tokens, jnp.uint16))
    np.testing.assert_array_equal(narrow, content_digests(jnp.asarray(tokens)))
    assert len(np.unique(narrow)) > 49_990
    swapped = content_digests(jnp.asarray(tokens[:, ::-1]))
    assert np.mean(np.asarray(swapped == narrow)) < 1e-3
    floats = jnp.asarray([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0]])
    a, b, c = content_digests(floats)
    assert a == b != c
    assert int(narrow.min()) >= 0


def test_digests_are_of_all_64_bits():
    numbers = np.array([[5], [-5], [2**32 + 5], [2**40 + 5], [2**32 - 5]])
    with jax.enable_x64(True):
        wide = content_digests(jnp.asarray(numbers))
    narrow = content_digests(jnp.asarray(numbers[:2].astype(np.int32)))
    np.testing.assert_array_equal(wide[:2], narrow)
    assert len(np.unique(wide[:4])) == 4


def test_documents_are_found_by_number_or_content():
    cache = filled(towers())
    order = jax.random.permutation(KEY, cache.capacity)
    mixed = jax.tree.map(lambda x: x[order] if x.ndim else x, cache)
    find = eqx.filter_jit(lambda cache, marks: cache.find(marks))
    for one in (cache, mixed):
        slots = find(one, marks_of([3, 119, 500]))
        np.testing.assert_array_equal(one.ids[slots[:2]], [3, 119])
        assert int(slots[2]) == one.capacity
        unnumbered = marks_of([3, 119])._replace(ids=jnp.full(2, -1))
        np.testing.assert_array_equal(find(one, unnumbered), slots[:2])


@pytest.mark.parametrize("kinds", [5, 40, 3_000])
def test_the_first_row_of_a_key_is_found(kinds):
    """Of keys that mark many rows each, a few, or mostly one or none."""
    rng = np.random.default_rng(0)
    keys, valid = rng.integers(0, kinds, 2_000), rng.random(2_000) < 0.9
    wanted = np.concatenate([rng.integers(0, kinds, 30), [keys[0], keys[0], -1]])
    found = rows_of(jnp.asarray(keys), jnp.asarray(valid), jnp.asarray(wanted))
    for key, row in zip(wanted, found, strict=True):
        rows = np.flatnonzero((keys == key) & valid)
        assert int(row) == (rows[0] if len(rows) else 2_000)


def test_embeddings_that_are_not_finite_are_not_written():
    model = towers()
    cache = filled(model)
    bad = jnp.full((2, 8), jnp.nan).at[1].set(1.0)
    new = written(cache, jnp.asarray([4, 5]), bad)
    np.testing.assert_array_equal(
        new.rows.take(jnp.asarray([4])).embeddings(),
        cache.rows.take(jnp.asarray([4])).embeddings(),
    )
    assert int(new.stamps[4]) == 0
    assert int(new.stamps[5]) == 7
    assert bool(jnp.all(jnp.isfinite(new.rows.embeddings())))


def test_a_free_row_is_not_written():
    model = towers()
    cache = filled(model, capacity=160)
    new = written(cache, jnp.asarray([150, 3]), jnp.ones((2, 8)))
    assert int(new.stamps[150]) == -1
    assert int(new.stamps[3]) == 7
    with pytest.raises(ValueError, match=r"of 120 documents are not finite \(row 0"):
        cache.rebuilt(lambda x: jnp.full((len(x), 8), jnp.nan))
    # What an encoder makes of a free row's blank document is left out.
    ones = lambda x: jnp.where(jnp.arange(len(x))[:, None] < 120, 1.0, jnp.nan)
    again = cache.rebuilt(lambda x: jnp.ones((len(x), 8)) * ones(x), batch_size=160)
    assert bool(jnp.all(jnp.isfinite(again.rows.embeddings())))


@pytest.mark.slow
def test_what_was_embedded_is_written_back():
    old = towers()
    cache, new = filled(old), drifted(old)
    after = refreshed(rc.WriteBack(), cache, new, seen_of(new, [3, 3, 50], [7, 200]))
    assert fresh_rows(after, new) == {3, 7, 50}
    np.testing.assert_array_equal(after.stamps[jnp.asarray([3, 7, 50])], 7)


@pytest.mark.slow
def test_the_oldest_rows_are_refreshed_in_turn():
    old = towers()
    cache, new = filled(old), drifted(old)
    policy, seen = rc.OldestFirst(0.1), seen_of(new, [0], [0])
    each = round(0.1 * cache.capacity)
    for step in range(1, -(-120 // each) + 1):
        cache = policy(cache, seen, new.document, jnp.asarray(step), key=KEY)
        assert len(fresh_rows(cache, new)) == min(120, step * each)


@pytest.mark.slow
def test_the_oldest_of_many_rows_are_found_block_by_block():
    cache = rc.NegativeCache.empty(corpus(1), 4, 1 << 12)
    ids = jnp.arange(1 << 12).at[100:900].set(-1)
    stamps = jax.random.permutation(KEY, 1 << 12).astype(jnp.int32)
    cache = eqx.tree_at(lambda c: (c.ids, c.stamps), cache, (ids, stamps))
    for num in (1, 7, 60, 500):
        found = oldest(cache, num)
        order = np.argsort(np.where(ids >= 0, stamps, 1 << 20))[:num]
        np.testing.assert_array_equal(found, order)


@pytest.mark.parametrize("num", [3, 8, 20])
def test_what_is_refreshed_is_embedded_a_chunk_at_a_time(num):
    model = towers()
    cache, sizes = filled(drifted(model)), []

    def encode(items):
        sizes.append(len(items))
        return model.document(items)

    seen = seen_of(model, [0], [0])._replace(chunk=8)
    policy = rc.OldestFirst(num / cache.capacity)
    renewing = eqx.filter_jit(lambda cache: policy(cache, seen, encode, 5, key=KEY))
    new = renewing(cache)
    assert max(sizes) <= 8
    renewed = np.asarray(new.stamps) == 5
    assert renewed.sum() == num
    right = np.asarray(model.document(corpus()))
    held = np.asarray(new.rows.embeddings())[:120]
    np.testing.assert_allclose(held[renewed[:120]], right[renewed[:120]], rtol=1e-5)


def test_embeddings_are_the_same_made_in_parts():
    table = towers().document
    for size in (1, 7, 60, 120, 500):
        found = in_parts(table, corpus(), size)
        np.testing.assert_allclose(found, table(corpus()), rtol=1e-6)


def test_random_rows_are_refreshed():
    old = towers()
    cache, new = filled(old), drifted(old)
    after = refreshed(rc.RandomRows(0.2), cache, new, seen_of(new, [0], [0]))
    assert 10 < len(fresh_rows(after, new)) < 26
    assert fresh_rows(cache, new) == set()


def test_a_budget_is_spent_where_scores_drift():
    old = towers()
    cache, new = filled(old), drifted(old)
    policy = rc.Budget(share=0.3, drift=0.1)
    still = refreshed(policy, cache, new, seen_of(new, [0] * 4, [0] * 4, drift=0.05))
    assert fresh_rows(still, new) == set()
    after = refreshed(policy, cache, new, seen_of(new, [0] * 4, [0] * 4, drift=0.2))
    # Twelve are trained: 3 x 12 thirds of 0.7 of the step leave 15 for 0.3 of it.
    assert len(fresh_rows(after, new)) == 15


@pytest.mark.slow
def test_a_stream_takes_documents_in_over_the_oldest():
    model = towers()
    cache = rc.NegativeCache.empty(corpus(1), 8, 10)
    policy = rc.PositivesIn()
    for step, numbers in enumerate(([1, 2, 3, 4], [5, 6, 7, 5], [8, 1, 9, 10])):
        seen = seen_of(model, [0], numbers)
        cache = policy(cache, seen, model.document, jnp.asarray(step), key=KEY)
    assert sorted(np.asarray(cache.ids).tolist()) == list(range(1, 11))
    assert int(cache.stamps[jnp.argmax(cache.ids == 1)]) == 2
    seen = seen_of(model, [0], [50, 51])
    cache = policy(cache, seen, model.document, jnp.asarray(3), key=KEY)
    # The two rows of the first step that were not seen again.
    assert sorted(np.asarray(cache.ids).tolist()) == [*([1, *range(4, 11)]), 50, 51]


def test_a_number_is_one_document_of_a_stream_whatever_its_content():
    model = towers()
    cache = rc.NegativeCache.empty(corpus(1), 8, 6)
    for step, contents in enumerate(([30, 31, 5, 7], [5, 32, 33, 8])):
        numbers = [3 if x >= 30 else x for x in contents]
        seen = seen_of(model, [0], contents)
        marks = Marks(jnp.asarray(numbers, jnp.int32), seen.marks.digests)
        seen = seen._replace(marks=marks)
        cache = rc.PositivesIn()(
            cache, seen, model.document, jnp.asarray(step), key=KEY
        )
    assert sorted(np.asarray(cache.ids).tolist()) == [-1, -1, 3, 5, 7, 8]


@pytest.mark.parametrize(("rate", "capacity"), [(0.005, 256), (0.01, 100), (0.07, 100)])
def test_no_row_is_older_than_the_rate_says(rate, capacity):
    model = towers()
    cache = filled(model, capacity)
    policy = rc.OldestFirst(rate)
    last = round(1 / rate) + 3

    @jax.jit
    def renewed(cache, step):
        seen = seen_of(model, [0], [1])
        return policy(cache, seen, model.document, step, key=KEY)

    for step in range(1, last + 1):
        cache = renewed(cache, jnp.asarray(step))
    assert last - int(cache.stamps[cache.valid].min()) < 1 / rate + 1


@pytest.mark.slow
def test_popular_documents_of_a_stream_are_corrected_for():
    """The stream's partition, corrected, is that of the whole corpus."""
    model, num = towers(), 120
    often = 1 / jnp.arange(1.0, num + 1)
    often = 8 * often / often.sum()
    queries = model.query(corpus(4))
    whole = jax.nn.logsumexp(3 * queries @ model.document(corpus()).T, axis=1)
    rng = np.random.default_rng(0)

    @eqx.filter_jit
    def step(policy, cache, numbers, i):
        seen = seen_of(model, [0], numbers)
        cache = policy(cache, seen, model.document, i, key=KEY)
        scores = 3 * queries @ cache.rows.embeddings().T + cache.offsets[None]
        scores = jnp.where(cache.valid[None], scores, -jnp.inf)
        return cache, jax.nn.logsumexp(scores, axis=1)

    def partition(policy):
        cache, found = rc.NegativeCache.empty(corpus(1), 8, 40), []
        for i in range(300):
            numbers = rng.choice(num, 8, p=np.asarray(often / often.sum()))
            cache, sums = step(policy, cache, jnp.asarray(numbers), jnp.asarray(i))
            found.append(np.asarray(sums))
        return np.stack(found[50:]).mean(axis=0)

    plain = partition(rc.PositivesIn())
    corrected = partition(rc.PositivesIn(often))
    assert jnp.all(jnp.abs(corrected - whole) < 0.4)
    assert jnp.all(jnp.abs(plain - whole) > 0.8)


def test_documents_that_no_frequency_is_known_of_count_as_the_mean():
    model, often = towers(), jnp.linspace(0.1, 0.5, 50)
    policy = rc.PositivesIn(often)
    seen = seen_of(model, [0], [49, 50, 119])
    seen = seen._replace(marks=seen.marks._replace(ids=jnp.asarray([49, 50, -1])))
    cache = rc.NegativeCache.empty(corpus(1), 8, 10)
    cache = refreshed(policy, cache, model, seen)
    found = cache.offsets[cache.find(seen.marks)]
    chances = -jnp.expm1(-jnp.asarray([0.5, 0.3, 0.3]))
    np.testing.assert_allclose(found, -jnp.log(chances), rtol=1e-5)


def test_a_cache_can_be_resized_emptied_of_some_and_rebuilt():
    old = towers()
    cache, new = filled(old), drifted(old)
    cache = refreshed(rc.WriteBack(), cache, new, seen_of(new, [3, 50], [7]))
    resized = eqx.filter_jit(lambda cache, num: cache.resized(num))
    small = resized(cache, 16)
    assert {3, 7, 50} <= set(np.asarray(small.ids).tolist())
    large = resized(small, 64)
    assert int(large.valid.sum()) == 16
    assert large.capacity == 64
    gone = cache.removed([3, 4])
    assert int(gone.valid.sum()) == 118
    again = cache.rebuilt(new.document, step=9)
    assert fresh_rows(again, new) == set(range(120))
    assert int(again.stamps[0]) == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"items": jnp.zeros((0, 1), int)}, "`items` holds no document"),
        ({"items": (jnp.zeros((3, 1)), jnp.zeros((4, 1)))}, "share their leading axis"),
        ({"capacity": 5}, "`capacity` is 5 and there are 10 documents"),
        ({"ids": jnp.zeros(10, int)}, "`ids` repeat"),
        ({"ids": jnp.arange(10) - 1}, "`ids` go from -1"),
        ({"ids": jnp.arange(3)}, "pass 10 integers"),
        ({"encode": lambda x: jnp.full((len(x), 3), jnp.nan)}, "not finite"),
        ({"encode": lambda x: jnp.zeros((len(x), 3))}, "all zero"),
        ({"encode": lambda x: jnp.zeros(3)}, "returned shape"),
        ({"encode": towers(10)}, "`encode` is a TwoTowers"),
        ({"dtype": jnp.int32}, "`dtype` is int32"),
    ],
)
def test_a_cache_that_cannot_be_filled_says_why(arguments, message):
    model = towers(10)
    given = {"encode": model.document, "items": corpus(10)} | arguments
    with pytest.raises((ValueError, TypeError), match=message):
        rc.NegativeCache.fill(given.pop("encode"), given.pop("items"), **given)


def test_a_tower_of_one_document_is_told_to_be_mapped():
    def one(number):
        return jnp.zeros(8) @ number.astype(float)

    with pytest.raises(TypeError, match="dot") as caught:
        rc.NegativeCache.fill(one, corpus(10))
    assert "map one of a single row" in "".join(caught.value.__notes__)


def test_an_empty_cache_has_at_least_a_row():
    with pytest.raises(ValueError, match="`capacity` is 0"):
        rc.NegativeCache.empty(corpus(1), 8, 0)


def test_policies_are_checked():
    for policy in (rc.OldestFirst, rc.RandomRows):
        with pytest.raises(ValueError, match="`rate` is 0"):
            policy(0.0)
    with pytest.raises(ValueError, match="`share` is 2"):
        rc.Budget(2.0)
    with pytest.raises(TypeError, match="`refresh` is 'all'"):
        rc.NegativeCacheTrainer(None, refresh="all")


def test_a_mesh_refreshes_the_same_of_rows_of_one_age():
    cache = filled(towers(2_048), 2_048)
    stamps = jnp.asarray(np.random.default_rng(0).integers(0, 3, cache.capacity))
    cache = eqx.tree_at(lambda c: c.stamps, cache, stamps.astype(jnp.int32))
    assert cache.block < cache.capacity
    mesh = eg.make_mesh()
    split = eg.shard(eg.TrainState.start(None, None, cache), mesh).memory
    for num in (1, 3):
        alone, over = oldest(cache, num), oldest(split, num, mesh)
        np.testing.assert_array_equal(np.sort(alone), np.sort(over))


def test_columns_are_embedded_by_position():
    pd = pytest.importorskip("pandas")
    items = pd.Series(np.arange(64, dtype=np.int32)).sample(frac=1, random_state=0)
    tower = lambda numbers: jax.nn.one_hot(numbers, 64)
    mesh = eg.make_mesh()
    cache = rc.NegativeCache.fill(tower, items, mesh=mesh)
    found = np.argmax(np.asarray(cache.rows.embeddings())[:64], axis=1)
    np.testing.assert_array_equal(found, items.to_numpy())
    index = rc.Index.of(tower, items, mesh=mesh)
    best = index.search(jax.nn.one_hot(items.to_numpy(), 64), 1)
    np.testing.assert_array_equal(best.ids[:, 0], np.arange(64))


def test_the_core_splits_a_cache():
    state = eg.TrainState.start(None, None, filled(towers()))
    split = eg.shard(state, eg.make_mesh())
    assert all(len(x.sharding.device_set) == 8 for x in jax.tree.leaves(split.memory))


@pytest.mark.parametrize(
    ("dtype", "size", "length", "each"),
    [
        (jnp.float32, 384, 128, 1_808),
        (jnp.bfloat16, 768, 128, 1_808),
        (jnp.int8, 384, 128, 660),
    ],
)
def test_a_document_takes_what_the_docs_say(dtype, size, length, each):
    one = jax.ShapeDtypeStruct((1, length), jnp.uint16)
    make = lambda one: rc.NegativeCache.empty(one, size, 10**6, dtype=dtype)
    leaves = jax.tree.leaves(jax.eval_shape(make, one))
    assert sum(x.size * x.dtype.itemsize for x in leaves) == each * 10**6 + 1
