"""What models answer: posteriors, forecasts, components, scores, and the prior."""

from .answers import (
    Bands as Bands,
    Draws as Draws,
    Marginals as Marginals,
)
from .comparison import (
    Comparison as Comparison,
    compare as compare,
)
from .components import (
    Components as Components,
)
from .held_out import (
    held_out_evidence as held_out_evidence,
)
from .interventions import (
    Intervention as Intervention,
    intervention as intervention,
)
from .posteriors import (
    Posterior as Posterior,
    posterior as posterior,
)
from .prior import (
    prior_terms as prior_terms,
    sample_prior as sample_prior,
)
