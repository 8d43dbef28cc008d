"""The model: a linear SDE, what a network adds to its drift, and what is observed."""

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .anchors import AbstractAnchor, PriorAnchor
from .decoders import AbstractDecoder
from .linear import AbstractLinearSDE, driven_fully, forced, noise_size
from .plain import PlainControl


Drift = Callable[..., Float[Array, " state"]]
Diffusion = Callable[[Float[Array, ""], Float[Array, " state"]], Array]


class LatentSDE(eqx.Module):
    """`dX = (A X + b + C u + drift(t, X)) dt + sigma dW`, observed by a decoder.

    The posterior has the same `sigma` and the drift `+ sigma (u_L + v)`: `u_L`, the
    optimal control of the linear part, in closed form, and `v = residual(features)`,
    learned.

    **Attributes:**

    - `linear`: the linear part; it also has the law of `X` at the first time.
    - `decoder`: `LinearDecoder`, or `Decoder` of any network and likelihood.
    - `drift`: `(t, x)`, or `(t, x, u)` where series have inputs, to a drift beside the
      linear one, any Equinox module; `None`: the model is linear and everything exact.
    - `residual`: a function of `features` to `noise_size` numbers, zero at first:
      see `residual_network`. `None`: the control is the linear one.
    - `diffusion`: `(t, x)` to `sigma`, `(state,)` or `(state, state)`, where it depends
      on the state; `linear`'s is then only the guide's.
    - `control`: a posterior without a linear part, for the baselines `PlainELBO` and
      `DiffraxELBO`.
    - `anchor`: about which linear SDE the guide is computed; the prior's own by
      default.
    - `t0`: when the law of `linear.initial` holds; `None`: at each series' first time.
    - `frozen`: names of what is not trained, such as `("linear", "decoder.matrix")`.
    - `message_dtype`: `jnp.float64` (with `jax_enable_x64`) for small observation
      noise.
    - `dt`: the longest step; `trainer.init` sets it to the trainer's.

    **Source:** Daems, Opper, Crevecoeur and Birdal (2025).
    """

    linear: AbstractLinearSDE
    decoder: AbstractDecoder
    drift: Drift | None = None
    residual: Callable[[Float[Array, " features"]], Array] | None = None
    diffusion: Diffusion | None = None
    control: PlainControl | None = None
    anchor: AbstractAnchor = PriorAnchor()
    t0: float | None = eqx.field(static=True, default=None)
    frozen: tuple[str, ...] = eqx.field(static=True, default=())
    message_dtype: Any = eqx.field(static=True, default=None)
    dt: float | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        """Raise `TypeError` or `ValueError` for parts that do not fit together."""
        for name in self.frozen:
            try:
                operator.attrgetter(name)(self)
            except AttributeError as error:
                names = sorted(field.name for field in dataclasses.fields(self))
                raise ValueError(
                    f"`frozen` names {name!r}: choose among {names}, or a part of one, "
                    'such as "linear.matrix".'
                ) from error
        if self.message_dtype is not None:
            dtype = jnp.dtype(self.message_dtype)
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

    @property
    def num_states(self) -> int:
        """The number of components of the state."""
        return self.linear.initial.mean.shape[0]

    @property
    def noise_size(self) -> int:
        """The number of normal variables of one step."""
        return noise_size(self.linear)

    def prior_drift(
        self, t: Float[Array, ""], x: Float[Array, " state"], u: Array | None = None
    ) -> Float[Array, " state"]:
        """Return the whole drift of the prior."""
        matrix, bias, _ = self.linear.coefficients(t)
        linear = matrix @ x + forced(bias, self.linear.input_matrix, u)
        return linear if self.drift is None else linear + self.beside(t, x, u)

    def beside(
        self, t: Float[Array, ""], x: Float[Array, " state"], u: Array | None
    ) -> Float[Array, " state"]:
        """Return the drift beside the linear one."""
        if self.drift is None:
            return jnp.zeros_like(x)
        return self.drift(t, x) if u is None else self.drift(t, x, u)

    def prior_diffusion(
        self, t: Float[Array, ""], x: Float[Array, " state"]
    ) -> Float[Array, "state brownian"]:
        """Return `sigma(t, x)`."""
        if self.diffusion is None:
            return self.linear.coefficients(t).diffusion
        sigma = self.diffusion(t, x)
        return jnp.diag(sigma) if sigma.ndim == 1 else sigma

    def trainable(self) -> tuple["LatentSDE", "LatentSDE"]:
        """Return the model with what is trained alone, and with the rest alone."""
        spec = jax.tree.map(eqx.is_inexact_array, self)
        for name in self.frozen:
            chosen = operator.attrgetter(name)
            part = jax.tree.map(lambda _: False, chosen(self))
            spec = eqx.tree_at(chosen, spec, part)
        return eqx.partition(self, spec)
