"""Retrieval on real text: the cache and its rivals, at equal wall time.

`python -m benchmarks.retrieval CORPUS SECONDS [SEEDS [FIRST]]`, the corpus one of
`examples` and `definitions` (WordNet) and `debian`; after `retrieval_costs`; all
contestants or the first few. Each trains the same transformer from nothing, its rate
falling to nothing, for as many steps as the seconds allow by that measurement
(compilation, first embedding of the corpus and evaluation apart); the paper's estimator
for no fewer steps than ours, the queue for no fewer than the batch alone, and a batch
of 288 once more for as many steps as ours, in thrice the time. One begins in batch, and
fills its cache at half the time. Ours and the best batches train at a second
temperature too. Held-out queries are ranked against the whole corpus.
Run again, it goes on with what is missing.
"""

import json
import sys

import jax
import numpy as np
import optax

import effgen as eg
from benchmarks import measure
from benchmarks.retrieval_arms import (
    BEGUN,
    CHUNKS,
    LONG,
    OURS,
    PAPER,
    PLAIN,
    QUEUE,
    TWINS,
    WARM,
    WARM_LONG,
    arms,
    begun,
    filled,
    halved,
    task,
)
from effgen import retrieval_cache as rc


SAME = ("documents", "training_pairs", "bm25", "seconds")


def planned(budget, record, contestants):
    """Return the steps of each contestant; two numbers, where another begins."""
    seconds = record["seconds_per_step"]
    steps = {n: round(budget / seconds[TWINS.get(n, n)]) for n in contestants}
    paper, queue = max(steps[PAPER], steps[OURS]), max(steps[QUEUE], steps[PLAIN])
    left = budget / 2 - record["seconds_to_fill"]
    halves = [round(budget / 2 / seconds[CHUNKS]), round(left / seconds[OURS])]
    long = dict.fromkeys((LONG, WARM_LONG), steps[OURS])
    # Of other settings, as many steps as the same at the first: no less than due.
    for other, name in TWINS.items():
        if name in (PAPER, QUEUE) and other in steps:
            long[other] = paper if name == PAPER else queue
    return steps | long | {PAPER: paper, QUEUE: queue, BEGUN: halves}


def trained(arm, given, first, seed, num_steps, rate=None):
    """Return the measures of one run, and its queries' ranks."""
    trainer, state, source = begun(arm, given, first, num_steps, rate)
    key = jax.random.key(seed)
    state, _ = eg.fit(trainer, state, source, key=key, num_steps=num_steps)
    return reported(state, num_steps, given, seed)


def trained_in_two(arm, given, first, seed, steps):
    """Return as `trained` does, of a contestant that another begins for."""
    one, two = steps
    optim = optax.adam(halved(one, two, (arm.begins.rate, arm.rate)))
    data = [eg.Minibatches(given.pairs, a.batch_size) for a in (arm.begins, arm)]
    key, trainer = jax.random.key(seed), arm.begins.trainer(optim)
    state, _ = eg.fit(trainer, trainer.init(first[0]), data[0], key=key, num_steps=one)
    cache = rc.NegativeCache.fill(state.model.document, given.documents, step=one)
    trainer = arm.trainer(optim)
    state = eg.continued(trainer, state, cache)
    state, _ = eg.fit(trainer, state, data[1], key=key, num_steps=two)
    return reported(state, one + two, given, seed)


def texts(arm, steps, documents):
    """Return how many texts a contestant embeds, by what they cost (`Arm`)."""
    if not arm.begins:
        return round(steps * arm.embedded)
    one, two = steps
    return round(one * arm.begins.embedded + documents / 3 + two * arm.embedded)


def reported(state, num_steps, given, seed):
    """Return what held-out queries find in the whole corpus, and their ranks."""
    if int(state.step) < num_steps:
        raise InterruptedError(f"stopped after {int(state.step)} of {num_steps} steps")
    model = state.model
    index = rc.Index.of(model.document, given.documents)
    found = rc.evaluate(model, given.queries, given.answers, index)
    return {"seed": seed, **found.means(), "ranks": spelled(found.mrr)}


