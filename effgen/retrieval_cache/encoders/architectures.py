"""Encoders that are a BERT under other names: what each calls its numbers and tensors.

- DistilBERT (Sanh et al., 2019): no types.
- RoBERTa (Liu et al., 2019) and XLM-R (Conneau et al., 2020): places are counted from
  behind the padding's.
- MPNet (Song et al., 2020): as RoBERTa, no types, and a bias of attention by distance.

ModernBERT (Warner et al., 2024) is no BERT: an encoder of its own reads it.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np


Tensors = dict[str, np.ndarray]

RELATIVE = "encoder.relative_attention_bias.weight"
_TYPES = "embeddings.token_type_embeddings.weight"
_PLACES = "embeddings.position_embeddings.weight"

_USUAL = {
    "vocab_size": 30_522,
    "max_position_embeddings": 512,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3_072,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
_DISTILLED = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
}


_ONLY = {
    "hidden_act": "gelu",
    "activation": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "relative_attention_num_buckets": 32,
}


class Architecture(NamedTuple):
    """How an encoder differs from BERT.

    Attributes:
        reader: The class that reads it.
        roots: With what the names of its encoder's tensors begin.
        only: Settings of its `config.json` that may have one value.
        prefix: What its tensors' names may begin with.
        usual: The values of its `config.json` where that says nothing.
        called: Names there that are others than BERT's.
        parts: Parts of its tensors' names, and BERT's.
        is_shifted: Whether places are counted from behind the padding's.
        has_types: Whether it tells two texts apart.
        is_relative: Whether attention has a bias by distance.
    """

    prefix: str = "bert."
    reader: str = "Bert"
    roots: tuple[str, ...] = ("embeddings.", "encoder.")
    only: Mapping[str, Any] = MappingProxyType(_ONLY)
    usual: Mapping[str, Any] = MappingProxyType(_USUAL)
    called: Mapping[str, str] = MappingProxyType({})
    parts: Mapping[str, str] = MappingProxyType({})
    is_shifted: bool = False
    has_types: bool = True
    is_relative: bool = False

    def numbers(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return the numbers of a `config.json` under BERT's names.

        Places are those that texts have.
        """
        found = {
            name: config.get(self.called.get(name, name), usual)
            for name, usual in self.usual.items()
        }
        found["max_position_embeddings"] -= self.skipped(found)
        return found if self.has_types else found | {"type_vocab_size": 1}

    def skipped(self, config: dict[str, Any]) -> int:
        """Return how many rows of the places no text has."""
        if not self.is_shifted:
            return 0
        return config.get("pad_token_id", self.usual["pad_token_id"]) + 1

    def tensors(self, stored: Tensors, config: dict[str, Any]) -> Tensors:
        """Return tensors under BERT's names."""
        found = {self._name(name): x for name, x in stored.items()}
        if _PLACES in found:
            found[_PLACES] = found[_PLACES][self.skipped(config) :]
        if not self.has_types and "embeddings.word_embeddings.weight" in found:
            width = found["embeddings.word_embeddings.weight"].shape[1]
            found[_TYPES] = np.zeros((1, width), np.float32)
        return found

    def _name(self, name: str) -> str:
        name = name.removeprefix(self.prefix)
        for own, usual in self.parts.items():
            name = name.replace(own, usual)
        return name


_MODERN = {
    "vocab_size": 50_368,
    "max_position_embeddings": 8_192,
    "hidden_size": 768,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "intermediate_size": 1_152,
    "norm_eps": 1e-5,
    "pad_token_id": 50_283,
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
    "layer_types": None,
    "global_rope_theta": 160_000.0,
    "local_rope_theta": 10_000.0,
    "rope_parameters": None,
}
_MODERN_ONLY = {
    "hidden_activation": "gelu",
    "norm_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
}
_PADDED = _USUAL | {"pad_token_id": 1}
_SHIFTED = Architecture("roberta.", usual=_PADDED, is_shifted=True)

ARCHITECTURES = {
    "bert": Architecture(),
    "distilbert": Architecture(
        "distilbert.",
        usual=_USUAL | {"num_hidden_layers": 6},
        called=_DISTILLED,
        parts={
            "transformer.layer.": "encoder.layer.",
            ".attention.q_lin.": ".attention.self.query.",
            ".attention.k_lin.": ".attention.self.key.",
            ".attention.v_lin.": ".attention.self.value.",
            ".attention.out_lin.": ".attention.output.dense.",
            ".sa_layer_norm.": ".attention.output.LayerNorm.",
            ".ffn.lin1.": ".intermediate.dense.",
            ".ffn.lin2.": ".output.dense.",
            ".output_layer_norm.": ".output.LayerNorm.",
        },
        has_types=False,
    ),
    "roberta": _SHIFTED._replace(usual=_PADDED | {"vocab_size": 50_265}),
    "xlm-roberta": _SHIFTED,
    "mpnet": Architecture(
        "mpnet.",
        usual=_PADDED | {"vocab_size": 30_527},
        parts={
            ".attention.attn.q.": ".attention.self.query.",
            ".attention.attn.k.": ".attention.self.key.",
            ".attention.attn.v.": ".attention.self.value.",
            ".attention.attn.o.": ".attention.output.dense.",
            ".attention.LayerNorm.": ".attention.output.LayerNorm.",
        },
        is_shifted=True,
        has_types=False,
        is_relative=True,
    ),
    "modernbert": Architecture(
        "model.",
        reader="ModernBert",
        roots=("embeddings.", "layers.", "final_norm."),
        only=_MODERN_ONLY,
        usual=_MODERN,
    ),
}
