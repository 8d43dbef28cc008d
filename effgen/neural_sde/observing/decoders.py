"""Decoders: what is observed of a state, `p(y | x)`, and its Gaussian sites."""

import abc
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray

from effgen.neural_sde.data.series import Series
from effgen.neural_sde.linear_sdes.gaussian import all_positive, as_float, check_finite
from effgen.neural_sde.linear_sdes.linear import as_vector, joined_root, split_root
from effgen.neural_sde.linear_sdes.messages import Site
from effgen.neural_sde.linear_sdes.noise import standard_normal

from .likelihoods import AbstractLikelihood
from .sites import AbstractSites, LinearizedSites, Smoother


State = Float[Array, " state"]


class AbstractDecoder(eqx.Module):
    """How a state is observed: `p(y | x)`, and the Gaussian factors that stand for it.

    `sites` stand for the observations in the linear model. Where they are not the
    likelihood itself, each observation adds `log p(y | x) - log s(x)` to the bound.

    Attributes:
        exact: Whether `sites` are the likelihood itself.
    """

    exact: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def sites(self, series: Series, smoother: Smoother) -> Site:
        """Return one Gaussian factor for each observation.

        Arguments:
            series: One series, with `ys` of shape `(obs, *shape)`.
            smoother: From sites to the linear model's means, `(obs, state)`, and
                covariances, `(obs, state, state)`, at the observations. `None` in
                place of sites gives the prior's.

        Returns:
            The factors, stacked along `obs`.
        """

    @abc.abstractmethod
    def log_prob(
        self, x: State, y: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
    ) -> Float[Array, ""]:
        """Return `log p(y | x)` of the entries that are there.

        Arguments:
            x: A state, shape `(state,)`.
            y: One observation, any shape.
            mask: Where `y` has a value, of the same shape.

        Returns:
            The log-density or log-probability, a scalar, in nats.
        """

    @abc.abstractmethod
    def mean(self, x: State) -> Float[Array, "*shape"]:
        """Return the mean of `y` given `x`.

        Arguments:
            x: A state, shape `(state,)`.

        Returns:
            `E[y | x]`, of the shape and units of `y`.
        """

    @abc.abstractmethod
    def sample(self, x: State, *, key: PRNGKeyArray) -> Float[Array, "*shape"]:
        """Draw `y` given `x`.

        Arguments:
            x: A state, shape `(state,)`.
            key: A random key.

        Returns:
            One observation, of the shape and units of `y`.
        """

    @abc.abstractmethod
    def check_shape(self, shape: tuple[int, ...], num_states: int) -> None:
        """Check the shape of one observation before any compute.

        Arguments:
            shape: The shape of `ys` at one time.
            num_states: The number of components of the state.

        Raises:
            ValueError: If one observation cannot have this shape.
        """


