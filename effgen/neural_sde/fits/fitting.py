"""Linear models fitted by their exact evidence, with standard errors."""

import warnings
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import ArrayLike, PRNGKeyArray

from effgen.core.outcome.results import RunWarning
from effgen.neural_sde.modeling.model import LatentSDE

from .curvature import drawn_models, standard_errors, values_at
from .peak import Maximum, maximum


class Fitted(NamedTuple):
    """A linear model at the maximum of its posterior density.

    Attributes:
        model: The fitted model, with the step that its record needs.
        log_evidence: `log p(y)` there, of all series together, in nats.
        log_prior: The log prior density there, up to a constant, in nats.
        parameters: By name, in units of time and data: those of a `Structure`, and
            "observation.scale".
        num_steps: How many steps the optimizer took.
        converged: Whether it converged.
        peak: The density that was maximized, and its maximum.
    """

    model: LatentSDE
    log_evidence: float
    log_prior: float
    parameters: dict[str, np.ndarray]
    num_steps: int
    converged: bool
    peak: Maximum

    @property
    def standard_errors(self) -> dict[str, np.ndarray]:
        """Of `parameters`, by the curvature; NaN where nothing holds a parameter.

        They are computed when they are asked for: the curvature takes as long to
        compile as the fit.
        """
        with jax.enable_x64(True):  # noqa: FBT003
            return standard_errors(self.peak.problem, self.peak.x)

    def drawn(self, num: int, *, key: PRNGKeyArray) -> tuple[LatentSDE, ...]:
        """Draw models from the posterior density of the parameters.

        The fitted model leaves out the uncertainty of its parameters. So its forecasts
        of a short record have bands that are too narrow. A mixture of the forecasts of
        several drawn models, as `stack` makes, includes this uncertainty.

        Arguments:
            num: The number of models.
            key: A random key.

        Returns:
            Models of equal weight. If few proposals have weight, some models are equal.

        Raises:
            ValueError: If `num` is below 1.
            TypeError: If `key` is no random key.

        Warns:
            RunWarning: If few of the proposals have weight.

        Source:
            Rubin (1988).
        """
        return drawn_models(self.peak, num, key=key)


def fit_linear(
    model: LatentSDE,
    ts: ArrayLike,
    ys: ArrayLike,
    mask: ArrayLike | None = None,
    inputs: ArrayLike | None = None,
    *,
    errors: ArrayLike | None = None,
    unit: str = "s",
    prior_scale: float = 1.5,
    max_steps: int = 300,
) -> Fitted:
    """Fit a linear model by its exact evidence, in float64.

        maximize  sum log p(y) - sum (log p - log p_start)^2 / (2 prior_scale^2)

    over all that `model.trainable()` names, by BFGS. The second sum is over parameters
    that are kept by logarithms: rates and scales. It keeps damping and noise above
    zero.

    Arguments:
        model: A linear model, observed linearly, such as `structural`'s.
        ts: Times in order, shape `(obs,)` or `(series, obs)`, numbers or dates.
        ys: Values, shape `(obs,)` or `(obs, sensors)`, a batch's with an axis before.
        mask: Where there is a value, of the shape of `ts` or `ys`. NaN are missing too.
        inputs: Held from each time to the next, shape `(obs, inputs)`.
        errors: The standard error of each value, of the shape of `ys`, which the
            decoder's `scale` multiplies.
        unit: The unit in which the model counts dates, one of NumPy's.
        prior_scale: The prior's standard deviation of a natural logarithm.
        max_steps: The most steps of the optimizer.

    Returns:
        The fitted model, with parameters and what gives their standard errors.

    Raises:
        ValueError: For a model that is not linear, a `prior_scale` that is not
            positive, or an evidence that is not finite at the start.

    Warns:
        RunWarning: Where the optimizer does not converge, and where all values of a
            sensor are the same.

    Source:
        Särkkä and Solin (2019), chapter 12; the prior, Gelman (2008).
    """
    peak = maximum(
        model,
        ts,
        ys,
        mask,
        inputs,
        errors=errors,
        unit=unit,
        prior_scale=prior_scale,
        max_steps=max_steps,
    )
    with jax.enable_x64(True):  # noqa: FBT003
        values = values_at(peak.problem, peak.x)
    if not peak.converged:
        warnings.warn(
            f"the fit has not converged in {peak.num_steps} steps: raise "
            "`max_steps`, or leave out a part that the data do not need.",
            RunWarning,
            stacklevel=2,
        )
    return Fitted(
        peak.model,
        peak.log_evidence,
        peak.log_prior,
        {name: np.asarray(value) for name, value in values.items()},
        peak.num_steps,
        peak.converged,
        peak,
    )
