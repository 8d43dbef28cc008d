"""What a step is worth: the cache and its rivals after as many steps each.

`python -m benchmarks.equal_steps [CORPUS ...]`, with a bag of words: batches of 96, and
one of thrice that, each contestant at two temperatures; held-out queries against the
whole corpus. Run again, it goes on with what is missing, or begins anew where another
corpus is found.
"""

import json
import sys

from benchmarks import measure
from benchmarks.retrieval import compared, missing, trained
from benchmarks.retrieval_arms import (
    BAG_RATE,
    CORPORA,
    LARGE,
    OURS,
    PAPER,
    PLAIN,
    TEMPERATURE,
    WARMER,
    at_temperature,
    bag,
    cached,
    in_batch,
    task,
)
from effgen import retrieval_cache as rc


SEEDS, STEPS = 3, 2_000


def contestants(rows):
    """Return who is compared, by temperature and name."""
    return {
        at_temperature(name, temperature): arm
        for temperature in (TEMPERATURE, WARMER)
        for name, arm in at(rows, temperature).items()
    }


def at(rows, temperature):
    """Return the contestants of one temperature."""
    ours, paper = rc.PseudoLogit(), rc.GumbelMax()
    return {
        OURS: cached(rows, 96, 32, ours, temperature=temperature),
        PAPER: cached(rows, 96, 96, paper, temperature=temperature),
        PLAIN: in_batch(96, temperature=temperature),
        LARGE: in_batch(288, temperature=temperature),
    }


def measured(kind, figures, save):
    """Add the runs that a corpus's figures do not have yet."""
    given = task(kind)
    plan = {"task": given.name, "documents": len(given.documents)}
    plan |= {"bm25": given.bm25, "steps": STEPS, "rate": BAG_RATE}
    if any(figures.get(k) != value for k, value in plan.items()):
        figures.clear()
    figures |= plan
    rivals = contestants(len(given.documents))
    arms = figures.setdefault("arms", {name: {"runs": []} for name in rivals})
    for seed, name, runs in missing(arms, rivals, SEEDS):
        run = trained(rivals[name], given, bag(given, seed), seed, STEPS, rate=BAG_RATE)
        runs.append({"digest": given.digest, **run})
        figures["ours_less_theirs"] = {
            ours: compared(arms, ours) for ours in arms if ours.startswith(OURS)
        }
        print(seed, kind, name, runs[-1]["mrr"], file=sys.stderr, flush=True)
        save()


def main(*kinds):
    path = measure.RESULTS / "equal_steps.json"
    figures = json.loads(path.read_text()) if path.exists() else {}
    for kind in kinds or CORPORA:
        one = figures.setdefault(kind, {})
        measured(kind, one, lambda: measure.write("equal_steps", figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
