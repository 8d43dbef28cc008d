"""The second derivatives that Ipopt is given."""

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

    Attributes:
        blocks: `(nlp, z, multipliers, factor, pairs)` to the second derivatives, or
            `None` where Ipopt makes its own approximation.
        lagrangian: `(nlp, z, at, multipliers)` to a function's value whose Hessian at
            `at` is these derivatives, for a check; or `None`.
        name: What messages call it.
    """

    blocks: eqx.AbstractClassVar[Any]
    lagrangian: eqx.AbstractClassVar[Any]
    name: eqx.AbstractClassVar[str]


class ExactHessian(AbstractCurvature):
    """The Lagrangian's own Hessian: the fewest iterations. It has no arguments.

    Attributes:
        blocks: The exact second derivatives.
        lagrangian: The Lagrangian.
        name: `"exact Hessian"`.
    """

    blocks: ClassVar[Any] = staticmethod(exact_blocks)
    lagrangian: ClassVar[Any] = staticmethod(exact_lagrangian)
    name: ClassVar[str] = "exact Hessian"


class GaussNewton(AbstractCurvature):
    """The curvature of linearized residuals and of costs, none of constraints.

    It has no arguments.

    Attributes:
        blocks: The second derivatives of Gauss and Newton.
        lagrangian: The function that has them as its Hessian.
        name: `"Gauss and Newton"`.
    """

    blocks: ClassVar[Any] = staticmethod(gauss_newton_blocks)
    lagrangian: ClassVar[Any] = staticmethod(gauss_newton_lagrangian)
    name: ClassVar[str] = "Gauss and Newton"


class LimitedMemory(AbstractCurvature):
    """Ipopt's quasi-Newton updates: cheap for many parameters, more iterations.

    It has no arguments. With it the trainer does not estimate the ratios of the
    outputs' noise, and `covariance` refuses it.

    Attributes:
        blocks: `None`.
        lagrangian: `None`.
        name: `"limited memory"`.
    """

    blocks: ClassVar[Any] = None
    lagrangian: ClassVar[Any] = None
    name: ClassVar[str] = "limited memory"
