"""How walkers move, with the exact change of their weights."""

from .approximate import (
    UncorrectedULA as UncorrectedULA,
)
from .blackjax_kernel import (
    BlackJAX as BlackJAX,
)
from .block_gibbs import (
    BlockGibbs as BlockGibbs,
)
from .discrete import (
    GibbsWithGradients as GibbsWithGradients,
)
from .kernels import (
    AbstractKernel as AbstractKernel,
)
from .label_moves import (
    LabelGibbs as LabelGibbs,
)
from .langevin_kernels import (
    MALA as MALA,
    ULA as ULA,
)
from .orders import (
    ReweightFirst as ReweightFirst,
)
from .reflected import (
    ReflectedMALA as ReflectedMALA,
)
from .step_sizes import (
    AbstractStepSizeRule as AbstractStepSizeRule,
    TargetAcceptance as TargetAcceptance,
    TargetVariance as TargetVariance,
)
