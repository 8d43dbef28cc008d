"""Linear SDEs whose coefficients vary with time."""

from collections.abc import Callable
from typing import ClassVar

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .gaussian import Gaussian
from .linear import AbstractLinearSDE, Inputs, as_input_matrix, forced
from .transitions import Coefficients, Matrix, Transition, from_spread


_NUM_NODES = 8


class VaryingSDE(AbstractLinearSDE):
    """A linear SDE whose coefficients vary with time.

        dX = (A(t) X + b(t) + C u) dt + sigma(t) dW

    `W(s) = Phi(t + dt, s)`, `dW/ds = -W A(s)`, is solved backward through the Gauss
    nodes of the step, by one step of Dormand and Prince's method of order 8 from each
    node to the next. Mean and covariance are sums over the nodes.

    Arguments:
        evaluate: From `t`, a scalar, to `A`, shape `(state, state)`, `b`, shape
            `(state,)`, and `sigma`, shape `(state, brownian)`. It may be any Equinox
            module, whose arrays are trained.
        initial: The law of `X` at the first time.
        input_matrix: `C`, shape `(state, inputs)`, or `None` for no inputs.

    Raises:
        ValueError: For shapes that do not agree.
    """

    time_invariant: ClassVar[bool] = False

    evaluate: Callable[[Float[Array, ""]], tuple[Array, Array, Array]]
    initial: Gaussian
    input_matrix: Float[Array, "state inputs"] | None

    def __init__(
        self,
        evaluate: Callable[[Float[Array, ""]], tuple[Array, Array, Array]],
        initial: Gaussian,
        *,
        input_matrix: ArrayLike | None = None,
    ) -> None:
        """Check the shapes at time zero."""
        self.evaluate = evaluate
        self.initial = initial
        size = initial.mean.shape[0]
        self.input_matrix = as_input_matrix(input_matrix, size)
        shapes = [x.shape for x in jax.eval_shape(evaluate, jnp.zeros(()))]
        if shapes[:2] != [(size, size), (size,)] or shapes[2][:1] != (size,):
            raise ValueError(
                f"`evaluate` returns shapes {shapes}: pass ({size}, {size}), ({size},) "
                f"and ({size}, brownian)."
            )

    def coefficients(self, t: Float[Array, ""]) -> Coefficients:
        """Return `A`, `b` and `sigma` at `t`.

        Arguments:
            t: The time, a scalar.

        Returns:
            What `evaluate(t)` returns.
        """
        return Coefficients(*self.evaluate(t))

    def transition(
        self, t: Float[Array, ""], dt: Float[Array, ""], inputs: Inputs | None = None
    ) -> Transition:
        """Return the step from `t` to `t + dt`, exact to the order of its nodes.

        Arguments:
            t: The time at which the step starts, a scalar.
            dt: The length of the step, not negative.
            inputs: `u`, shape `(inputs,)`, held constant over the step, or `None`.

        Returns:
            The law of `X(t + dt)` given `X(t)`.
        """
        nodes, weights = gauss_nodes(dt.dtype)
        flows = _flows_to_end(lambda s: self.coefficients(t + s * dt).matrix, dt, nodes)
        at_nodes = jax.vmap(lambda s: self.coefficients(t + s * dt))(nodes)
        force = jax.vmap(lambda b: forced(b, self.input_matrix, inputs))(at_nodes.bias)
        offset = dt * jnp.einsum("n,nij,nj->i", weights, flows[:-1], force)
        diffusion = at_nodes.diffusion
        mean_weight = jnp.tensordot(weights, flows[:-1], 1)
        noises = flows[:-1] @ diffusion
        spread = jnp.einsum("n,nij,nkj->ik", weights, noises, noises)
        return from_spread(flows[-1], offset, mean_weight, spread, dt)


def gauss_nodes(dtype: jnp.dtype) -> tuple[Array, Array]:
    """Return the nodes and weights of Gauss and Legendre on `[0, 1]`."""
    nodes, weights = np.polynomial.legendre.leggauss(_NUM_NODES)
    return jnp.asarray((nodes + 1) / 2, dtype), jnp.asarray(weights / 2, dtype)


def _flows_to_end(
    matrix: Callable[[Array], Matrix], dt: Float[Array, ""], nodes: Float[Array, " n"]
) -> Float[Array, "n+1 state state"]:
    """Return the flows to the end of the step, from each node and from its start."""
    behind = jnp.concatenate([jnp.zeros(1, dt.dtype), 1 - nodes[::-1], jnp.ones(1)])
    behind = behind.astype(dt.dtype)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda v, flow, _: dt * flow @ matrix(1 - jnp.asarray(v))),
        diffrax.Dopri8(),
        t0=behind[0],
        t1=behind[-1],
        dt0=None,
        y0=jnp.eye(matrix(behind[0]).shape[0], dtype=dt.dtype),
        stepsize_controller=diffrax.StepTo(ts=behind),
        saveat=diffrax.SaveAt(steps=True),
        max_steps=len(behind) - 1,
    )
    flows = solution.ys
    assert flows is not None
    return jnp.concatenate([flows[:-1][::-1], flows[-1:]])
