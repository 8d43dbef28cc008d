"""The tokenizer of a pretrained encoder: texts to rows of token numbers."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer

from effgen.core.extras import needed

from .pretrained import Folder, encoder_folder, read_json
from .truncation import Truncation, check_texts, warn_of


_AT_ONCE = 16_384


class Tokenizer:
    """Texts to rows of token numbers, cut or filled up to one length.

    Where a text itself spells the padding token, such as "[PAD]", nothing is read.
    Texts that are cut are warned of (`TruncationWarning`), once by each tokenizer, with
    how much of them: `truncation` says it of any texts.

    **Attributes:** `tokenizer`, of the library `tokenizers`; `length`, tokens of a row,
    those that mark a text's start and end included; `padding`, the token that is none;
    `lower`, whether texts are read in lower case.
    """

    def __init__(
        self, tokenizer: Any, length: int, *, padding: int = 0, lower: bool = False
    ) -> None:
        """Return one of a length.

        **Raises:** `ValueError` for a length that leaves no room for text.
        """
        marks = tokenizer.num_special_tokens_to_add(is_pair=False)
        if length <= marks:
            raise ValueError(
                f"`length` is {length}, and {marks} tokens mark a text's ends: "
                "pass more."
            )
        tokenizer.no_padding()
        tokenizer.enable_truncation(length)
        self._marks = marks
        self.tokenizer = tokenizer
        self.length = length
        self.padding = padding
        self.lower = lower

    @classmethod
    def load(cls, folder: Folder, *, length: int | None = None) -> "Tokenizer":
        """Return the tokenizer of a folder of sentence-transformers or Hugging Face.

        Needs the extra `effgen[text]`.

        **Arguments:** `length`, tokens of a row; by default the folder's, which suits
        its longest texts: for queries, and short documents, pass less.

        **Raises:** `FileNotFoundError` without `tokenizer.json`, `ImportError` without
        tokenizers.
        """
        at = encoder_folder(folder)
        path = at / "tokenizer.json"
        if not path.exists():
            raise FileNotFoundError(
                f"`{path}` is not there: save it with `save_pretrained` of a fast "
                "tokenizer of transformers."
            )
        said = text_settings(folder)
        library = needed("tokenizers", by="Tokenizer", extra="text")
        return cls(
            library.Tokenizer.from_file(str(path)),
            said["max_seq_length"] if length is None else length,
            padding=read_json(at / "config.json").get("pad_token_id", 0),
            lower=said["do_lower_case"],
        )

    def __call__(
        self, texts: Sequence[str], prompt: str = ""
    ) -> Integer[np.ndarray, "texts length"]:
        """Return the texts' tokens, in 16 bits if the vocabulary fits.

        **Arguments:** `prompt`, what goes before each text, such as `"query: "`.

        **Raises:** `TypeError` for a single string.
        """
        check_texts(texts)
        words = self.tokenizer.get_vocab_size(with_added_tokens=True)
        dtype = np.uint16 if words <= 1 << 16 else np.int32
        rows = np.full((len(texts), self.length), self.padding, dtype)
        sizes = np.zeros(len(texts), np.int64)
        for i, found in enumerate(self._encoded(texts, prompt)):
            rows[i, : len(found.ids)] = found.ids
            sizes[i] = self._size(found)
        warn_of(self, Truncation.of(sizes, self.length))
        return rows

    def truncation(self, texts: Sequence[str], prompt: str = "") -> Truncation:
        """Return how much of texts is cut off, those tokens counted that mark ends."""
        check_texts(texts)
        sizes = [self._size(found) for found in self._encoded(texts, prompt)]
        return Truncation.of(np.array(sizes, np.int64), self.length)

    def _encoded(self, texts: Sequence[str], prompt: str) -> Iterator[Any]:
        for start in range(0, len(texts), _AT_ONCE):
            some = [self._read(prompt + x) for x in texts[start : start + _AT_ONCE]]
            yield from self.tokenizer.encode_batch_fast(some)

    def _size(self, found: Any) -> int:
        """Return how many tokens a text has, with what is cut off."""
        rest = sum(len(part.ids) - self._marks for part in found.overflowing)
        return len(found.ids) + rest

    def _read(self, text: str) -> str:
        return text.lower() if self.lower else text


def text_settings(folder: Folder) -> dict[str, Any]:
    """Return a folder's length of texts, and whether they are read in lower case.

    The length is, as sentence-transformers has it, that of its own settings, else the
    tokenizer's, but no more than there are places.
    """
    at = encoder_folder(folder)
    said, tokenizer = (
        read_json(at / name) if (at / name).exists() else {}
        for name in ("sentence_bert_config.json", "tokenizer_config.json")
    )
    places = read_json(at / "config.json").get("max_position_embeddings", 512)
    length = said.get("max_seq_length") or tokenizer.get("model_max_length", places)
    return {
        "max_seq_length": min(length, places),
        "do_lower_case": bool(said.get("do_lower_case", False)),
    }
