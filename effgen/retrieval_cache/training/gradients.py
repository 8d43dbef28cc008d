"""How good an estimator is: its gradient against that of the exact full softmax."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from effgen.core.contract.counts import check_count
from effgen.retrieval_cache.cache.negative_cache import NegativeCache
from effgen.retrieval_cache.data.pairs import as_pairs, batch_documents, marks, weighed
from effgen.retrieval_cache.encoders.towers import embed
from effgen.retrieval_cache.softmax.batch_loss import estimate
from effgen.retrieval_cache.softmax.estimators import AbstractEstimator, PseudoLogit
from effgen.retrieval_cache.softmax.negatives import excluded_by, scored_in_batch
from effgen.retrieval_cache.softmax.objective import batch_scores, cross_entropy
from effgen.retrieval_cache.softmax.scan import Scored

from .checks import check_same, check_temperature


class GradientQuality(NamedTuple):
    """An estimated gradient against the exact one, relative to the latter's length.

    Attributes:
        bias: `|mean - exact| / |exact|`.
        bias_error: How much of it a finite number of draws alone makes.
        spread: The root mean square distance of single estimates from their mean.
        loss: The mean estimate of the loss, in nats.
        exact_loss: The exact loss, in nats.
    """

    bias: Float[Array, ""]
    bias_error: Float[Array, ""]
    spread: Float[Array, ""]
    loss: Float[Array, ""]
    exact_loss: Float[Array, ""]

    def __str__(self) -> str:
        return (
            f"bias {float(self.bias):.4f} (of {float(self.bias_error):.4f} by chance), "
            f"spread {float(self.spread):.4f}; loss {float(self.loss):.4f}, exact "
            f"{float(self.exact_loss):.4f}"
        )


def full_softmax_loss(
    model: PyTree,
    batch: PyTree,
    cache: NegativeCache,
    scale: float | Float[Array, ""],
    label_smoothing: float = 0.0,
    *,
    key: PRNGKeyArray | None = None,
) -> Float[Array, ""]:
    """Return the mean cross-entropy with every document of a cache embedded now.

    Arguments:
        model: The towers.
        batch: `Pairs`, or a tuple or dict of their fields.
        cache: A cache of the corpus, whose embeddings are not used.
        scale: One over the temperature.
        label_smoothing: The share that is spread over the batch's documents.
        key: A key for dropout; without one there is none.

    Returns:
        The loss, a scalar, in nats.
    """
    pairs = as_pairs(batch)
    found, scale = marks(pairs), jnp.asarray(scale)
    keys = [None] * 3 if key is None else list(jax.random.split(key, 3))
    queries = embed(model.query, pairs.queries, key=keys[0])
    documents = embed(model.document, batch_documents(pairs), key=keys[1])
    scores = batch_scores(
        queries, documents, scale, scored_in_batch(pairs, found, cache)
    )
    scored = Scored.of(cache, excluded_by(pairs, found, cache))
    fresh = embed(model.document, cache.items, key=keys[2])
    rest = scale * queries @ fresh.T + cache.offsets[None]
    rest = jnp.where(scored.negative(), rest, -jnp.inf)
    return weighed(cross_entropy(scores, rest, label_smoothing), pairs)


def check_gradients(
    model: PyTree,
    batch: PyTree,
    cache: NegativeCache,
    *,
    key: PRNGKeyArray,
    estimator: AbstractEstimator = PseudoLogit(),
    num_negatives: int = 64,
    temperature: float = 0.05,
    num_draws: int = 500,
    of: Any = lambda model: model,
) -> GradientQuality:
    """Compare an estimator's gradient with the exact full softmax's.

        bias = |mean(estimates) - exact| / |exact|

    For a corpus small enough to be embedded whole. A fresh cache leaves no bias but
    that by chance; a stale one shows what the estimator makes of it.

    Arguments:
        model: The towers.
        batch: As the trainer takes it.
        cache: A cache of the corpus.
        key: The JAX random key of the draws.
        estimator: The estimator that is compared.
        num_negatives: Documents drawn for each estimate.
        temperature: A number.
        num_draws: How many estimates are made.
        of: From a gradient to the part looked at, such as `lambda model: model.query`.

    Returns:
        The bias and the spread of the estimates, and both losses.

    Raises:
        TypeError: For an invalid temperature.
        ValueError: For what the estimator has no use for, settings out of range, or
            documents that the cache has others of by their number.

    >>> print(check_gradients(model, batch, cache, key=key))    # doctest: +SKIP
    bias 0.0051 (of 0.0049 by chance), spread 0.1090; loss 4.3912, exact 4.3912
    """
    check_count("num_draws", num_draws)
    check_count("num_negatives", num_negatives)
    check_temperature(temperature)
    if temperature is None or callable(temperature):
        raise TypeError(f"`temperature` is {temperature!r}: pass a number.")
    estimator.check(num_negatives, as_pairs(batch), 0.0)
    check_same(cache, as_pairs(batch))
    given = model, batch, cache, jnp.asarray(1 / temperature)
    exact_loss, gradients = _exact(*given)
    exact = _vector(of(gradients))
    keys = jax.random.split(key, num_draws)
    error, square, loss = _errors(*given, estimator, num_negatives, of, exact, keys)
    length = jnp.linalg.norm(exact)
    bias = jnp.linalg.norm(error) / length
    spread = jnp.sqrt(jnp.maximum(square / length**2 - bias**2, 0))
    return GradientQuality(bias, spread / num_draws**0.5, spread, loss, exact_loss)


_exact = eqx.filter_jit(eqx.filter_value_and_grad(full_softmax_loss))


@eqx.filter_jit
def _errors(
    model: PyTree,
    batch: PyTree,
    cache: NegativeCache,
    scale: Float[Array, ""],
    estimator: AbstractEstimator,
    num_negatives: int,
    of: Any,
    exact: Float[Array, " parameters"],
    keys: PRNGKeyArray,
) -> tuple[Array, Array, Array]:
    """Return the mean error of an estimate, of its squared length, and the mean loss.

    One estimate is held at a time.
    """
    pairs = as_pairs(batch)

    def surrogate(model: PyTree, key: PRNGKeyArray) -> tuple[Array, Array]:
        found, *_ = estimate(
            estimator, model, pairs, cache, scale, num_negatives, key=key
        )
        return weighed(found.surrogate, pairs), weighed(found.losses, pairs)

    def add(sums: PyTree, key: PRNGKeyArray) -> tuple[PyTree, None]:
        gradients, loss = eqx.filter_grad(surrogate, has_aux=True)(model, key)
        error = _vector(of(gradients)) - exact
        return jax.tree.map(jnp.add, sums, (error, jnp.sum(error**2), loss)), None

    zero = jnp.zeros((), exact.dtype)
    start = (jnp.zeros_like(exact), zero, jnp.zeros((), scale.dtype))
    sums, _ = jax.lax.scan(add, start, keys)
    return jax.tree.map(lambda x: x / len(keys), sums)


def _vector(gradients: PyTree) -> Float[Array, " parameters"]:
    return jax.flatten_util.ravel_pytree(gradients)[0]
