"""A report of the parameters that the data determine, alone and in combination."""

from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float

from effgen.collocation.modeling.model import Model, names_of_model
from effgen.collocation.program.curvature import GaussNewton
from effgen.collocation.program.nlp import NLP, ravel
from effgen.collocation.program.transcription import Transcription
from effgen.core.contract.state import TrainState

from .information import Information, open_names
from .uncertainty import informed, known_noise, moments


_MOVED = 1e-6  # of an open direction's largest part
_NAMED = 0.2  # of a direction's length: parameters that it is said to be of
_LOOSE = 0.5
_ALIKE = 0.95


class Identifiability(NamedTuple):
    """How well the data determine the physical parameters; `str` makes a table.

    Attributes:
        names: The names of the parameters' numbers.
        values: Their values, `(parameters,)`.
        deviations: Their standard deviations, `(parameters,)`, in their units. They are
            infinite for a parameter that an open direction moves, and zero for one at
            an active bound. A direction is open if the data do not determine it.
        correlations: `(parameters, parameters)`; NaN if a deviation is zero or
            infinite.
        open: The names of the parameters and starts that open directions move.
        spreads: The standard deviations along `directions`, `(told,)`, the largest
            first, relative to the parameters' sizes. Above one, the data hardly
            determine a direction.
        directions: Orthogonal combinations of relative parameters, `(parameters,
            told)`.
    """

    names: tuple[str, ...]
    values: Float[np.ndarray, " parameters"]
    deviations: Float[np.ndarray, " parameters"]
    correlations: Float[np.ndarray, "parameters parameters"]
    open: tuple[str, ...]
    spreads: Float[np.ndarray, " told"]
    directions: Float[np.ndarray, "parameters told"]

    def __str__(self) -> str:
        """Return the report: a line for each parameter, then one for each combination.

        Combinations are listed if their relative standard deviation is above one half.
        """
        width = max([len(name) for name in self.names], default=0)
        rows = zip(self.names, self.values, self.deviations, strict=True)
        lines = [
            f"{name:{width}} {value:12.5g} +- {deviation:<10.3g} {self._said(i)}"
            for i, (name, value, deviation) in enumerate(rows)
        ]
        if self.open:
            lines.append(f"open: {', '.join(self.open)} can move together")
        for spread, direction in zip(self.spreads, self.directions.T, strict=True):
            if spread > _LOOSE:
                lines.append(
                    f"deviation {spread:.2g} of its size: {self._named(direction)}"
                )
        return "\n".join(lines)

    def _said(self, i: int) -> str:
        """Return the remark on one parameter, or nothing."""
        if np.isinf(self.deviations[i]):
            return "not told"
        if self.deviations[i] == 0:
            return "held by a bound"
        row = np.abs(np.nan_to_num(self.correlations[i]))
        alike = [self.names[j] for j in np.flatnonzero(row > _ALIKE) if j != i]
        return f"only together with {', '.join(alike)}" if alike else ""

    def _named(self, direction: np.ndarray) -> str:
        chosen = np.flatnonzero(np.abs(direction) > _NAMED)
        order = chosen[np.argsort(-np.abs(direction[chosen]))]
        return " ".join(f"{direction[j]:+.2f} {self.names[j]}" for j in order)


def identifiability(
    transcription: Transcription, state: TrainState, *, noise: ArrayLike | None = None
) -> Identifiability:
    """Report which parameters the data determine at a solution, alone and combined.

    `covariance` refuses open directions. This function names them, and reports the
    standard deviations of the other parameters.

    Arguments:
        transcription: The transcription that `state` was solved on.
        state: The trained state of a `CollocationTrainer`.
        noise: As for `covariance`.

    Returns:
        The report.

    Raises:
        ValueError: If the state is of another mesh; for a `noise` that is not positive;
            if no sample is left to estimate a noise from; if the point is no minimum.

    Source:
        Brun, Reichert and Künsch (2001); Gutenkunst and others (2007).
    """
    known = None if noise is None else known_noise(noise, transcription.problem)
    nlp, found = informed(transcription, state, GaussNewton())
    asked = np.asarray(nlp.problem.scale) / transcription.problem.scale
    whole = moments(found, nlp, None if known is None else known / asked)[2]
    values = np.asarray(ravel(Model(state.model.parameters, None)))
    num = len(values)
    block, loose = whole[:num, :num], _moved(found, nlp, num)
    deviations = np.where(loose, np.inf, np.sqrt(np.diag(block)))
    told = np.flatnonzero((deviations > 0) & ~loose)
    correlations = np.full((num, num), np.nan)
    own = block[np.ix_(told, told)]
    within = np.outer(deviations[told], deviations[told])
    correlations[np.ix_(told, told)] = own / within
    sizes = np.where(values == 0, 1.0, np.abs(values))[told]
    squares, vectors = np.linalg.eigh(own / np.outer(sizes, sizes))
    directions = np.zeros((num, len(told)))
    directions[told] = vectors[:, ::-1]
    return Identifiability(
        tuple(names_of_model(Model(state.model.parameters, None))),
        values,
        deviations,
        correlations,
        tuple(open_names(found, nlp)),
        np.sqrt(np.maximum(squares[::-1], 0)),
        directions,
    )


def _moved(found: Information, nlp: NLP, num: int) -> np.ndarray:
    """Return which parameters an open direction moves."""
    moved, first = np.zeros(num, bool), len(nlp.ts) * nlp.problem.num_states
    if not found.open.shape[1]:
        return moved
    much = np.linalg.norm(found.open, axis=1)
    free = found.eliminated.free[much > _MOVED * much.max()] - first
    moved[free[(free >= 0) & (free < num)]] = True
    return moved
