"""Checkpoints, their files and their digests."""

from .checkpoint import (
    restore as restore,
    restore_model as restore_model,
    resume as resume,
)
from .manifest import (
    state_digest as state_digest,
)
from .saving import (
    checkpointed as checkpointed,
)
from .tensors import (
    CorruptCheckpoint as CorruptCheckpoint,
)
from .writer import (
    save as save,
)
