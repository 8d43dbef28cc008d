"""Decoders: what is observed of a state, `p(y | x)`, and its Gaussian sites."""

import abc
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray

from .gaussian import all_positive, as_float, check_finite
from .likelihoods import AbstractLikelihood
from .linear import as_vector, joined_root, split_root
from .messages import Site
from .series import Series
from .sites import AbstractSites, LinearizedSites, Smoother


State = Float[Array, " state"]


class AbstractDecoder(eqx.Module):
    """How a state is observed.

    `sites` stand for the observations in the linear model; where they are not the
    likelihood itself (`exact`), the bound has `log p(y | x) - log s(x)` for each.
    """

    exact: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def sites(self, series: Series, smoother: Smoother) -> Site:
        """Return one Gaussian factor for each observation, stacked.

        `smoother(sites)` gives the law of the linear model's states at the observations
        given sites, and the prior's given `None`.
        """

    @abc.abstractmethod
    def log_prob(
        self, x: State, y: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
    ) -> Float[Array, ""]:
        """Return `log p(y | x)` of the entries that are there."""

    @abc.abstractmethod
    def mean(self, x: State) -> Float[Array, "*shape"]:
        """Return the mean of `y` given `x`."""

    @abc.abstractmethod
    def sample(self, x: State, *, key: PRNGKeyArray) -> Float[Array, "*shape"]:
        """Draw `y` given `x`."""

    @abc.abstractmethod
    def check_shape(self, shape: tuple[int, ...], num_states: int) -> None:
        """Raise `ValueError` if one observation cannot have this shape."""


class LinearDecoder(AbstractDecoder):
    """`y = matrix x + offset + noise`, `noise ~ N(0, R)`.

    `scale` is the noise's standard deviation, a number or one for each sensor, or a
    square root of `R`, `(sensors, sensors)`. It is learned by logarithms. All entries
    may be missing one by one, under correlated noise too.

    `matrix` and `offset` stay as they are given: data can't tell them apart from the
    scale and the level of the state. `learned=("matrix",)` trains what it names, of
    "matrix" and "offset".

    **Raises:** `ValueError` for shapes that do not agree, or a `scale` that is not
    positive. Exact observations are a small `scale`: the messages stay accurate, and
    in float32 `LatentSDE(message_dtype=jnp.float64)` keeps their digits.
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
        """Return the likelihood itself as a function of the state."""
        return jax.vmap(self.site)(series.ys, series.mask, series.errors)

    def site(self, y: Array, mask: Array, errors: Array | None = None) -> Site:
        """Return `p(y | x)` of the entries that are there, as a function of `x`.

        `errors` multiply the noise of each entry.
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
        """Return `log p(y | x)` of the entries that are there."""
        return self.site(jnp.where(mask, y, 0), mask).log_value(x)

    def mean(self, x: State) -> Float[Array, " sensors"]:
        """Return `matrix x + offset`."""
        return self.matrix @ x + self.offset

    def observed(self, mask: Array, errors: Array | None) -> tuple[Array, Array]:
        """Return the rows of `matrix` that are there, and the noise's covariance.

        What is missing has a row of zeros and a noise of one, apart from the others.
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
        """Return each sensor's mean and variance where `x ~ N(mean, covariance)`."""
        noise = self.scale if errors is None else self.scale * errors
        spread = jnp.einsum("ij,jk,ik->i", self.matrix, covariance, self.matrix)
        return self.mean(mean), jnp.maximum(spread, 0) + noise**2

    def sample(
        self, x: State, *, key: PRNGKeyArray, errors: Array | None = None
    ) -> Float[Array, " sensors"]:
        """Draw `y` given `x`."""
        noise = jax.random.normal(key, self.offset.shape, self.offset.dtype)
        noise = self._root() @ noise
        return self.mean(x) + (noise if errors is None else errors * noise)

    def check_shape(self, shape: tuple[int, ...], num_states: int) -> None:
        """Raise `ValueError` unless the shapes are those of `matrix`."""
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
    """`matrix x + offset`, for the network of a `Decoder`: parameters linear in `x`."""

    matrix: Float[Array, "sensors state"]
    offset: Float[Array, " sensors"]

    def __init__(self, matrix: ArrayLike, offset: ArrayLike = 0.0) -> None:
        """Raise `ValueError` for shapes that do not agree."""
        self.matrix = as_float(matrix)
        if self.matrix.ndim != 2:
            raise ValueError(
                f"`matrix` has shape {self.matrix.shape}: pass (sensors, state)."
            )
        self.offset = as_vector("offset", offset, self.matrix.shape[:1])

    def __call__(self, x: State) -> Float[Array, " sensors"]:
        """Return the parameter of each sensor."""
        return self.matrix @ x + self.offset


class Decoder(AbstractDecoder):
    """`y ~ likelihood(network(x))`, entry by entry, for any network.

    **Attributes:** `network`, from a state to parameters of `y`'s shape, such as a
    `Readout`; `likelihood`; `proposal`, which makes the sites: `LinearizedSites()` or
    `EncodedSites(encoder)`.
    """

    exact: ClassVar[bool] = False

    network: Callable[[State], Float[Array, "*shape"]]
    likelihood: AbstractLikelihood
    proposal: AbstractSites = LinearizedSites()

    def sites(self, series: Series, smoother: Smoother) -> Site:
        """Return the proposal's sites; of times without an entry they are one."""
        sites = self.proposal(self.network, self.likelihood, series, smoother)
        seen = series.seen
        return jax.tree.map(
            lambda x: jnp.where(seen.reshape((-1,) + (1,) * (x.ndim - 1)), x, 0), sites
        )

    def log_prob(self, x: State, y: Array, mask: Array) -> Float[Array, ""]:
        """Return `log p(y | x)` of the entries that are there."""
        logs = self.likelihood.log_prob(self.network(x), y)
        return jnp.sum(jnp.where(mask, logs, 0))

    def mean(self, x: State) -> Float[Array, "*shape"]:
        """Return the mean of `y` given `x`."""
        return self.likelihood.mean(self.network(x))

    def sample(self, x: State, *, key: PRNGKeyArray) -> Float[Array, "*shape"]:
        """Draw `y` given `x`."""
        return self.likelihood.sample(self.network(x), key=key)

    def check_shape(self, shape: tuple[int, ...], num_states: int) -> None:
        """Raise `ValueError` unless the network returns this shape."""
        found = eqx.filter_eval_shape(self.network, jnp.zeros(num_states)).shape
        if found != shape:
            raise ValueError(
                f"`ys` has shape {shape} a time and the decoder's network returns "
                f"{found}: they must be the same."
            )
