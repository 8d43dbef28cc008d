"""Retrieval models trained against a whole corpus through a cache of stale negatives.

Lindgren, Reddi, Guo and Kumar (2021). The model is two towers, the memory a
`NegativeCache` of documents and their embeddings of some steps ago.
"""

from effgen.core.doors import exported as _exported

from .arranged import (
    ArrangedMinibatches as ArrangedMinibatches,
    clusters as clusters,
)
from .baselines import (
    CrossBatchTrainer as CrossBatchTrainer,
    FullSoftmaxTrainer as FullSoftmaxTrainer,
)
from .bert import Bert as Bert
from .blocks import block_size as block_size
from .buckets import Bucketed as Bucketed
from .corpora import (
    Corpus as Corpus,
    answers as answers,
    graded as graded,
    split as split,
    subset as subset,
    with_negatives as with_negatives,
)
from .debian import descriptions as descriptions
from .digests import content_digests as content_digests
from .estimators import (
    AbstractEstimator as AbstractEstimator,
    GumbelMax as GumbelMax,
    PseudoLogit as PseudoLogit,
)
from .evaluation import Evaluation as Evaluation, evaluate as evaluate
from .export import (
    faiss_index as faiss_index,
    save_embeddings as save_embeddings,
    save_sentence_transformer as save_sentence_transformer,
    save_triples as save_triples,
)
from .frequencies import StreamedFrequencies as StreamedFrequencies
from .frozen import FrozenDocumentsTrainer as FrozenDocumentsTrainer
from .gradients import (
    GradientQuality as GradientQuality,
    check_gradients as check_gradients,
    full_softmax_loss as full_softmax_loss,
)
from .ids import IdsAndFeatures as IdsAndFeatures, Table as Table
from .in_batch import InBatchTrainer as InBatchTrainer
from .index import Index as Index, Ranked as Ranked
from .judgments import beir as beir, triples as triples
from .lazy import LazyTablesTrainer as LazyTablesTrainer
from .loaders import grain_pairs as grain_pairs, merged as merged, pairs_of as pairs_of
from .logits import cache_logit as cache_logit, pseudo_logit as pseudo_logit
from .measures import (
    discounted_gain as discounted_gain,
    recall as recall,
    reciprocal_rank as reciprocal_rank,
)
from .mining import mined as mined
from .negative_cache import NegativeCache as NegativeCache
from .negatives import Excluded as Excluded
from .pairs import Marks as Marks, Pairs as Pairs
from .refresh import (
    AbstractRefresh as AbstractRefresh,
    Budget as Budget,
    OldestFirst as OldestFirst,
    RandomRows as RandomRows,
    WriteBack as WriteBack,
)
from .relevance import Relevant as Relevant, padded as padded
from .rows import ByteRows as ByteRows, FloatRows as FloatRows
from .sampling import (
    gumbel_top_k as gumbel_top_k,
    sample_rows as sample_rows,
    top_k as top_k,
)
from .scan import Scored as Scored, softmax_pass as softmax_pass
from .sequences import HashedBag as HashedBag, Transformer as Transformer
from .stream import PositivesIn as PositivesIn
from .synsets import (
    Synset as Synset,
    definitions_to_lemmas as definitions_to_lemmas,
    examples_to_synsets as examples_to_synsets,
    lemmas_to_definitions as lemmas_to_definitions,
    wordnet as wordnet,
)
from .tokenizer import Tokenizer as Tokenizer
from .towers import (
    LearnedTemperature as LearnedTemperature,
    Tied as Tied,
    TwoTowers as TwoTowers,
    normalized as normalized,
)
from .trainer import NegativeCacheTrainer as NegativeCacheTrainer
from .trec_files import trec as trec
from .truncation import (
    Truncation as Truncation,
    TruncationWarning as TruncationWarning,
)
from .words import HashedWords as HashedWords


# pyright reads the aliases above instead.
__all__ = _exported(vars())  # pyright: ignore[reportUnsupportedDunderAll]
