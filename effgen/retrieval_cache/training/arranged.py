"""Batches that are half arranged: groups of pairs whose documents are alike."""

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray, PyTree

from effgen.core.contract.counts import check_count
from effgen.core.data.batches import AbstractHostEpochs
from effgen.core.data.rows import by_position, check_rows, num_rows
from effgen.retrieval_cache.encoders.embeddings import check_finite


_ROUNDS, _FITTED = 4, 30_000


class ArrangedMinibatches(AbstractHostEpochs):
    """Minibatches of pairs, half of each in groups of one cluster.

    Documents that are alike are hard negatives of each other's queries. A group has
    them at no cost to the encoder. The other half of a batch is in random order, and so
    are pairs of clusters that are too small for a group. Each epoch visits every pair
    at most once, and all but `rows % batch_size`, in an order drawn from the run's key
    and the epoch. A resumed run is exact, given the same `labels`.

    Arguments:
        arrays: A pytree of arrays, such as `Pairs`, which stay on the host or on disk.
        batch_size: Pairs in a batch.
        labels: The cluster of each pair, integers, `(rows,)`, such as
            `clusters(embeddings, key=key)[pairs.ids]`.
        group: Pairs in a group.

    Raises:
        TypeError: For labels that are no integers, or arrays that are no numbers.
        ValueError: For arrays of different lengths, a `batch_size` out of range, labels
            of another number than rows, or groups that half of a batch does not hold.

    Source:
        Hofstätter et al. (2021), topic-aware sampling, by documents and for half of a
        batch.
    """

    def __init__(
        self,
        arrays: PyTree,
        batch_size: int,
        labels: Int[Any, " rows"],
        *,
        group: int = 64,
    ) -> None:
        """Keep references to `arrays`; nothing is copied."""
        check_rows(arrays, batch_size)
        self.labels = _checked(labels, num_rows(arrays))
        check_count("group", group)
        if 2 * group > batch_size:
            raise ValueError(
                f"`group` is {group} and half of a batch {batch_size // 2}: pass "
                "smaller groups, or a larger `batch_size`."
            )
        self.arrays = by_position(arrays)
        self.batch_size, self.group = batch_size, group

    def drawn(self, generator: np.random.Generator) -> Int[np.ndarray, "batches rows"]:
        """Return the rows of each of an epoch's batches, as `arranged` has them."""
        return arranged(self.labels, self.batch_size, self.group, generator)


def arranged(
    labels: Int[np.ndarray, " rows"],
    batch_size: int,
    group: int,
    generator: np.random.Generator,
) -> Int[np.ndarray, "batches batch_size"]:
    """Return the rows of an epoch's batches, the grouped ones of each first."""
    num = len(labels) // batch_size
    groups, loose = _grouped(labels, group, generator)
    each = batch_size // 2 // group
    # Where groups are few, batches have as many but for one.
    taken = [len(part) for part in np.array_split(groups[: num * each], num)]
    used = sum(taken)
    loose = generator.permutation(np.concatenate([groups[used:].ravel(), loose]))
    found, group_at, at = np.zeros((num, batch_size), np.int64), 0, 0
    for batch, count in zip(found, taken, strict=True):
        filled, rest = count * group, batch_size - count * group
        batch[:filled] = groups[group_at : group_at + count].ravel()
        batch[filled:] = loose[at : at + rest]
        group_at, at = group_at + count, at + rest
    return found


def clusters(
    embeddings: Float[Any, "documents size"],
    num: int | None = None,
    *,
    key: PRNGKeyArray,
) -> Int[np.ndarray, " documents"]:
    """Return the cluster of each document, by k-means on some 30,000 of them.

    It is for `ArrangedMinibatches`. Compute the clusters anew every epoch or so,
    because the towers change. A cache has embeddings, in its own order and with free
    rows:

        there = np.flatnonzero(np.asarray(cache.ids) >= 0)
        labels = np.zeros(num_documents, np.int32)
        embeddings = np.asarray(cache.rows.embeddings())[there]
        labels[np.asarray(cache.ids)[there]] = clusters(embeddings, key=key)

    Arguments:
        embeddings: One row a document, `(documents, size)`.
        num: How many clusters; by default the root of the number of documents.
        key: A JAX random key: of the documents that are fitted, and where clusters
            begin.

    Returns:
        The number of each document's cluster, `(documents,)`.

    Raises:
        ValueError: For embeddings that are not finite or no matrix, and for more
            clusters than documents, or than 30,000.

    Warns:
        UserWarning: For rows of zeros, which a cache's free rows are.
    """
    from scipy.cluster.vq import kmeans2, vq  # takes time to import

    given = np.asarray(embeddings, np.float32)
    if given.ndim != 2 or not len(given):
        raise ValueError(
            f"`embeddings` have shape {given.shape}: pass one row a document, "
            "`(documents, size)`."
        )
    check_finite(jnp.asarray(given))
    _warn_of_zeros(given)
    num = max(1, math.isqrt(len(given))) if num is None else num
    check_count("num", num)
    if not 1 <= num <= min(len(given), _FITTED):
        raise ValueError(
            f"`num` is {num} and there are {len(given)} documents: pass one of 1 to "
            f"{min(len(given), _FITTED)}."
        )
    generator = np.random.default_rng(np.ravel(jax.random.key_data(key)).tolist())
    some = given[generator.permutation(len(given))[:_FITTED]]
    with warnings.catch_warnings():
        # A cluster that nothing is near to stays where it began.
        warnings.filterwarnings("ignore", message="One of the clusters is empty")
        centers, _ = kmeans2(some, num, iter=_ROUNDS, minit="points", rng=generator)
    return vq(given, centers)[0].astype(np.int32)


def _warn_of_zeros(given: np.ndarray) -> None:
    zeros = np.flatnonzero(~given.any(axis=1))
    if len(zeros):
        warnings.warn(
            f"{len(zeros)} of {len(given)} `embeddings` are zeros, the first row "
            f"{zeros[0]}: they are free rows of a cache, or documents that were never "
            "embedded, and would be a cluster; pass the rows where `cache.ids >= 0`, "
            "whose documents these are.",
            UserWarning,
            stacklevel=3,
        )


def _grouped(
    labels: np.ndarray, group: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return full groups, `(groups, group)`, in random order, and all other rows."""
    order = generator.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    ordered = labels[order]
    begins = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    sizes = np.diff(np.r_[begins, len(labels)])
    # What is past a cluster's last full group is loose.
    within = np.arange(len(labels)) - np.repeat(begins, sizes)
    full = within < np.repeat(sizes // group * group, sizes)
    return generator.permutation(order[full].reshape(-1, group)), order[~full]


def _checked(labels: Any, rows: int) -> Int[np.ndarray, " rows"]:
    found = np.asarray(labels)
    if not np.issubdtype(found.dtype, np.integer):
        raise TypeError(
            f"`labels` are {found.dtype}: pass the number of each pair's cluster."
        )
    if found.shape != (rows,):
        raise ValueError(
            f"`labels` have shape {found.shape} and there are {rows} pairs: pass one "
            "a pair, such as `clusters(embeddings, key=key)[pairs.ids]`."
        )
    return found
