"""Sources of batches, and how they are read ahead."""

from .batches import (
    AbstractBatches as AbstractBatches,
    AbstractHostBatches as AbstractHostBatches,
    HostMinibatches as HostMinibatches,
    Minibatches as Minibatches,
)
from .stream import (
    Stream as Stream,
)
