"""A cache split over devices: the same draws, and nothing gathered."""

import math
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import effgen as eg
from effgen import retrieval_cache as rc
from effgen.core.devices.sharding import replicate
from effgen.retrieval_cache.cache.refresh import StepEmbeddings
from effgen.retrieval_cache.data.pairs import Marks
from effgen.retrieval_cache.encoders.towers import in_chunks
from effgen.retrieval_cache.search.index import _searched
from effgen.retrieval_cache.softmax import scan
from effgen.retrieval_cache.softmax.importance import nothing_excluded, sampled
from effgen.retrieval_cache.training.trainer import refreshed
from tests.core.test_distributed import finished, started_with
from tests.retrieval_cache.cases import KEY, batch, corpus, drifted, filled, towers


@pytest.mark.one_case("5")
@pytest.mark.parametrize("tile", [1, pytest.param(3, marks=pytest.mark.slow), 5])
def test_draws_do_not_depend_on_devices_nor_on_tiles(tile, monkeypatch):
    """Tiles of one block, and of several, which do not divide what a device has."""
    monkeypatch.setitem(scan._TILE_SCORES, "cpu", 24 * 32 * tile)
    model, mesh = towers(2_048), eg.make_mesh()
    cache = filled(drifted(model), 2_048)
    split = eg.shard(eg.TrainState.start(None, None, cache), mesh).memory
    queries = model.query(batch(24, 2_048).queries)

    # A function of its own, as a compiled one would keep another's tiles.
    @eqx.filter_jit
    def draw(cache, mesh=None):
        given = cache, queries, jnp.asarray(20.0), 48, nothing_excluded(24)
        return sampled(*given, key=KEY, mesh=mesh)

    whole, found = draw(cache), draw(split, mesh)
    np.testing.assert_array_equal(found.slots, whole.slots)
    np.testing.assert_allclose(found.log_partition, whole.log_partition, rtol=1e-6)
    np.testing.assert_allclose(found.mean, whole.mean, atol=1e-6)


@pytest.mark.slow
def test_sharded_draws_and_losses_are_the_unsharded_ones(monkeypatch):
    monkeypatch.setitem(scan._TILE_SCORES, "cpu", 12 * 64)
    num = 2_048
    model = towers(num)
    cache = filled(model, num)
    trainer = rc.NegativeCacheTrainer(optax.adam(1e-2), 24, refresh=0.02)
    numbers = jnp.arange(num)[:, None]
    source = eg.Minibatches(rc.Pairs(numbers, numbers, numbers[:, 0]), 24)
    first = trainer.init(model, cache)

    def losses(state):
        run = eg.train(trainer, state, source, key=KEY, num_steps=12, every=1)
        return zip(*[(m["loss"], s.memory) for s, m in run], strict=True)

    whole, before = losses(first)
    split, after = losses(eg.shard(first, eg.make_mesh()))
    np.testing.assert_allclose(np.ravel(whole), np.ravel(split), rtol=1e-5)
    # The rows written at each step are the draws, the batch, and the oldest.
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a.stamps, b.stamps)
        np.testing.assert_array_equal(a.ids, b.ids)
    last = after[-1].rows.values
    assert len(last.sharding.device_set) == 8
    assert not last.is_fully_replicated


@pytest.mark.parametrize(
    "refresh",
    [
        0.02,
        pytest.param((rc.WriteBack(),), marks=pytest.mark.slow),
        (rc.PositivesIn(),),
    ],
)
def test_no_program_gathers_a_split_cache(refresh):
    """Devices send nothing that is larger than a number for each row, at once."""
    num = 4_096
    model = towers(num)
    trainer = rc.NegativeCacheTrainer(optax.sgd(1e-2), 8, refresh=refresh)
    state = eg.shard(trainer.init(model, filled(model, num)), eg.make_mesh())
    assert 8 * 64 < most_sent(step_text(trainer, state, num)) <= num


_SENT = re.compile(r"(all-gather|all-reduce|all-to-all|collective-permute)(-start)?\(")


def most_sent(text):
    """Return the size of the largest array that a program's devices send."""
    sent = [line for line in text.splitlines() if _SENT.search(line)]
    shapes = [x for line in sent for x in re.findall(r"\[([\d,]*)\]", _result(line))]
    return max(math.prod(int(n) for n in x.split(",") if n) for x in shapes)


def _result(line):
    """Return what a line of a program makes, of its type and shape."""
    return _SENT.split(line)[0].split("=", 1)[1]


