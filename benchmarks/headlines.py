"""One headline for each trainer, ours and a peer in turn: what `accelerator` runs.

Each function takes `Sizes` and returns parts by name, to be run one after the other:
one that fails, as of memory, loses the others nothing.
"""

import contextlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import cache_headlines, measure, roofline
from benchmarks.headline_sizes import SEED, Sizes
from benchmarks.stepping import begun, compared, peaks_of, reason, stepper


Parts = dict[str, Callable[[], dict[str, Any]]]


def ebm(sizes: Sizes) -> Parts:
    """A step of weighted walkers, against one of unweighted chains (PCD)."""
    return {"step": lambda: _walkers(sizes)}


def neural_sde(sizes: Sizes) -> Parts:
    """A training step of a latent SDE, against diffrax's solver in the loop."""
    return {"step": lambda: _series(sizes)}


def collocation(sizes: Sizes) -> Parts:
    """Objective, gradient, Jacobian and Hessian, against the same on the host's CPU."""
    return {"evaluation": lambda: _evaluation(sizes)}


def retrieval_cache(sizes: Sizes) -> Parts:
    """Score all rows and draw (G1, G2); and what of a training step that takes (G3)."""
    passes = {
        name: partial(cache_headlines.one_pass, sizes, x)
        for name, x in sizes.passes.items()
    }
    return {**passes, "G3": lambda: cache_headlines.encoding(sizes)}


SECTIONS: dict[str, Callable[[Sizes], Parts]] = {
    "ebm": ebm,
    "neural_sde": neural_sde,
    "collocation": collocation,
    "retrieval_cache": retrieval_cache,
}


def _walkers(sizes: Sizes) -> dict[str, Any]:
    import effgen as eg
    from effgen import ebm

    keys = jax.random.split(jax.random.key(SEED), 3)
    make = lambda key: ebm.image_energy(sizes.image, key=key)
    energy = eqx.filter_jit(make)(keys[0])
    data = jax.random.normal(keys[2], (4 * sizes.batch, *sizes.image))
    source = eg.Minibatches(data, sizes.batch)
    optim, kernel = optax.adam(1e-4, b1=0.0), ebm.ULA(1e-3)
    trainers = {
        "weighted walkers": ebm.JarzynskiTrainer(optim, kernel=kernel),
        "unweighted chains": ebm.PCDTrainer(optim, kernel=kernel),
    }
    steppers = {}
    for name, trainer in trainers.items():
        walkers = ebm.Walkers.from_gaussian(keys[1], sizes.walkers, sizes.image)
        state = begun(trainer, energy, walkers)
        steppers[name] = stepper(trainer, state, source, sizes.steps)
    most, found = peaks_of(sizes), compared(steppers, "weighted walkers", sizes)
    asked = steppers["weighted walkers"].demand
    seconds = found["milliseconds"]["weighted walkers"] / 1e3
    found["roofline"] = roofline.described(asked, most, seconds)
    return found | {"walkers": sizes.walkers, "image": sizes.image, "peaks": most}


def _series(sizes: Sizes) -> dict[str, Any]:
    import effgen as eg
    from benchmarks import lorenz
    from effgen import neural_sde as ns

    ts, ys = (x[: sizes.series, : sizes.observations] for x in lorenz.data(SEED))
    source = eg.Minibatches((jnp.asarray(ts), jnp.asarray(ys)), sizes.series)
    objectives = {
        "effgen": ns.AnchoredELBO(),
        "diffrax": ns.DiffraxELBO(adjoint=lorenz.TUNED),
    }
    steppers = {}
    for name, objective in objectives.items():
        trainer = ns.LatentSDETrainer(
            optax.adam(1e-3), lorenz.DT, num_paths=1, objective=objective
        )
        state = trainer.init(lorenz.model(jax.random.key(SEED), objective))
        trainer = trainer.for_data(state, source)
        steppers[name] = stepper(trainer, state, source, sizes.steps)
    found = compared(steppers, "effgen", sizes)
    return found | {"series": sizes.series, "observations": sizes.observations}


@contextlib.contextmanager
def _in_double() -> Any:
    before = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def _evaluation(sizes: Sizes) -> dict[str, Any]:
    places = {"device": jax.devices()[0], "host": jax.devices("cpu")[0]}
    with _in_double():
        work, first, compiling = {}, {}, {}
        for name, place in places.items():
            began = time.perf_counter()
            work[name] = _on(place, sizes)
            first[name] = work[name]()
            compiling[name] = time.perf_counter() - began
        times = measure.interleaved(work, rounds=sizes.rounds)
    pairs = zip(first["device"], first["host"], strict=True)
    return {
        "milliseconds": {name: roofline.median(t) for name, t in times.items()},
        "host_over_device": measure.paired_ratio(times["host"], times["device"]),
        "seconds_to_build_and_compile": compiling,
        "largest_relative_difference": max(_difference(a, b) for a, b in pairs),
        "nodes": sizes.nodes,
        "hidden": sizes.hidden,
        "devices": {name: str(place) for name, place in places.items()},
    }


def _on(place: Any, sizes: Sizes) -> Callable[[], Any]:
    from benchmarks import nlp_evaluation, odes
    from effgen import collocation as co

    with jax.default_device(place):
        level = nlp_evaluation.level_of(sizes.nodes)
        network = odes.network([2, sizes.hidden, sizes.hidden, 1])
        evaluate = nlp_evaluation.evaluation(
            *nlp_evaluation.start_of(level, co.Model({}, network))
        )

    def evaluated() -> Any:
        with jax.default_device(place):
            return evaluate()

    return evaluated


def _difference(a: Any, b: Any) -> float:
    a, b = np.asarray(a), np.asarray(b)
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-300))


def measured(name: str, sizes: Sizes, save: Callable[[dict[str, Any]], None]) -> None:
    """Run a section's parts, and `save` what there is after each of them."""
    found: dict[str, Any] = {"figures": {}, "left_out": {}}
    began = time.perf_counter()
    for part, work in SECTIONS[name](sizes).items():
        try:
            found["figures"][part] = work()
        except Exception as error:  # as for a package or memory that is not there
            found["left_out"][part] = reason(error)
        found["seconds"] = time.perf_counter() - began
        save(found)
