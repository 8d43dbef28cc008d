"""Variational inference for neural SDEs, the linear part of the control in closed form.

Axes: `series`, `obs` (times of one series), `sensors`, `steps` and `nodes` of a grid,
`paths`, `state`, `noise` (normal variables of a step), `inputs`.
"""

from effgen.core.doors import exported as _exported

from .anchors import (
    AbstractAnchor as AbstractAnchor,
    GivenAnchor as GivenAnchor,
    PriorAnchor as PriorAnchor,
    RelinearizedAnchor as RelinearizedAnchor,
)
from .answers import Bands as Bands, Draws as Draws, Marginals as Marginals
from .comparison import Comparison as Comparison, compare as compare
from .components import Components as Components
from .controlled import PathELBO as PathELBO
from .counts import NegativeBinomial as NegativeBinomial, Poisson as Poisson
from .decoders import (
    AbstractDecoder as AbstractDecoder,
    Decoder as Decoder,
    LinearDecoder as LinearDecoder,
    Readout as Readout,
)
from .driven import DrivenDrift as DrivenDrift, with_network as with_network
from .evidence import Evidence as Evidence
from .filtering import Filtered as Filtered
from .fitting import Fitted as Fitted, fit_linear as fit_linear
from .fractional import (
    FractionalSDE as FractionalSDE,
    fractional_variance as fractional_variance,
)
from .gaussian import Gaussian as Gaussian
from .held_out import held_out_evidence as held_out_evidence
from .hierarchies import Hierarchy as Hierarchy, fit_hierarchy as fit_hierarchy
from .interventions import Intervention as Intervention, intervention as intervention
from .likelihoods import (
    AbstractLikelihood as AbstractLikelihood,
    Bernoulli as Bernoulli,
    Normal as Normal,
    Student as Student,
)
from .linear import (
    AbstractLinearSDE as AbstractLinearSDE,
    DiagonalSDE as DiagonalSDE,
    LinearSDE as LinearSDE,
)
from .messages import (
    Guide as Guide,
    Guided as Guided,
    Site as Site,
    condition as condition,
    marginals as marginals,
)
from .model import LatentSDE as LatentSDE
from .networks import (
    DriftNetwork as DriftNetwork,
    Residual as Residual,
    num_features as num_features,
    residual_network as residual_network,
    zero_at_first as zero_at_first,
)
from .objectives import (
    AbstractObjective as AbstractObjective,
    AnchoredELBO as AnchoredELBO,
    MarginalELBO as MarginalELBO,
)
from .plain import (
    DiffraxELBO as DiffraxELBO,
    PlainELBO as PlainELBO,
    plain_paths as plain_paths,
)
from .plain_control import PlainControl as PlainControl
from .posteriors import (
    Posterior as Posterior,
    posterior as posterior,
)
from .predictions import Predictions as Predictions
from .prior import prior_terms as prior_terms, sample_prior as sample_prior
from .recipe import forecaster as forecaster
from .regimes import (
    Regimes as Regimes,
    Switching as Switching,
    fit_regimes as fit_regimes,
)
from .selection import candidates as candidates
from .series import (
    Series as Series,
    merge_sensors as merge_sensors,
    pad_series as pad_series,
)
from .sites import (
    AbstractSites as AbstractSites,
    EncodedSites as EncodedSites,
    LinearizedSites as LinearizedSites,
)
from .stacking import Stack as Stack, stack as stack
from .structural_models import structural as structural
from .structure import (
    Structure as Structure,
    car as car,
    cycle as cycle,
    level as level,
    matern as matern,
    ou as ou,
    season as season,
    trend as trend,
)
from .trainer import LatentSDETrainer as LatentSDETrainer
from .transitions import Transition as Transition
from .twisted import Smoothed as Smoothed
from .varying import VaryingSDE as VaryingSDE


# pyright reads the aliases above instead.
__all__ = _exported(vars())  # pyright: ignore[reportUnsupportedDunderAll]
