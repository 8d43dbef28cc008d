"""How the steps of a run are taken, on the device or on the host."""

from .compilation import (
    cache_compilations as cache_compilations,
)
from .guard import (
    Rollback as Rollback,
    Skip as Skip,
    Stop as Stop,
)
from .repetition import (
    replay as replay,
)
from .run import (
    Run as Run,
)
from .verbs import (
    drain as drain,
    fit as fit,
    train as train,
)
