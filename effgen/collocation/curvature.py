"""What Ipopt is told of second derivatives."""

from typing import Any, ClassVar

import equinox as eqx

from .derivatives import exact_blocks, gauss_newton_blocks


class AbstractCurvature(eqx.Module):
    """A choice of the Lagrangian's second derivatives.

    `blocks(nlp, z, multipliers, factor, pairs)` are they, or `None` where Ipopt makes
    its own approximation; `name` is for messages.
    """

    blocks: eqx.AbstractClassVar[Any]
    name: eqx.AbstractClassVar[str]


class ExactHessian(AbstractCurvature):
    """The Lagrangian's own Hessian: the fewest iterations."""

    blocks: ClassVar[Any] = staticmethod(exact_blocks)
    name: ClassVar[str] = "exact Hessian"


class GaussNewton(AbstractCurvature):
    """The misfit's with linearized residuals, and the costs'; none of constraints."""

    blocks: ClassVar[Any] = staticmethod(gauss_newton_blocks)
    name: ClassVar[str] = "Gauss and Newton"


class LimitedMemory(AbstractCurvature):
    """Ipopt's quasi-Newton updates: cheap for many parameters, more iterations."""

    blocks: ClassVar[Any] = None
    name: ClassVar[str] = "limited memory"
