"""A small corpus, towers, and caches of it, fresh and stale."""

import equinox as eqx
import jax
import jax.numpy as jnp

import effgen as eg
from effgen import retrieval_cache as rc


KEY = jax.random.key(0)


class Table(eqx.Module):
    """An embedding a number: the least of encoders, with a gradient for each entry."""

    vectors: jax.Array

    def __call__(self, numbers):
        return rc.normalized(self.vectors[numbers[:, 0]])


def corpus(num=120):
    """Return documents of one number each."""
    return jnp.arange(num)[:, None]


def towers(num=120, size=8, dtype=jnp.float32, *, key=KEY):
    keys = jax.random.split(key)
    tables = [Table(jax.random.normal(k, (num, size), dtype)) for k in keys]
    return rc.TwoTowers(*tables)


def drifted(model, much=0.3, *, key=KEY):
    """Return a model some steps away."""
    noise = jax.random.normal(key, model.document.vectors.shape)
    moved = model.document.vectors + much * noise.astype(model.document.vectors.dtype)
    return eqx.tree_at(lambda m: m.document.vectors, model, moved)


def batch(num=6, total=120):
    """Return queries and the documents that answer, apart from each other."""
    numbers = (jnp.arange(num) * (total // num))[:, None]
    return rc.Pairs(numbers, numbers, numbers[:, 0])


def filled(model, num=120, dtype=jnp.float32, capacity=None):
    return rc.NegativeCache.fill(
        model.document, corpus(num), dtype=dtype, capacity=capacity
    )


def data(num=120):
    numbers = jnp.arange(num)[:, None]
    return eg.Minibatches(rc.Pairs(numbers, numbers, numbers[:, 0]), 12)


def trained(trainer, memory=None, num_steps=300, model=None):
    model = towers() if model is None else model
    state = trainer.init(model, memory)
    return eg.fit(trainer, state, data(), key=KEY, num_steps=num_steps, every=50)


class Noisy(eqx.Module):
    """A tower with dropout."""

    table: Table
    dropout: eqx.nn.Dropout

    def __call__(self, numbers, *, key=None):
        return self.dropout(self.table(numbers), key=key, inference=key is None)
