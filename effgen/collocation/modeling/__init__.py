"""The problem as a modeler states it: data, laws, constraints, priors."""

from .continuation import (
    windows as windows,
)
from .deviation import (
    Deviation as Deviation,
)
from .gaussian_process import (
    GaussianProcess as GaussianProcess,
)
from .misfits import (
    AbstractMisfit as AbstractMisfit,
    Huber as Huber,
    SoftL1 as SoftL1,
    Squares as Squares,
)
from .penalties import (
    smoothness as smoothness,
)
from .priors import (
    FreeInput as FreeInput,
    Prior as Prior,
)
from .problem import (
    BoundaryConstraint as BoundaryConstraint,
    Initial as Initial,
    LinkConstraint as LinkConstraint,
    Model as Model,
    ModelConstraint as ModelConstraint,
    PathConstraint as PathConstraint,
    Problem as Problem,
    Switch as Switch,
    Trajectory as Trajectory,
)
from .trajectories import (
    numbered as numbered,
)
