"""Training through a cache: what it learns, reports, refuses, and how it is split."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import retrieval_cache as rc
from tests.retrieval_cache.cases import (
    KEY,
    Noisy,
    Table,
    batch,
    corpus,
    data,
    filled,
    towers,
    trained,
)


exactly = eqx.filter_jit(rc.full_softmax_loss)

# One for all, so that they share programs.
OPTIM = optax.adam(3e-2)


def exact_loss(model):
    pairs = rc.Pairs(corpus(), corpus(), jnp.arange(120))
    return float(exactly(model, pairs, filled(model), 10.0))


@pytest.mark.slow
def test_a_cache_trains_as_the_full_softmax_does():
    cache = filled(towers())
    full, _ = trained(rc.FullSoftmaxTrainer(OPTIM, temperature=0.1), cache)
    ours, history = trained(
        rc.NegativeCacheTrainer(OPTIM, 24, temperature=0.1, refresh=0.1), cache
    )
    batch_only, _ = trained(rc.InBatchTrainer(OPTIM, temperature=0.1))
    losses = [exact_loss(state.model) for state in (full, ours, batch_only)]
    assert exact_loss(towers()) > 4
    assert losses[1] < losses[0] + 0.15 * (losses[2] - losses[0])
    # What it reports is the full softmax's, whose batch is met as it learns.
    assert abs(float(history["loss"][-1]) - losses[1]) < 0.5
    assert 0 < float(history["ess"][-1]) <= 1.001
    assert float(history["coverage"][-1]) == pytest.approx(120 / cache.capacity)
    assert float(history["oldest"][-1]) <= 11


@pytest.mark.slow
def test_the_paper_s_estimator_trains():
    trainer = rc.NegativeCacheTrainer(
        OPTIM, 24, temperature=0.1, refresh=0.1, estimator=rc.GumbelMax()
    )
    state, _ = trained(trainer, filled(towers()))
    assert exact_loss(state.model) < 1.5


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype", [pytest.param(jnp.bfloat16, marks=pytest.mark.slow), jnp.int8]
)
def test_narrow_caches_train_as_well(dtype):
    trainer = rc.NegativeCacheTrainer(OPTIM, 24, temperature=0.1, refresh=0.1)
    wide, _ = trained(trainer, filled(towers()))
    narrow, _ = trained(trainer, filled(towers(), dtype=dtype))
    assert exact_loss(narrow.model) < exact_loss(wide.model) + 0.05


@pytest.mark.slow
def test_a_stream_trains_from_an_empty_cache():
    trainer = rc.NegativeCacheTrainer(
        OPTIM,
        24,
        temperature=0.1,
        refresh=(rc.WriteBack(), rc.PositivesIn()),
    )
    state, history = trained(trainer, rc.NegativeCache.empty(corpus(1), 8, 64))
    assert exact_loss(state.model) < 1.5
    assert float(history["coverage"][-1]) == 1.0


@pytest.mark.slow
def test_a_temperature_is_learned_and_kept_in_bounds():
    learned = rc.LearnedTemperature.of(0.5, least=0.2, most=1.0)
    model = eqx.tree_at(
        lambda m: m.temperature, towers(), learned, is_leaf=lambda x: x is None
    )
    trainer = rc.NegativeCacheTrainer(OPTIM, 24, temperature=None)
    state, history = trained(trainer, filled(towers()), model=model)
    assert float(history["scale"][0]) < float(history["scale"][-1]) <= 5.0001
    assert float(state.model.temperature.scale) == pytest.approx(5.0, rel=1e-4)


@pytest.mark.parametrize(("outside", "way"), [(0.1, -1.0), (2.0, 1.0)])
def test_a_temperature_past_a_bound_comes_back(outside, way):
    """Its scale is the bound's, and a descent leads in or stays, but never further."""
    learned = rc.LearnedTemperature(jnp.log(jnp.asarray(outside)), 0.2, 1.0)
    np.testing.assert_allclose(learned.scale, 5.0 if outside < 1 else 1.0, rtol=1e-6)
    slope = lambda sign: eqx.filter_grad(lambda t: sign * t.scale)(learned)
    # Of `-scale` a descent raises the scale, and so lowers the temperature.
    assert float(slope(way).log_temperature) == 0
    assert float(slope(-way).log_temperature) * way > 0
    inside = rc.LearnedTemperature.of(0.5, least=0.2)
    found = eqx.filter_grad(lambda t: t.scale)(inside).log_temperature
    np.testing.assert_allclose(found, -2.0, rtol=1e-6)