@pytest.mark.slow
def test_a_logit_for_a_loop_of_one_s_own_may_be_split():
    model = towers(2_048)
    cache, mesh = filled(drifted(model), 2_048), eg.make_mesh()
    split = eg.shard(eg.TrainState.start(None, None, cache), mesh).memory
    queries = model.query(batch(6, 2_048).queries)
    make = eqx.filter_jit(rc.cache_logit)
    given = {"key": KEY, "num_negatives": 12, "batch": batch(6, 2_048)}
    whole = make(queries, cache, model.document, **given)
    found = make(queries, split, model.document, mesh=mesh, **given)
    np.testing.assert_array_equal(found[1].slots, whole[1].slots)
    np.testing.assert_allclose(found[0], whole[0], rtol=1e-5)


def step_text(trainer, state, num):
    """Return the compiled program of a step on a state that is split."""
    trainer = trainer.for_data(state, None)
    arrays, static = eqx.partition(state, eqx.is_array)

    def step(arrays):
        new, _ = trainer.step(eqx.combine(arrays, static), batch(6, num), key=KEY)
        return eqx.filter(new, eqx.is_array)

    return jax.jit(step).lower(arrays).compile().as_text()


@pytest.mark.parametrize(
    "dtype", [jnp.float32, pytest.param(jnp.int8, marks=pytest.mark.slow)]
)
def test_a_cache_is_born_where_a_split_one_stays(dtype, tmp_path):
    """Of a corpus on disk, to the last number."""
    model, mesh = towers(300), eg.make_mesh()
    path, ids = tmp_path / "corpus", np.random.default_rng(0).permutation(300)
    kept = np.memmap(path, np.int32, "w+", shape=(300, 1))
    kept[:] = corpus(300)
    given = {"ids": ids, "dtype": dtype, "step": 3}
    whole = rc.NegativeCache.fill(model.document, corpus(300), **given)
    split = eg.shard(eg.TrainState.start(None, None, whole), mesh).memory
    disk = np.memmap(path, np.int32, "r", shape=(300, 1))
    born = rc.NegativeCache.fill(model.document, disk, mesh=mesh, **given)
    leaves = [jax.tree_util.tree_flatten_with_path(x)[0] for x in (split, born)]
    for (where, wanted), (_, found) in zip(*leaves, strict=True):
        assert found.sharding.is_equivalent_to(wanted.sharding, found.ndim), where
        np.testing.assert_allclose(found, wanted, rtol=1e-6, err_msg=str(where))


def test_an_index_is_born_split_and_searched_so():
    model, mesh = towers(300), eg.make_mesh()
    queries, known = model.query(corpus(20)), np.arange(40).reshape(20, 2)
    whole = rc.Index.of(model.document, corpus(300), ids=np.arange(300) + 5)
    split = rc.Index.of(model.document, corpus(300), ids=np.arange(300) + 5, mesh=mesh)
    assert len(split.ids.sharding.device_set) == 8
    assert not split.rows.values.is_fully_replicated  # pyright: ignore
    for k, given in ((7, None), (100, known)):
        wanted, found = (x.search(queries, k, known=given) for x in (whole, split))
        np.testing.assert_array_equal(found.ids, wanted.ids)
        np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-5)
    embeddings = np.asarray(model.document(corpus(300)))
    of = rc.Index.from_embeddings
    wanted, found = (of(embeddings, dtype=jnp.int8, mesh=x) for x in (None, mesh))
    wanted, found = (x.search(queries, 9).ids for x in (wanted, found))
    np.testing.assert_array_equal(found, wanted)


def test_documents_without_an_embedding_are_named_where_a_cache_is_split():
    model, mesh = towers(300), eg.make_mesh()
    bad = lambda x: jnp.where(x == 77, jnp.nan, model.document(x))
    with pytest.raises(ValueError, match=r"not finite \(row 77 first\)"):
        rc.NegativeCache.fill(bad, corpus(300), mesh=mesh)
    with pytest.raises(ValueError, match="`capacity` is 301, which the 8 devices"):
        rc.NegativeCache.fill(model.document, corpus(300), capacity=301, mesh=mesh)
    explicit = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with pytest.raises(ValueError, match=r"`effgen\.make_mesh\(\)`"):
        rc.Index.of(model.document, corpus(300), mesh=explicit)


def test_a_search_sends_no_more_than_what_it_finds():
    model, mesh = towers(4_096), eg.make_mesh()
    split = rc.Index.of(model.document, corpus(4_096), mesh=mesh, batch_size=4_096)
    given = replicate(model.query(corpus(16)), mesh), nothing_excluded(16), 5
    text = _searched.lower(split, *given).compile().compiled.as_text()
    assert 0 < most_sent(text) <= 16 * 5 * 8
    cache = rc.NegativeCache.fill(model.document, corpus(300), mesh=mesh)
    assert rc.Index.from_cache(cache).mesh == mesh


