"""The pass over a cache, and draws from it, against the softmax itself."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from effgen import retrieval_cache as rc
from effgen.retrieval_cache.softmax import gumbel_top_k, sample_rows, scan, top_k
from effgen.retrieval_cache.softmax.importance import nothing_excluded
from tests.retrieval_cache.cases import KEY


def cache_of(values, valid=None, offsets=None, dtype=jnp.float32):
    """Return a cache of given embeddings."""
    num = len(values)
    cache = rc.NegativeCache.fill(
        lambda i: jnp.asarray(values)[i[:, 0]],
        jnp.arange(num)[:, None],
        dtype=dtype,
        capacity=num,
    )
    if valid is not None:
        cache = eqx.tree_at(lambda c: c.ids, cache, jnp.where(valid, cache.ids, -1))
    if offsets is not None:
        cache = eqx.tree_at(lambda c: c.offsets, cache, jnp.asarray(offsets))
    return cache


def whole(cache, queries, scale, known=None):
    """Return all scores, by numpy in float64."""
    rows = np.asarray(cache.rows.embeddings(), np.float64)
    scores = float(scale) * np.asarray(queries, np.float64) @ rows.T
    scores = scores + np.asarray(cache.offsets, np.float64)
    scores[:, np.asarray(cache.ids) < 0] = -np.inf
    if known is not None:
        for i, numbers in enumerate(known):
            scores[i, np.isin(np.asarray(cache.ids), numbers)] = -np.inf
    return scores


def random(num, size=8, queries=5, seed=0):
    rng = np.random.default_rng(seed)
    return (
        jnp.asarray(rng.normal(size=(num, size)), jnp.float32),
        jnp.asarray(rng.normal(size=(queries, size)), jnp.float32),
    )


@pytest.fixture
def small_tiles(monkeypatch):
    """Let a tile be a few rows, so that there are many."""
    monkeypatch.setitem(scan._TILE_SCORES, "cpu", 5 * 32)


@pytest.mark.parametrize(
    "num",
    [1, 16, 17, 257]
    + [pytest.param(num, marks=pytest.mark.slow) for num in (2, 15, 100, 1_000)],
)
def test_log_partition_and_mean_are_the_softmax_s(num, small_tiles):
    values, queries = random(num)
    rng = np.random.default_rng(1)
    valid = rng.random(num) < 0.8
    valid[0] = True
    cache = cache_of(values, valid, rng.normal(size=num))
    known = jnp.asarray(rng.integers(-1, num, (5, 3)))
    excluded = nothing_excluded(5)._replace(known=known)
    scored = scan.Scored.of(cache, excluded)
    found = scan.softmax_pass(scored, queries, jnp.asarray(3.0), cache.block)
    scores = whole(cache, queries, 3.0, known)
    expected = np.logaddexp.reduce(scores, axis=1)
    np.testing.assert_allclose(found.log_partition, expected, rtol=1e-5, atol=1e-5)
    blocks = np.logaddexp.reduce(np.asarray(found.blocks, np.float64), axis=1)
    np.testing.assert_allclose(blocks, expected, rtol=1e-5, atol=1e-5)
    there = np.isfinite(expected)
    shares = np.exp(scores[there] - expected[there, None])
    rows = np.asarray(cache.rows.embeddings())
    np.testing.assert_allclose(found.mean[there], shares @ rows, atol=1e-5)
    assert np.all(np.asarray(found.mean)[~there] == 0)


@pytest.mark.slow
def test_a_log_partition_is_right_to_a_millionth_for_many_rows():
    values, queries = random(20_000, 32)
    cache = cache_of(values / jnp.linalg.norm(values, axis=1, keepdims=True))
    queries = queries / jnp.linalg.norm(queries, axis=1, keepdims=True)
    scored = scan.Scored.of(cache, nothing_excluded(5))
    found = scan.softmax_pass(scored, queries, jnp.asarray(20.0), cache.block)
    expected = np.logaddexp.reduce(whole(cache, queries, 20.0), axis=1)
    np.testing.assert_allclose(found.log_partition, expected, rtol=1e-6)
    with jax.enable_x64(True):
        wide = cache_of(np.asarray(cache.rows.embeddings(), float), dtype=jnp.float64)
        scored = scan.Scored.of(wide, nothing_excluded(5))
        exact = queries.astype(jnp.float64)
        found = scan.softmax_pass(scored, exact, jnp.asarray(20.0), wide.block)
    np.testing.assert_allclose(found.log_partition, expected, rtol=1e-13)


@pytest.mark.one_case("1-0.0-all")
@pytest.mark.parametrize("known", [(), ((3, 5, 7), (5, -1, -1))], ids=["all", "known"])
@pytest.mark.parametrize("share", [0.7, 0.0])
@pytest.mark.parametrize("num", [1, 3, 40, 150])
def test_draws_have_the_softmax_s_law(num, share, known, small_tiles):
    """Of all rows, of those but what answers, and of one row among many free ones."""
    values, queries = random(num, queries=2)
    rng = np.random.default_rng(2)
    valid = rng.random(num) < share
    valid[num // 2] = True
    cache = cache_of(values, valid)
    excluded = nothing_excluded(2)
    if known:
        excluded = excluded._replace(known=jnp.asarray(known))
    scored = scan.Scored.of(cache, excluded)
    one = jnp.ones(())
    found = scan.softmax_pass(scored, queries, one, cache.block)
    owners = jnp.repeat(jnp.arange(2), 100_000)
    slots = sample_rows(scored, found, queries, one, owners, cache.block, key=KEY)
    scores = whole(cache, queries, 1.0, known or None)
    for i, counts in enumerate(
        np.bincount(np.asarray(slots[owners == i]), minlength=num) for i in range(2)
    ):
        expected = np.exp(scores[i] - np.logaddexp.reduce(scores[i])) * 100_000
        assert np.all(counts[expected == 0] == 0)
        often = expected > 5
        if often.sum() > 1:
            rest = [counts[~often].sum()], [expected[~often].sum()]
            seen = np.concatenate([counts[often], rest[0]])
            wanted = np.concatenate([expected[often], rest[1]])
            keep = wanted > 0
            test = scipy.stats.chisquare(
                seen[keep], wanted[keep] * seen[keep].sum() / wanted[keep].sum()
            )
            assert test.pvalue > 1e-3


def test_the_best_are_the_best(small_tiles):
    values, queries = random(203)
    cache = cache_of(values, np.arange(203) % 3 > 0)
    scored = scan.Scored.of(cache, nothing_excluded(5))
    scores, slots = top_k(scored, queries, jnp.ones(()), 50, cache.block)
    expected = whole(cache, queries, 1.0)
    np.testing.assert_array_equal(slots, np.argsort(-expected, axis=1)[:, :50])
    np.testing.assert_allclose(scores, -np.sort(-expected, axis=1)[:, :50], rtol=1e-5)


def test_draws_without_replacement_are_distinct_and_begin_with_the_softmax_s():
    values, queries = random(30, queries=1)
    cache = cache_of(values)
    scored = scan.Scored.of(cache, nothing_excluded(1))

    def one(key):
        return gumbel_top_k(scored, queries, jnp.ones(()), 4, cache.block, key=key)[1][
            0
        ]

    slots = np.asarray(jax.lax.map(one, jax.random.split(KEY, 20_000)))
    assert all(len(set(row)) == 4 for row in slots[:200])
    scores = whole(cache, queries, 1.0)[0]
    expected = np.exp(scores - np.logaddexp.reduce(scores)) * len(slots)
    counts = np.bincount(slots[:, 0], minlength=30)
    keep = expected > 5
    statistic = np.sum((counts[keep] - expected[keep]) ** 2 / expected[keep])
    assert statistic < scipy.stats.chi2.ppf(0.999, keep.sum())


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int8])
def test_narrow_rows_score_nearly_as_wide_ones(dtype):
    values, queries = random(300, 32)
    values = values / jnp.linalg.norm(values, axis=1, keepdims=True)
    queries = rc.normalized(queries)
    wide, narrow = cache_of(values), cache_of(values, dtype=dtype)
    exact = wide.rows.scores(queries)
    np.testing.assert_allclose(narrow.rows.scores(queries), exact, atol=0.02)
    assert narrow.rows.embeddings().dtype == jnp.float32


def test_temporary_memory_grows_by_the_root_of_the_rows():
    def temporary(num):
        blank = jnp.zeros((1, 1), jnp.int32)
        cache = jax.eval_shape(lambda: rc.NegativeCache.empty(blank, 32, num))
        queries = jax.ShapeDtypeStruct((64, 32), jnp.float32)

        def pass_and_draw(cache, queries):
            scored, one = scan.Scored.of(cache, nothing_excluded(64)), jnp.ones(())
            found = scan.softmax_pass(scored, queries, one, cache.block)
            owners = jnp.arange(64)
            return sample_rows(
                scored, found, queries, one, owners, cache.block, key=KEY
            )

        compiled = jax.jit(pass_and_draw).lower(cache, queries).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # A number a block and query, of a few arrays, and the blocks that are drawn from.
    small, large = temporary(2**16), temporary(2**20)
    assert large - small <= 4 * 4 * 64 * (2**10 - 2**8)
