"""A trained energy as a normalized density, with an error bar."""

import os
import warnings

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from effgen.core.contract.state import TrainState
from effgen.core.outcome.results import RunWarning
from effgen.core.weights import Estimate
from effgen.ebm.contract.arguments import as_rows, check_energy, check_finite, traced
from effgen.ebm.contract.data_checks import are_bits
from effgen.ebm.contract.energy import Energy, energies_at
from effgen.ebm.walkers.islands import check_walkers
from effgen.ebm.walkers.populations import (
    Memory,
    Population,
    audit_population,
    flattened,
    knows_partition,
    reweighted,
)
from effgen.ebm.walkers.reservoir import Reservoir
from effgen.ebm.walkers.weighted_walkers import Walkers

from .answering import LOST, evaluated_by, population_of
from .reliability import Told, doubts, told_by
from .stored import read, written


class NormalizedEnergy(eqx.Module):
    """A normalized density: `log_prob(x) = -energy(x) - log_partition`.

    Attributes:
        energy: From one example to its energy, or from a batch to energies.
        log_partition: The walkers' estimate of `log Z`, in nats.
        standard_error: One standard error of it, in nats.
        shape: The shape of one example.
        ess: The share of the walkers that count.
        pareto_k: The shape of their weights' tail.
        spread: The standard deviation of the islands' `log Z`, in nats.
        least_share: The least share of an island that one change of the model left.
        survivors: The share of the first walkers with descendants.
        imbalance: How far the walkers are from equilibrium, in standard errors.
        gradient_pareto_k: The shape of the tail of their gradients' norms.
        walls: The box that the density is of, `(low, high)`, or `None`.
        binary: Whether it is of zeros and ones alone.
    """

    energy: Energy
    log_partition: Float[Array, ""]
    standard_error: Float[Array, ""]
    shape: tuple[int, ...] = eqx.field(static=True)
    ess: Float[Array, ""] | float = 1.0
    pareto_k: Float[Array, ""] | float = -jnp.inf
    spread: Float[Array, ""] | float = 0.0
    least_share: Float[Array, ""] | float = 1.0
    survivors: Float[Array, ""] | float = 1.0
    imbalance: Float[Array, ""] | float = 0.0
    gradient_pareto_k: Float[Array, ""] | float = -jnp.inf
    walls: tuple[float, float] | None = eqx.field(static=True, default=None)
    binary: bool = eqx.field(static=True, default=False)

    @classmethod
    def from_state(
        cls, state: TrainState[Energy, Memory], population: Population | None = None
    ) -> "NormalizedEnergy":
        """Return the density of a trained state; a reservoir catches up first.

        Arguments:
            state: What training has returned.
            population: Of `state.memory`; by default the audit, else what trains.

        Raises:
            ValueError: If the state has no walkers that know `log Z`.

        Warns:
            RunWarning: If the walkers also trained the model, or as `from_walkers`.
        """
        asked = population_of(state, population)
        walkers = evaluated_by(asked, state)
        trained = traced(state.step) or int(state.step) > 0
        watches = audit_population(state.memory) is asked
        if trained and not watches and knows_partition(walkers):
            warnings.warn(
                "the walkers that estimate `log Z` also trained the model, so that it "
                "is too small by more than its error bar: give `trainer.init` "
                "`ebm.Audited(walkers, audit)`, or fresh walkers to `ebm.annealed`.",
                RunWarning,
                stacklevel=2,
            )
        return _density(state.evaluated, walkers)

    @classmethod
    def from_walkers(cls, energy: Energy, walkers: Population) -> "NormalizedEnergy":
        """Return the density of `energy`, by walkers of it or of one close to it.

        Arguments:
            energy: From one example to its energy, or from a batch to energies.
            walkers: `Walkers` or a `Reservoir`; they are reweighted for `energy`.

        Raises:
            ValueError: If the walkers do not know `log Z`, if none has weight left, or
                where the energy is NaN.

        Warns:
            RunWarning: If the error bar cannot be relied on, with the reasons.
        """
        check_energy("energy", energy)
        if isinstance(walkers, Reservoir):
            walkers = flattened(walkers)
        check_walkers("walkers", walkers)
        _check_defined(energy, walkers)
        return _density(energy, reweighted(walkers, energy))

    def log_prob(self, x: Float[Array, "*batch_and_shape"]) -> Float[Array, "*batch"]:
        """Return the log-density in nats of each example, shape `(*batch,)`.

        It is `-inf` where walkers can never be: outside of `walls`, and, of `binary`
        models, at other values than zeros and ones.

        Arguments:
            x: Examples, shape `(*batch, *shape)`; `log Z`'s error is common to all.

        Raises:
            ValueError: If `x` does not end in the shape of an example.
        """
        x = as_rows("x", x)
        batch = x.shape[: x.ndim - len(self.shape)]
        if x.shape[len(batch) :] != self.shape:
            raise ValueError(
                f"`x` has shape {x.shape}, which does not end in that of an example, "
                f"{self.shape}."
            )
        rows = x.reshape(-1, *self.shape)
        values = -_energies_at(self.energy, rows).reshape(batch) - self.log_partition
        return jnp.where(self._possible(rows).reshape(batch), values, -jnp.inf)

    def _possible(self, rows: Float[Array, "examples *shape"]) -> Array:
        """Return whether walkers could be at each row; of one with NaN, yes."""
        inside = jnp.ones(rows.shape, bool)
        if self.walls is not None:
            low, high = self.walls
            inside &= (rows >= low) & (rows <= high)
        if self.binary:
            inside &= (rows == 0) | (rows == 1)
        axes = tuple(range(1, rows.ndim))
        return jnp.all(inside, axis=axes) | jnp.any(jnp.isnan(rows), axis=axes)

    def log_likelihood(self, x: Float[Array, "examples *shape"]) -> Estimate:
        """Return the mean log-density in nats, with `log Z`'s and the sample's error.

        Arguments:
            x: Examples, `(*batch, *shape)`, finite; of a single one the error is NaN.
        """
        x = as_rows("x", x)
        if not x.size:
            raise ValueError("`x` has no rows: pass the examples to be judged.")
        check_finite("x", jnp.atleast_1d(x))
        values = self.log_prob(x).reshape(-1)
        sampling = jnp.std(values, ddof=1) / jnp.sqrt(values.size)
        return Estimate(jnp.mean(values), jnp.hypot(sampling, self.standard_error))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the density to one file, to be loaded without trainer or walkers.

        Arguments:
            path: The file.
        """
        told = Told(*(jnp.asarray(getattr(self, name)) for name in Told._fields))
        support = {"shape": self.shape, "walls": self.walls, "binary": self.binary}
        written(path, self.energy, told, support)

    @classmethod
    def load(cls, path: str | os.PathLike[str], energy: Energy) -> "NormalizedEnergy":
        """Return a density that was saved.

        Arguments:
            path: The file that `save` wrote.
            energy: Built as the saved one was: its parameters are replaced. What is no
                array in it, such as a `scale`, must be the same.

        Raises:
            ValueError: If the file is damaged, of another format, or of another energy.
            TypeError: If `energy` is none.
        """
        check_energy("energy", energy)
        blank = Told(*(jnp.zeros(()) for _ in Told._fields))
        energy, told, support = read(path, energy, blank)
        walls = support["walls"]
        return cls(
            energy=energy,
            shape=tuple(support["shape"]),
            walls=None if walls is None else (walls[0], walls[1]),
            binary=support["binary"],
            **told._asdict(),
        )


def _check_defined(energy: Energy, walkers: Walkers) -> None:
    """Raise where the energy is NaN, which is no infinity: there may well be mass."""
    undefined = jnp.isnan(_energies_at(energy, walkers.positions))
    if not traced(undefined) and (bad := int(jnp.sum(undefined))):
        raise ValueError(
            f"`energy` is NaN at {bad} of {walkers.num} walkers: mend it there, or let "
            "it be infinite where the model has no mass."
        )


def _density(energy: Energy, walkers: Walkers) -> NormalizedEnergy:
    """Return the density of `energy`, by walkers that are weighted for it."""
    if traced((energy, walkers)):
        raise TypeError(
            "`walkers` or `energy` are traced, by `jit` or the like, so that nothing "
            "can be said of their error: make the density outside. Its `log_prob` may "
            "be called inside."
        )
    if not knows_partition(walkers):
        raise ValueError(
            "the population does not know `log Z`: its walkers carry no weights. "
            "Train with `JarzynskiTrainer`, or give the trainer `Audited` walkers."
        )
    told = told_by(walkers)
    if not bool(jnp.isfinite(told.log_partition)):
        raise ValueError(LOST)
    reasons = doubts(told, energy, walkers)
    if reasons:
        warnings.warn(
            f"unreliable: {'; '.join(reasons)}. `log Z` may be off by more than "
            "its error bar. Use more walkers, smaller updates of the model, or "
            "`ebm.annealed` with a smaller `radius`.",
            RunWarning,
            stacklevel=3,
        )
    return NormalizedEnergy(
        energy=energy,
        shape=walkers.positions.shape[1:],
        walls=walkers.walls,
        binary=bool(are_bits(walkers.positions)),
        **told._asdict(),
    )


_energies_at = eqx.filter_jit(energies_at)
