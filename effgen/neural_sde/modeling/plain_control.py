"""A control that is learned whole, without a linear part: that of the baselines."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from effgen.neural_sde.data.series import Series
from effgen.neural_sde.linear_sdes.gaussian import Gaussian

from .networks import zero_at_first


class PlainControl(eqx.Module):
    """A posterior whose whole control is learned, and the law that it begins from.

    A recurrent network reads the observations backward. Its state at the next
    observation is the `context` of the control. Its state at the first gives mean and
    scale of `X` there. The torchsde example does the same. The control is zero at
    first.

    Arguments:
        num_states: The number of components of the state.
        num_sensors: The number of entries of one observation.
        key: A random key.
        num_brownian: The number of columns of `sigma`, by default `num_states`.
        width_size: The width of each hidden layer of the control's network.
        depth: The number of its hidden layers.
        context_size: The size of the recurrent network's state.
        learn_start: Whether the first law is learned. Otherwise it is the prior's,
            which may be singular.
        num_inputs: The number of inputs that the control sees, 0 for none.
    """

    network: eqx.nn.MLP
    recurrence: eqx.nn.GRUCell
    start: eqx.nn.Linear | None
    num_inputs: int = eqx.field(static=True)

    def __init__(
        self,
        num_states: int,
        num_sensors: int,
        *,
        key: PRNGKeyArray,
        num_brownian: int | None = None,
        width_size: int = 64,
        depth: int = 2,
        context_size: int = 16,
        learn_start: bool = True,
        num_inputs: int = 0,
    ) -> None:
        """Make the networks."""
        keys = jax.random.split(key, 3)
        brownian = num_states if num_brownian is None else num_brownian
        seen = 1 + num_states + context_size + num_inputs
        self.num_inputs = num_inputs
        self.network = zero_at_first(seen, brownian, width_size, depth, key=keys[0])
        self.recurrence = eqx.nn.GRUCell(2 * num_sensors + 1, context_size, key=keys[1])
        self.start = None
        if learn_start:
            self.start = eqx.nn.Linear(context_size, 2 * num_states, key=keys[2])

    def __call__(
        self,
        since_first: Float[Array, ""],
        x: Float[Array, " state"],
        context: Float[Array, " context"],
        u: Float[Array, " inputs"] | None,
    ) -> Float[Array, " brownian"]:
        """Return the control.

        Arguments:
            since_first: The time since the first observation, a scalar.
            x: A state, shape `(state,)`.
            context: The recurrent network's state at the next observation.
            u: The inputs, shape `(inputs,)`, or `None`.

        Returns:
            `u` of the bound, shape `(brownian,)`.
        """
        parts = [since_first[None], x, context]
        if self.num_inputs and u is not None:
            parts.append(u)
        return self.network(jnp.concatenate(parts))

    def contexts(self, series: Series) -> Float[Array, "obs context"]:
        """Return the recurrent network's state at each observation.

        It begins at the last time at which something is seen, so padding changes
        nothing, and is zero after it.

        Arguments:
            series: One series, with `ts` of shape `(obs,)`.

        Returns:
            Shape `(obs, context)`.
        """
        ys = series.ys.reshape(len(series.ts), -1)
        mask = series.mask.reshape(len(series.ts), -1).astype(ys.dtype)
        seen = jnp.any(mask > 0, axis=1)
        ahead = jax.lax.cummax(seen.astype(jnp.int32), reverse=True) > 0
        later = jnp.append(ahead[1:], False)
        gaps = jnp.diff(series.ts, append=series.ts[-1:])
        gaps = jnp.where(later, gaps, 0)[:, None]
        rows = jnp.concatenate([ys, mask, gaps], axis=1)

        def back(hidden: Array, xs: tuple[Array, Array]) -> tuple[Array, Array]:
            row, ahead = xs
            hidden = jnp.where(ahead, self.recurrence(row, hidden), hidden)
            return hidden, hidden

        zero = jnp.zeros(self.recurrence.hidden_size, ys.dtype)
        return jax.lax.scan(back, zero, (rows, ahead), reverse=True)[1]

    def initial(self, context: Float[Array, " context"], prior: Gaussian) -> Gaussian:
        """Return the law of `X` at the first time.

        Arguments:
            context: The recurrent network's state at the first observation.
            prior: The prior's law, which is the answer where none is learned.

        Returns:
            A Gaussian of `state` components.
        """
        if self.start is None:
            return prior
        mean, raw = jnp.split(self.start(context), 2)
        return Gaussian(mean, jnp.diag(jax.nn.softplus(raw)))