def spelled(reciprocals):
    """Return a digit for each query, of base 11: its rank, 0 past the tenth."""
    ranks = np.where(reciprocals > 0, 1 / np.maximum(reciprocals, 0.05), 0)
    return "".join("0123456789a"[round(rank)] for rank in ranks)


def read(digits):
    """Return reciprocal ranks from `spelled`."""
    ranks = np.asarray([int(digit, 11) for digit in digits])
    return np.where(ranks > 0, 1 / np.maximum(ranks, 1), 0)


def bootstrapped(ours, theirs, rounds=10_000):
    """Return the mean difference and its 95 % interval, by resampling queries."""
    rng = np.random.default_rng(0)
    difference = ours - theirs
    index = rng.integers(0, len(difference), (rounds, len(difference)))
    low, high = np.quantile(difference[index].mean(axis=1), (0.025, 0.975))
    return {"mean": float(difference.mean()), "low": float(low), "high": float(high)}


def compared(arms, name):
    """Return one's MRR less each other's, over the queries and the same seeds."""
    found = {
        other: {run["seed"]: read(run["ranks"]) for run in arm["runs"]}
        for other, arm in arms.items()
    }
    ours = found.pop(name, {})
    rows = {}
    for other, theirs in found.items():
        if seeds := sorted(ours.keys() & theirs.keys()):
            mean = lambda runs, seeds=seeds: np.mean([runs[s] for s in seeds], axis=0)
            difference = bootstrapped(mean(ours), mean(theirs))
            # Of nothing, where a contestant found nothing, there is no share.
            whole = float(mean(theirs).mean()) or None
            relative = whole and difference["mean"] / whole
            rows[other] = {"seeds": seeds, **difference, "relative": relative}
    return rows


def begun_before(path, figures):
    """Return the figures with the runs that an earlier call made by the same plan.

    Debian mends a description now and then: a run says which corpus it had (`digest`),
    and stays while counts and BM25's measures are the same.
    """
    found = json.loads(path.read_text()) if path.exists() else {}
    if any(found.get(k) != figures[k] for k in SAME):
        return figures
    kept = {
        name: found["arms"].get(name, arm)
        if found["steps"].get(name) == figures["steps"][name]
        else arm
        for name, arm in figures["arms"].items()
    }
    return figures | {"arms": kept}


def missing(arms, names, num_seeds):
    """Yield the seed, the name and the runs so far of each run that is not made yet."""
    for seed in range(num_seeds):
        for name in names:
            runs = arms[name]["runs"]
            if seed not in [run["seed"] for run in runs]:
                yield seed, name, runs


def main(kind, budget, num_seeds=3, first=None):
    given = task(kind)
    record = json.loads((measure.RESULTS / "retrieval_costs.json").read_text())[kind]
    contestants = {
        name: arm
        for name, arm in arms(len(given.documents)).items()
        if TWINS.get(name, name) in record["seconds_per_step"]
    }
    steps = planned(budget, record, contestants)
    figures = {
        "task": given.name,
        "digest": given.digest,
        "documents": len(given.documents),
        "training_pairs": len(given.pairs.ids),
        "bm25": given.bm25,
        "seconds": budget,
        "steps": steps,
        "arms": {name: {"runs": []} for name in contestants},
    }
    name_of = f"retrieval_{kind}"
    figures = begun_before(measure.RESULTS / f"{name_of}.json", figures)
    names = list(contestants)[:first]
    for seed, name, runs in missing(figures["arms"], names, num_seeds):
        arm = contestants[name]
        train = trained_in_two if arm.begins else trained
        run = train(arm, given, filled(given, seed), seed, steps[name])
        embedded = texts(arm, steps[name], len(given.documents))
        runs.append({"embedded": embedded, "digest": given.digest, **run})
        figures["ours_less_theirs"] = compared(figures["arms"], OURS)
        figures["begun_less_theirs"] = compared(figures["arms"], BEGUN)
        figures["warm_less_theirs"] = compared(figures["arms"], WARM)
        measure.write(name_of, figures)
        print(seed, name, run["mrr"], file=sys.stderr, flush=True)


if __name__ == "__main__":
    kind, budget, *rest = sys.argv[1:]
    main(kind, float(budget), *map(int, rest))