class LinearDecoder(AbstractDecoder):
    """A linear reading of the state with normal noise: all is exact.

        y = matrix x + offset + noise,    noise ~ N(0, R)

    The noise is learned, positive numbers by their logarithms. `matrix` and `offset`
    stay as they are given: data cannot tell them apart from the scale and the level of
    the state. Any entries of `y` may be missing, under correlated noise too.

    For exact observations pass a small `scale`. The messages stay accurate. In float32,
    `LatentSDE(message_dtype=jnp.float64)` keeps their digits.

    Arguments:
        matrix: Shape `(sensors, state)`.
        scale: The noise's standard deviation, one number or shape `(sensors,)`, or a
            square root of `R`, shape `(sensors, sensors)`, in units of `y`.
        offset: Shape `(sensors,)`, or one number for all sensors, in units of `y`.
        learned: Which of "matrix" and "offset" are trained, as a tuple.

    Raises:
        ValueError: For shapes that do not agree, a `matrix` or `offset` that is not
            finite, a `scale` that is not positive or a singular root, and other names
            in `learned`.
    """

    exact: ClassVar[bool] = True

    matrix: Float[Array, "sensors state"]
    offset: Float[Array, " sensors"]
    lower: Float[Array, "sensors sensors"] | None
    log_scale: Float[Array, " sensors"]
    learned: tuple[str, ...] = eqx.field(static=True)

    def __init__(
        self,
        matrix: ArrayLike,
        scale: ArrayLike,
        *,
        offset: ArrayLike = 0.0,
        learned: tuple[str, ...] = (),
    ) -> None:
        """Check the shapes."""
        if isinstance(learned, str) or not set(learned) <= {"matrix", "offset"}:
            raise ValueError(
                f'`learned` is {learned!r}: pass a tuple of "matrix" and "offset".'
            )
        self.learned = tuple(learned)
        self.matrix, scale, offset = (as_float(x) for x in (matrix, scale, offset))
        if self.matrix.ndim != 2:
            raise ValueError(
                f"`matrix` has shape {self.matrix.shape}: pass (sensors, state)."
            )
        check_finite("matrix", self.matrix)
        check_finite("offset", offset)
        size = self.matrix.shape[0]
        if scale.shape not in ((), (size,), (size, size)):
            raise ValueError(
                f"`scale` has shape {scale.shape}: pass a number, ({size},) or a root "
                f"({size}, {size})."
            )
        self.offset = jnp.broadcast_to(offset, (size,))
        if scale.ndim == 2:
            self.lower, self.log_scale = split_root(scale)
            return
        if not all_positive(scale):
            raise ValueError(f"`scale` is {scale}: pass positive standard deviations.")
        self.lower, self.log_scale = None, jnp.log(jnp.broadcast_to(scale, (size,)))

    @property
    def fixed(self) -> tuple[str, ...]:
        """What `learned` does not name."""
        return tuple(n for n in ("matrix", "offset") if n not in self.learned)

    @property
    def scale(self) -> Float[Array, " sensors"]:
        """The standard deviation of each sensor's noise."""
        if self.lower is None:
            return jnp.exp(self.log_scale)
        return jnp.sqrt(jnp.sum(self._root() ** 2, axis=1))

    def _root(self) -> Array:
        if self.lower is None:
            return jnp.diag(jnp.exp(self.log_scale))
        return joined_root(self.lower, self.log_scale)

    def sites(self, series: Series, smoother: Smoother) -> Site:
        """Return the likelihood itself as a function of the state.

        Arguments:
            series: One series, with `ys` of shape `(obs, sensors)`.
            smoother: Not used.

        Returns:
            The factors, stacked along `obs`.
        """
        return jax.vmap(self.site)(series.ys, series.mask, series.errors)

    def site(self, y: Array, mask: Array, errors: Array | None = None) -> Site:
        """Return `p(y | x)` of the entries that are there, as a function of `x`.

        Arguments:
            y: One observation, shape `(sensors,)`.
            mask: Where `y` has a value, shape `(sensors,)`.
            errors: What multiplies each sensor's noise, shape `(sensors,)`, or `None`.

        Returns:
            A Gaussian factor of the state.
        """
        whiten = self._whitener(mask, y.dtype, errors)
        matrix = whiten(self.matrix.astype(y.dtype))
        error = whiten((y - self.offset.astype(y.dtype))[:, None])[:, 0]
        logs = whiten(jnp.eye(len(y), dtype=y.dtype))
        log_scale = jnp.where(mask, jnp.log(jnp.where(mask, jnp.diagonal(logs), 1)), 0)
        half_log = 0.5 * jnp.log(2 * jnp.pi) * jnp.sum(mask)
        constant = -0.5 * error @ error + jnp.sum(log_scale) - half_log
        return Site(matrix.T @ matrix, matrix.T @ error, constant.astype(y.dtype))

    def _whitener(
        self, mask: Array, dtype: jnp.dtype, errors: Array | None
    ) -> Callable[[Array], Array]:
        """Return what takes the observed rows to unit noise and the rest to zero."""
        sizes = jnp.ones(mask.shape, dtype) if errors is None else errors.astype(dtype)
        if self.lower is None:
            inverse = jnp.where(mask, jnp.exp(-self.log_scale.astype(dtype)) / sizes, 0)
            return lambda rows: inverse[:, None] * rows
        root = sizes[:, None] * self._root().astype(dtype)
        both = mask[:, None] & mask[None]
        covariance = jnp.where(both, root @ root.T, jnp.eye(len(mask), dtype=dtype))
        factor = jnp.linalg.cholesky(covariance)
        return lambda rows: jax.scipy.linalg.solve_triangular(
            factor, jnp.where(mask[:, None], rows, 0), lower=True
        )

    def log_prob(self, x: State, y: Array, mask: Array) -> Float[Array, ""]:
        """Return `log p(y | x)` of the entries that are there: see the base."""
        return self.site(jnp.where(mask, y, 0), mask).log_value(x)

    def mean(self, x: State) -> Float[Array, " sensors"]:
        """Return `matrix x + offset`, shape `(sensors,)`."""
        return self.matrix @ x + self.offset

    def observed(self, mask: Array, errors: Array | None) -> tuple[Array, Array]:
        """Return the rows of `matrix` that are there, and the noise's covariance.

        A missing entry has a row of zeros, and a noise of one that is independent of
        the others.

        Arguments:
            mask: Which sensors have a value, shape `(sensors,)`.
            errors: What multiplies each sensor's noise, shape `(sensors,)`, or `None`.

        Returns:
            The rows, shape `(sensors, state)`, and the covariance.
        """
        root = self._root() if errors is None else errors[:, None] * self._root()
        both = mask[:, None] & mask[None]
        noise = jnp.where(both, root @ root.T, jnp.eye(len(mask), dtype=root.dtype))
        return jnp.where(mask[:, None], self.matrix, 0), noise

    def law(
        self,
        mean: State,
        covariance: Float[Array, "state state"],
        errors: Float[Array, " sensors"] | None = None,
    ) -> tuple[Float[Array, " sensors"], Float[Array, " sensors"]]:
        """Return each sensor's mean and variance where `x ~ N(mean, covariance)`.

        Arguments:
            mean: Shape `(state,)`.
            covariance: Shape `(state, state)`.
            errors: What multiplies each sensor's noise, shape `(sensors,)`, or `None`.

        Returns:
            Means and variances, noise included, each of shape `(sensors,)`.
        """
        noise = self.scale if errors is None else self.scale * errors
        spread = jnp.einsum("ij,jk,ik->i", self.matrix, covariance, self.matrix)
        return self.mean(mean), jnp.maximum(spread, 0) + noise**2

    def sample(
        self,
        x: Float[Array, "*shape state"],
        *,
        key: PRNGKeyArray,
        errors: Array | None = None,
    ) -> Float[Array, "*shape sensors"]:
        """Draw `y` given `x`.

        Arguments:
            x: A state, shape `(state,)`, or several, with axes before.
            key: A random key.
            errors: What multiplies each sensor's noise, shape `(sensors,)`, or `None`.

        Returns:
            One observation of each state, shape `(*shape, sensors)`.
        """
        shape = (*x.shape[:-1], len(self.offset))
        noise = standard_normal(key, shape, self.offset.dtype) @ self._root().T
        if errors is not None:
            noise = jnp.broadcast_to(errors, shape) * noise
        return x @ self.matrix.T + jnp.broadcast_to(self.offset, shape) + noise

    def check_shape(self, shape: tuple[int, ...], num_states: int) -> None:
        """Raise `ValueError` unless the shapes are those of `matrix`: see the base."""
        if self.matrix.shape[1] != num_states:
            raise ValueError(
                f"the decoder's `matrix` has shape {self.matrix.shape} and the linear "
                f"SDE {num_states} components: pass (sensors, {num_states})."
            )
        if shape != self.matrix.shape[:1]:
            raise ValueError(
                f"`ys` has {shape} a time; the decoder has {self.matrix.shape[0]} "
                "sensors, the rows of its `matrix`."
            )


