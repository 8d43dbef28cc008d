"""Restricted Boltzmann machines, as energies."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from effgen.core.contract.counts import check_count
from effgen.core.contract.keys import check_key
from effgen.ebm.contract.arguments import as_rows, check_logits, check_positive


_MOST_ENUMERATED = 22


class RBM(eqx.Module):
    """A restricted Boltzmann machine, as the energy of its visible units.

        energy(x) = -visible_bias . x - sum(softplus(hidden_bias + x @ weights))

    This is the free energy: the hidden units are summed out. Its gradient in the
    parameters is the usual one, and `exp(-energy)` the unnormalized probability of `x`.

    Arguments:
        weights: Shape `(visible, hidden)`.
        visible_bias: Shape `(visible,)`.
        hidden_bias: Shape `(hidden,)`.

    Raises:
        ValueError: For arrays whose shapes do not fit.
        TypeError: For arrays that are not of floats.

    Source:
        Smolensky (1986); Hinton (2002).
    """

    weights: Float[Array, "visible hidden"]
    visible_bias: Float[Array, " visible"]
    hidden_bias: Float[Array, " hidden"]

    def __check_init__(self) -> None:
        """Raise for arrays whose shapes do not fit, or that would not be trained."""
        for name in ("weights", "visible_bias", "hidden_bias"):
            dtype = jnp.result_type(getattr(self, name))
            if not jnp.issubdtype(dtype, jnp.floating):
                raise TypeError(f"`{name}` is of {dtype}: pass floats, to be trained.")
        shape = (*jnp.shape(self.visible_bias), *jnp.shape(self.hidden_bias))
        if jnp.shape(self.weights) != shape or len(shape) != 2:
            raise ValueError(
                f"`weights` have shape {jnp.shape(self.weights)}, the biases "
                f"{jnp.shape(self.visible_bias)} and {jnp.shape(self.hidden_bias)}: "
                "pass `(visible, hidden)`, `(visible,)` and `(hidden,)`."
            )

    @classmethod
    def independent(
        cls,
        visible_bias: Float[Array, " visible"],
        num_hidden: int,
        *,
        key: PRNGKeyArray | None = None,
        scale: float = 0.0,
    ) -> "RBM":
        """Return an RBM whose visible units are (almost) independent.

        With `scale` zero they are exactly independent. `Walkers.from_bernoulli(key,
        num, visible_bias)` are then its samples, and `log Z` is known. But then all
        hidden units are equal, and training keeps them equal. So give a `key` and a
        small `scale`, such as 0.01. The walkers are reweighted for it, exactly.

        Arguments:
            visible_bias: The logits of the visible units, shape `(visible,)`.
            num_hidden: How many hidden units, whose biases are zero.
            key: The randomness of the weights; `None` for weights of zero.
            scale: The weights' standard deviation, above 0 where there is a `key`.

        Returns:
            The machine.

        Raises:
            ValueError: If `num_hidden` is not positive, if a `scale` comes without a
                key or a key without a `scale`, or for biases that are not finite.
            TypeError: For an object that is no key, or no numbers.
        """
        visible_bias = as_rows("visible_bias", visible_bias)
        check_logits("visible_bias", visible_bias)
        check_count("num_hidden", num_hidden)
        if scale and key is None:
            raise ValueError("`scale` needs a `key`: pass `key=jax.random.key(0)`.")
        if key is not None:
            check_key(key)
            check_positive("scale", scale)  # of 0, the key would draw nothing
        weights = jnp.zeros((visible_bias.size, num_hidden), visible_bias.dtype)
        if key is not None:
            weights = scale * jax.random.normal(key, weights.shape, weights.dtype)
        return cls(weights, visible_bias, jnp.zeros(num_hidden, visible_bias.dtype))

    def __call__(self, x: Float[Array, " visible"]) -> Float[Array, ""]:
        """Return the free energy of one vector of zeros and ones.

        Arguments:
            x: Visible units, shape `(visible,)`.

        Returns:
            The energy, one number.
        """
        hidden = jax.nn.softplus(self.hidden_bias + x @ self.weights)
        return -x @ self.visible_bias - jnp.sum(hidden)

    def log_partition(self) -> Float[Array, ""]:
        """Return `log Z`, by enumeration of the smaller layer.

        Returns:
            `log Z` in nats, one number.

        Raises:
            ValueError: If both layers have more than 22 units.
        """
        inner, outer, weights = self.visible_bias, self.hidden_bias, self.weights
        if inner.size > outer.size:
            inner, outer, weights = outer, inner, weights.T
        if inner.size > _MOST_ENUMERATED:
            raise ValueError(
                f"the smaller layer has {inner.size} units: enumeration is for up to "
                f"{_MOST_ENUMERATED}; estimate `log Z` with walkers."
            )
        return _enumerated(inner, outer, weights)


@jax.jit
def _enumerated(
    inner: Float[Array, " inner"],
    outer: Float[Array, " outer"],
    weights: Float[Array, "inner outer"],
) -> Float[Array, ""]:
    count = 2**inner.size
    rows = jnp.arange(count).reshape(-1, min(count, 1024))

    def chunk(codes: Int[Array, " codes"]) -> Float[Array, ""]:
        shifts = jnp.arange(inner.size)
        states = ((codes[:, None] >> shifts[None]) & 1).astype(inner.dtype)
        summed = jax.nn.softplus(outer[None] + states @ weights)
        return jax.nn.logsumexp(states @ inner + jnp.sum(summed, axis=1))

    return jax.nn.logsumexp(jax.lax.map(chunk, rows))