@pytest.mark.slow
def test_temperatures_may_be_scheduled():
    schedule = optax.linear_schedule(1.0, 0.1, 100)
    trainer = rc.NegativeCacheTrainer(OPTIM, 24, temperature=schedule)
    _, history = trained(trainer, filled(towers()), num_steps=100)
    assert float(history["scale"][-1]) == pytest.approx(
        1 / float(schedule(99)), rel=1e-4
    )


@pytest.mark.slow
def test_hard_negatives_count_once():
    """A document that the cache has too is scored fresh, with the batch."""
    model = towers()
    hard = jnp.asarray([[1, 2], [21, 22], [41, 42], [61, 62], [81, 82], [101, 102]])
    pairs = batch()._replace(negatives=hard[..., None], negative_ids=hard)
    for one in (pairs, pairs._replace(ids=None, negative_ids=None)):
        # Draws in the same number for both temperatures, so that they share a program.
        found = rc.check_gradients(
            model, one, filled(model), key=KEY, temperature=0.05, num_draws=1_000
        )
        exact = exactly(model, batch(), filled(model), 20.0)
        np.testing.assert_allclose(found.loss, exact, rtol=1e-5)
        # Its gradient is that of the softmax where they are not explicit, too.
        found = rc.check_gradients(
            model, one, filled(model), key=KEY, temperature=0.2, num_draws=1_000
        )
        assert found.bias < 4 * found.bias_error
        exact = exactly(model, batch(), filled(model), 5.0)
        np.testing.assert_allclose(found.exact_loss, exact, rtol=1e-5)


@pytest.mark.slow
def test_labels_may_be_smoothed():
    trainer = rc.NegativeCacheTrainer(OPTIM, 24, label_smoothing=0.1)
    state = trainer.init(towers(), filled(towers()))
    plain = rc.NegativeCacheTrainer(OPTIM, 24)
    pairs = batch()
    _, smooth = eqx.filter_jit(trainer.step)(state, pairs, key=KEY)
    _, metrics = eqx.filter_jit(plain.step)(state, pairs, key=KEY)
    queries, documents = towers().query(corpus()), towers().document(corpus())
    scores = 20.0 * (queries @ documents.T)[pairs.ids][:, pairs.ids]
    shift = 0.1 * jnp.mean(jnp.diagonal(scores) - scores.mean(axis=1))
    np.testing.assert_allclose(smooth["loss"], metrics["loss"] + shift, rtol=1e-4)


def test_what_enters_the_cache_is_without_dropout():
    plain = towers()
    noisy = [Noisy(t, eqx.nn.Dropout(0.5)) for t in (plain.query, plain.document)]
    model = rc.TwoTowers(*noisy)
    cache = rc.NegativeCache.fill(model.document, corpus())
    trainer = rc.NegativeCacheTrainer(optax.sgd(0.0), 24)
    state, _ = eqx.filter_jit(trainer.step)(
        trainer.init(model, cache), batch(), key=KEY
    )
    np.testing.assert_allclose(
        state.memory.rows.embeddings()[:120], plain.document(corpus()), atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cache", "queue", "frozen"])
def test_float32_towers_train_where_float64_is_on(kind):
    numbers = jnp.arange(48)[:, None]
    pairs = rc.Pairs(numbers, numbers, numbers[:, 0])
    optim = optax.sgd(1e-2)
    trainer = {
        "cache": rc.NegativeCacheTrainer(optim, num_negatives=8),
        "queue": rc.CrossBatchTrainer(optim),
        "frozen": rc.FrozenDocumentsTrainer(optim),
    }[kind]
    model = towers()
    with jax.enable_x64(True):
        own = rc.Index.of if kind == "frozen" else rc.NegativeCache.fill
        memory = own(model.document, corpus(48))
        state = trainer.init(model, memory)
        batches = eg.Minibatches(pairs, 12)
        state, history = eg.fit(trainer, state, batches, key=KEY, num_steps=3)
        found = rc.Index.of(model.document, corpus(48)).search(
            model.query(numbers[:5].astype(jnp.int32)), k=3
        )
    assert np.isfinite(history["loss"]).all()
    leaves = jax.tree.leaves(eqx.filter(state.model, eqx.is_inexact_array))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}
    assert found.scores.dtype == jnp.float32


