"""A corpus searched: the index, measures, hard negatives, exports."""

from .evaluation import (
    Evaluation as Evaluation,
    evaluate as evaluate,
)
from .export import (
    faiss_index as faiss_index,
    save_embeddings as save_embeddings,
    save_sentence_transformer as save_sentence_transformer,
    save_triples as save_triples,
)
from .index import (
    Index as Index,
    Ranked as Ranked,
)
from .measures import (
    discounted_gain as discounted_gain,
    recall as recall,
    reciprocal_rank as reciprocal_rank,
)
from .mining import (
    mined as mined,
)
