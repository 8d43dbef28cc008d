"""Words of a text as numbers, without a vocabulary: their hashes."""

import dataclasses
import functools
import hashlib
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import regex
from jaxtyping import Integer

from .truncation import Truncation, check_texts, warn_of


# The flag `w` makes `\b` a word boundary of Unicode's. A word also ends where a run of
# letters, marks, digits, underscores and joiners does: "it's" is two, and so is "3.0".
_RUN = r"[\w\p{M}\p{N}\u200c\u200d]"
_WORD = regex.compile(rf"(?w)[\w\p{{N}}]{_RUN}*?(?:\b|(?!{_RUN}))")
_HYPHEN = "\u00ad"  # soft: where a word may be broken, and no part of it


@dataclasses.dataclass(frozen=True)
class HashedWords:
    """Texts as the numbers of their words, from 1; zero fills up.

    A word is a run of letters with their marks, digits and underscores, in lower case,
    between word boundaries of Unicode (UAX 29): of scripts without spaces, such as
    Chinese or Thai, each sign with its marks is one. Its number is a hash of it, the
    same on every machine. Nothing is fitted or kept, and a few words share a number.
    `truncation` says how much of texts is cut.

    Arguments:
        num_words: Numbers in all, zero included; as of an encoder.
        length: Tokens of a text; those past it are cut off.
        grams: Sizes of the pieces of a word, such as `(3, 4)`, which follow it. Words
            of one stem then share tokens, and unknown words have known ones.
        seed: Another one makes other words share a number.

    Raises:
        ValueError: For settings out of range.

    >>> HashedWords(1_000, 5)(["The cat.", "A cat, the cat"])
    array([[925, 769,   0,   0,   0],
           [ 78, 769, 925, 769,   0]], dtype=uint16)
    """

    num_words: int = 32_768
    length: int = 64
    grams: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise `ValueError` for settings out of range."""
        for name, least in (("num_words", 2), ("length", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)}: pass at least {least}."
                )
        if any(size < 1 for size in self.grams):
            raise ValueError(f"`grams` is {self.grams}: pass sizes of at least one.")

    def __call__(self, texts: Sequence[str]) -> Integer[np.ndarray, "texts length"]:
        """Return the tokens of texts.

        Arguments:
            texts: A list of texts.

        Returns:
            `(texts, length)`, as `uint16` where this holds `num_words`.

        Raises:
            TypeError: For one text instead of several, or what are no texts.

        Warns:
            TruncationWarning: Where texts are cut, at the first call in which they are.
        """
        check_texts(texts)
        found = np.zeros((len(texts), self.length), self.dtype)
        sizes = np.zeros(len(texts), np.int64)
        for i, text in enumerate(texts):
            tokens = self.tokens(text)
            sizes[i] = len(tokens)
            found[i, : sizes[i]] = tokens[: self.length]
        warn_of(self, Truncation.of(sizes, self.length))
        return found

    def truncation(self, texts: Sequence[str]) -> Truncation:
        """Return how much of texts is cut off.

        Arguments:
            texts: A list of texts.

        Returns:
            Numbers of texts and tokens, as text by `str`.

        Raises:
            TypeError: For one text instead of several, or what are no texts.

        >>> print(HashedWords(1_000, 5).truncation(["a cat", "of a long, long text"]))
        0 of 2 texts are cut to 5 tokens, and 0 of 7 tokens (0 %) left out
        """
        check_texts(texts)
        sizes = np.array([len(self.tokens(text)) for text in texts], np.int64)
        return Truncation.of(sizes, self.length)

    def tokens(self, text: str) -> list[int]:
        """Return all tokens of a text.

        Arguments:
            text: One text.

        Returns:
            Numbers from 1, those past `length` too.
        """
        number = functools.partial(
            _numbers, num_words=self.num_words, grams=self.grams, seed=self.seed
        )
        return [token for word in words_of(text) for token in number(word)]

    @property
    def dtype(self) -> Any:
        """The type of the tokens."""
        return np.uint16 if self.num_words <= 1 << 16 else np.int32


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, one form for each way to write it.

    A word is cut at punctuation inside it too.

    Source:
        Unicode Standard Annex 29, word boundaries.

    >>> words_of("It's WordNet 3.0, naïve")
    ['it', 's', 'wordnet', '3', '0', 'naïve']
    >>> words_of("किताब, 检索")
    ['किताब', '检', '索']
    """
    plain = unicodedata.normalize("NFKC", text.replace(_HYPHEN, ""))
    return _WORD.findall(plain.lower())


@functools.lru_cache(maxsize=1 << 19)
def _numbers(
    word: str, num_words: int, grams: tuple[int, ...], seed: int
) -> tuple[int, ...]:
    """Return the tokens of a word: its own, then its pieces'."""
    # The ends are marked, and so is a piece, that it be none of a short word's.
    marked = f"<{word}>"
    pieces = [
        f"#{marked[start : start + size]}"
        for size in grams
        for start in range(len(marked) - size + 1)
    ]
    return tuple(_hash(x, seed) % (num_words - 1) + 1 for x in (word, *pieces))


def _hash(text: str, seed: int) -> int:
    content = text.encode("utf-8", "surrogatepass")
    salt = seed.to_bytes(8, "little")
    digest = hashlib.blake2b(content, digest_size=8, salt=salt).digest()
    return int.from_bytes(digest, "little")
