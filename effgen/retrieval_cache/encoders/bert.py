"""BERT: a pretrained encoder of texts, loaded from a folder and trained further."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray

from .architectures import RELATIVE
from .layers import (
    Affine,
    Dense,
    check_layout,
    check_tokens_of,
    common_fields,
    embedding_of,
)
from .pretrained import Folder, described, tensors
from .sequences import (
    attention,
    by_distance,
    check_dropout,
    layer_norm,
    linear,
    looked_up,
)


_TABLES = ("word", "position", "token_type")
_KINDS = ("weight", "bias")
_PARTS = {
    "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "out": ("attention.output.dense",),
    "out_norm": ("attention.output.LayerNorm",),
    "up": ("intermediate.dense",),
    "down": ("output.dense",),
    "down_norm": ("output.LayerNorm",),
}


class Layers(eqx.Module):
    """Attention and a layer of units, each added to its input and normed after.

    All are stacked over layers. `qkv` makes queries, keys and values in one, `out` is
    of attention, `up` and `down` are of the units.
    """

    qkv: Affine
    out: Affine
    out_norm: Affine
    up: Affine
    down: Affine
    down_norm: Affine


class Bert(eqx.Module):
    """The encoder of Devlin et al. (2019), with a pooling.

    MiniLM, BGE and E5 are such encoders. So are, under other names, DistilBERT,
    RoBERTa, XLM-R and MPNet.

        x = norm(words[tokens] + places + types[0])
        x = norm(x + attention(x))
        x = norm(x + down(gelu(up(x))))                     for each layer
        embedding = normalized(dense(mean(x)))

    A scan runs over the layers, so that it compiles as fast as one. Parameters are
    float32, and norms, softmax, pooling and embeddings are computed so. `Bert.load` and
    `Bert.random` make one, and `dataclasses.replace` changes any of its attributes.

    Attributes:
        words: The vectors of tokens, `(words, width)`.
        places: The vectors of their places, `(places, width)`.
        types: In which of two texts they are, `(types, width)`; all are in the first.
        norm: The norm of their sum.
        layers: The layers, stacked.
        dropout: On that sum and on what layers add, when there is a key; not on
            attention weights.
        num_heads: The heads of attention.
        pooling: `"mean"` over tokens, or `"cls"`, the first.
        is_normalized: Whether embeddings have length one.
        padding: The token that is none.
        epsilon: What the norms add to variances.
        compute: The type that layers are computed in.
        recompute: Whether gradients compute each layer once more instead of keeping
            its inner values. It takes about a third more time, and little more memory
            than one layer.
        relative: Of MPNet, what attention adds by how far tokens are apart,
            `(buckets, heads)`.
        dense: Layers of embeddings.

    Raises:
        ValueError: For another pooling, heads that do not divide the width, or what is
            no share of dropout below 1.
    """

    words: Float[Array, "words width"]
    places: Float[Array, "places width"]
    types: Float[Array, "types width"]
    norm: Affine
    layers: Layers
    dropout: eqx.nn.Dropout
    num_heads: int = eqx.field(static=True)
    pooling: str = eqx.field(static=True, default="mean")
    is_normalized: bool = eqx.field(static=True, default=True)
    padding: int = eqx.field(static=True, default=0)
    epsilon: float = eqx.field(static=True, default=1e-12)
    compute: Any = eqx.field(static=True, default=jnp.float32)
    recompute: bool = eqx.field(static=True, default=False)
    relative: Float[Array, "buckets heads"] | None = None
    dense: tuple[Dense, ...] = ()

    def __check_init__(self) -> None:
        """Raise `ValueError` for another pooling, or heads that do not fit."""
        check_dropout(self.dropout.p)
        check_layout(self, self.words.shape[1])

    @classmethod
    def load(
        cls,
        folder: Folder,
        *,
        compute: Any = jnp.float32,
        dropout: float = 0.0,
        recompute: bool = False,
        route: str | None = None,
    ) -> "Bert":
        """Return the encoder of a folder of sentence-transformers or Hugging Face.

        DistilBERT, RoBERTa, XLM-R and MPNet are loaded too, with layers after the
        pooling. It needs the extra `text`.

        Arguments:
            folder: The path of the folder.
            compute: The type that layers are computed in.
            dropout: The share that is dropped in training.
            recompute: Whether gradients compute each layer once more.
            route: Of a folder that has a `Router`, whose encoder, such as `"query"`.

        Returns:
            The encoder.

        Raises:
            FileNotFoundError: For a file that is not there.
            ValueError: For an encoder of another kind, one that lacks tensors, and a
                route that the folder does not have.
            ImportError: Without safetensors.
        """
        said = described(folder, route, "Bert")
        config = said.config
        named = jax.eval_shape(lambda: named_tensors(_like(config)))
        shapes = {name: x.shape for name, x in named.items()}
        if said.kind.is_relative:
            shapes[RELATIVE] = (32, config["num_attention_heads"])
        found = tensors(said, shapes)
        norm = "embeddings.LayerNorm"
        return cls(
            *(jnp.asarray(found[f"embeddings.{x}_embeddings.weight"]) for x in _TABLES),
            norm=Affine(*(jnp.asarray(found[f"{norm}.{x}"]) for x in _KINDS)),
            layers=_stacked(found, config["num_hidden_layers"]),
            epsilon=config["layer_norm_eps"],
            compute=compute,
            recompute=recompute,
            relative=jnp.asarray(found[RELATIVE]) if RELATIVE in found else None,
            **common_fields(said, dropout),
        )

    @classmethod
    def random(
        cls,
        num_words: int,
        length: int,
        *,
        key: PRNGKeyArray,
        width: int = 384,
        depth: int = 6,
        num_heads: int = 12,
        inner_size: int = 1_536,
        num_types: int = 2,
        dropout: float = 0.0,
    ) -> "Bert":
        """Return an encoder of random weights.

        Arguments:
            num_words: The tokens of the vocabulary.
            length: The most tokens of a text.
            key: The JAX random key of the weights.
            width: The numbers of a token's vector.
            depth: How many layers.
            num_heads: The heads of attention, which divide the width.
            inner_size: The units of a layer.
            num_types: How many texts are told apart; embeddings are of the first.
            dropout: The share that is dropped in training.

        Returns:
            The encoder.

        Raises:
            ValueError: For heads that do not divide the width.
        """
        keys = jax.random.split(key, 7)
        normal = lambda key, *shape: 0.02 * jax.random.normal(key, shape)
        linear = lambda key, out, size: Affine(
            normal(key, depth, out, size), jnp.zeros((depth, out))
        )
        norm = Affine(jnp.ones((depth, width)), jnp.zeros((depth, width)))
        layers = Layers(
            qkv=linear(keys[0], 3 * width, width),
            out=linear(keys[1], width, width),
            out_norm=norm,
            up=linear(keys[2], inner_size, width),
            down=linear(keys[3], width, inner_size),
            down_norm=norm,
        )
        return cls(
            normal(keys[4], num_words, width),
            normal(keys[5], length, width),
            normal(keys[6], num_types, width),
            norm=Affine(jnp.ones(width), jnp.zeros(width)),
            layers=layers,
            dropout=eqx.nn.Dropout(dropout),
            num_heads=num_heads,
        )

    def __call__(
        self, tokens: Integer[Array, "batch length"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "batch size"]:
        """Return the embeddings of a batch of token sequences, filled up with padding.

        Arguments:
            tokens: Integers, `(batch, length)`.
            key: A key for dropout; without one there is none.

        Returns:
            The embeddings, `(batch, size)`.

        Raises:
            TypeError: For values that are no integers.
            ValueError: For another shape, or more tokens than places.
        """
        check_tokens_of(tokens, len(self.places))
        tokens = tokens.astype(jnp.int32)
        there = tokens != self.padding
        first, rest = (None, None) if key is None else jax.random.split(key)
        x = looked_up(self.words, tokens) + self.places[None, : tokens.shape[1]]
        x = layer_norm(self.norm, x + self.types[None, :1], self.epsilon)
        x = self._through(self._dropped(x, first).astype(self.compute), there, rest)
        return embedding_of(x, there, self)

    def _through(
        self,
        x: Float[Array, "batch length width"],
        there: Bool[Array, "batch length"],
        key: PRNGKeyArray | None,
    ) -> Float[Array, "batch length width"]:
        """Return the sequences after all layers."""
        depth = len(self.layers.out.weight)
        keys = None if key is None else jax.random.split(key, depth)
        apart = self.relative
        bias = None if apart is None else by_distance(apart, x.shape[1], x.dtype)

        def further(x: Array, layer: tuple[Layers, Any]) -> tuple[Array, None]:
            return self._layer(x, there, bias, *layer), None

        if self.recompute:
            further = jax.checkpoint(further, prevent_cse=False)
        return jax.lax.scan(further, x, (self.layers, keys))[0]

    def _layer(
        self,
        x: Float[Array, "batch length width"],
        there: Bool[Array, "batch length"],
        bias: Float[Array, "1 heads length length"] | None,
        layer: Layers,
        key: PRNGKeyArray | None,
    ) -> Float[Array, "batch length width"]:
        """Return the sequences one layer later."""
        keys = (None, None) if key is None else jax.random.split(key)
        y = attention(linear(layer.qkv, x), there, self.num_heads, bias)
        y = x + self._dropped(linear(layer.out, y), keys[0])
        x = layer_norm(layer.out_norm, y, self.epsilon)
        y = linear(layer.down, jax.nn.gelu(linear(layer.up, x), approximate=False))
        return layer_norm(layer.down_norm, x + self._dropped(y, keys[1]), self.epsilon)

    def _dropped(self, x: Array, key: PRNGKeyArray | None) -> Array:
        return x if key is None else self.dropout(x, key=key)


def named_tensors(bert: Bert) -> dict[str, Float[Array, "..."]]:
    """Return the parameters by the names that they have in a folder."""
    tables = zip(_TABLES, (bert.words, bert.places, bert.types), strict=True)
    found = {f"embeddings.{name}_embeddings.weight": x for name, x in tables}
    for kind in _KINDS:
        found[f"embeddings.LayerNorm.{kind}"] = getattr(bert.norm, kind)
        for field, parts in _PARTS.items():
            stacked = getattr(getattr(bert.layers, field), kind)
            for i, joined in enumerate(stacked):
                pieces = jnp.split(joined, len(parts))
                for part, piece in zip(parts, pieces, strict=True):
                    found[f"encoder.layer.{i}.{part}.{kind}"] = piece
    return found


def _stacked(found: dict[str, np.ndarray], depth: int) -> Layers:
    """Return the layers of tensors by name: the inverse of `named_tensors`."""

    def joined(parts: tuple[str, ...], kind: str) -> Array:
        at = lambda i: [found[f"encoder.layer.{i}.{part}.{kind}"] for part in parts]
        return jnp.asarray(np.stack([np.concatenate(at(i)) for i in range(depth)]))

    each = {
        field: Affine(*(joined(parts, kind) for kind in _KINDS))
        for field, parts in _PARTS.items()
    }
    return Layers(**each)


def _like(config: dict[str, Any]) -> Bert:
    """Return a BERT of the sizes that a folder names."""
    return Bert.random(
        config["vocab_size"],
        config["max_position_embeddings"],
        key=jax.random.key(0),
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        inner_size=config["intermediate_size"],
        num_types=config["type_vocab_size"],
    )
