"""The model: a linear SDE, what a network adds to its drift, and what is observed."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from effgen.neural_sde.linear_sdes.linear import AbstractLinearSDE, driven_fully
from effgen.neural_sde.observing.decoders import AbstractDecoder, LinearDecoder

from .anchors import AbstractAnchor, PriorAnchor
from .dynamics import AbstractLatentSDE, Diffusion, Drift
from .frozen import Part, as_names, check_frozen, part_of
from .plain_control import PlainControl


def _is_trained(path: Any, leaf: Any) -> bool:
    """Return whether a leaf is a parameter, and no start value of a part."""
    given = str(getattr(path[-1], "name", "")).startswith("start_")
    return eqx.is_inexact_array(leaf) and not given


class LatentSDE(AbstractLatentSDE):
    """A latent SDE, linear but for what networks add, observed by a decoder.

        dX = (A X + b + C u + drift(t, X)) dt + sigma dW,    y ~ decoder(X)

    The posterior has the same `sigma` and the drift `+ sigma (u_L + v)`: `u_L`, the
    optimal control of the linear part, in closed form, and `v = residual(features)`,
    learned.

    Arguments:
        linear: The linear part; it also has the law of `X` at the first time.
        decoder: A `LinearDecoder`, or a `Decoder` of any network and likelihood.
        drift: From `(t, x)`, or `(t, x, u)` where series have inputs, to a drift beside
            the linear one, shape `(state,)`, any Equinox module. `None`: the model is
            linear, and all is exact where it is observed linearly.
        residual: From `features` to `noise_size` numbers, zero at first: see
            `residual_network`. `None`: the control is the linear one.
        diffusion: From `(t, x)` to `sigma`, shape `(state,)` or `(state, state)`, where
            it depends on the state. That of `linear` is then the guide's alone.
        control: A posterior without a linear part, for the baselines `PlainELBO` and
            `DiffraxELBO`.
        anchor: The linear SDE that guides the posterior, by default the prior's own.
        t0: When the law of `linear.initial` holds; `None`: at each series' first time.
        frozen: Names of what is not trained, such as `("linear", "decoder.matrix")`, or
            of entries, as NumPy indexes them: `"linear.matrix[0]"`,
            `"linear.matrix[:, 1]"`. Of a structure also its parameters, "cycle.period".
            A `LinearDecoder` also keeps what its `learned` does not name.
        message_dtype: The precision of the messages. `jnp.float64` (with
            `jax_enable_x64`) is for small observation noise; `None`: that of the data.
        dt: The longest step, in the unit of time. `trainer.init` sets it to the
            trainer's, and it is saved with the model. Zero: none yet.

    Raises:
        ValueError: For names of nothing in `frozen`, a `t0` that is not finite, a
            `message_dtype` that is not of floats or that JAX does not compute in, and a
            `diffusion` beside a `linear` whose own is not square.

    Source:
        Daems, Opper, Crevecoeur and Birdal (2025).
    """

    linear: AbstractLinearSDE
    decoder: AbstractDecoder
    drift: Drift | None = None
    residual: Callable[[Float[Array, " features"]], Array] | None = None
    diffusion: Diffusion | None = None
    control: PlainControl | None = None
    anchor: AbstractAnchor = PriorAnchor()
    t0: float | None = eqx.field(static=True, default=None)
    frozen: tuple[str, ...] = eqx.field(static=True, default=(), converter=as_names)
    message_dtype: Any = eqx.field(static=True, default=None)
    dt: float = eqx.field(converter=lambda dt: float(dt or 0), default=0.0)

    def __check_init__(self) -> None:
        """Check that the parts fit together."""
        check_frozen(self, self.frozen)
        t0 = self.t0
        known = t0 is None or isinstance(t0, int | float | np.number)
        if not known or (t0 is not None and not np.isfinite(t0)):
            raise ValueError(f"`t0` is {t0!r}: pass a finite number, or None.")
        if self.message_dtype is not None:
            dtype = jnp.dtype(self.message_dtype)
            if dtype.name not in ("float32", "float64"):
                raise ValueError(
                    f"`message_dtype` is {dtype}: pass `jnp.float32` or `jnp.float64`."
                )
            if jax.dtypes.canonicalize_dtype(dtype) != dtype:
                raise ValueError(
                    "`message_dtype` is float64 and JAX computes in float32: call "
                    '`jax.config.update("jax_enable_x64", True)` first.'
                )
        if self.diffusion is not None and not driven_fully(self.linear):
            raise ValueError(
                "`diffusion` depends on the state and `linear`'s has fewer columns "
                "than rows: give `linear` a square one."
            )

    def trainable(self) -> tuple["LatentSDE", "LatentSDE"]:
        """Split the model into what is trained and the rest.

        Returns:
            The model with `None` for all that is not trained, and with `None` for all
                that is. Arrays of which only entries are frozen are in the first.
        """
        spec = jax.tree_util.tree_map_with_path(_is_trained, self)
        for part in self._fixed_parts():
            if part.entries is None:
                false = jax.tree.map(lambda _: False, part.of(self))
                spec = eqx.tree_at(part.of, spec, false)
        return eqx.partition(self, spec)

    def retrained(self, trained: "LatentSDE") -> "LatentSDE":
        """Return this model with what was trained, frozen entries as they were.

        Arguments:
            trained: As the first of `trainable()`, after training.

        Returns:
            The whole model.
        """
        model = eqx.combine(trained, self.trainable()[1])
        for part in self._fixed_parts():
            if part.entries is not None:
                kept = part.of(model).at[part.entries].set(part.of(self)[part.entries])
                model = eqx.tree_at(part.of, model, kept)
        return model

    def _fixed_parts(self) -> list[Part]:
        names = self.frozen
        if isinstance(self.decoder, LinearDecoder):
            names += tuple(f"decoder.{name}" for name in self.decoder.fixed)
        return [part_of(self, name) for name in names]
