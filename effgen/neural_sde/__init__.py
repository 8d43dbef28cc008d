"""Variational inference for neural SDEs, the linear part of the control in closed form.

Axes: `series`, `obs` (times of one series), `sensors`, `steps` and `nodes` of a grid,
`paths`, `state`, `noise` (normal variables of a step), `inputs`.
"""

from effgen.core.doors import exported as _exported

from .answering import (
    Bands as Bands,
    Comparison as Comparison,
    Components as Components,
    Draws as Draws,
    Intervention as Intervention,
    Marginals as Marginals,
    Posterior as Posterior,
    compare as compare,
    held_out_evidence as held_out_evidence,
    intervention as intervention,
    posterior as posterior,
    prior_terms as prior_terms,
    sample_prior as sample_prior,
)
from .bounds import (
    AbstractObjective as AbstractObjective,
    AnchoredELBO as AnchoredELBO,
    DiffraxELBO as DiffraxELBO,
    LatentSDETrainer as LatentSDETrainer,
    MarginalELBO as MarginalELBO,
    PathELBO as PathELBO,
    PlainELBO as PlainELBO,
    plain_paths as plain_paths,
)
from .data import (
    Series as Series,
    merge_sensors as merge_sensors,
    pad_series as pad_series,
)
from .filters import (
    Evidence as Evidence,
    Filtered as Filtered,
    Predictions as Predictions,
    Smoothed as Smoothed,
)
from .fits import (
    DrivenDrift as DrivenDrift,
    Fitted as Fitted,
    Hierarchy as Hierarchy,
    Regimes as Regimes,
    Stack as Stack,
    Switching as Switching,
    candidates as candidates,
    fit_hierarchy as fit_hierarchy,
    fit_linear as fit_linear,
    fit_regimes as fit_regimes,
    forecaster as forecaster,
    stack as stack,
    structural as structural,
    with_network as with_network,
)
from .linear_sdes import (
    AbstractLinearSDE as AbstractLinearSDE,
    DiagonalSDE as DiagonalSDE,
    FractionalSDE as FractionalSDE,
    Gaussian as Gaussian,
    Guide as Guide,
    Guided as Guided,
    LinearSDE as LinearSDE,
    Site as Site,
    Transition as Transition,
    VaryingSDE as VaryingSDE,
    condition as condition,
    fractional_variance as fractional_variance,
    marginals as marginals,
)
from .modeling import (
    AbstractAnchor as AbstractAnchor,
    DriftNetwork as DriftNetwork,
    GivenAnchor as GivenAnchor,
    LatentSDE as LatentSDE,
    PlainControl as PlainControl,
    PriorAnchor as PriorAnchor,
    RelinearizedAnchor as RelinearizedAnchor,
    Residual as Residual,
    Structure as Structure,
    car as car,
    cycle as cycle,
    level as level,
    matern as matern,
    num_features as num_features,
    ou as ou,
    periodic as periodic,
    residual_network as residual_network,
    season as season,
    trend as trend,
    zero_at_first as zero_at_first,
)
from .observing import (
    AbstractDecoder as AbstractDecoder,
    AbstractLikelihood as AbstractLikelihood,
    AbstractSites as AbstractSites,
    Bernoulli as Bernoulli,
    Decoder as Decoder,
    EncodedSites as EncodedSites,
    LinearDecoder as LinearDecoder,
    LinearizedSites as LinearizedSites,
    NegativeBinomial as NegativeBinomial,
    Normal as Normal,
    Poisson as Poisson,
    Readout as Readout,
    Student as Student,
)


# pyright reads the aliases above instead.
__all__ = _exported(vars())  # pyright: ignore[reportUnsupportedDunderAll]
