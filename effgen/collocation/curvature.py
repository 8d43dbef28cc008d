"""What Ipopt is told of second derivatives."""

from typing import Any, ClassVar

import equinox as eqx

from .derivatives import (
    exact_blocks,
    exact_lagrangian,
    gauss_newton_blocks,
    gauss_newton_lagrangian,
)


class AbstractCurvature(eqx.Module):
    """A choice of the Lagrangian's second derivatives.

    `blocks(nlp, z, multipliers, factor, pairs)` are they, or `None` where Ipopt makes
    its own approximation; `lagrangian(nlp, z, at, multipliers)` has them as its Hessian
    at `at`, for a check; `name` is for messages.
    """

    blocks: eqx.AbstractClassVar[Any]
    lagrangian: eqx.AbstractClassVar[Any]
    name: eqx.AbstractClassVar[str]


class ExactHessian(AbstractCurvature):
    """The Lagrangian's own Hessian: the fewest iterations."""

    blocks: ClassVar[Any] = staticmethod(exact_blocks)
    lagrangian: ClassVar[Any] = staticmethod(exact_lagrangian)
    name: ClassVar[str] = "exact Hessian"


class GaussNewton(AbstractCurvature):
    """The misfit's with linearized residuals, and the costs'; none of constraints."""

    blocks: ClassVar[Any] = staticmethod(gauss_newton_blocks)
    lagrangian: ClassVar[Any] = staticmethod(gauss_newton_lagrangian)
    name: ClassVar[str] = "Gauss and Newton"


class LimitedMemory(AbstractCurvature):
    """Ipopt's quasi-Newton updates: cheap for many parameters, more iterations."""

    blocks: ClassVar[Any] = None
    lagrangian: ClassVar[Any] = None
    name: ClassVar[str] = "limited memory"
