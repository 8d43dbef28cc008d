"""Samples from the prior, by any of diffrax's solvers."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from effgen.core.contract.counts import check_count
from effgen.core.contract.keys import check_key
from effgen.neural_sde.data.series import check_times
from effgen.neural_sde.filters import cautions
from effgen.neural_sde.modeling.checks import takes_inputs
from effgen.neural_sde.modeling.model import LatentSDE


def prior_terms(
    model: LatentSDE,
    brownian: diffrax.AbstractPath,
    *,
    inputs: diffrax.AbstractPath | None = None,
) -> diffrax.MultiTerm:
    """Return the prior as diffrax's terms, for `diffrax.diffeqsolve`.

    Arguments:
        model: The latent SDE.
        brownian: A path of as many components as `sigma` has columns.
        inputs: A path whose value at `t` is `u`, or `None` for no inputs.

    Returns:
        The drift as an ODE's term, and the diffusion as a control's.

    Raises:
        ValueError: For a linear part with an `input_matrix` and no inputs, and inputs
            that no part of the model sees.
        TypeError: For inputs that are no path.
    """
    _check_inputs(model, inputs)

    def drift(t: Any, x: Any, _: Any) -> Array:
        return model.prior_drift(t, x, None if inputs is None else inputs.evaluate(t))

    def diffusion(t: Any, x: Any, _: Any) -> lineax.AbstractLinearOperator:
        return lineax.MatrixLinearOperator(model.prior_diffusion(t, x))

    return diffrax.MultiTerm(
        diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, brownian)
    )


def _check_inputs(model: LatentSDE, inputs: Any) -> None:
    matrix = model.linear.input_matrix
    if inputs is None:
        if matrix is not None:
            raise ValueError(
                "the linear SDE has an `input_matrix` and `inputs` are not given: pass "
                "`diffrax.LinearInterpolation(ts, inputs)`, or another path."
            )
        return
    if not isinstance(inputs, diffrax.AbstractPath):
        raise TypeError(
            f"`inputs` is a {type(inputs).__name__}: pass a path, such as "
            "`diffrax.LinearInterpolation(ts, inputs)`."
        )
    drift = model.drift is not None and takes_inputs(model.drift)
    if matrix is None and not drift:
        raise ValueError("`inputs` are given, and no part of the model sees them.")


def sample_prior(
    model: LatentSDE,
    ts: ArrayLike,
    num: int,
    *,
    key: PRNGKeyArray,
    dt: float | None = None,
    solver: diffrax.AbstractSolver | None = None,
    inputs: diffrax.AbstractPath | None = None,
) -> Float[Array, "num times state"]:
    """Draw paths of the prior at `ts`; the first is where `linear.initial` holds.

    Solvers in the sense of Stratonovich give the same law where `sigma` does not depend
    on the state. Those that need Lévy areas get them.

    Arguments:
        model: The latent SDE.
        ts: Two or more increasing times, shape `(times,)`.
        num: The number of paths.
        key: A random key.
        dt: The step; `None`: the model's, or a 200th of the times where it has none.
        solver: diffrax's solver; `None`: Euler's.
        inputs: A path whose value at `t` is `u`, or `None` for no inputs.

    Returns:
        States, shape `(num, times, state)`.

    Raises:
        ValueError: For times that do not increase or are fewer than two, or whose gaps
            float32 does not tell, no paths, and a `dt` that is not positive.
        TypeError: For an invalid model or key, and for inputs as `prior_terms` raises.
    """
    if not isinstance(model, LatentSDE):
        raise TypeError(f"`model` is a {type(model).__name__}: pass a `LatentSDE`.")
    check_key(key)
    check_count("num", num)
    _check_inputs(model, inputs)
    times = np.asarray(ts, np.float64)
    if times.ndim != 1 or len(times) < 2 or np.any(np.diff(times) <= 0):
        raise ValueError("`ts` must be two or more increasing times.")
    check_times(times, None)
    step = (model.dt or (times[-1] - times[0]) / 200) if dt is None else dt
    if not (np.isfinite(step) and step > 0):
        raise ValueError(f"`dt` is {dt}: pass a positive length of time.")
    steps = int(np.ceil((times[-1] - times[0]) / step))
    cautions.of_many_steps(step, steps, num, 0)
    return _sampled(model, jnp.asarray(ts), num, key, step, solver, inputs)


@eqx.filter_jit
def _sampled(
    model: LatentSDE,
    ts: Array,
    num: int,
    key: PRNGKeyArray,
    dt: float,
    solver: diffrax.AbstractSolver | None,
    inputs: diffrax.AbstractPath | None,
) -> Array:
    solver = diffrax.Euler() if solver is None else solver
    keys = jax.random.split(key)
    first = model.linear.initial.sample(num, key=keys[0])
    size = model.linear.coefficients(ts[0]).diffusion.shape[1]
    area = _levy_area(solver)

    def one(x: Array, key: PRNGKeyArray) -> Array:
        tree = diffrax.VirtualBrownianTree(
            ts[0], ts[-1], tol=dt / 2, shape=(size,), key=key, levy_area=area
        )
        solution = diffrax.diffeqsolve(
            prior_terms(model, tree, inputs=inputs),
            solver,
            t0=ts[0],
            t1=ts[-1],
            dt0=dt,
            y0=x,
            saveat=diffrax.SaveAt(ts=ts),
            max_steps=None,
        )
        assert solution.ys is not None
        return solution.ys

    return jax.vmap(one)(first, jax.random.split(keys[1], num))


def _levy_area(solver: diffrax.AbstractSolver) -> type:
    """Return the least that the solver must know of the Brownian motion."""
    least = getattr(solver, "minimal_levy_area", diffrax.AbstractBrownianIncrement)
    for area in (diffrax.BrownianIncrement, diffrax.SpaceTimeLevyArea):
        if issubclass(area, least):
            return area
    return diffrax.SpaceTimeTimeLevyArea
