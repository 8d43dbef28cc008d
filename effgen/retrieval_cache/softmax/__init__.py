"""The loss: a pass over the cache, draws from it, and estimators by them."""

from .estimators import (
    AbstractEstimator as AbstractEstimator,
    GumbelMax as GumbelMax,
    PseudoLogit as PseudoLogit,
)
from .logits import (
    cache_logit as cache_logit,
    pseudo_logit as pseudo_logit,
)
from .negatives import (
    Excluded as Excluded,
)
from .sampling import (
    gumbel_top_k as gumbel_top_k,
    sample_rows as sample_rows,
    top_k as top_k,
)
from .scan import (
    Scored as Scored,
    softmax_pass as softmax_pass,
)
