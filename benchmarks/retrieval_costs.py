"""What a step of each contestant of `benchmarks.retrieval` costs: seconds and memory.

`python -m benchmarks.retrieval_costs [CORPUS ...]`. In turns, compilation apart. The
trainings of `benchmarks.retrieval` take as many steps as these seconds allow, so that
nothing else that the machine does then matters to who gets how far. Run again, it
measures what its figures do not have yet, beside `OURS`, and counts seconds by the
latter's as they were: only ratios of one run matter.
"""

import json
import statistics
import sys

import equinox as eqx
import jax

import effgen as eg
from benchmarks import measure
from benchmarks.retrieval_arms import CORPORA, OURS, TWINS, arms, begun, filled, task


ROUNDS, SECONDS, FILL = 5, 1.5, "a cache filled"


def steps_of(arm, given, first):
    """Return a function that takes steps, and their temporary memory in bytes."""
    trainer, state, source = begun(arm, given, first, num_steps=1_000)
    key = jax.random.key(0)

    def steps(count):
        return eg.fit(trainer, state, source, key=key, num_steps=count)[0].model

    arrays, static = eqx.partition(state, eqx.is_array)
    batch = source.batch_at(state.step, key=key)

    def step(arrays, batch):
        new, _ = trainer.step(eqx.combine(arrays, static), batch, key=key)
        return eqx.filter(new, eqx.is_array)

    lowered = jax.jit(step, donate_argnums=0).lower(arrays, batch)
    return steps, lowered.compile().memory_analysis().temp_size_in_bytes


def costs(kind, known):
    """Return seconds and bytes of a step of each contestant that is not known yet."""
    given = task(kind)
    first, contestants = filled(given, seed=0), arms(len(given.documents))
    done = (known.keys() | TWINS.keys()) - {OURS}
    contestants = {n: a for n, a in contestants.items() if n not in done}
    found = {name: steps_of(arm, given, first) for name, arm in contestants.items()}
    numbers = {}
    for name, (steps, _) in found.items():
        steps(4)  # compiles
        four = measure.seconds(lambda take=steps: take(4))
        numbers[name] = max(4, round(4 * SECONDS / four))
        print(name, numbers[name], flush=True)
    work = {name: lambda n=name: found[n][0](numbers[n]) for name in found}
    times = measure.interleaved(
        work | {FILL: lambda: filled(given, 0)[1]}, rounds=ROUNDS
    )
    fill = times.pop(FILL)
    medians = {n: statistics.median(t) / numbers[n] for n, t in times.items()}
    as_then = known.get(OURS, medians[OURS]) / medians[OURS]
    return {
        "documents": len(given.documents),
        "seconds_to_fill": as_then * statistics.median(fill),
        "seconds_per_step": {n: as_then * x for n, x in medians.items()},
        "all": {n: [as_then * x / numbers[n] for x in t] for n, t in times.items()},
        "temporary_bytes": {name: memory for name, (_, memory) in found.items()},
    }


def joined(before, new):
    """Return figures with what is new; what was measured before stays."""
    kept = {
        key: value | before.get(key, {})
        if isinstance(value, dict)
        else before.get(key, value)
        for key, value in new.items()
    }
    return before | kept


if __name__ == "__main__":
    results = measure.RESULTS / "retrieval_costs.json"
    figures = json.loads(results.read_text()) if results.exists() else {}
    for kind in sys.argv[1:] or CORPORA:
        before = figures.get(kind, {})
        new = costs(kind, before.get("seconds_per_step", {}))
        figures[kind] = joined(before, new)
        measure.write("retrieval_costs", figures)