class Wide(eqx.Module):
    """A tower whose work is a product of matrices."""

    network: eqx.nn.MLP

    def __call__(self, numbers):
        return rc.normalized(jax.vmap(self.network)(numbers / 120))


def flops(function, *given):
    """Return the operations of one device."""
    arrays, static = eqx.partition(given, eqx.is_array)
    made = lambda arrays: function(*eqx.combine(arrays, static))
    work = jax.jit(lambda arrays: eqx.filter(made(arrays), eqx.is_array))
    return work.lower(arrays).compile().cost_analysis()["flops"]


def test_chunks_share_their_work_over_devices():
    """A chunk has rows of every device: each computes an eighth of it."""
    tower, mesh = Wide(eqx.nn.MLP(1, 8, 64, 3, key=KEY)), eg.make_mesh()
    rows = NamedSharding(mesh, PartitionSpec("data"))
    numbers = jnp.arange(128.0)[:, None]
    embed = lambda tower, x: in_chunks(tower, x, 2, key=KEY)
    whole = flops(embed, tower, numbers)
    split = flops(embed, replicate(tower, mesh), jax.device_put(numbers, rows))
    assert split < 0.2 * whole


def test_refreshed_rows_are_embedded_once():
    """By one of the devices each, also where these cannot share them evenly."""
    tower, mesh = Wide(eqx.nn.MLP(1, 8, 64, 3, key=KEY)), eg.make_mesh()
    model = rc.TwoTowers.tied(tower)
    cache = rc.NegativeCache.fill(model.document, corpus(512), batch_size=512)
    split = eg.shard(eg.TrainState.start(model, None, cache), mesh)
    no = jnp.zeros(0, jnp.int32)
    none = jnp.zeros((0, 8))
    marks = Marks(no, no)
    seen = StepEmbeddings(no, none, corpus(512)[:0], marks, none, 0, jnp.zeros(()), 128)
    step, policy = jnp.asarray(1), rc.OldestFirst(100 / 512)

    def renew(cache, model, mesh=None):
        return refreshed(cache, policy, seen, model, step, key=KEY, mesh=mesh)

    over = lambda cache, model: renew(cache, model, mesh)
    whole = flops(renew, cache, model)
    assert flops(over, split.memory, split.model) < 0.25 * whole
    wanted = eqx.filter_jit(renew)(cache, model)
    found = eqx.filter_jit(over)(split.memory, split.model)
    np.testing.assert_array_equal(found.stamps, wanted.stamps)
    assert int((wanted.stamps == 1).sum()) == 100
    new = found.rows.embeddings()
    np.testing.assert_allclose(new, wanted.rows.embeddings(), atol=1e-6)


@pytest.mark.slow
def test_a_queue_gathers_nothing():
    num = 4_096
    model = towers(num)
    trainer = rc.CrossBatchTrainer(optax.sgd(1e-2))
    state = eg.shard(trainer.init(model, filled(model, num)), eg.make_mesh())
    assert 0 < most_sent(step_text(trainer, state, num)) <= num


SCRIPT = """
import sys
import jax
port, rank, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=rank)
import numpy as np
import effgen as eg
from effgen import retrieval_cache as rc
from tests.retrieval_cache.cases import corpus, towers

model, mesh = towers(300), eg.make_mesh()
disk = np.memmap(path + "/corpus", np.int32, "r", shape=(300, 1))
cache = rc.NegativeCache.fill(model.document, disk, mesh=mesh)
assert len(cache.ids.addressable_shards) == 2 and not cache.ids.is_fully_addressable
found = rc.Index.from_cache(cache).search(model.query(corpus(20)), 7)
print("found", np.asarray(found.ids.addressable_data(0)).tolist())
"""


@pytest.mark.slow
def test_two_processes_fill_and_search_what_each_holds(tmp_path):
    model = towers(300)
    kept = np.memmap(tmp_path / "corpus", np.int32, "w+", shape=(300, 1))
    kept[:] = corpus(300)
    kept.flush()
    outputs = finished(started_with(SCRIPT, tmp_path))
    index = rc.Index.of(model.document, corpus(300))
    wanted = index.search(model.query(corpus(20)), 7).ids.tolist()
    assert all(f"found {wanted}" in out for out, _ in outputs), outputs
