"""The negative cache: its rows, how it is filled, and how it is kept fresh."""

from .blocks import (
    block_size as block_size,
)
from .frequencies import (
    StreamedFrequencies as StreamedFrequencies,
)
from .negative_cache import (
    NegativeCache as NegativeCache,
)
from .refresh import (
    AbstractRefresh as AbstractRefresh,
    Budget as Budget,
    OldestFirst as OldestFirst,
    RandomRows as RandomRows,
    WriteBack as WriteBack,
)
from .rows import (
    ByteRows as ByteRows,
    FloatRows as FloatRows,
)
from .stream import (
    PositivesIn as PositivesIn,
)
