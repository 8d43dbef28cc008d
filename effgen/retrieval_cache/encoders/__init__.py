"""Encoders of queries and documents: towers, tokens, pretrained ones, tables."""

from .bert import (
    Bert as Bert,
)
from .buckets import (
    Bucketed as Bucketed,
)
from .ids import (
    IdsAndFeatures as IdsAndFeatures,
    Table as Table,
)
from .modern_bert import (
    ModernBert as ModernBert,
)
from .sequences import (
    HashedBag as HashedBag,
    Transformer as Transformer,
)
from .tokenizer import (
    Tokenizer as Tokenizer,
)
from .towers import (
    LearnedTemperature as LearnedTemperature,
    Tied as Tied,
    TwoTowers as TwoTowers,
    normalized as normalized,
)
from .truncation import (
    Truncation as Truncation,
    TruncationWarning as TruncationWarning,
)
from .words import (
    HashedWords as HashedWords,
)
