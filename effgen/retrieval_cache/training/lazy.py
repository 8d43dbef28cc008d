"""A trainer whose step updates only the rows of tables that occur in the batch."""

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from effgen.core.contract.state import Metrics, TrainState
from effgen.core.contract.trainer import AbstractTrainer
from effgen.core.contract.update import apply_gradients, init_opt_state
from effgen.retrieval_cache.cache.frequencies import StreamedFrequencies
from effgen.retrieval_cache.data.pairs import Pairs, as_pairs, batch_documents
from effgen.retrieval_cache.encoders.ids import AbstractTable, Table
from effgen.retrieval_cache.encoders.towers import embed

from .in_batch import InBatchTrainer
from .trainer import updated


_PROBED = 2  # rows of small tables, with as many others beside


class LazyTablesTrainer(AbstractTrainer):
    """A batch's softmax, whose step updates only the rows of tables in the batch.

    The gradient of a `Table` is zero in every row that is not in the batch. Adam still
    reads and writes all rows: for 10 million rows of 64 numbers, 50 GB a step. This
    trainer copies the batch's rows and their moments, takes a step with these alone,
    and writes them back:

        rows = unique(numbers of the batch)
        table[rows], moments[rows] = optim(gradient[rows], moments[rows], table[rows])

    All other parameters, and the optimizer's counts, are updated as usual. With
    `optax.sgd` the result equals that of `InBatchTrainer`, to rounding. With other
    optimizers, momentum and decay do not act on a row in steps whose batch does not
    have it, as with TensorFlow's `LazyAdam`. A tower must look up a whole batch of
    numbers at once, and not one number inside of `jax.vmap`.

    Arguments:
        trainer: The `InBatchTrainer` whose loss and optimizer are used.

    Raises:
        TypeError: If `trainer` is no `InBatchTrainer`.
        ValueError: If `trainer` has `num_chunks`.
    """

    watched: ClassVar[tuple[str, ...]] = ("loss", "scale")

    trainer: InBatchTrainer

    def __check_init__(self) -> None:
        """Raise for a trainer whose rows cannot be determined."""
        if not isinstance(self.trainer, InBatchTrainer):
            raise TypeError(
                f"`trainer` is a {type(self.trainer).__name__}: pass an "
                "`InBatchTrainer`."
            )
        if self.trainer.num_chunks != 1:
            raise ValueError(
                f"`trainer` has {self.trainer.num_chunks} `num_chunks`, and rows of "
                "tables need none: leave them out."
            )

    def init(
        self, model: PyTree, memory: StreamedFrequencies | None = None
    ) -> TrainState:
        """Return the first state.

        Arguments:
            model: The towers, with at least one `Table`.
            memory: As for `InBatchTrainer`.

        Returns:
            The state at step 0.

        Raises:
            TypeError: For a model without a `Table`, and as `InBatchTrainer` raises.
            ValueError: For `optax.MultiSteps`, for an optimizer that keeps the steps
                before, such as `optax.lbfgs`, or whose step of a row depends on other
                rows, such as `optax.lamb`, and as `InBatchTrainer` raises.
        """
        if not tables_of(model):
            raise TypeError(
                f"the model, a {type(model).__name__}, has no `Table`: pass towers of "
                "`Table` or `IdsAndFeatures`, or use `InBatchTrainer`."
            )
        state = self.trainer.init(model, memory)
        if _accumulates(state.opt_state):
            raise ValueError(
                "`optim` is of `optax.MultiSteps`, which sums gradients of several "
                "batches: rows that are not in the last batch would not be updated. "
                "Use larger batches."
            )
        _owners(self.trainer.optim, model, state.opt_state)
        _check_rows_apart(self.trainer.optim, model)
        return state

    def step(
        self, state: TrainState, batch: PyTree, *, key: PRNGKeyArray
    ) -> tuple[TrainState, Metrics]:
        """Take one step on the batch's softmax.

        Arguments:
            state: The state before.
            batch: `Pairs`, or a tuple or dict of their fields.
            key: The step's key, for dropout.

        Returns:
            The next state, and the metrics of `InBatchTrainer`.
        """
        pairs, optim = as_pairs(batch), self.trainer.optim
        memory, often = self.trainer.met(state, pairs)
        slots = touched(state.model, pairs)
        owners = _owners(optim, state.model, state.opt_state)
        small = dataclasses.replace(
            state,
            model=_taken(state.model, slots),
            opt_state=_rows(state.opt_state, owners, slots),
        )

        def loss(model: PyTree) -> tuple[Float[Array, ""], None]:
            opened = _opened(model, slots, state.model)
            return self.trainer.loss(opened, state, pairs, often, key=key), None

        model, opt_state, metrics, _ = updated(self.trainer, small, loss)
        model = _put_back(state.model, model, slots)
        opt_state = _rows_back(state.opt_state, opt_state, owners, slots)
        return state.advance(model, opt_state, memory), metrics

    def check(self, state: TrainState, batch: PyTree, source: Any) -> None:
        """Raise on batches that the towers cannot use.

        Arguments:
            state: The state that the run begins from.
            batch: The shapes of a batch.
            source: The data.

        Raises:
            TypeError: As `InBatchTrainer` raises.
            ValueError: As `InBatchTrainer` raises.
        """
        self.trainer.check(state, batch, source)


