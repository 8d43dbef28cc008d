"""Where batches come from: arrays on the device, arrays on disk, or any iterable."""

import abc
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from effgen.core.contract.keys import check_key

from .ragged import is_ragged, whole
from .rows import (
    by_position,
    check_rows,
    check_width,
    is_array,
    named_leaves,
    num_rows,
)
from .shuffle import shuffled
from .stream import Stream


class AbstractBatches(eqx.Module):
    """Batches computed on the device, inside the compiled loop.

    A subclass is an `eqx.Module` with one method, `batch_at(step, key=key)`. Its
    result depends on its arguments alone, so the data of a resumed run are the same
    at any step, and one integer is all the state there is.
    """

    @abc.abstractmethod
    def batch_at(self, step: Int[Array, ""], *, key: PRNGKeyArray) -> PyTree:
        """Return the batch of `step`.

        Arguments:
            step: The number of steps taken before, traced.
            key: A random key, the same at every step of a run.

        Returns:
            A pytree of arrays; their shapes are the same at every step.
        """


class Minibatches(AbstractBatches):
    """Minibatches of arrays that live on the device, reshuffled every epoch.

    Each epoch visits every row at most once, in an order drawn from the run's key; the
    `rows % batch_size` rows left over are a different random few each time. A batch of
    all rows has them in their own order.

    >>> import jax, jax.numpy as jnp
    >>> batches = Minibatches(jnp.arange(6.0), 2)
    >>> epoch = [batches.batch_at(i, key=jax.random.key(0)) for i in range(3)]
    >>> sorted(jnp.concatenate(epoch).tolist())
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]

    Arguments:
        arrays: A pytree of numeric arrays, shape `(rows, ...)` each, with one number
            of rows; a `Ragged` is one array. They are copied to the device.
        batch_size: Rows in a batch, from 1 to `rows`.

    Raises:
        TypeError: If a leaf is no numeric array, or is memory-mapped, or if
            `batch_size` is no integer.
        ValueError: If the leaves differ in their rows, if a batch is larger than the
            data, or if integers are too wide for the device.
    """

    arrays: PyTree
    batch_size: int = eqx.field(static=True)

    def __init__(self, arrays: PyTree, batch_size: int) -> None:
        """Move `arrays` to the device."""
        for name, leaf in named_leaves(arrays):
            if isinstance(leaf, np.memmap):
                raise TypeError(
                    f"`arrays{name}` is memory-mapped and would be loaded whole: use "
                    "`effgen.HostMinibatches`, which reads a batch at a time."
                )
        arrays = by_position(arrays)
        check_rows(arrays, batch_size)
        check_width("arrays", arrays)
        self.arrays = jax.tree.map(_on_device, arrays)
        self.batch_size = int(batch_size)

    def batch_at(self, step: Int[Array, ""], *, key: PRNGKeyArray) -> PyTree:
        """Return the batch of `step`, from epoch `step // (rows // batch_size)`.

        Arguments:
            step: The number of steps taken before.
            key: The key that orders the rows, the same at every step of a run.

        Returns:
            A pytree like `arrays`, with leaves `(batch_size, ...)`.
        """
        step = jnp.asarray(step)
        rows = num_rows(self.arrays)
        if self.batch_size == rows:
            # Every step sees them all, and a gather is not free.
            return jax.tree.map(whole, self.arrays, is_leaf=is_ragged)
        per_epoch = rows // self.batch_size
        position = (step % per_epoch) * self.batch_size + jnp.arange(self.batch_size)
        index = shuffled(position, rows, step // per_epoch, key=key)
        return jax.tree.map(lambda x: x[index], self.arrays, is_leaf=is_ragged)

    def __call__(self, key: PRNGKeyArray) -> PyTree:
        """Return one random batch, of distinct rows.

        Arguments:
            key: The key that chooses the rows.

        Returns:
            A pytree like `arrays`, with leaves `(batch_size, ...)`.
        """
        check_key(key)
        return self.batch_at(jnp.zeros((), jnp.int32), key=key)


def _on_device(x: Any) -> jax.Array:
    # On a CPU, what is not copied may be NumPy's own memory, to be written to later.
    return jnp.array(x) if isinstance(x, np.ndarray) else jnp.asarray(x)


class Drawn(AbstractBatches):
    """Batches from a function `key -> batch`, such as a simulator."""

    draw: Callable[[PRNGKeyArray], PyTree]

    def batch_at(self, step: Int[Array, ""], *, key: PRNGKeyArray) -> PyTree:
        """Return `draw(key)` with a key of its own for each step."""
        return self.draw(jax.random.fold_in(key, step))


class AbstractHostBatches(abc.ABC):
    """Batches read on the host by their step.

    A subclass defines `batch_at(step, key=key)`. Batches are read ahead by a thread,
    and a resumed run reads the same ones as one that never stopped.
    """

    @abc.abstractmethod
    def batch_at(self, step: int, *, key: PRNGKeyArray) -> PyTree:
        """Return the batch of `step` as arrays.

        Arguments:
            step: The number of steps taken before.
            key: A random key, the same at every step of a run.

        Returns:
            A pytree of arrays.

        Raises:
            IndexError: Past the end of the data; the run then ends.
        """


class AbstractHostEpochs(AbstractHostBatches):
    """Minibatches of arrays on the host, in an order that is drawn for each epoch."""

    arrays: PyTree
    batch_size: int
    _order: tuple[Any, np.ndarray] = (None, np.zeros((0, 0), np.int64))

    @abc.abstractmethod
    def drawn(self, generator: np.random.Generator) -> Int[np.ndarray, "batches rows"]:
        """Return the rows of each of an epoch's batches.

        Arguments:
            generator: Of the run's key and the epoch.
        """

    def batch_at(self, step: int, *, key: PRNGKeyArray) -> PyTree:
        """Return the batch of `step`, from epoch `step // (rows // batch_size)`.

        Arguments:
            step: The number of steps taken before.
            key: The key that orders the rows, the same at every step of a run.

        Returns:
            A pytree like `arrays`, with numpy arrays `(batch_size, ...)`.
        """
        per_epoch = num_rows(self.arrays) // self.batch_size
        order = self._epoch_order(step // per_epoch, key)
        # Sorted rows are read in the order they lie on disk; a batch is a set.
        index = np.sort(order[step % per_epoch])
        take = lambda x: np.asarray(x[index])
        return jax.tree.map(take, self.arrays, is_leaf=is_ragged)

    def _epoch_order(self, epoch: int, key: PRNGKeyArray) -> np.ndarray:
        seed = (*np.ravel(jax.random.key_data(key)).tolist(), int(epoch))
        known, order = self._order  # at once: another run's thread may read here too
        if known != seed:
            order = self.drawn(np.random.default_rng(seed))
            self._order = (seed, order)
        return order


class HostMinibatches(AbstractHostEpochs):
    """Minibatches of arrays that stay on the host or on disk (`numpy.memmap`).

    They are reshuffled every epoch like `Minibatches`. Rows are read in the background
    while the device computes. Within a batch they are in the order of `arrays`.

    Arguments:
        arrays: A pytree of numeric arrays, shape `(rows, ...)` each, with one number
            of rows; a `Ragged` is one array. References are kept, nothing is copied.
        batch_size: Rows in a batch, from 1 to `rows`.

    Raises:
        TypeError: If a leaf is no numeric array, or `batch_size` no integer.
        ValueError: If the leaves differ in their rows, or if a batch is larger than
            the data.
    """

    def __init__(self, arrays: PyTree, batch_size: int) -> None:
        """Keep references to `arrays`; nothing is copied."""
        arrays = by_position(arrays)
        check_rows(arrays, batch_size)
        self.arrays = arrays
        self.batch_size = int(batch_size)

    def drawn(self, generator: np.random.Generator) -> Int[np.ndarray, "batches rows"]:
        """Return all rows in a random order, but for those of no whole batch."""
        rows = num_rows(self.arrays)
        order = generator.permutation(rows)[: rows - rows % self.batch_size]
        return order.reshape(-1, self.batch_size)


class Indexed(AbstractHostBatches):
    """Batches from a sequence: the batch of `step` is `sequence[step]`.

    A list of batches is one; so is a grain `MapDataset`, whose transformations then
    resume at any step with nothing to save.
    """

    def __init__(self, sequence: Any) -> None:
        """Keep `sequence`, anything with `__getitem__` and `__len__`."""
        self.sequence = sequence

    def batch_at(self, step: int, *, key: PRNGKeyArray) -> PyTree:
        """Return `sequence[step]`, or raise `IndexError` past the end."""
        if step >= len(self.sequence):
            raise IndexError(step)
        return self.sequence[step]


Source = AbstractBatches | AbstractHostBatches | Stream


def as_source(data: Any) -> Source:
    """Return `data` as one of the three kinds of source.

    Raises:
        TypeError: If `data` is neither batches, a function, a sequence nor an iterable.
    """
    if isinstance(data, AbstractBatches | AbstractHostBatches | Stream):
        return data
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        _check_sequence(data)
        return Indexed(data)
    if isinstance(data, Iterable):
        return Stream(data)
    if inspect.isgeneratorfunction(data):
        raise TypeError(
            "`data` is a function that makes a generator: call it, and pass what it "
            "makes."
        )
    if callable(data):
        return Drawn(data)
    raise TypeError(
        f"`data` is a {type(data).__name__}: pass `effgen.Minibatches(arrays, "
        "batch_size)`, a function from a key to a batch, or an iterable of batches."
    )


def _check_sequence(data: Any) -> None:
    batch = isinstance(data, Mapping | str | bytes) or is_array(data)
    batch = batch or hasattr(data, "columns")  # a frame, whose items are columns
    arrays = [is_array(x) and len(x.shape) > 0 for x in _first_few(data)]
    if batch or (isinstance(data, tuple) and arrays and all(arrays)):
        raise TypeError(
            f"`data` is a {type(data).__name__}, which is one batch and not a source "
            "of batches: wrap arrays in `effgen.Minibatches(arrays, batch_size)`, and "
            "put batches in a list."
        )


def _first_few(data: Any) -> tuple[Any, ...]:
    return data[:2] if isinstance(data, tuple) else ()


def set_back(data: Any, position: Any) -> None:
    """Set `data` back to `position`, where a checkpoint says that it was.

    What is indexed by the step needs no setting.

    Raises:
        ValueError: If `data` is taken in turn and can't be set back.
    """
    source = as_source(data)
    if not isinstance(source, Stream):
        return
    if position is None and source.settable:
        raise ValueError(
            "the checkpoint says nothing of where `data` was: it was saved by a run on "
            "another source. Set `data` yourself and leave it out of `resume`."
        )
    source.set_state(position)
