"""Corpora, their judgments and files, and batches of pairs."""

from .corpora import (
    Corpus as Corpus,
    answers as answers,
    graded as graded,
    split as split,
    subset as subset,
    with_negatives as with_negatives,
)
from .debian import (
    descriptions as descriptions,
)
from .digests import (
    content_digests as content_digests,
)
from .judgments import (
    beir as beir,
    triples as triples,
)
from .loaders import (
    grain_pairs as grain_pairs,
    merged as merged,
    pairs_of as pairs_of,
)
from .pairs import (
    Marks as Marks,
    Pairs as Pairs,
)
from .relevance import (
    Relevant as Relevant,
    padded as padded,
)
from .synsets import (
    Synset as Synset,
    definitions_to_lemmas as definitions_to_lemmas,
    examples_to_synsets as examples_to_synsets,
    lemmas_to_definitions as lemmas_to_definitions,
    wordnet as wordnet,
)
from .trec_files import (
    trec as trec,
)