Slots = list[Int[Array, " touched"]]


class Opened(AbstractTable):
    """Some rows of a table, found by their number.

    Attributes:
        taken: The rows, `(touched, size)`.
        slots: Their numbers in order, `(touched,)`.
        num: The numbers of the table.
    """

    taken: Float[Array, "touched size"]
    slots: Int[Array, " touched"]
    num: int = eqx.field(static=True)

    @property
    def shape(self) -> tuple[int, int]:
        """How many numbers, and how many entries of a vector."""
        return self.num, self.taken.shape[1]

    def rows(self, numbers: Int[Array, " batch"]) -> Float[Array, "batch size"]:
        """Return the numbers' vectors; NaN for a number that is not among them."""
        last = len(self.slots) - 1
        place = jnp.minimum(jnp.searchsorted(self.slots, numbers), last)
        here = (self.slots[place] == numbers) & (numbers < self.num)
        return jnp.where(here[:, None], self.taken[place], jnp.nan)


class _Asked(AbstractTable):
    """A table that records the numbers that are looked up, and returns zeros."""

    table: Table
    asked: "_Numbers" = eqx.field(static=True)

    @property
    def shape(self) -> tuple[int, int]:
        return self.table.shape

    def rows(self, numbers: Int[Array, " batch"]) -> Float[Array, "batch size"]:
        self.asked.all.append(numbers)
        size, dtype = self.shape[1], self.table.vectors.dtype
        return jnp.zeros((*numbers.shape, size), dtype)


class _Numbers:
    """The numbers that were looked up in a table, in one trace."""

    def __init__(self) -> None:
        self.all: list[Array] = []


def touched(model: PyTree, pairs: Pairs) -> Slots:
    """Return the numbers that a batch looks up in each table, sorted, each once.

    If there are fewer than places, the rest are the first number past the table.
    """
    tables = tables_of(model)
    asked = [_Asked(table, _Numbers()) for table in tables]
    recorded = _with(model, asked)
    embed(recorded.query, pairs.queries)
    embed(recorded.document, batch_documents(pairs))
    return [_unique(each) for each in asked]


def _unique(asked: _Asked) -> Int[Array, " touched"]:
    num = asked.shape[0]
    all_asked = asked.asked.all or [jnp.full(1, num)]
    numbers = jnp.concatenate([x.reshape(-1) for x in all_asked])
    numbers = jnp.where((numbers >= 0) & (numbers < num), numbers, num)
    size = max(1, min(len(numbers), num + 1))
    return jnp.unique(numbers, size=size, fill_value=num)


def tables_of(model: PyTree) -> list[Table]:
    """Return the tables of a model, in the order of its leaves."""
    return [x for x in jax.tree.leaves(model, is_leaf=_is_table) if _is_table(x)]


def _is_table(x: Any) -> bool:
    return isinstance(x, Table)


def _with(model: PyTree, tables: list[Any]) -> PyTree:
    """Return the model with `tables` in place of its tables."""
    leaves, structure = jax.tree.flatten(model, is_leaf=_is_table)
    rest = iter(tables)
    new = [next(rest) if _is_table(x) else x for x in leaves]
    return jax.tree.unflatten(structure, new)


def _taken(model: PyTree, slots: Slots) -> PyTree:
    """Return the model with tables that have the rows of `slots` only."""
    found = zip(tables_of(model), slots, strict=True)
    return _with(model, [_of(table, _take(table.vectors, at)) for table, at in found])


def _opened(model: PyTree, slots: Slots, whole: PyTree) -> PyTree:
    """Return a model of `_taken` in which rows are looked up by their number."""
    sizes = [table.shape[0] for table in tables_of(whole)]
    found = zip(tables_of(model), slots, sizes, strict=True)
    return _with(model, [Opened(table.vectors, at, num) for table, at, num in found])


def _put_back(whole: PyTree, small: PyTree, slots: Slots) -> PyTree:
    """Return `small` with its rows in the tables of the whole model."""
    found = zip(tables_of(whole), tables_of(small), slots, strict=True)
    kept = [_of(old, _put(old.vectors, at, new.vectors)) for old, new, at in found]
    return _with(small, kept)


