"""Batches from any iterable, taken in turn: what was read ahead is kept."""

import copy
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from effgen.core.contract.masked import check_unmasked

from .rows import is_array


class Read(NamedTuple):
    """A batch as it was read.

    Attributes:
        batch: The batch, a pytree.
        position: The source's state after it.
        kind: Its tree, shapes and dtypes.
        nbytes: Its bytes.
    """

    batch: PyTree
    position: Any
    kind: Any
    nbytes: int


def read_of(batch: PyTree, position: Any) -> Read:
    """Return `batch` with what is to be known of it before it is moved."""
    leaves, structure = jax.tree.flatten(batch)
    for leaf in leaves:
        check_unmasked("batch", leaf)
    arrays = [x if hasattr(x, "dtype") else np.asarray(x) for x in leaves]
    kinds = tuple((np.shape(x), x.dtype) for x in arrays)
    return Read(batch, position, (structure, kinds), sum(x.nbytes for x in arrays))


class Kept:
    """What is kept of an iterator from one run to the next.

    Attributes:
        ahead: What was read and not used.
        position: The source's state after the last batch used.
        step: The step of the next batch.
        changed: Told when `ahead` grows.
        reading: Held by the one thread that asks the iterator.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.ahead: deque[Read] = deque()
        self.position: Any = None
        self.step: int | None = None
        self.changed = threading.Condition()
        self.reading = threading.Lock()


class Stream:
    """Batches from any iterable, taken in turn and remembered where it can be.

    An iterator that can tell its state and be set back to it is saved with every
    checkpoint, and set back by `effgen.resume(directory, state, data=stream)`: by
    `get_state` and `set_state`, as grain's, or by `state_dict` and `load_state_dict`,
    as torch's stateful loaders. What a run has read ahead and not used is kept, and is
    what the next run begins with; an iterator has one such store, whoever wraps it.

    Arguments:
        iterable: The batches, each a pytree of arrays. Its iterator is made at first
            use.

    Raises:
        TypeError: If `iterable` is one batch, or no iterable.

    Attributes:
        kept: What was read ahead and not used, and where the source stands.
        iterator: The one iterator behind this stream.
        settable: Whether the source can tell its state and be set back to it.
    """

    def __init__(self, iterable: Iterable[PyTree]) -> None:
        """Keep `iterable`; its iterator is made at first use."""
        one = isinstance(iterable, str | bytes | Mapping) or is_array(iterable)
        if one or not hasattr(iterable, "__iter__"):
            raise TypeError(
                f"`iterable` is a {type(iterable).__name__}: pass an iterable of "
                "batches, such as a generator or a loader."
            )
        self._iterable = iterable
        self._iterator: Iterator[PyTree] | None = None
        self.kept = _kept_of(iterable)

    @property
    def iterator(self) -> Iterator[PyTree]:
        """The one iterator behind this stream."""
        if self._iterator is None:
            self._iterator = iter(self._iterable)
        return self._iterator

    @property
    def settable(self) -> bool:
        """Whether the source can tell its state and be set back to it."""
        return self._keeper is not None

    @property
    def _keeper(self) -> tuple[Any, str, str] | None:
        """Who knows the source's state, and its methods to tell it and to load it."""
        for owner in (self.iterator, self._iterable):
            for tell, load in _PROTOCOLS:
                if hasattr(owner, tell) and hasattr(owner, load):
                    return owner, tell, load
        return None

    def begin(self, step: int) -> None:
        """Note that the next batch is that of `step`.

        Arguments:
            step: The number of steps taken before.
        """
        self.kept.step = step
        if self.kept.position is None:
            self.kept.position = self._told()

    def read(self) -> Read:
        """Read the iterator's next batch.

        Returns:
            The batch, with the source's state after it.

        Raises:
            StopIteration: At the iterator's end.
        """
        batch = next(self.iterator)
        # It is used later, when the iterator may have overwritten it by the next batch.
        return read_of(jax.tree.map(own, batch), self._told())

    def used(self, position: Any, step: int) -> None:
        """Note where the source stood after the last batch used.

        Arguments:
            position: The source's state after that batch.
            step: The step of the next batch.
        """
        self.kept.position, self.kept.step = position, step

    def get_state(self) -> Any:
        """Return the source's state after the last batch used.

        What a run has read ahead of it does not count.

        Returns:
            The state as the source tells it; `None` if it cannot.
        """
        if self.kept.ahead:
            return self.kept.position
        return self._told()

    def set_state(self, state: Any) -> None:
        """Set the source back, and drop what was read ahead.

        Arguments:
            state: A state from `get_state`.

        Raises:
            ValueError: If the source cannot be set back.
        """
        keeper = self._keeper
        if keeper is None:
            raise ValueError(
                f"`data`, a {type(self._iterable).__name__}, cannot be set back: it "
                "has neither `get_state` and `set_state` nor `state_dict` and "
                "`load_state_dict`. Advance it by hand and leave `data` out, or pass a "
                "sequence or `effgen.Minibatches`."
            )
        owner, _, load = keeper
        with self.kept.reading:
            getattr(owner, load)(_snapshot(state))
            if owner is not self.iterator:
                self._iterator = None  # the loader's next iterator begins there
            self.kept.ahead.clear()
        self.kept.position, self.kept.step = state, None

    def settle(self) -> None:
        """Set the source to the batch after the last one used, where it can be.

        Else what was read ahead stays here, for whoever takes from this stream next.
        """
        step = self.kept.step
        if not (self.kept.ahead and self.settable):
            return
        if not self.kept.reading.acquire(timeout=_PATIENCE):
            return  # it hangs: what it has read ahead is good all the same
        self.kept.reading.release()
        self.set_state(self.kept.position)
        self.kept.step = step

    def _told(self) -> Any:
        keeper = self._keeper
        return None if keeper is None else _snapshot(getattr(keeper[0], keeper[1])())


_PROTOCOLS = (("get_state", "set_state"), ("state_dict", "load_state_dict"))
_PATIENCE = 1.0  # seconds that the end of a run waits for a batch that is being read


def own(leaf: Any) -> Any:
    """Return a copy of an array on the host, which the source may write over."""
    if isinstance(leaf, jax.Array) or not hasattr(leaf, "dtype"):
        return leaf
    check_unmasked("batch", leaf)
    return np.array(leaf)


def _snapshot(state: Any) -> Any:
    """Return a copy of a source's state, which the source may change later."""
    try:
        return copy.deepcopy(state)
    except Exception:  # a handle, which can't be copied: the source makes new ones
        return state


class _Strongly:
    """A reference to what cannot be referred to weakly."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self) -> Any:
        return self.value


# By identity: what each iterator that a run has read from keeps. It goes with the
# iterator; the built-in ones that say nothing of their end are kept for a few more.
_known: "OrderedDict[int, tuple[Any, Kept]]" = OrderedDict()
_MOST_STRONGLY = 8


def _kept_of(iterable: Iterable[PyTree]) -> Kept:
    if not isinstance(iterable, Iterator):
        return Kept()  # each run begins it anew
    key = id(iterable)
    found = _known.get(key)
    if found is not None and found[0]() is iterable:
        return found[1]
    _known[key] = (_reference(iterable), Kept())
    strongly = [k for k, (held, _) in _known.items() if isinstance(held, _Strongly)]
    for other in strongly[:-_MOST_STRONGLY]:
        del _known[other]
    return _known[key][1]


def _reference(value: Any) -> Any:
    key = id(value)
    try:
        return weakref.ref(value, lambda _: _known.pop(key, None))
    except TypeError:
        return _Strongly(value)
