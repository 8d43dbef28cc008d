"""What a step is worth: the cache and its rivals after as many steps each.

`python -m benchmarks.equal_steps TOWER [CORPUS ...]`, with a `bag` of words or the
`transformer` of `benchmarks.retrieval`. Batches of 32, and one of thrice that; held-out
queries against the whole corpus. Run again, it goes on with what is missing, or begins
anew where another corpus is found.
"""

import json
import sys

from benchmarks import ceiling, measure
from benchmarks.retrieval import compared, missing, trained
from benchmarks.retrieval_arms import (
    BAG_RATE,
    CORPORA,
    RATE,
    bag,
    filled,
    in_batch,
    task,
)


SEEDS, STEPS = 3, 2_000
TOWERS = {"bag": (bag, BAG_RATE), "transformer": (filled, RATE)}
OURS = "pseudo-logit, 128 drawn"
THRICE = f"in batch of {3 * ceiling.BATCH}"


def contestants(rows):
    """Return who is compared, by batches of 32; the exact softmax is too much here."""
    arms = ceiling.contestants(rows)
    del arms["full softmax"]
    return arms | {THRICE: in_batch(3 * ceiling.BATCH)}


def measured(tower, kind, figures, save):
    """Add the runs that a corpus's figures do not have yet."""
    given, (first, rate) = task(kind), TOWERS[tower]
    plan = {"task": given.name, "documents": len(given.documents)}
    plan |= {"bm25": given.bm25, "steps": STEPS}
    if any(figures.get(k) != value for k, value in plan.items()):
        figures.clear()
    figures |= plan
    rivals = contestants(len(given.documents))
    arms = figures.setdefault("arms", {name: {"runs": []} for name in rivals})
    for seed, name, runs in missing(arms, rivals, SEEDS):
        start = first(given, seed)
        run = trained(rivals[name], given, start, seed, STEPS, rate)
        runs.append({"digest": given.digest, **run})
        figures["ours_less_theirs"] = compared(arms, OURS)
        print(seed, kind, name, runs[-1]["mrr"], file=sys.stderr, flush=True)
        save()


def main(tower, *kinds):
    name = f"equal_steps_{tower}"
    path = measure.RESULTS / f"{name}.json"
    figures = json.loads(path.read_text()) if path.exists() else {}
    for kind in kinds or CORPORA:
        one = figures.setdefault(kind, {})
        measured(tower, kind, one, lambda: measure.write(name, figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
