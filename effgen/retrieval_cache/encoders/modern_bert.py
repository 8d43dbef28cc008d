"""ModernBERT: a pretrained encoder whose attention turns with places, mostly local."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray

from .layers import (
    Affine,
    Dense,
    check_layout,
    check_tokens_of,
    common_fields,
    embedding_of,
)
from .pretrained import Description, Folder, described, tensors
from .sequences import (
    attended,
    check_dropout,
    heads_of,
    layer_norm,
    linear,
    looked_up,
)


_PARTS = {
    "norm": "attn_norm",
    "qkv": "attn.Wqkv",
    "out": "attn.Wo",
    "mlp_norm": "mlp_norm",
    "up": "mlp.Wi",
    "down": "mlp.Wo",
}
_WORDS, _NORM = "embeddings.tok_embeddings.weight", "embeddings.norm.weight"
_LAST = "final_norm.weight"
_KINDS = {"full_attention": False, "sliding_attention": True}


class GatedLayers(eqx.Module):
    """Attention and gated units, each normed before and added to its input.

    All are stacked over layers and have no bias. `qkv` makes queries, keys and values
    in one, `up` the units and their gates. The first layer has no `norm`: its row is
    not read.
    """

    norm: Affine
    qkv: Affine
    out: Affine
    mlp_norm: Affine
    up: Affine
    down: Affine


class ModernBert(eqx.Module):
    """The encoder of Warner et al. (2024), with a pooling.

        x = norm(words[tokens])
        x = x + out(attention(turned(qkv(norm(x)))))
        units, gates = up(norm(x))
        x = x + down(gelu(units) * gates)                   for each layer
        embedding = normalized(dense(mean(last_norm(x))))

    `turned` rotates queries and keys by their places. A token reads all others in some
    layers, and in the others those at most `reach` places away. A scan runs over the
    layers. Parameters are float32, and norms, softmax, pooling and embeddings are
    computed so. `ModernBert.load` makes one, and `dataclasses.replace` changes any of
    its attributes.

    Attributes:
        words: The vectors of tokens, `(words, width)`.
        norm: Their norm.
        layers: The layers, stacked.
        last_norm: The norm behind the layers.
        dropout: On words and on what layers add, when there is a key; not on attention
            weights.
        num_heads: The heads of attention.
        local: Which layers are local.
        reach: How many places away a local layer reads.
        bases: Of the turns' periods, of the layers that read all and of the local ones.
        length: The most tokens of a text.
        pooling: `"mean"` over tokens, or `"cls"`, the first.
        is_normalized: Whether embeddings have length one.
        padding: The token that is none.
        epsilon: What the norms add to variances.
        compute: The type that layers are computed in.
        recompute: Whether gradients compute each layer once more instead of keeping
            its inner values.
        dense: Layers of embeddings.

    Raises:
        ValueError: For another pooling, heads that do not divide the width into even
            parts, or what is no share of dropout below 1.
    """

    words: Float[Array, "words width"]
    norm: Affine
    layers: GatedLayers
    last_norm: Affine
    dropout: eqx.nn.Dropout
    num_heads: int = eqx.field(static=True)
    local: tuple[bool, ...] = eqx.field(static=True)
    reach: int = eqx.field(static=True)
    bases: tuple[float, float] = eqx.field(static=True)
    length: int = eqx.field(static=True)
    pooling: str = eqx.field(static=True, default="mean")
    is_normalized: bool = eqx.field(static=True, default=True)
    padding: int = eqx.field(static=True, default=50_283)
    epsilon: float = eqx.field(static=True, default=1e-5)
    compute: Any = eqx.field(static=True, default=jnp.float32)
    recompute: bool = eqx.field(static=True, default=False)
    dense: tuple[Dense, ...] = ()

    def __check_init__(self) -> None:
        """Raise `ValueError` for another pooling, or heads that do not fit."""
        check_dropout(self.dropout.p)
        check_layout(self, self.words.shape[1])
        if self.words.shape[1] // self.num_heads % 2:
            raise ValueError(
                f"`num_heads` is {self.num_heads}, and {self.words.shape[1]} numbers "
                "by it are odd: turns take pairs of them."
            )

    @classmethod
    def load(
        cls,
        folder: Folder,
        *,
        compute: Any = jnp.float32,
        dropout: float = 0.0,
        recompute: bool = False,
        route: str | None = None,
    ) -> "ModernBert":
        """Return the encoder of a folder of sentence-transformers or Hugging Face.

        It needs the extra `text`.

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
        said = described(folder, route, "ModernBert")
        found = {k: jnp.asarray(x) for k, x in tensors(said, _shapes(said)).items()}
        config = said.config
        return cls(
            found[_WORDS],
            Affine(found[_NORM]),
            _stacked(found, config["num_hidden_layers"]),
            Affine(found[_LAST]),
            local=_local(config),
            reach=config["local_attention"] // 2,
            bases=_bases(said),
            length=config["max_position_embeddings"],
            epsilon=config["norm_eps"],
            compute=compute,
            recompute=recompute,
            **common_fields(said, dropout),
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
        check_tokens_of(tokens, self.length)
        tokens = tokens.astype(jnp.int32)
        there = tokens != self.padding
        first, rest = (None, None) if key is None else jax.random.split(key)
        x = layer_norm(self.norm, looked_up(self.words, tokens), self.epsilon)
        x = self._through(self._dropped(x, first).astype(self.compute), there, rest)
        x = layer_norm(self.last_norm, x, self.epsilon)
        return embedding_of(x, there, self)

    def _through(
        self,
        x: Float[Array, "batch length width"],
        there: Bool[Array, "batch length"],
        key: PRNGKeyArray | None,
    ) -> Float[Array, "batch length width"]:
        """Return the sequences after all layers."""
        depth, length = len(self.local), x.shape[1]
        keys = None if key is None else jax.random.split(key, depth)
        local, first = np.array(self.local), np.arange(depth) == 0
        turns = jnp.stack([self._turns(length, base) for base in self.bases])
        places = np.arange(length)
        near = jnp.asarray(np.abs(places[:, None] - places) <= self.reach)

        def further(x: Array, layer: Any) -> tuple[Array, None]:
            layers, key, local, first = layer
            mask = there[:, None, None] & (near | ~local)[None, None]
            turn = turns[local.astype(jnp.int32)]
            return self._layer(x, mask, turn, layers, first, key), None

        if self.recompute:
            further = jax.checkpoint(further, prevent_cse=False)
        return jax.lax.scan(further, x, (self.layers, keys, local, first))[0]

    def _layer(
        self,
        x: Float[Array, "batch length width"],
        mask: Bool[Array, "batch 1 length length"],
        turn: Float[Array, "2 length half"],
        layer: GatedLayers,
        first: Bool[Array, ""],
        key: PRNGKeyArray | None,
    ) -> Float[Array, "batch length width"]:
        """Return the sequences one layer later."""
        keys = (None, None) if key is None else jax.random.split(key)
        y = jnp.where(first, x, layer_norm(layer.norm, x, self.epsilon))
        query, key_, value = heads_of(linear(layer.qkv, y), self.num_heads)
        y = attended(turned(query, turn), turned(key_, turn), value, mask)
        y = linear(layer.out, y.reshape(x.shape))
        x = x + self._dropped(y, keys[0])
        y = linear(layer.up, layer_norm(layer.mlp_norm, x, self.epsilon))
        units, gates = jnp.split(y, 2, axis=-1)
        y = linear(layer.down, jax.nn.gelu(units, approximate=False) * gates)
        return x + self._dropped(y, keys[1])

    def _turns(self, length: int, base: float) -> Float[Array, "2 length half"]:
        """Return cosines and sines of the angles of places."""
        each = self.words.shape[1] // self.num_heads
        rates = base ** -(np.arange(0, each, 2) / each)
        angles = np.arange(length)[:, None] * rates
        return jnp.asarray([np.cos(angles), np.sin(angles)], self.words.dtype)

    def _dropped(self, x: Array, key: PRNGKeyArray | None) -> Array:
        return x if key is None else self.dropout(x, key=key)


def turned(
    x: Float[Array, "batch length heads each"], turn: Float[Array, "2 length half"]
) -> Float[Array, "batch length heads each"]:
    """Return vectors with their halves, as pairs of numbers, turned by their places.

    Source:
        Su et al. (2021).
    """
    cosine, sine = (part[None, :, None] for part in turn)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    a, b = jnp.split(wide, 2, axis=-1)
    rows = (a * cosine - b * sine, b * cosine + a * sine)
    return jnp.concatenate(rows, axis=-1).astype(x.dtype)


def modern_tensors(bert: ModernBert) -> dict[str, Float[Array, "..."]]:
    """Return the parameters by the names that they have in a folder."""
    found = {_WORDS: bert.words, _NORM: bert.norm.weight, _LAST: bert.last_norm.weight}
    for field, part in _PARTS.items():
        for i, weight in enumerate(getattr(bert.layers, field).weight):
            if (i, field) != (0, "norm"):
                found[f"layers.{i}.{part}.weight"] = weight
    return found


def _shapes(said: Description) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of a folder, by name."""
    config = said.config
    width, inner = config["hidden_size"], config["intermediate_size"]
    found = {_WORDS: (config["vocab_size"], width), _NORM: (width,), _LAST: (width,)}
    each = {
        "norm": (width,),
        "qkv": (3 * width, width),
        "out": (width, width),
        "mlp_norm": (width,),
        "up": (2 * inner, width),
        "down": (width, inner),
    }
    for i in range(config["num_hidden_layers"]):
        found |= {f"layers.{i}.{_PARTS[k]}.weight": x for k, x in each.items()}
    del found[f"layers.0.{_PARTS['norm']}.weight"]
    return found


def _stacked(found: dict[str, Array], depth: int) -> GatedLayers:
    """Return the layers of tensors by name: the inverse of `modern_tensors`."""
    unread = {f"layers.0.{_PARTS['norm']}.weight": jnp.ones_like(found[_NORM])}
    found = unread | found
    each = {
        field: Affine(
            jnp.stack([found[f"layers.{i}.{part}.weight"] for i in range(depth)])
        )
        for field, part in _PARTS.items()
    }
    return GatedLayers(**each)


def _local(config: dict[str, Any]) -> tuple[bool, ...]:
    """Return which layers are local, named one by one or by how often one is not."""
    depth, every = config["num_hidden_layers"], config["global_attn_every_n_layers"]
    if config["layer_types"] is None:
        return tuple(i % every != 0 for i in range(depth))
    return tuple(_KINDS[kind] for kind in config["layer_types"])


def _bases(said: Description) -> tuple[float, float]:
    """Return the bases of turns, of layers that read all and of the local ones."""
    config, found = said.config, []
    for kind, name in zip(_KINDS, ("global_rope_theta", "local_rope_theta")):
        turns = (config["rope_parameters"] or {}).get(kind, {})
        if turns.get("rope_type", "default") != "default":
            raise ValueError(
                f"`{said.folder / 'config.json'}` has `rope_type` "
                f"{turns['rope_type']!r}, and a `ModernBert` 'default': load another "
                "model."
            )
        found.append(float(turns.get("rope_theta", config[name])))
    return found[0], found[1]
