"""Estimators against the exact full softmax, in float64."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from effgen import retrieval_cache as rc
from effgen.retrieval_cache.softmax import objective, pseudo_logit
from effgen.retrieval_cache.softmax.batch_loss import estimate
from effgen.retrieval_cache.softmax.importance import (
    BatchRows,
    defense_of,
    nothing_excluded,
    sampled,
    shared_weights,
)
from tests.retrieval_cache.cases import (
    KEY,
    batch,
    corpus,
    drifted,
    filled,
    towers,
    trained,
)


draw = eqx.filter_jit(sampled)
exactly = eqx.filter_jit(rc.full_softmax_loss)


@pytest.fixture
def double():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def setting(much=0.0, num_draws=2_000, **settings):
    """Return the quality of an estimator with a cache of some staleness."""
    old = towers(dtype=jnp.float64)
    cache = filled(old, dtype=jnp.float64)
    new = drifted(old, much) if much else old
    return rc.check_gradients(
        new, batch(), cache, key=KEY, temperature=0.2, num_draws=num_draws, **settings
    )


@pytest.mark.one_case("GumbelMax()-24")
@pytest.mark.parametrize(
    ("estimator", "num_negatives"),
    [
        (rc.PseudoLogit(), 6),
        (rc.GumbelMax(), 24),
        pytest.param(rc.PseudoLogit(), 24, marks=pytest.mark.slow),
        pytest.param(rc.GumbelMax(), 6, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_fresh_cache_leaves_no_bias(double, estimator, num_negatives):
    found = setting(estimator=estimator, num_negatives=num_negatives)
    assert found.bias < 4 * found.bias_error
    np.testing.assert_allclose(found.loss, found.exact_loss, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
    "num_negatives",
    [5, *[pytest.param(num, marks=pytest.mark.slow) for num in (2, 9)]],
)
def test_draws_that_are_no_multiple_of_the_batch_leave_no_bias(double, num_negatives):
    found = setting(num_negatives=num_negatives, num_draws=4_000)
    assert found.bias < 4 * found.bias_error


@pytest.mark.slow
def test_the_queries_gradient_has_no_noise_with_a_fresh_cache(double):
    found = setting(num_draws=50, of=lambda gradients: gradients.query)
    assert found.spread < 1e-10
    assert found.bias < 1e-10


@pytest.mark.slow
def test_the_correction_takes_most_of_the_bias_of_a_stale_cache(double):
    settings = {"num_negatives": 60, "num_draws": 4_000}
    paper = setting(0.3, estimator=rc.GumbelMax(), **settings)
    plain = setting(0.3, estimator=rc.PseudoLogit(max_log_ratio=0.0), **settings)
    ours = setting(0.3, **settings)
    assert ours.bias < paper.bias / 3
    assert ours.bias < plain.bias / 3
    assert ours.spread < paper.spread


@pytest.mark.slow
def test_bias_grows_with_staleness(double):
    settings = {"estimator": rc.GumbelMax(), "num_negatives": 24}
    found = [setting(much, **settings).bias for much in (0.1, 0.3, 1.0)]
    assert found[0] < found[1] < found[2]


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [rc.PseudoLogit(), rc.GumbelMax()], ids=str)
def test_bias_falls_with_the_refresh_rate(double, estimator):
    """Of the caches that runs leave whose rows were refreshed more or less often."""

    def bias(rate):
        trainer = rc.NegativeCacheTrainer(
            optax.sgd(3.0),
            24,
            temperature=0.2,
            refresh=rc.OldestFirst(rate),
            estimator=estimator,
        )
        model = towers(dtype=jnp.float64)
        state, _ = trained(trainer, filled(model, dtype=jnp.float64), 40, model)
        found = rc.check_gradients(
            state.model,
            batch(),
            state.memory,
            key=KEY,
            estimator=estimator,
            num_negatives=24,
            temperature=0.2,
            num_draws=2_000,
        )
        return found.bias

    found = [bias(rate) for rate in (0.01, 0.1, 1.0)]
    assert found[0] > found[1] > found[2]


@pytest.mark.slow
def test_temperature_is_differentiated_as_the_full_softmax_s(double):
    """Through the queries' exact part; documents' draws do not enter it."""
    old = towers(dtype=jnp.float64)
    cache = filled(old, dtype=jnp.float64)
    pairs = batch()

    def exact(scale):
        return rc.full_softmax_loss(old, pairs, cache, scale)

    def estimated(scale):

        found = estimate(rc.PseudoLogit(), old, pairs, cache, scale, 12, key=KEY)
        return jnp.mean(found.estimated.surrogate)

    scale = jnp.asarray(5.0)
    np.testing.assert_allclose(
        *(jax.jit(jax.grad(f))(scale) for f in (estimated, exact)), rtol=1e-8
    )


@pytest.mark.slow
def test_shared_weights_are_one_on_average(double):
    model = towers(dtype=jnp.float64)
    cache, scale = filled(model, dtype=jnp.float64), jnp.asarray(4.0)
    queries = model.query(batch().queries)

    def one(key):
        sample = sampled(cache, queries, scale, 12, nothing_excluded(6), key=key)
        return jnp.sum(shared_weights(sample), axis=1)

    found = jax.lax.map(one, jax.random.split(KEY, 2_000))
    error = found.std(axis=0) / np.sqrt(2_000)
    assert jnp.all(jnp.abs(found.mean(axis=0) - 1) < 4 * error + 1e-12)


@pytest.mark.slow
def test_the_order_of_queries_and_of_draws_is_of_no_account(double):
    """The logits and their gradients move along with the queries, and so with draws."""
    old = towers(dtype=jnp.float64)
    model, cache = drifted(old, 0.3), filled(old, dtype=jnp.float64)
    queries, scale = model.query(batch().queries), jnp.asarray(4.0)
    sample = draw(cache, queries, scale, 18, nothing_excluded(6), key=KEY)
    fresh = model.document(cache.documents(sample.slots))
    keys = jax.random.split(jax.random.key(3))
    rows, draws = (
        jax.random.permutation(keys[0], 6),
        jax.random.permutation(keys[1], 18),
    )
    moved = sample._replace(
        slots=sample.slots[draws],
        owners=jnp.argsort(rows)[sample.owners[draws]],
        stale=sample.stale[draws],
        offsets=sample.offsets[draws],
        scores=sample.scores[rows][:, draws],
        log_partition=sample.log_partition[rows],
        mean=sample.mean[rows],
    )

    def total(queries, fresh, sample):
        logits, _ = pseudo_logit(queries, fresh, sample, scale)
        return jnp.sum(logits**2), logits

    both = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
    (by_queries, by_fresh), logits = both(queries, fresh, sample)
    (by_moved, by_drawn), again = both(queries[rows], fresh[draws], moved)
    np.testing.assert_allclose(again, logits[rows], rtol=1e-12)
    np.testing.assert_allclose(by_moved, by_queries[rows], atol=1e-12)
    np.testing.assert_allclose(by_drawn, by_fresh[draws], atol=1e-12)


@pytest.mark.slow
def test_documents_beside_share_in_what_is_drawn(double):
    """Drawn evenly, they leave the weights' sum at one, whatever they count for."""
    model = towers(dtype=jnp.float64)
    cache, scale = filled(model, dtype=jnp.float64), jnp.asarray(8.0)
    queries = model.query(batch().queries)
    rows = int(jnp.sum(cache.valid))

    def one(key):
        keys = jax.random.split(key)
        slots = jax.random.randint(keys[0], (5,), 0, rows)
        beside = BatchRows(slots, jnp.ones((6, 5), bool))
        sample = sampled(
            cache, queries, scale, 12, nothing_excluded(6), beside, key=keys[1]
        )
        return jnp.sum(shared_weights(sample, 0.7), axis=1)

    found = jax.lax.map(one, jax.random.split(KEY, 2_000))
    error = found.std(axis=0) / np.sqrt(2_000)
    assert jnp.all(jnp.abs(found.mean(axis=0) - 1) < 4 * error)


