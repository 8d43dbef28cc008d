"""How much of texts a tokenizer cuts off, and the warning that it does."""

import warnings
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int


class TruncationWarning(UserWarning):
    """Texts are longer than a tokenizer's rows: the model does not see their ends.

    It is shown once by each tokenizer.
    """


class Truncation(NamedTuple):
    """How much of some texts is cut off.

    Attributes:
        length: Tokens of a row.
        texts: How many texts are cut.
        num_texts: How many there are.
        tokens: How many tokens are left out.
        num_tokens: How many there are.
    """

    length: int
    texts: int
    num_texts: int
    tokens: int
    num_tokens: int

    @classmethod
    def of(cls, sizes: Int[np.ndarray, " texts"], length: int) -> "Truncation":
        """Return it of texts of so many tokens.

        Arguments:
            sizes: The tokens of each text, `(texts,)`.
            length: Tokens of a row.

        Returns:
            Numbers of texts and tokens.
        """
        over = np.maximum(np.asarray(sizes) - length, 0)
        numbers = (over > 0).sum(), len(over), over.sum(), np.sum(sizes)
        return cls(length, *map(int, numbers))

    def __str__(self) -> str:
        share = 100 * self.tokens / max(self.num_tokens, 1)
        return (
            f"{self.texts:,} of {self.num_texts:,} texts are cut to {self.length} "
            f"tokens, and {self.tokens:,} of {self.num_tokens:,} tokens "
            f"({share:.2g} %) left out"
        )


def check_texts(texts: Sequence[str]) -> None:
    """Raise `TypeError` for one text instead of several, or values of other types."""
    if isinstance(texts, str | bytes):
        raise TypeError("`texts` is one text: pass a list of them.")
    if hasattr(texts, "columns"):
        raise TypeError(
            f"`texts` is a {type(texts).__name__} of several columns: pass one of them."
        )
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"`texts` has {str(text)[:40]!r} at {i}, which is no text.")


# By identity: a tokenizer warns once, not at every batch of a loader.
_warned: "weakref.WeakValueDictionary[int, Any]" = weakref.WeakValueDictionary()


def warn_of(tokenizer: Any, found: Truncation) -> None:
    """Warn that a tokenizer cuts texts, at the first call in which it does."""
    if not found.texts or _warned.get(id(tokenizer)) is tokenizer:
        return
    _warned[id(tokenizer)] = tokenizer
    warnings.warn(
        f"{found}: raise `length`, or cut the texts where they may be; "
        "`truncation(texts)` counts, and this is said once.",
        TruncationWarning,
        stacklevel=3,
    )