class Readout(eqx.Module):
    """A linear function for the network of a `Decoder`: `matrix x + offset`.

    Arguments:
        matrix: Shape `(sensors, state)`.
        offset: Shape `(sensors,)`, or one number for all sensors.

    Raises:
        ValueError: For shapes that do not agree, or an `offset` that is not finite.
    """

    matrix: Float[Array, "sensors state"]
    offset: Float[Array, " sensors"]

    def __init__(self, matrix: ArrayLike, offset: ArrayLike = 0.0) -> None:
        """Check the shapes."""
        self.matrix = as_float(matrix)
        if self.matrix.ndim != 2:
            raise ValueError(
                f"`matrix` has shape {self.matrix.shape}: pass (sensors, state)."
            )
        self.offset = as_vector("offset", offset, self.matrix.shape[:1])

    def __call__(self, x: State) -> Float[Array, " sensors"]:
        """Return the parameter of each sensor.

        Arguments:
            x: A state, shape `(state,)`.

        Returns:
            Shape `(sensors,)`.
        """
        return self.matrix @ x + self.offset


class Decoder(AbstractDecoder):
    """Any network and any likelihood: `y ~ likelihood(network(x))`, entry by entry.

    Arguments:
        network: From a state, shape `(state,)`, to parameters of the shape of `y` at
            one time, such as a `Readout`. It is trained.
        likelihood: The law of each entry given its parameter.
        proposal: What makes the sites: `LinearizedSites()` or `EncodedSites(encoder)`.
    """

    exact: ClassVar[bool] = False

    network: Callable[[State], Float[Array, "*shape"]]
    likelihood: AbstractLikelihood
    proposal: AbstractSites = LinearizedSites()

    def sites(self, series: Series, smoother: Smoother) -> Site:
        """Return the proposal's sites; at a time without values they are one."""
        sites = self.proposal(self.network, self.likelihood, series, smoother)
        seen = series.seen
        return jax.tree.map(
            lambda x: jnp.where(seen.reshape((-1,) + (1,) * (x.ndim - 1)), x, 0), sites
        )

    def log_prob(self, x: State, y: Array, mask: Array) -> Float[Array, ""]:
        """Return `log p(y | x)` of the entries that are there: see the base."""
        logs = self.likelihood.log_prob(self.network(x), y)
        return jnp.sum(jnp.where(mask, logs, 0))

    def mean(self, x: State) -> Float[Array, "*shape"]:
        """Return the mean of `y` given `x`: see the base."""
        return self.likelihood.mean(self.network(x))

    def sample(self, x: State, *, key: PRNGKeyArray) -> Float[Array, "*shape"]:
        """Draw `y` given `x`: see the base."""
        return self.likelihood.sample(self.network(x), key=key)

    def check_shape(self, shape: tuple[int, ...], num_states: int) -> None:
        """Raise `ValueError` unless the network returns this shape: see the base."""
        found = eqx.filter_eval_shape(self.network, jnp.zeros(num_states)).shape
        if found != shape:
            raise ValueError(
                f"`ys` has shape {shape} a time and the decoder's network returns "
                f"{found}: they must be the same."
            )