@pytest.mark.slow
def test_documents_beside_mend_a_cache_that_is_nats_off(double):
    """Rows of another encoder: the sum is off by less with the batch's documents."""
    model, other = (
        towers(dtype=jnp.float64),
        towers(key=jax.random.key(7), dtype=jnp.float64),
    )
    cache, scale = filled(other, dtype=jnp.float64), jnp.asarray(20.0)
    queries, every = model.query(batch().queries), model.document(cache.items)
    scores = jnp.where(cache.valid[None], scale * queries @ every.T, -jnp.inf)
    exact, rows = jax.nn.logsumexp(scores, axis=1), int(jnp.sum(cache.valid))

    def errors(key):
        keys = jax.random.split(key)
        slots = jax.random.permutation(keys[0], rows)[:24]
        beside = BatchRows(slots, jnp.ones((6, 24), bool))
        given = (cache, queries, scale, 12, nothing_excluded(6))
        without = sampled(*given, key=keys[1])
        sample = sampled(*given, beside, key=keys[1])
        drawn = every[sample.slots]
        ours, _ = pseudo_logit(
            queries, jnp.concatenate([drawn, every[slots]]), sample, scale
        )
        alone, _ = pseudo_logit(queries, drawn, without, scale)
        return jnp.stack([jnp.mean((x - exact) ** 2) for x in (ours, alone)])

    ours, alone = jnp.mean(jax.lax.map(errors, jax.random.split(KEY, 400)), axis=0)
    assert ours < 0.5 * alone


