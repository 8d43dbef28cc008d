"""Retrieval models trained against a whole corpus through a cache of stale negatives.

Lindgren, Reddi, Guo and Kumar (2021). The model is two towers, the memory a
`NegativeCache` of documents and their embeddings of some steps ago.
"""

from effgen.core.doors import exported as _exported

from .cache import (
    AbstractRefresh as AbstractRefresh,
    Budget as Budget,
    ByteRows as ByteRows,
    FloatRows as FloatRows,
    NegativeCache as NegativeCache,
    OldestFirst as OldestFirst,
    PositivesIn as PositivesIn,
    RandomRows as RandomRows,
    StreamedFrequencies as StreamedFrequencies,
    WriteBack as WriteBack,
)
from .data import (
    Corpus as Corpus,
    Pairs as Pairs,
    Relevant as Relevant,
    Synset as Synset,
    answers as answers,
    beir as beir,
    definitions_to_lemmas as definitions_to_lemmas,
    descriptions as descriptions,
    examples_to_synsets as examples_to_synsets,
    graded as graded,
    grain_pairs as grain_pairs,
    lemmas_to_definitions as lemmas_to_definitions,
    merged as merged,
    pairs_of as pairs_of,
    split as split,
    subset as subset,
    trec as trec,
    triples as triples,
    with_negatives as with_negatives,
    wordnet as wordnet,
)
from .encoders import (
    Bert as Bert,
    Bucketed as Bucketed,
    HashedBag as HashedBag,
    HashedWords as HashedWords,
    IdsAndFeatures as IdsAndFeatures,
    LearnedTemperature as LearnedTemperature,
    ModernBert as ModernBert,
    Table as Table,
    Tied as Tied,
    Tokenizer as Tokenizer,
    Transformer as Transformer,
    Truncation as Truncation,
    TruncationWarning as TruncationWarning,
    TwoTowers as TwoTowers,
    normalized as normalized,
)
from .search import (
    Evaluation as Evaluation,
    Index as Index,
    Ranked as Ranked,
    discounted_gain as discounted_gain,
    evaluate as evaluate,
    faiss_index as faiss_index,
    mined as mined,
    recall as recall,
    reciprocal_rank as reciprocal_rank,
    save_embeddings as save_embeddings,
    save_sentence_transformer as save_sentence_transformer,
    save_triples as save_triples,
)
from .softmax import (
    AbstractEstimator as AbstractEstimator,
    GumbelMax as GumbelMax,
    PseudoLogit as PseudoLogit,
    cache_logit as cache_logit,
)
from .training import (
    ArrangedMinibatches as ArrangedMinibatches,
    CrossBatchTrainer as CrossBatchTrainer,
    FrozenDocumentsTrainer as FrozenDocumentsTrainer,
    FullSoftmaxTrainer as FullSoftmaxTrainer,
    GradientQuality as GradientQuality,
    InBatchTrainer as InBatchTrainer,
    LazyTablesTrainer as LazyTablesTrainer,
    NegativeCacheTrainer as NegativeCacheTrainer,
    check_gradients as check_gradients,
    clusters as clusters,
    full_softmax_loss as full_softmax_loss,
)


# pyright reads the aliases above instead.
__all__ = _exported(vars())  # pyright: ignore[reportUnsupportedDunderAll]
