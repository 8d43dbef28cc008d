"""Physics-enhanced neural ODEs, trained as one sparse nonlinear program.

Axes: `trajectories`, `obs` (samples of one), `outputs`, `inputs`, `intervals`, `stages`
and `points` (the start and the stages) of an interval, `nodes` of a mesh, `state`,
`model` (the raveled parameters and networks).
"""

from effgen.core.doors import exported as _exported

from .assessment import (
    Covariance as Covariance,
    Evidence as Evidence,
    Identifiability as Identifiability,
    covariance as covariance,
    evidence as evidence,
    identifiability as identifiability,
    propagated as propagated,
)
from .descent import (
    DerivativeMatchingTrainer as DerivativeMatchingTrainer,
    Segments as Segments,
    ShootingTrainer as ShootingTrainer,
    Shot as Shot,
    Slopes as Slopes,
    pretrain as pretrain,
    segments_of as segments_of,
    slopes_of as slopes_of,
)
from .modeling import (
    AbstractMisfit as AbstractMisfit,
    BoundaryConstraint as BoundaryConstraint,
    Deviation as Deviation,
    FreeInput as FreeInput,
    GaussianProcess as GaussianProcess,
    Huber as Huber,
    Initial as Initial,
    LinkConstraint as LinkConstraint,
    Model as Model,
    ModelConstraint as ModelConstraint,
    PathConstraint as PathConstraint,
    Prior as Prior,
    Problem as Problem,
    SoftL1 as SoftL1,
    Squares as Squares,
    Switch as Switch,
    Trajectory as Trajectory,
    numbered as numbered,
    smoothness as smoothness,
    windows as windows,
)
from .program import (
    AbstractCurvature as AbstractCurvature,
    ExactHessian as ExactHessian,
    GaussNewton as GaussNewton,
    LimitedMemory as LimitedMemory,
    Transcription as Transcription,
    transcribe as transcribe,
)
from .solvers import (
    Ipopt as Ipopt,
    linear_solvers as linear_solvers,
)
from .states import (
    Multipliers as Multipliers,
    Radau as Radau,
    Solution as Solution,
    aligned_edges as aligned_edges,
    integrate as integrate,
    radau as radau,
    simulate as simulate,
    uniform_edges as uniform_edges,
)
from .training import (
    Choice as Choice,
    CollocationTrainer as CollocationTrainer,
    Extrapolation as Extrapolation,
    accuracy as accuracy,
    choose as choose,
    ensemble as ensemble,
    extrapolation as extrapolation,
    fit_refined as fit_refined,
    held_out as held_out,
    interval_errors as interval_errors,
    refine as refine,
    residuals as residuals,
)


# pyright reads the aliases above instead.
__all__ = _exported(vars())  # pyright: ignore[reportUnsupportedDunderAll]
