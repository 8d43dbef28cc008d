"""What is observed of a state, and Gaussian factors that stand for it."""

from .counts import (
    NegativeBinomial as NegativeBinomial,
    Poisson as Poisson,
)
from .decoders import (
    AbstractDecoder as AbstractDecoder,
    Decoder as Decoder,
    LinearDecoder as LinearDecoder,
    Readout as Readout,
)
from .likelihoods import (
    AbstractLikelihood as AbstractLikelihood,
    Bernoulli as Bernoulli,
    Normal as Normal,
    Student as Student,
)
from .sites import (
    AbstractSites as AbstractSites,
    EncodedSites as EncodedSites,
    LinearizedSites as LinearizedSites,
)
