"""What is warned of: numbers that nothing moves, and meshes that are too coarse."""

import warnings

import numpy as np

from effgen.core.results import RunWarning

from .accuracy import mesh_error
from .evaluator import Evaluator
from .model import Model, names_of_model
from .pattern import unused
from .solution import Solution
from .switches import switches
from .transcription import Transcription


_MOST_NAMES = 4


def warn_of_unused(evaluator: Evaluator) -> None:
    """Warn of parameters that stay at their start, as nothing depends on them."""
    nlp = evaluator.nlp
    names = [names_of_model(nlp.template)[i] for i in unused(nlp, evaluator.depends)]
    if not names:
        return
    more = len(names) - _MOST_NAMES
    listed = ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
    warnings.warn(
        f"no equation and no output has a derivative by {listed}: they stay at their "
        "start. A time or level that is only compared, as in `t > p[...]`, has none: "
        "write `jax.nn.sigmoid((t - p[...]) / width)` for a switch that is to be found.",
        RunWarning,
        stacklevel=3,
    )


def warn_of_mesh(
    batch: Transcription, evaluator: Evaluator, solution: Solution, model: Model
) -> None:
    """Warn where the mesh's error is above a tenth of the noise: of what, and where."""
    nlp = batch.program(model)
    error = mesh_error(batch, nlp, evaluator, solution)
    if error is None or error.excess <= 1:
        return
    worst = int(error.guilty()[0])
    counts = np.cumsum([len(e) - 1 for e in solution.edges])
    i = int(np.searchsorted(counts, worst, side="right"))
    at = worst - (counts[i - 1] if i else 0)
    first, last = np.asarray(solution.edges[i])[at : at + 2]
    output = int(np.argmax(error.ratio))
    warnings.warn(
        f"the mesh is too coarse: its error is {error.ratio[output]:.2g} of the "
        f"residuals of output {output} ({error.share[output]:.1e} of its standard "
        f"deviation), most of it in trajectory {i} from t = {first:.6g} to "
        f"{last:.6g}.{_switch(batch, solution, model, i, at)} `fit_refined(trainer, "
        "state, transcription, key=key)` cuts the mesh until it is small.",
        RunWarning,
        stacklevel=3,
    )


def _switch(
    batch: Transcription, solution: Solution, model: Model, i: int, at: int
) -> str:
    found = switches(batch.problem, model, solution, i, np.array([at]))
    if not len(found.ts):
        return ""
    if found.timed[0]:
        return (
            f" The law switches there, at t = {found.ts[0]:.6g}: name it by "
            f"`Trajectory(..., jumps=[{found.ts[0]:.6g}])`."
        )
    return f" The law switches there, where the state is at t = {found.ts[0]:.6g}."
