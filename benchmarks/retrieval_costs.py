"""What a step of each contestant of `benchmarks.retrieval` costs: seconds and memory.

`python -m benchmarks.retrieval_costs [CORPUS ...]`. In turns, compilation apart. The
trainings of `benchmarks.retrieval` take as many steps as these seconds allow, so that
nothing else that the machine does then matters to who gets how far.
"""

import json
import statistics
import sys

import equinox as eqx
import jax

import effgen as eg
from benchmarks import measure
from benchmarks.retrieval_arms import CORPORA, arms, begun, filled, task


ROUNDS, SECONDS = 5, 1.5


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


def costs(kind):
    """Return seconds and bytes of a step of each contestant."""
    given = task(kind)
    first, contestants = filled(given, seed=0), arms(len(given.documents))
    found = {name: steps_of(arm, given, first) for name, arm in contestants.items()}
    numbers = {}
    for name, (steps, _) in found.items():
        steps(4)  # compiles
        four = measure.seconds(lambda take=steps: take(4))
        numbers[name] = max(4, round(4 * SECONDS / four))
        print(name, numbers[name], flush=True)
    work = {name: lambda n=name: found[n][0](numbers[n]) for name in found}
    times = measure.interleaved(work, rounds=ROUNDS)
    return {
        "documents": len(given.documents),
        "seconds_per_step": {
            name: statistics.median(t) / numbers[name] for name, t in times.items()
        },
        "all": {n: [x / numbers[n] for x in t] for n, t in times.items()},
        "temporary_bytes": {name: memory for name, (_, memory) in found.items()},
    }


if __name__ == "__main__":
    results = measure.RESULTS / "retrieval_costs.json"
    figures = json.loads(results.read_text()) if results.exists() else {}
    for kind in sys.argv[1:] or CORPORA:
        figures[kind] = costs(kind)
        measure.write("retrieval_costs", figures)
