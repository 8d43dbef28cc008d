"""Models: ready linear parts, networks, what is fixed, and what a model must be."""

from .anchors import (
    AbstractAnchor as AbstractAnchor,
    GivenAnchor as GivenAnchor,
    PriorAnchor as PriorAnchor,
    RelinearizedAnchor as RelinearizedAnchor,
)
from .model import (
    LatentSDE as LatentSDE,
)
from .networks import (
    DriftNetwork as DriftNetwork,
    Residual as Residual,
    num_features as num_features,
    residual_network as residual_network,
    zero_at_first as zero_at_first,
)
from .plain_control import (
    PlainControl as PlainControl,
)
from .structure import (
    Structure as Structure,
    car as car,
    cycle as cycle,
    level as level,
    matern as matern,
    ou as ou,
    periodic as periodic,
    season as season,
    trend as trend,
)
