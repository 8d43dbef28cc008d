"""A problem on a mesh as one sparse program, with exact derivatives."""

from .curvature import (
    AbstractCurvature as AbstractCurvature,
    ExactHessian as ExactHessian,
    GaussNewton as GaussNewton,
    LimitedMemory as LimitedMemory,
)
from .transcription import (
    Transcription as Transcription,
    transcribe as transcribe,
)