def test_tied_towers_share_their_parameters():
    model = rc.TwoTowers.tied(towers().query)
    trainer = rc.NegativeCacheTrainer(OPTIM, 24)
    state = trainer.init(model, filled(model))
    assert len(jax.tree.leaves(eqx.filter(state.model, eqx.is_array))) == 1
    eqx.filter_jit(trainer.step)(state, batch(), key=KEY)


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype", [jnp.float32, pytest.param(jnp.int8, marks=pytest.mark.slow)]
)
def test_a_step_s_memory_does_not_grow_with_the_cache(dtype):
    """Neither by its scores, nor by a copy: it is written to in place."""

    def temporary(num):
        trainer = rc.NegativeCacheTrainer(optax.adam(1e-2), 64)
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
    hard = batch()._replace(negatives=corpus(6)[:, None])
    paper = rc.NegativeCacheTrainer(optax.sgd(0.1), 12, estimator=rc.GumbelMax())
    with pytest.raises(ValueError, match="`GumbelMax` has no use for"):
        rc.check_gradients(
            towers(),
            hard,
            filled(towers()),
            key=KEY,
            estimator=rc.GumbelMax(),
            num_negatives=12,
        )
    with pytest.raises(ValueError, match="`GumbelMax` has no use for"):
        eg.fit(paper, paper.init(towers(), filled(towers())), [hard], key=KEY)


@pytest.mark.slow
def test_an_empty_cache_leaves_the_batch_s_softmax():
    cache = rc.NegativeCache.empty(corpus(1), 8, 64)
    trainer = rc.NegativeCacheTrainer(optax.sgd(0.1), 12, temperature=0.1)
    alone = rc.InBatchTrainer(optax.sgd(0.1), temperature=0.1)
    state, metrics = eqx.filter_jit(trainer.step)(
        trainer.init(towers(), cache), batch(), key=KEY
    )
    other, expected = eqx.filter_jit(alone.step)(alone.init(towers()), batch(), key=KEY)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-6)
    assert float(metrics["coverage"]) == 0
    for a, b in zip(*map(jax.tree.leaves, (state.model, other.model)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.slow
def test_an_empty_cache_leaves_the_paper_s_estimator_nothing():
    cache = rc.NegativeCache.empty(corpus(1), 8, 64)
    trainer = rc.NegativeCacheTrainer(optax.sgd(0.1), 12, estimator=rc.GumbelMax())
    state, metrics = eqx.filter_jit(trainer.step)(
        trainer.init(towers(), cache), batch(), key=KEY
    )
    assert float(metrics["loss"]) == 0
    assert float(metrics["grad_norm"]) == 0
    # A free row that is drawn, as there is no other, stays free.
    assert eg.state_digest(state.memory) == eg.state_digest(cache)


@pytest.mark.slow
def test_staleness_is_of_what_the_cache_holds():
    """A batch's documents that it does not hold have no embedding to be old."""
    model = towers()
    some = rc.NegativeCache.fill(model.document, corpus(16))
    trainer = rc.NegativeCacheTrainer(optax.sgd(0.1), 12)
    _, metrics = eqx.filter_jit(trainer.step)(
        trainer.init(model, some), batch(), key=KEY
    )
    assert float(metrics["staleness"]) < 1e-12
    assert float(metrics["score_drift"]) < 1e-5


@pytest.mark.slow
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


@pytest.mark.slow
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
