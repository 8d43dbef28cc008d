"""What pretrained encoders are made of: affine maps, and what follows their layers."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .pretrained import Description
from .sequences import linear, pooled
from .towers import normalized


class Affine(eqx.Module):
    """A weight and a bias: of a linear layer, `(out, in)` and `(out,)`, or of a norm.

    Those of all layers are stacked, along an axis in front.
    """

    weight: Float[Array, "..."]
    bias: Float[Array, "... out"] | None = None


class Dense(eqx.Module):
    """A layer of embeddings, `activation(weight @ x + bias)`.

    `activation` is `"identity"` or `"tanh"`.
    """

    weight: Float[Array, "out in"]
    bias: Float[Array, " out"] | None = None
    activation: str = eqx.field(static=True, default="identity")

    def __call__(self, x: Float[Array, "batch in"]) -> Float[Array, "batch out"]:
        """Return the embeddings after the layer."""
        y = linear(self, x)
        return jnp.tanh(y) if self.activation == "tanh" else y


def common_fields(said: Description, dropout: float) -> dict[str, Any]:
    """Return the fields that all encoders of folders have, by what a folder says."""
    return {
        "dropout": eqx.nn.Dropout(dropout),
        "num_heads": said.config["num_attention_heads"],
        "pooling": said.pooling,
        "is_normalized": said.is_normalized,
        "padding": said.config["pad_token_id"],
        "dense": tuple(_dense(*layer) for layer in said.dense),
    }


def _dense(weight: np.ndarray, bias: np.ndarray | None, activation: str) -> Dense:
    own = None if bias is None else jnp.asarray(bias)
    return Dense(jnp.asarray(weight), own, activation)


def embedding_of(
    x: Float[Array, "batch length width"],
    there: Bool[Array, "batch length"],
    encoder: Any,
) -> Float[Array, "batch size"]:
    """Return embeddings of sequences by an encoder's pooling, `dense` and length."""
    # The first token is there in all texts: tokenizers put one before them.
    is_first = encoder.pooling == "cls"
    x = pooled(x[:, :1], there[:, :1]) if is_first else pooled(x, there)
    for layer in encoder.dense:
        x = layer(x)
    return normalized(x) if encoder.is_normalized else x


def check_layout(encoder: Any, width: int) -> None:
    """Raise `ValueError` for another pooling, or heads that do not fit."""
    if encoder.pooling not in ("mean", "cls"):
        raise ValueError(f"`pooling` is {encoder.pooling!r}: pass 'mean' or 'cls'.")
    if width % encoder.num_heads:
        raise ValueError(
            f"`num_heads` is {encoder.num_heads}, which does not divide the width, "
            f"{width}."
        )


def check_tokens_of(tokens: Any, longest: int) -> None:
    """Raise for values that are no integers, of another shape, or longer texts."""
    dtype = getattr(tokens, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(
            f"`tokens` are {dtype or type(tokens).__name__}: pass an array of "
            "integers, `(batch, length)`, as a tokenizer makes it of texts."
        )
    if tokens.ndim != 2 or tokens.shape[1] > longest:
        raise ValueError(
            f"`tokens` have shape {tokens.shape}: pass `(batch, length)`, length "
            f"{longest} at most."
        )