@pytest.mark.slow
def test_embeddings_that_have_run_together_are_pushed_as_much_as_pulled(double):
    """Whatever stale rows say: else what is common to all grows, and nothing else."""
    cache = filled(towers(dtype=jnp.float64), dtype=jnp.float64)
    other, scale = towers(key=jax.random.key(7), dtype=jnp.float64), 50.0
    queries = other.query(batch().queries)
    one = queries[0] / jnp.linalg.norm(queries[0])
    beside = BatchRows(jnp.arange(24), jnp.ones((6, 24), bool))
    sample = draw(
        cache, queries, jnp.asarray(scale), 6, nothing_excluded(6), beside, key=KEY
    )
    fresh = jnp.tile(one, (30, 1))
    pulled = lambda queries, fresh: jnp.sum(
        pseudo_logit(queries, fresh, sample, jnp.asarray(scale))[0]
    )
    by_queries, by_fresh = jax.jit(jax.grad(pulled, argnums=(0, 1)))(queries, fresh)
    near = partial(np.testing.assert_allclose, atol=0.01 * scale)
    near(by_queries @ one, jnp.full(6, scale))
    near(by_fresh.sum(axis=0), scale * queries.sum(axis=0))


@pytest.mark.slow
def test_documents_beside_are_left_out_while_ratios_do(double):
    model = towers(dtype=jnp.float64)
    cache, queries = filled(model, dtype=jnp.float64), model.query(batch().queries)
    beside = BatchRows(jnp.arange(4), jnp.ones((6, 4), bool))
    sample = draw(cache, queries, jnp.ones(()), 6, nothing_excluded(6), beside, key=KEY)
    assert defense_of(sample, jnp.full(sample.scores.shape, 0.9)) == 0
    np.testing.assert_allclose(
        defense_of(sample, jnp.full(sample.scores.shape, 2.0)), 0.75
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cached", "expected"),
    [((1.0, 2.0, -1.0, -2.0), (4.37452, 0.890350))],
)
def test_known_answers_of_the_official_code(cached, expected):
    """Cache (1, 2, -1, -2), queries -1 and 1, positives 2 for both: `-log(p)`."""
    values = jnp.asarray(cached)[:, None]
    cache = rc.NegativeCache.fill(lambda i: values[i[:, 0]], jnp.arange(4)[:, None])
    queries = jnp.asarray([[-1.0], [1.0]])
    one = jnp.ones(())
    sample = draw(cache, queries, one, 2, nothing_excluded(2), key=KEY)
    scores = objective.BatchScores(jnp.asarray([-2.0, 2.0]), jnp.full((2, 2), -jnp.inf))
    found = eqx.filter_jit(rc.GumbelMax())(queries, scores, sample.stale, sample, one)
    np.testing.assert_allclose(found.losses, expected, rtol=1e-5)
    ours = eqx.filter_jit(rc.PseudoLogit())(queries, scores, sample.stale, sample, one)
    np.testing.assert_allclose(ours.losses, expected, rtol=1e-5)


