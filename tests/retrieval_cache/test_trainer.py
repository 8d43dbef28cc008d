"""Training through a cache: what it learns, reports, refuses, and how it is split."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import retrieval_cache as rc
from effgen.retrieval_cache import scan
from tests.retrieval_cache.cases import (
    KEY,
    Table,
    batch,
    corpus,
    drifted,
    filled,
    towers,
)


def data(num=120):
    numbers = jnp.arange(num)[:, None]
    return eg.Minibatches(rc.Pairs(numbers, numbers, numbers[:, 0]), 12)


def trained(trainer, memory=None, num_steps=300, model=None):
    model = towers() if model is None else model
    state = trainer.init(model, memory)
    return eg.fit(trainer, state, data(), key=KEY, num_steps=num_steps, every=50)


def exact_loss(model):
    pairs = rc.Pairs(corpus(), corpus(), jnp.arange(120))
    return float(rc.full_softmax_loss(model, pairs, filled(model), 10.0))


def test_a_cache_trains_as_the_full_softmax_does():
    optim = optax.adam(3e-2)
    cache = filled(towers())
    full, _ = trained(rc.FullSoftmaxTrainer(optim, temperature=0.1), cache)
    ours, history = trained(
        rc.NegativeCacheTrainer(optim, 24, temperature=0.1, refresh=0.1), cache
    )
    batch_only, _ = trained(rc.InBatchTrainer(optim, temperature=0.1))
    losses = [exact_loss(state.model) for state in (full, ours, batch_only)]
    assert exact_loss(towers()) > 4
    assert losses[1] < losses[0] + 0.15 * (losses[2] - losses[0])
    # What it reports is the full softmax's, whose batch is met as it learns.
    assert abs(float(history["loss"][-1]) - losses[1]) < 0.5
    assert 0 < float(history["ess"][-1]) <= 1.001
    assert float(history["coverage"][-1]) == pytest.approx(120 / cache.capacity)
    assert float(history["oldest"][-1]) <= 11


def test_the_paper_s_estimator_trains():
    trainer = rc.NegativeCacheTrainer(
        optax.adam(3e-2), 24, temperature=0.1, refresh=0.1, estimator=rc.GumbelMax()
    )
    state, _ = trained(trainer, filled(towers()))
    assert exact_loss(state.model) < 1.5


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int8])
def test_narrow_caches_train_as_well(dtype):
    trainer = rc.NegativeCacheTrainer(
        optax.adam(3e-2), 24, temperature=0.1, refresh=0.1
    )
    wide, _ = trained(trainer, filled(towers()))
    narrow, _ = trained(trainer, filled(towers(), dtype=dtype))
    assert exact_loss(narrow.model) < exact_loss(wide.model) + 0.05


def test_a_stream_trains_from_an_empty_cache():
    trainer = rc.NegativeCacheTrainer(
        optax.adam(3e-2),
        24,
        temperature=0.1,
        refresh=(rc.WriteBack(), rc.PositivesIn()),
    )
    state, history = trained(trainer, rc.NegativeCache.empty(corpus(1), 8, 64))
    assert exact_loss(state.model) < 1.5
    assert float(history["coverage"][-1]) == 1.0


def test_a_temperature_is_learned_and_kept_in_bounds():
    learned = rc.LearnedTemperature.of(0.5, least=0.2, most=1.0)
    model = eqx.tree_at(
        lambda m: m.temperature, towers(), learned, is_leaf=lambda x: x is None
    )
    trainer = rc.NegativeCacheTrainer(optax.adam(3e-2), 24, temperature=None)
    state, history = trained(trainer, filled(towers()), model=model)
    assert float(history["scale"][0]) < float(history["scale"][-1]) <= 5.0001
    assert float(state.model.temperature.scale) == pytest.approx(5.0, rel=1e-4)


def test_temperatures_may_be_scheduled():
    schedule = optax.linear_schedule(1.0, 0.1, 100)
    trainer = rc.NegativeCacheTrainer(optax.adam(3e-2), 24, temperature=schedule)
    _, history = trained(trainer, filled(towers()), num_steps=100)
    assert float(history["scale"][-1]) == pytest.approx(
        1 / float(schedule(99)), rel=1e-4
    )


def test_hard_negatives_count_once():
    """A document that the cache has too is scored fresh, with the batch."""
    model = towers()
    hard = jnp.asarray([[1, 2], [21, 22], [41, 42], [61, 62], [81, 82], [101, 102]])
    pairs = batch()._replace(negatives=hard[..., None], negative_ids=hard)
    for one in (pairs, pairs._replace(ids=None, negative_ids=None)):
        found = rc.check_gradients(model, one, filled(model), key=KEY, num_draws=2)
        exact = rc.full_softmax_loss(model, batch(), filled(model), 20.0)
        np.testing.assert_allclose(found.loss, exact, rtol=1e-5)


def test_labels_may_be_smoothed():
    trainer = rc.NegativeCacheTrainer(optax.adam(3e-2), 24, label_smoothing=0.1)
    state = trainer.init(towers(), filled(towers()))
    plain = rc.NegativeCacheTrainer(optax.adam(3e-2), 24)
    pairs = batch()
    _, smooth = trainer.step(state, pairs, key=KEY)
    _, metrics = plain.step(state, pairs, key=KEY)
    queries, documents = towers().query(corpus()), towers().document(corpus())
    scores = 20.0 * (queries @ documents.T)[pairs.ids][:, pairs.ids]
    shift = 0.1 * jnp.mean(jnp.diagonal(scores) - scores.mean(axis=1))
    np.testing.assert_allclose(smooth["loss"], metrics["loss"] + shift, rtol=1e-4)


class Noisy(eqx.Module):
    """A tower with dropout."""

    table: Table
    dropout: eqx.nn.Dropout

    def __call__(self, numbers, *, key=None):
        return self.dropout(self.table(numbers), key=key, inference=key is None)


def test_what_enters_the_cache_is_without_dropout():
    plain = towers()
    noisy = [Noisy(t, eqx.nn.Dropout(0.5)) for t in (plain.query, plain.document)]
    model = rc.TwoTowers(*noisy)
    cache = rc.NegativeCache.fill(model.document, corpus())
    trainer = rc.NegativeCacheTrainer(optax.sgd(0.0), 24)
    state, _ = trainer.step(trainer.init(model, cache), batch(), key=KEY)
    np.testing.assert_allclose(
        state.memory.rows.embeddings()[:120], plain.document(corpus()), atol=1e-6
    )


def test_tied_towers_share_their_parameters():
    model = rc.TwoTowers.tied(towers().query)
    trainer = rc.NegativeCacheTrainer(optax.adam(3e-2), 24)
    state = trainer.init(model, filled(model))
    assert len(jax.tree.leaves(eqx.filter(state.model, eqx.is_array))) == 1
    trainer.step(state, batch(), key=KEY)


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


def test_no_program_gathers_a_split_cache():
    """What devices send each other does not grow with the rows."""
    num = 4_096
    model = towers(num)
    trainer = rc.NegativeCacheTrainer(optax.sgd(1e-2), 8, refresh=(rc.WriteBack(),))
    state = eg.shard(trainer.init(model, filled(model, num)), eg.make_mesh())
    trainer = trainer.for_data(state, None)
    arrays, static = eqx.partition(state, eqx.is_array)

    def step(arrays):
        new, _ = trainer.step(eqx.combine(arrays, static), batch(6, num), key=KEY)
        return eqx.filter(new, eqx.is_array)

    text = jax.jit(step).lower(arrays).compile().as_text()
    gathered = [line for line in text.splitlines() if "all-gather" in line]
    assert not [line for line in gathered if f"[{num},8]" in line]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8])
def test_a_step_s_memory_does_not_grow_with_the_cache(dtype):
    """Neither by its scores, nor by a copy: it is written to in place."""

    def temporary(num):
        policies = (rc.WriteBack(), rc.OldestFirst(16 / num))
        trainer = rc.NegativeCacheTrainer(optax.adam(1e-2), 64, refresh=policies)
        cache = rc.NegativeCache.empty(corpus(1), 32, num, dtype=dtype)
        arrays, static = eqx.partition(
            trainer.init(towers(size=32), cache), eqx.is_array
        )

        def step(arrays, pairs):
            new, _ = trainer.step(eqx.combine(arrays, static), pairs, key=KEY)
            return eqx.filter(new, eqx.is_array)

        work = jax.jit(step, donate_argnums=0)
        memory = work.lower(arrays, batch(64)).compile().memory_analysis()
        return memory.temp_size_in_bytes

    small, large = temporary(2**15), temporary(2**19)
    # A number a block and query, and one a row, where scores would be 64 a row.
    blocks = 4 * 64 * 2**19 // 512
    assert large - small <= 3 * blocks + 6 * 2**19


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda b: b._replace(documents=b.documents[:3]), ValueError, "one row a pair"),
        (lambda b: b._replace(ids=b.ids[:, None]), ValueError, "`ids` have shape"),
        (lambda b: b._replace(ids=b.ids * 1.0), TypeError, "`ids` are float32"),
        (lambda b: b._replace(known=b.ids), ValueError, "`known` have shape"),
        (lambda b: b.queries, TypeError, "a batch is a"),
        (
            lambda b: b._replace(documents=jnp.zeros((6, 2), int)),
            ValueError,
            "pad both to one length",
        ),
    ],
)
def test_batches_that_do_not_fit_are_refused(change, error, message):
    trainer = rc.NegativeCacheTrainer(optax.sgd(0.1), 12)
    state = trainer.init(towers(), filled(towers()))
    with pytest.raises(error, match=message):
        eg.fit(trainer, state, [change(batch())], key=KEY)


def test_models_and_memories_that_do_not_fit_are_refused():
    trainer = rc.NegativeCacheTrainer(optax.sgd(0.1))
    with pytest.raises(TypeError, match="no tower `query`"):
        trainer.init(lambda x: x, filled(towers()))
    with pytest.raises(TypeError, match="`memory` is a NoneType"):
        trainer.init(towers())
    with pytest.raises(ValueError, match="makes embeddings of 4 and the cache has 8"):
        trainer.init(towers(size=4), filled(towers()))
    uneven = rc.TwoTowers(towers(size=4).query, towers().document)
    state = trainer.init(uneven, filled(towers()))
    with pytest.raises(ValueError, match="make them one size"):
        eg.fit(trainer, state, [batch()], key=KEY)
    with pytest.raises(ValueError, match="none of its own"):
        rc.NegativeCacheTrainer(optax.sgd(0.1), temperature=None).init(
            towers(), filled(towers())
        )
    small = rc.NegativeCache.empty(corpus(1), 8, 4)
    stream = rc.NegativeCacheTrainer(optax.sgd(0.1), refresh=rc.PositivesIn())
    with pytest.raises(ValueError, match="has 4 rows and a batch 6"):
        eg.fit(stream, stream.init(towers(), small), [batch()], key=KEY)
    for settings, message in (
        ({"num_negatives": 0}, "`num_negatives` is 0"),
        ({"temperature": -1.0}, "`temperature` is -1"),
        ({"label_smoothing": 1.0}, "`label_smoothing` is 1"),
    ):
        with pytest.raises(ValueError, match=message):
            rc.NegativeCacheTrainer(optax.sgd(0.1), **settings)
    paper = rc.NegativeCacheTrainer(optax.sgd(0.1), 10, estimator=rc.GumbelMax())
    with pytest.raises(ValueError, match="no multiple of the batch's 6 queries"):
        eg.fit(paper, paper.init(towers(), filled(towers())), [batch()], key=KEY)


def test_an_empty_cache_leaves_the_batch_s_softmax():
    cache = rc.NegativeCache.empty(corpus(1), 8, 64)
    trainer = rc.NegativeCacheTrainer(optax.sgd(0.1), 12, temperature=0.1)
    alone = rc.InBatchTrainer(optax.sgd(0.1), temperature=0.1)
    state, metrics = trainer.step(trainer.init(towers(), cache), batch(), key=KEY)
    other, expected = alone.step(alone.init(towers()), batch(), key=KEY)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-6)
    assert float(metrics["coverage"]) == 0
    for a, b in zip(*map(jax.tree.leaves, (state.model, other.model)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_cache_goes_on_where_a_batch_began():
    """One run: moments, schedule, data and noise by one count; ages from then on."""
    optim = optax.adam(optax.cosine_decay_schedule(3e-2, 300))
    begun, _ = trained(rc.InBatchTrainer(optim, temperature=0.1), num_steps=100)
    trainer = rc.NegativeCacheTrainer(optim, 24, temperature=0.1, refresh=0.1)
    cache = rc.NegativeCache.fill(begun.model.document, corpus(), step=100)
    state = eg.continued(trainer, begun, cache)
    assert int(state.step) == 100
    state, history = eg.fit(trainer, state, data(), key=KEY, num_steps=200, every=1)
    assert float(history["age"][0]) <= 1
    assert exact_loss(state.model) < exact_loss(begun.model)
    whole, _ = trained(trainer, filled(towers()))
    assert exact_loss(state.model) < exact_loss(whole.model) + 0.1


def test_a_tower_that_makes_nan_stops_the_run_with_the_cache_whole():
    class Breaking(eqx.Module):
        table: Table

        def __call__(self, numbers):
            found = self.table(numbers)
            return jnp.where(jnp.any(numbers == 100), jnp.nan, 1.0) * found

    model = rc.TwoTowers(Breaking(towers().query), towers().document)
    trainer = rc.NegativeCacheTrainer(optax.sgd(0.1), 12)
    state = trainer.init(model, filled(towers()))
    with pytest.raises(eg.TrainingError, match="non-finite") as caught:
        eg.fit(trainer, state, data(), key=KEY, num_steps=50)
    assert bool(jnp.all(jnp.isfinite(caught.value.state.memory.rows.embeddings())))


def test_a_cache_of_another_size_is_not_restored(tmp_path):
    trainer = rc.NegativeCacheTrainer(optax.sgd(0.1), 12)
    state = trainer.init(towers(), filled(towers()))
    eg.save(tmp_path / "one", state)
    other = trainer.init(towers(), filled(towers()).resized(64))
    with pytest.raises(ValueError, match=r"rows|shape"):
        eg.restore(tmp_path / "one", other)
    back = eg.restore(tmp_path / "one", state)
    split = eg.shard(back, eg.make_mesh())
    again = eg.restore(tmp_path / "one", split)
    assert eg.state_digest(again) == eg.state_digest(state)


def chunked_trainers(chunks):
    optim = optax.sgd(0.1)
    return (
        rc.InBatchTrainer(optim, chunks=chunks),
        rc.NegativeCacheTrainer(optim, 12, refresh=0.1, chunks=chunks),
        rc.NegativeCacheTrainer(optim, 12, estimator=rc.GumbelMax(), chunks=chunks),
    )


@pytest.mark.parametrize("which", range(3))
def test_chunks_change_no_gradient(which):
    cache = filled(drifted(towers()))
    made = [chunked_trainers(chunks)[which] for chunks in (1, 3)]
    memory = None if which == 0 else cache
    states = [t.step(t.init(towers(), memory), batch(), key=KEY)[0] for t in made]
    kept = [eqx.filter((s.model, s.memory), eqx.is_inexact_array) for s in states]
    for a, b in zip(*map(jax.tree.leaves, kept), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_chunks_hold_one_of_them_at_a_time():
    class Wide(eqx.Module):
        network: eqx.nn.MLP

        def __call__(self, numbers):
            return rc.normalized(jax.vmap(self.network)(numbers / 120))

    model = rc.TwoTowers.tied(Wide(eqx.nn.MLP(1, 8, 64, 8, key=KEY)))
    cache, numbers = filled(model), jnp.arange(1_024) % 120
    pairs = rc.Pairs(numbers[:, None], numbers[:, None], numbers)

    def temporary(chunks):
        trainer = rc.NegativeCacheTrainer(optax.sgd(0.1), 32, chunks=chunks)
        state = trainer.init(model, cache)
        work = eqx.filter_jit(lambda state: trainer.step(state, pairs, key=KEY)[0])
        memory = work.lower(state).compile().compiled.memory_analysis()
        return memory.temp_size_in_bytes

    activations = 4 * 64 * 8 * (2 * 1_024 + 32)
    assert temporary(32) < temporary(1) - 0.8 * activations


def test_chunks_that_do_not_divide_are_refused():
    for trainer in chunked_trainers(4):
        memory = None if isinstance(trainer, rc.InBatchTrainer) else filled(towers())
        with pytest.raises(ValueError, match="`chunks` is 4, which does not divide"):
            eg.fit(trainer, trainer.init(towers(), memory), [batch()], key=KEY)
    with pytest.raises(ValueError, match="`chunks` is 0"):
        chunked_trainers(0)
    # Six queries and as many documents, but eight draws.
    uneven = rc.NegativeCacheTrainer(optax.sgd(0.1), 8, chunks=3)
    with pytest.raises(ValueError, match="the 14 documents that a step embeds"):
        eg.fit(uneven, uneven.init(towers(), filled(towers())), [batch()], key=KEY)


def test_a_queue_holds_past_documents_as_negatives_without_gradient():
    trainer = rc.CrossBatchTrainer(optax.sgd(0.1), temperature=0.1)
    cache = filled(towers())
    state = trainer.init(towers(), cache)
    _, metrics = trainer.step(state, batch(), key=KEY)
    exact = rc.full_softmax_loss(towers(), batch(), cache, 10.0)
    np.testing.assert_allclose(metrics["loss"], exact, rtol=1e-5)
    trained(trainer, cache, 20)


def test_a_queue_may_wait():
    """Until its towers have found their way, the batch's softmax is all."""
    waiting = rc.CrossBatchTrainer(optax.sgd(0.1), warm_up=3)
    others = rc.InBatchTrainer(optax.sgd(0.1)), rc.CrossBatchTrainer(optax.sgd(0.1))
    cache = filled(towers())
    found, _ = trained(waiting, cache, 3)
    alone, _ = trained(others[0], None, 3)
    for a, b in zip(*map(jax.tree.leaves, (found.model, alone.model)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    one, metrics = waiting.step(found, batch(), key=KEY)
    other, expected = others[1].step(found, batch(), key=KEY)
    assert eg.state_digest(one) == eg.state_digest(other)
    np.testing.assert_array_equal(metrics["loss"], expected["loss"])
    with pytest.raises(ValueError, match="`warm_up` is -1"):
        rc.CrossBatchTrainer(optax.sgd(0.1), warm_up=-1)
