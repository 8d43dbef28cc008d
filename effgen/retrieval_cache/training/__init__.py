"""The trainers, what they check, and how good their gradients are."""

from .arranged import (
    ArrangedMinibatches as ArrangedMinibatches,
    clusters as clusters,
)
from .baselines import (
    CrossBatchTrainer as CrossBatchTrainer,
    FullSoftmaxTrainer as FullSoftmaxTrainer,
)
from .frozen import (
    FrozenDocumentsTrainer as FrozenDocumentsTrainer,
)
from .gradients import (
    GradientQuality as GradientQuality,
    check_gradients as check_gradients,
    full_softmax_loss as full_softmax_loss,
)
from .in_batch import (
    InBatchTrainer as InBatchTrainer,
)
from .lazy import (
    LazyTablesTrainer as LazyTablesTrainer,
)
from .trainer import (
    NegativeCacheTrainer as NegativeCacheTrainer,
)