@pytest.mark.slow
def test_one_function_for_a_loop_of_one_s_own(double):
    model = towers(dtype=jnp.float64)
    cache, pairs = filled(model, dtype=jnp.float64), batch()

    def loss(model, key):
        queries, own = model.query(pairs.queries), model.document(pairs.documents)
        positives = 5.0 * jnp.sum(queries * own, axis=1)
        logit, *_ = rc.cache_logit(
            queries,
            cache,
            model.document,
            key=key,
            num_negatives=12,
            scale=5.0,
            known=pairs.ids[:, None],
        )
        both = jnp.stack([positives, logit], axis=1)
        return jnp.mean(jax.nn.logsumexp(both, axis=1) - positives)

    exact, wanted = eqx.filter_jit(eqx.filter_value_and_grad(rc.full_softmax_loss))(
        model, pairs, cache, 5.0
    )
    np.testing.assert_allclose(eqx.filter_jit(loss)(model, KEY), exact, rtol=1e-10)
    gradients = jax.lax.map(
        lambda key: eqx.filter_grad(loss)(model, key).document.vectors,
        jax.random.split(KEY, 2_000),
    )
    wanted = wanted.document.vectors
    error = jnp.linalg.norm(gradients.mean(axis=0) - wanted)
    chance = jnp.sqrt(jnp.sum(gradients.var(axis=0)) / 2_000)
    assert error < 4 * chance


@pytest.mark.slow
def test_the_share_of_the_softmax_beyond_the_batch_is_told():
    """With a fresh cache it is that of the documents that the batch has not."""
    model, pairs = towers(), batch()
    cache, scale = filled(model), jnp.asarray(5.0)
    found = estimate(
        rc.PseudoLogit(), model, pairs, cache, scale, 12, key=KEY
    ).estimated
    scores = 5.0 * model.query(pairs.queries) @ model.document(corpus()).T
    shares = jax.nn.softmax(scores, axis=1)
    outside = 1 - jnp.sum(shares[:, pairs.ids], axis=1)
    np.testing.assert_allclose(found.beyond, outside, atol=1e-5)
    own = shares[jnp.arange(6), pairs.ids]
    np.testing.assert_allclose(found.positives, own, atol=1e-5)


@pytest.mark.slow
def test_what_answers_is_no_negative():
    model = towers()
    cache = filled(model)
    same = batch()._replace(documents=jnp.ones((6, 1), jnp.int32))
    for pairs in (
        batch(),
        batch()._replace(ids=None),  # told by content
        batch()._replace(known=jnp.stack([jnp.arange(6), -jnp.ones(6, int)], axis=1)),
        same._replace(ids=jnp.ones(6, jnp.int32)),
    ):
        exact = exactly(model, pairs, cache, 5.0)
        found = rc.check_gradients(
            model, pairs, cache, key=KEY, temperature=0.2, num_draws=2
        )
        np.testing.assert_allclose(found.loss, exact, rtol=1e-5)
    same = same._replace(ids=jnp.ones(6, jnp.int32))
    alone = exactly(model, same, filled(model, 2), 5.0)
    queries, documents = model.query(same.queries), model.document(corpus(2))
    scores = 5.0 * queries @ documents.T
    wanted = jnp.mean(jax.nn.logsumexp(scores, axis=1) - scores[:, 1])
    np.testing.assert_allclose(alone, wanted, rtol=1e-5)


@pytest.mark.slow
def test_a_query_without_negatives_has_no_gradient_and_no_nan():
    model = towers()
    cache = filled(model, 3)
    everything = jnp.broadcast_to(jnp.arange(3), (6, 3))
    excluded = nothing_excluded(6)._replace(known=everything)

    def total(queries, documents):
        one = jnp.ones(())
        sample = sampled(cache, queries, one, 6, excluded, key=KEY)
        logit, _ = pseudo_logit(queries, documents, sample, one)
        return jnp.sum(objective.log_sum_exp(jnp.stack([logit, -jnp.ones(6)], axis=1)))

    queries, documents = model.query(batch().queries), model.document(corpus(6))
    graded = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
    value, gradients = graded(queries, documents)
    assert all(jnp.all(g == 0) for g in gradients)
    np.testing.assert_allclose(value, -6.0)
