"""Texts in buckets of length: the embeddings, gradients and steps of padded ones."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from effgen.retrieval_cache.cache.negative_cache import NegativeCache
from effgen.retrieval_cache.data.pairs import Pairs
from effgen.retrieval_cache.encoders.bert import Bert
from effgen.retrieval_cache.encoders.buckets import Bucketed, text_sizes
from effgen.retrieval_cache.encoders.sequences import HashedBag, Transformer
from effgen.retrieval_cache.encoders.towers import TwoTowers, is_random
from effgen.retrieval_cache.search.evaluation import evaluate
from effgen.retrieval_cache.search.index import Index
from effgen.retrieval_cache.training.in_batch import InBatchTrainer
from effgen.retrieval_cache.training.trainer import NegativeCacheTrainer


WORDS, LENGTH = 50, 16


def tokens(num, padding=0, seed=0):
    """Texts of 1 to `LENGTH` tokens, in no order, with padding after them."""
    source = np.random.default_rng(seed)
    sizes = np.minimum(source.geometric(0.2, num), LENGTH)
    sizes[0] = LENGTH
    found = source.integers(2, WORDS, (num, LENGTH))
    there = np.arange(LENGTH)[None] < sizes[:, None]
    return jnp.asarray(np.where(there, found, padding), jnp.uint16)


def encoder(name, compute=jnp.float32):
    key = jax.random.key(3)
    if name == "bag":
        return HashedBag(WORDS, 8, 8, key=key)
    if name == "transformer":
        small = {"width": 8, "depth": 1, "num_heads": 2, "size": 8}
        return Transformer(WORDS, LENGTH, key=key, compute=compute, **small)
    small = {"width": 8, "depth": 1, "num_heads": 2, "inner_size": 16}
    bert = Bert.random(WORDS, LENGTH, key=key, **small)
    return dataclasses.replace(bert, padding=1, compute=compute)


@eqx.filter_jit
def differentiated(tower, texts):
    """Return embeddings, and the gradient of a function of them."""

    def total(tower):
        found = tower(texts)
        return jnp.sum(jnp.sin(3 * found)), found

    (_, found), gradient = eqx.filter_value_and_grad(total, has_aux=True)(tower)
    return found, gradient


@pytest.mark.one_case("8-lengths1-bag")
@pytest.mark.parametrize("name", ["bag", "transformer", "bert"])
@pytest.mark.parametrize(("num", "lengths"), [(11, None), (8, (3, 99)), (1, (4, 8))])
def test_embeddings_and_gradients_are_those_of_padded_texts(name, num, lengths):
    with jax.enable_x64(True):
        wide = lambda x: x.astype(float) if eqx.is_inexact_array(x) else x
        plain = jax.tree.map(wide, encoder(name, jnp.float64))
        # Attention has its softmax in float32, whatever the rest is in.
        error = 1e-12 if name == "bag" else 1e-6
        texts = tokens(num, getattr(plain, "padding", 0))
        bucketed = Bucketed(plain, lengths=lengths, chunk=4)
        found, exact = (differentiated(x, texts) for x in (bucketed, plain))
        for a, b in zip(*map(jax.tree.leaves, (found, exact)), strict=True):
            np.testing.assert_allclose(a, b, rtol=error, atol=error)


def test_a_text_is_encoded_at_the_least_length_that_holds_it():
    seen = []

    def tower(x):
        jax.debug.callback(lambda rows: seen.append(rows.shape), x)
        return x[:, :1].astype(float)

    bucketed = Bucketed(tower, lengths=(2, 4, 8), chunk=2)
    sizes = np.array([7, 1, 16, 2, 3])
    texts = jnp.asarray(np.arange(16)[None] < sizes[:, None], jnp.int32)
    jax.block_until_ready(jax.jit(bucketed)(texts))
    jax.effects_barrier()
    assert sorted(seen) == [(2, 2), (2, 4), (2, 16)]
    share = float(bucketed.token_share(texts))
    assert share == pytest.approx((2 + 4 + 16) * 2 / (5 * 16))


def test_the_size_of_a_text_is_up_to_its_last_token():
    texts = jnp.array([[3, 0, 4, 0], [0, 0, 0, 0], [1, 2, 3, 4]])
    assert text_sizes(texts, 0).tolist() == [3, 0, 4]
    assert text_sizes(texts, 4).tolist() == [4, 4, 3]


def pairs(num):
    return Pairs(tokens(num, seed=1), tokens(num), jnp.arange(num, dtype=jnp.int32))


def stepped(trainer, tower, corpus):
    model = TwoTowers.tied(tower)
    memory = None
    if isinstance(trainer, NegativeCacheTrainer):
        memory = NegativeCache.fill(model.document, corpus, batch_size=6)
    state = trainer.init(model, memory)
    return eqx.filter_jit(trainer.step)(state, pairs(8), key=jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "chunks"), [(NegativeCacheTrainer, 2), (InBatchTrainer, 1)]
)
def test_steps_and_caches_are_those_of_padded_texts(kind, chunks):
    trainer, corpus = kind(optax.sgd(0.1), num_chunks=chunks), tokens(20)
    if kind is NegativeCacheTrainer:
        trainer = NegativeCacheTrainer(
            optax.sgd(0.1), num_negatives=8, num_chunks=chunks, refresh=0.3
        )
    plain = encoder("transformer")
    exact, told = stepped(trainer, plain, corpus)
    found, metrics = stepped(trainer, Bucketed(plain, lengths=(6,), chunk=4), corpus)
    np.testing.assert_allclose(metrics["loss"], told["loss"], rtol=1e-5)
    both = (found.model, found.memory), (exact.model, exact.memory)
    for a, b in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_evaluation_is_that_of_padded_texts():
    plain, texts = encoder("transformer"), tokens(20)
    measured = []
    for tower in (plain, Bucketed(plain, chunk=4)):
        model = TwoTowers.tied(tower)
        index = Index.of(model.document, texts, batch_size=8)
        found = evaluate(model, tokens(7, seed=1), np.arange(7), index, k=5)
        measured.append(found)
    for a, b in zip(*measured, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_only_dropout_makes_it_random():
    bag = Bucketed(encoder("bag"))
    assert not is_random(bag, bag)
    tied = TwoTowers.tied(bag)
    assert not is_random(tied, tied.document)
    size = {"width": 8, "depth": 1, "num_heads": 2, "size": 8}
    key = jax.random.key(0)
    shaken = Bucketed(Transformer(WORDS, LENGTH, key=key, dropout=0.5, **size), chunk=4)
    assert is_random(shaken, shaken)
    texts = tokens(8)
    once, again = (shaken(texts, key=jax.random.key(i)) for i in (1, 2))
    assert not jnp.allclose(once, again)


def test_what_it_cannot_cut_is_refused():
    bag = encoder("bag")
    with pytest.raises(ValueError, match="`chunk` has 0"):
        Bucketed(bag, chunk=0)
    with pytest.raises(ValueError, match="`lengths` has -1"):
        Bucketed(bag, lengths=(4, -1))
    refused: list = [jnp.zeros((2, 4)), {"tokens": tokens(2)}]
    for items in refused:
        with pytest.raises(TypeError, match="use the encoder itself"):
            Bucketed(bag)(items)
