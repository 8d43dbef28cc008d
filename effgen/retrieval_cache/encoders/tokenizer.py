"""The tokenizer of a pretrained encoder: texts to rows of token numbers."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer

from effgen.core.outcome.extras import needed

from .pretrained import Folder, architecture, encoder_folder, read_json
from .truncation import Truncation, check_texts, warn_of


_AT_ONCE = 16_384
# Of which sentence-transformers reads the first that is there.
_KINDS = (
    "bert",
    "roberta",
    "distilbert",
    "camembert",
    "albert",
    "xlm-roberta",
    "xlnet",
)


class Tokenizer:
    """Texts to rows of token numbers, cut or filled up to one length.

    Where a text itself spells the padding token, such as "[PAD]", nothing is read.
    `truncation` says how much of texts is cut.

    Arguments:
        tokenizer: A `Tokenizer` of the library `tokenizers`.
        length: Tokens of a row, those that mark a text's start and end included.
        padding: The token that is none.
        lower: Whether texts are read in lower case.
        prompt: What goes before each text.
        prompts: Prompts by name, which are kept as an attribute.

    Raises:
        ValueError: For a length that leaves no room for text.
    """

    def __init__(
        self,
        tokenizer: Any,
        length: int,
        *,
        padding: int = 0,
        lower: bool = False,
        prompt: str = "",
        prompts: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Set the tokenizer to cut to a length, and not to fill up."""
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
        self.prompt = prompt
        self.prompts = dict(prompts)

    @classmethod
    def load(
        cls,
        folder: Folder,
        *,
        length: int | None = None,
        prompt: str | None = None,
        route: str | None = None,
    ) -> "Tokenizer":
        """Return the tokenizer of a folder of sentence-transformers or Hugging Face.

        It needs the extra `text`.

        Arguments:
            folder: The path of the folder.
            length: Tokens of a row; by default the folder's, which suits its longest
                texts. For queries, and short documents, pass less.
            prompt: The name of the folder's prompt that goes before each text, such as
                `"query"`; by default the folder's default, if it has one.
            route: Of a folder that has a `Router`, whose tokenizer, such as `"query"`.

        Returns:
            The tokenizer.

        Raises:
            FileNotFoundError: Without `tokenizer.json`, or another file of the folder.
            ValueError: For a prompt that the folder does not have, and a padding token
                that is not the one of the model's `config.json`.
            ImportError: Without tokenizers.
        """
        at = encoder_folder(folder, route)
        path = at / "tokenizer.json"
        if not path.exists():
            raise FileNotFoundError(
                f"`{path}` is not there: save it with `save_pretrained` of a fast "
                "tokenizer of transformers."
            )
        said, prompts = text_settings(at), folder_prompts(folder)
        library = needed("tokenizers", by="Tokenizer", extra="text")
        tokenizer = library.Tokenizer.from_file(str(path))
        padding = _padding(at)
        _check_padding(at, tokenizer, padding)
        return cls(
            tokenizer,
            said["max_seq_length"] if length is None else length,
            padding=padding,
            lower=said["do_lower_case"],
            prompt=prompts.named(prompt),
            prompts=prompts.texts,
        )

    def __call__(
        self, texts: Sequence[str], prompt: str | None = None
    ) -> Integer[np.ndarray, "texts length"]:
        """Return the texts' tokens.

        Arguments:
            texts: A list of texts.
            prompt: What goes before each text, such as `"query: "`, in place of the
                attribute.

        Returns:
            `(texts, length)`, in 16 bits if the vocabulary fits.

        Raises:
            TypeError: For a single string, or what are no texts.

        Warns:
            TruncationWarning: Where texts are cut, at the first call in which they are.
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

    def truncation(self, texts: Sequence[str], prompt: str | None = None) -> Truncation:
        """Return how much of texts is cut off, those tokens counted that mark ends.

        Arguments:
            texts: A list of texts.
            prompt: What goes before each text, in place of the attribute.

        Returns:
            Numbers of texts and tokens, as text by `str`.

        Raises:
            TypeError: For a single string, or what are no texts.
        """
        check_texts(texts)
        sizes = [self._size(found) for found in self._encoded(texts, prompt)]
        return Truncation.of(np.array(sizes, np.int64), self.length)

    def _encoded(self, texts: Sequence[str], prompt: str | None) -> Iterator[Any]:
        prompt = self.prompt if prompt is None else prompt
        for start in range(0, len(texts), _AT_ONCE):
            some = [self._read(prompt + x) for x in texts[start : start + _AT_ONCE]]
            yield from self.tokenizer.encode_batch_fast(some)

    def _size(self, found: Any) -> int:
        """Return how many tokens a text has, with what is cut off."""
        rest = sum(len(part.ids) - self._marks for part in found.overflowing)
        return len(found.ids) + rest

    def _read(self, text: str) -> str:
        # As sentence-transformers: outer white space would be tokens of some models.
        text = text.strip()
        return text.lower() if self.lower else text


def _padding(folder: Path) -> int:
    config = read_json(folder / "config.json")
    return architecture(folder / "config.json", config).numbers(config)["pad_token_id"]


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return read_json(path) if path.exists() else {}


def _check_padding(folder: Path, tokenizer: Any, padding: int) -> None:
    """Raise `ValueError` where the model masks another token than what pads."""
    said = _tokenizer_config(folder).get("pad_token")
    token = said.get("content") if isinstance(said, dict) else said
    own = tokenizer.padding or {}
    number = own.get("pad_id", None if token is None else tokenizer.token_to_id(token))
    if number is not None and number != padding:
        raise ValueError(
            f"`{folder}` pads by token {number}, {token!r}, and the model of its "
            f"`config.json` masks token {padding}: write `pad_token_id` {number} there."
        )


class Prompts(NamedTuple):
    """What a folder puts before texts.

    `texts` are by name. `default` is the name of the one that is put before texts where
    none is asked for.
    """

    texts: dict[str, str]
    default: str | None
    folder: Folder

    def named(self, name: str | None) -> str:
        """Return a prompt's text.

        Raises:
            ValueError: For a name that is not there.
        """
        name = self.default if name is None else name
        if name is None:
            return ""
        if name not in self.texts:
            raise ValueError(
                f"`prompt` is {name!r} and `{self.folder}` has {sorted(self.texts)}: "
                "pass one of these names, or the text itself where texts are read."
            )
        return self.texts[name]


def folder_prompts(folder: Folder) -> Prompts:
    """Return the prompts of a folder of sentence-transformers."""
    path = Path(folder) / "config_sentence_transformers.json"
    said = read_json(path) if path.exists() else {}
    texts = {name: x for name, x in (said.get("prompts") or {}).items() if x}
    default = said.get("default_prompt_name")
    return Prompts(texts, default if default in texts else None, folder)


def text_settings(at: Path) -> dict[str, Any]:
    """Return an encoder's length of texts, and whether they are read in lower case.

    The length is, as sentence-transformers has it, that of its own settings, else the
    tokenizer's, but no more than there are places.
    """
    paths = [at / f"sentence_{kind}_config.json" for kind in _KINDS]
    path = next((x for x in paths if x.exists()), None)
    said = {} if path is None else read_json(path)
    tokenizer = _tokenizer_config(at)
    config = read_json(at / "config.json")
    kind = architecture(at / "config.json", config)
    places = kind.numbers(config)["max_position_embeddings"]
    length = said.get("max_seq_length") or tokenizer.get("model_max_length", places)
    return {
        "max_seq_length": min(length, places),
        "do_lower_case": bool(said.get("do_lower_case", False)),
    }
