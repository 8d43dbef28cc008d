"""Retrieval on real text: the cache and its rivals, at equal wall time.

`python -m benchmarks.retrieval CORPUS SECONDS [SEEDS]`, the corpus one of `examples`
and `definitions` (WordNet) and `debian`; after `benchmarks.retrieval_costs`. Every
contestant trains the same transformer from nothing, for as many steps as the seconds
allow by that measurement (compilation, first embedding of the corpus and evaluation
apart); held-out queries against the whole corpus. On the way it is looked at after as
many steps, and after as many embedded texts, as ours had at the end.
"""

import json
import sys

import jax
import numpy as np

import effgen as eg
from benchmarks import measure
from benchmarks.retrieval_arms import arms, begun, filled, task
from effgen import retrieval_cache as rc


OURS = "pseudo-logit, 4 draws"
LONGEST = 1.5  # a contestant's time at most, over what is allowed, for equal steps


def marks(budget, seconds, found):
    """Return at which steps each contestant is looked at, and why."""
    allowed = {name: round(budget / seconds[name]) for name in found}
    ours = found[OURS]
    rows = {}
    for name, arm in found.items():
        reasons = {
            "equal time": allowed[name],
            "equal steps": allowed[OURS],
            "equal texts": round(allowed[OURS] * ours.embedded / arm.embedded),
        }
        most = LONGEST * allowed[name]
        rows[name] = {r: n for r, n in reasons.items() if n <= most}
    return rows


def evaluated(model, task):
    index = rc.Index.of(model.document, task.documents, batch_size=2_048)
    return rc.evaluate(model, task.queries, task.answers, index)


def trained(arm, task, first, seed, marks):
    """Return what each mark of one run came to, and its queries' ranks."""
    state, source = begun(arm, task, first)
    rows, ranks = {}, {}
    for reason, number in sorted(marks.items(), key=lambda mark: mark[1]):
        left = number - int(state.step)
        state, _ = eg.fit(
            arm.trainer, state, source, key=jax.random.key(seed), num_steps=left
        )
        found = evaluated(state.model, task)
        rows[reason] = {"steps": number, **found.means()}
        ranks[reason] = np.asarray(found.mrr)
    return rows, ranks


def bootstrapped(ours, theirs, rounds=10_000):
    """Return the mean difference and its 95 % interval, by resampling queries."""
    rng = np.random.default_rng(0)
    difference = ours - theirs
    index = rng.integers(0, len(difference), (rounds, len(difference)))
    low, high = np.quantile(difference[index].mean(axis=1), (0.025, 0.975))
    return {"mean": float(difference.mean()), "low": float(low), "high": float(high)}


def compared(ranks):
    """Return ours less each contestant's MRR, by mark, over seeds and queries."""
    ours = ranks[OURS]
    return {
        name: {
            reason: bootstrapped(np.mean(ours[reason], axis=0), np.mean(rows, axis=0))
            for reason, rows in found.items()
        }
        for name, found in ranks.items()
        if name != OURS
    }


def main(kind, budget, num_seeds):
    given = task(kind)
    record = json.loads((measure.RESULTS / "retrieval_costs.json").read_text())[kind]
    contestants = arms(len(given.documents))
    planned = marks(budget, record["seconds_per_step"], contestants)
    figures = {
        "task": given.name,
        "digest": given.digest,
        "documents": len(given.documents),
        "training_pairs": len(given.pairs.ids),
        "bm25": given.bm25,
        "seconds": budget,
        "arms": {},
    }
    ranks = {}
    for seed in range(num_seeds):
        first = filled(given, seed)
        for name, arm in contestants.items():
            rows, found = trained(arm, given, first, seed, planned[name])
            figures["arms"].setdefault(name, []).append(rows)
            for reason, values in found.items():
                ranks.setdefault(name, {}).setdefault(reason, []).append(values)
            mrr = {reason: round(row["mrr"], 4) for reason, row in rows.items()}
            print(seed, name, mrr, flush=True)
        figures["ours_less_theirs"] = compared(ranks)
        measure.write(f"retrieval_{kind}", figures)


if __name__ == "__main__":
    kind, budget, *rest = sys.argv[1:]
    main(kind, float(budget), int(rest[0]) if rest else 3)
