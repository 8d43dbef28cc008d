"""The message of a failed step: what became non-finite, and the remedy."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from effgen.core.contract.state import Metrics, TrainState
from effgen.core.outcome.results import RESULTS, told, with_code

from .guard import AbstractGuard, final_result


_MOST_NAMED = 6


def explained(
    new: TrainState, metrics: Metrics, number: int, guard: AbstractGuard
) -> tuple[Any, str]:
    """Return why a run ends under `guard`, and the same in words.

    Arguments:
        new: The state that the failed step made.
        metrics: What it reported.
        number: The code of its result.
        guard: Of the run.
    """
    reported = with_code(RESULTS.successful, number)
    result = RESULTS.nonfinite if number == 0 else reported
    detail = told(result, metrics)
    culprits = _nonfinite("metrics", metrics) + _nonfinite("state", new)
    if culprits and result == RESULTS.nonfinite:
        detail = f"{'; '.join(culprits[:_MOST_NAMED])}: {detail}"
    final = final_result(guard, result)
    if final != result:
        detail = f"{detail} {RESULTS[final]}"
    return final, detail


def _nonfinite(root: str, tree: PyTree) -> list[str]:
    found = []
    arrays = eqx.filter(tree, eqx.is_inexact_array_like)
    for path, leaf in jax.tree_util.tree_flatten_with_path(arrays)[0]:
        bad = ~np.isfinite(np.asarray(leaf).astype(np.complex128))
        if bad.any():
            where = f" in {int(bad.sum())} of {bad.size}" if bad.size > 1 else ""
            value = np.asarray(leaf)[bad].flat[0]
            found.append(f"{root}{jax.tree_util.keystr(path)} is {value}{where}")
    return found
