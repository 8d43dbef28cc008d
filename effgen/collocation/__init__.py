"""Physics-enhanced neural ODEs, trained as one sparse nonlinear program.

Axes: `trajectories`, `obs` (samples of one), `outputs`, `inputs`, `intervals`, `stages`
and `points` (the start and the stages) of an interval, `nodes` of a mesh, `state`,
`model` (the raveled parameters and networks).
"""

from effgen.core.doors import exported as _exported

from .choice import Choice as Choice, Deviation as Deviation, choose as choose
from .continuation import windows as windows
from .curvature import (
    AbstractCurvature as AbstractCurvature,
    ExactHessian as ExactHessian,
    GaussNewton as GaussNewton,
    LimitedMemory as LimitedMemory,
)
from .determination import (
    Identifiability as Identifiability,
    identifiability as identifiability,
)
from .generalization import (
    Extrapolation as Extrapolation,
    ensemble as ensemble,
    extrapolation as extrapolation,
    held_out as held_out,
)
from .integration import integrate as integrate
from .ipopt import Ipopt as Ipopt, linear_solvers as linear_solvers
from .laplace import Evidence as Evidence, evidence as evidence
from .matching import (
    DerivativeMatchingTrainer as DerivativeMatchingTrainer,
    Slopes as Slopes,
    pretrain as pretrain,
    slopes_of as slopes_of,
)
from .mesh import aligned_edges as aligned_edges, uniform_edges as uniform_edges
from .misfits import (
    AbstractMisfit as AbstractMisfit,
    Huber as Huber,
    SoftL1 as SoftL1,
    Squares as Squares,
)
from .penalties import smoothness as smoothness
from .priors import FreeInput as FreeInput, Prior as Prior
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
from .radau_points import Radau as Radau, radau as radau
from .records import pelts as pelts
from .refinement import (
    accuracy as accuracy,
    fit_refined as fit_refined,
    interval_errors as interval_errors,
    refine as refine,
    residuals as residuals,
)
from .shooting import (
    Segments as Segments,
    ShootingTrainer as ShootingTrainer,
    Shot as Shot,
    segments_of as segments_of,
)
from .simulation import simulate as simulate
from .solution import Multipliers as Multipliers, Solution as Solution
from .trainer import CollocationTrainer as CollocationTrainer
from .trajectories import numbered as numbered
from .transcription import Transcription as Transcription, transcribe as transcribe
from .uncertainty import (
    Covariance as Covariance,
    covariance as covariance,
    propagated as propagated,
)


# pyright reads the aliases above instead.
__all__ = _exported(vars())  # pyright: ignore[reportUnsupportedDunderAll]
