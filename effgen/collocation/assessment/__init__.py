"""How far a solution can be believed: noise, bands, evidence, the mesh's error."""

from .determination import (
    Identifiability as Identifiability,
    identifiability as identifiability,
)
from .laplace import (
    Evidence as Evidence,
    evidence as evidence,
)
from .uncertainty import (
    Covariance as Covariance,
    covariance as covariance,
    propagated as propagated,
)