def _owners(
    optim: optax.GradientTransformation, model: PyTree, opt_state: PyTree
) -> list[int | None]:
    """Return, for each leaf of an optimizer's state, the table whose rows it has.

    It is the table with which the leaf's shape grows.
    """
    tables = tables_of(model)
    before = _state_shapes(optim, model)
    owners: list[int | None] = [None] * len(before)
    for i, table in enumerate(tables):
        num, size = table.shape
        grown = jax.ShapeDtypeStruct((num + 1, size), table.vectors.dtype)
        others = [_of(x, grown) if j == i else x for j, x in enumerate(tables)]
        after = _state_shapes(optim, _with(model, others))
        for j, (old, new) in enumerate(zip(before, after, strict=True)):
            owners[j] = i if old != new else owners[j]
            if old != new and old[:1] != (num,):
                raise ValueError(
                    f"`optim` keeps an array of shape {old} of a table of {(num, size)}"
                    ": it mixes steps of some rows with earlier ones of others, as "
                    "`optax.lbfgs` does. Use `InBatchTrainer`, or an optimizer of "
                    "moments, such as `optax.adam`."
                )
    if len(jax.tree.leaves(opt_state)) != len(owners):
        raise ValueError(
            "`state.opt_state` is not of the trainer's `optim`: begin with "
            "`trainer.init(state.model)`."
        )
    return owners


def _check_rows_apart(optim: optax.GradientTransformation, model: PyTree) -> None:
    """Raise `ValueError` where the step of a row depends on the table's other rows.

    A step of small tables is compared with one of their first rows, where alone there
    are gradients.
    """
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(model)):
        return
    whole = [
        _drawn(table, 2 * _PROBED, seed=i) for i, table in enumerate(tables_of(model))
    ]
    some = [_of(table, table.vectors[:_PROBED]) for table in whole]
    long, short = (_stepped(optim, _with(model, tables)) for tables in (whole, some))
    for one, other in zip(long, short, strict=True):
        if not np.allclose(one[:_PROBED], other, rtol=1e-3, atol=1e-12):
            raise ValueError(
                "`optim` moves a row of a table by what is in other rows, as "
                "`optax.lamb` does by the whole table's norm: with some rows alone it "
                "would move them otherwise. Use `InBatchTrainer`, or an optimizer of "
                "moments, such as `optax.adam`."
            )


def _drawn(table: Table, num: int, *, seed: int) -> Table:
    """Return a table of a few rows, drawn at random."""
    rows = np.random.default_rng(seed).normal(size=(num, table.shape[1]))
    return _of(table, jnp.asarray(rows, table.vectors.dtype))


def _stepped(optim: optax.GradientTransformation, model: PyTree) -> list[np.ndarray]:
    """Return how far one step moves tables, with gradients in the first rows alone."""
    tables = tables_of(model)
    slopes = [_of(x, jnp.sin(3 * x.vectors).at[_PROBED:].set(0)) for x in tables]
    zeros = jax.tree.map(jnp.zeros_like, eqx.filter(model, eqx.is_inexact_array))
    moved, _ = apply_gradients(
        optim,
        eqx.filter(_with(zeros, slopes), eqx.is_inexact_array),
        init_opt_state(optim, model),
        model,
        value=jnp.ones(()),
        value_fn=lambda _: jnp.ones(()),
    )
    pairs = zip(tables_of(moved), tables, strict=True)
    return [np.asarray(new.vectors - old.vectors, np.float64) for new, old in pairs]


def _accumulates(opt_state: PyTree) -> bool:
    kind = optax.MultiStepsState
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, kind))
    return any(isinstance(x, kind) for x in nodes)


def _state_shapes(
    optim: optax.GradientTransformation, model: PyTree
) -> list[tuple[int, ...]]:
    found = eqx.filter_eval_shape(init_opt_state, optim, model)
    return [getattr(x, "shape", ()) for x in jax.tree.leaves(found)]


def _rows(opt_state: PyTree, owners: list[int | None], slots: Slots) -> PyTree:
    """Return an optimizer's state of some rows of tables."""
    leaves, structure = jax.tree.flatten(opt_state)
    some = [
        x if i is None else _take(x, slots[i])
        for x, i in zip(leaves, owners, strict=True)
    ]
    return jax.tree.unflatten(structure, some)


def _rows_back(
    whole: PyTree, small: PyTree, owners: list[int | None], slots: Slots
) -> PyTree:
    """Return `small` with its rows in the state of the whole tables."""
    leaves, structure = jax.tree.flatten(whole)
    pairs = zip(leaves, jax.tree.leaves(small), owners, strict=True)
    new = [y if i is None else _put(x, slots[i], y) for x, y, i in pairs]
    return jax.tree.unflatten(structure, new)


def _of(table: Table, vectors: Any) -> Table:
    return eqx.tree_at(lambda t: t.vectors, table, vectors)


def _take(x: Array, at: Int[Array, " touched"]) -> Array:
    return x.at[at].get(mode="fill", fill_value=0)


def _put(x: Array, at: Int[Array, " touched"], new: Array) -> Array:
    return x.at[at].set(new, mode="drop")
