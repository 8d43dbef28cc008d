"""The state of a run: one class for all trainers."""

from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree


Model = TypeVar("Model")
Memory = TypeVar("Memory")

Metrics = dict[str, Any]
"""What a step reports: names to arrays; `"result"` is reserved for a `RESULTS` item."""


class TrainState(eqx.Module, Generic[Model, Memory]):
    """All that a run carries from step to step.

    Attributes:
        model: The pytree being trained.
        opt_state: What the optimizer keeps (optax's state, or Ipopt's multipliers).
        memory: What the method keeps in place of an expensive inner computation.
        step: The number of steps taken; it indexes the data and the noise.
        average: An average of the model over the steps (`effgen.averaged`), or `None`.
        evaluated: The model to evaluate: the average where one is kept, in the model's
            precision, else the model.
    """

    model: Model
    opt_state: Any
    memory: Memory
    step: Int[Array, ""]
    average: Model | None = None

    @property
    def evaluated(self) -> Model:
        """The model to evaluate: the average where one is kept, else the model."""
        if self.average is None:
            return self.model
        return jax.tree.map(_as_precise_as, self.average, self.model)

    @classmethod
    def start(cls, model: Model, opt_state: Any, memory: Memory) -> "TrainState":
        """Return the state at step 0, holding copies of all arrays.

        The copies are what may be donated: the caller's own arrays stay usable, and
        no two leaves share a buffer (adam's two moments begin as the same zeros).

        Arguments:
            model: The pytree to train.
            opt_state: The optimizer's first state, as `init_opt_state` returns it.
            memory: What the method begins with.

        Returns:
            The first state of a run.
        """
        return copied(cls(model, opt_state, memory, jnp.zeros((), jnp.int32)))

    def advance(self, model: Model, opt_state: Any, memory: Memory) -> "TrainState":
        """Return the state one step later, with the average as it was.

        Arguments:
            model: The model after the step.
            opt_state: The optimizer's state after the step.
            memory: The method's memory after the step.

        Returns:
            The state with `step + 1`.
        """
        return TrainState(model, opt_state, memory, self.step + 1, self.average)


def check_kind(state: Any) -> None:
    """Raise `TypeError` for an object that is no `TrainState`."""
    if not isinstance(state, TrainState):
        raise TypeError(
            f"`state` is a {type(state).__name__}: pass what `trainer.init(...)` "
            "returned, or a restored `TrainState`."
        )


def kept_precisely(model: PyTree) -> PyTree:
    """Return `model` in single precision at least, to be summed up in small parts."""

    def wide(x: Any) -> Any:
        if not eqx.is_inexact_array(x):
            return x
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    return jax.tree.map(wide, model)


def _as_precise_as(average: Any, model: Any) -> Any:
    same = not eqx.is_array(model) or average.dtype == model.dtype
    return average if same else average.astype(model.dtype)


def copied(tree: PyTree) -> PyTree:
    """Return `tree` with every array in a fresh device buffer, sharded as before.

    `jax.device_put` may alias its input even when told not to; a copy by the compiler
    never does. Weak types become strong, so that one step later nothing has changed.
    """
    return jax.tree.map(lambda x: _copied(x) if eqx.is_array_like(x) else x, tree)


def _copied(x: Any) -> Any:
    if not eqx.is_array(x) and not hasattr(x, "__array__"):
        return x  # a Python scalar is a hyperparameter, not data: it stays static
    if isinstance(x, jax.Array) and is_key(x):
        return jnp.copy(x)
    return jnp.array(x, dtype=jax.dtypes.canonicalize_dtype(x.dtype), copy=True)


def named_arrays(tree: PyTree) -> dict[str, Any]:
    """Return the arrays of `tree` by their path, as in `.model.layers[0].weight`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(eqx.filter(tree, eqx.is_array))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def is_key(leaf: Any) -> bool:
    """Return whether `leaf` is an array of typed random keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
