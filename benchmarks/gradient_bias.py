"""How far gradients are off over batches: by drift, and by what documents are popular.

`python -m benchmarks.gradient_bias`: 256 documents, unit vectors of size 16 at a
temperature of 0.05, 16 pairs and 16 or 64 draws a step. Of the mean of 1,000 estimates
less the exact gradients, the length over the latter's, net of chance: where documents
are evenly often in a batch, and by Zipf's law, over eight orders of popularity. Values
only: no times.
"""

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from effgen import retrieval_cache as rc
from effgen.retrieval_cache.softmax.batch_loss import estimate


DOCUMENTS, SIZE, ROWS, SCALE, BATCHES, ORDERS = 256, 16, 16, 20.0, 1_000, 8
MOVED = 0.05, 0.1, 0.2, 0.4, 0.6, 1.5


class Table(eqx.Module):
    """A vector for each document."""

    vectors: jax.Array

    def __call__(self, numbers):
        return rc.normalized(self.vectors[numbers[:, 0]])


def flat(gradients):
    return jax.flatten_util.ravel_pytree(gradients)[0]


@eqx.filter_jit
def off(model, cache, law, often, estimator, num_negatives, key):
    """Return the bias net of chance, and the mean drift and metric."""

    def one(key):
        keys = jax.random.split(key)
        i = jax.random.categorical(keys[0], jnp.log(law), shape=(ROWS,))
        i = i.astype(jnp.int32)
        pairs = rc.Pairs(i[:, None], i[:, None], i)

        def surrogate(model):
            found = estimate(
                estimator,
                model,
                pairs,
                cache,
                jnp.asarray(SCALE),
                num_negatives,
                key=keys[1],
                frequencies=often,
            ).estimated
            told = found.corrected.drift, found.corrected.possible_bias
            return jnp.mean(found.surrogate), told

        exact = flat(eqx.filter_grad(rc.full_softmax_loss)(model, pairs, cache, SCALE))
        found, told = eqx.filter_grad(surrogate, has_aux=True)(model)
        error = flat(found) - exact
        return error, exact, jnp.sum(error**2), *told

    def add(total, key):
        return jax.tree.map(jnp.add, total, one(key)), None

    vector, zero = jnp.zeros(2 * DOCUMENTS * SIZE), jnp.zeros(())
    start = (vector, vector, zero, zero, zero)
    total, _ = jax.lax.scan(add, start, jax.random.split(key, BATCHES))
    error, exact, square, drift, told = jax.tree.map(lambda x: x / BATCHES, total)
    net = jnp.sqrt(jnp.maximum(jnp.sum(error**2) - square / BATCHES, 0))
    return net / jnp.linalg.norm(exact), drift, told


def laws():
    """Yield a name, how often documents are in a batch, and what is said of that."""
    even = jnp.full(DOCUMENTS, 1 / DOCUMENTS)
    yield "evenly often", even, even
    for seed in range(ORDERS):
        order = np.random.default_rng(seed).permutation(DOCUMENTS)
        zipf = 1 / jnp.arange(1, DOCUMENTS + 1)[order]
        yield "Zipf, unknown", zipf / jnp.sum(zipf), even
        yield "Zipf, given", zipf / jnp.sum(zipf), zipf


def main():
    keys = jax.random.split(jax.random.key(0), 4)
    vectors, more, noise = (jax.random.normal(k, (DOCUMENTS, SIZE)) for k in keys[:3])
    model = rc.TwoTowers(Table(vectors + 0.7 * more), Table(vectors))
    corpus = jnp.arange(DOCUMENTS)[:, None]
    kinds = {
        "16 draws": (rc.PseudoLogit(), 16),
        "64 draws": (rc.PseudoLogit(), 64),
        "paper's, 16 draws": (rc.GumbelMax(), 16),
    }
    rows = []
    for moved in MOVED:
        cache = rc.NegativeCache.fill(
            Table(vectors + moved * noise), corpus, dtype=jnp.float64
        )
        for kind, (estimator, draws) in kinds.items():
            found = {}
            for name, law, often in laws():
                given = model, cache, law, often, estimator, draws, keys[3]
                found.setdefault(name, []).append([float(x) for x in off(*given)])
            for name, runs in found.items():
                bias, drift, told = np.array(runs).T
                row = {"kind": kind, "documents": name, "moved": moved}
                row |= {"drift": float(drift.mean()), "told": float(told.mean())}
                row |= {"bias": float(bias.mean()), "most": float(bias.max())}
                rows.append(row)
                print(row, flush=True)
    measure.write("gradient_bias", {"orders": ORDERS, "rows": rows})


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
