"""Run every benchmark, then print the table of what `results/` holds."""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.measure import RESULTS


SCRIPTS = (
    "overhead",
    "drivers",
    "kills",
    "damage",
    "checkpoints",
    "sharding",
    "mixture",
    "mixture_speed",
    "plane",
    "plane_steps",
    "digits",
    "densities",
    "coverage",
    "weights",
    "reservoir",
    "machines",
    "machines_time",
    "normals",
    "regularization",
    "images",
    "double_well",
    "fractional",
    "lorenz",
    "ornstein",
    "messages",
    "forecasts",
    "first_metric",
    "van_der_pol",
    "quarter_vehicle",
    "learned_laws van_der_pol",
    "learned_laws quarter_vehicle",
    "learned_laws pelts",
    "real_records",
    "robertson",
    "linear_solves",
    "guesses",
    "nlp_evaluation",
    "negative_sampling",
    "negative_gradients",
    "gradient_bias",
    "cache_growth",
    "retrieval_costs",
    "retrieval examples 240",
    "retrieval debian 200",
    "retrieval definitions 240",
    "ceiling",
    "crossing",
    "equal_steps",
    "negative_documents",
    "frozen_documents definitions",
    "frozen_documents examples",
    "frozen_documents debian",
    "frozen_documents docstrings",
    "frozen_documents dictionary",
    "minilm definitions 120",
    "minilm debian 120",
    "movielens",
    "pictures",
)


def table() -> str:
    """Return the headline figures of every result as a Markdown table."""
    rows = ["| claim | figure |", "|---|---|"]
    for path in sorted(RESULTS.glob("*.json")):
        rows += [f"| {claim} | {figure} |" for claim, figure in _headlines(path)]
    return "\n".join(rows)


def _headlines(path: Any) -> list[tuple[str, str]]:
    record = json.loads(path.read_text())
    readers = {
        "accelerator": _accelerator,
        "accelerator.small": _accelerator,
        "overhead": _overhead,
        "drivers": _drivers,
        "sharding": _parts,
        "mixture": _quality("mass_error"),
        "plane": _quality("divergence"),
        "plane_steps": _quality("divergence"),
        "digits": _digits,
        "densities": _densities,
        "machines": _quality("log_likelihood"),
        "coverage": _coverage,
        "machines_time": _machines_time,
        "normals": _normals,
        "regularization": _regularization,
        "mixture_speed": _mixture_speed,
        "weights": _ratios("over_unweighted", "step over our unweighted one"),
        "reservoir": _ratios("over_one_block", "walkers, step over one block's"),
        "images": _images,
        "forecasts": _forecasts,
        "first_metric": _first_metric,
        "van_der_pol": _learned,
        "quarter_vehicle": _learned,
        "learned_van_der_pol": _chosen_laws,
        "learned_quarter_vehicle": _chosen_laws,
        "learned_pelts": _pelts,
        "real_records": _real_records,
        "negative_sampling": _passes,
        "cache_growth": _growth,
        "ceiling": _ceiling,
        "crossing": _crossing,
        "equal_steps": _equal_steps,
        "negative_documents": _negative_documents,
        "frozen_definitions": _frozen,
        "frozen_examples": _frozen,
        "frozen_debian": _frozen,
        "frozen_docstrings": _frozen,
        "frozen_dictionary": _frozen,
        "minilm_definitions": _retrieval,
        "minilm_debian": _retrieval,
        "movielens": _recommended,
        "retrieval_debian": _retrieval,
        "retrieval_examples": _retrieval,
        "retrieval_definitions": _retrieval,
    }
    return readers.get(path.stem, _counts)(record)


def _accelerator(record: dict[str, Any]) -> list[tuple[str, str]]:
    if not record.get("accelerator"):
        return []
    device, rows = record["machine"]["device"], []
    for section, found in record["sections"].items():
        for part, figures in found["figures"].items():
            ratios = dict(figures.get("peer_over_ours", {}))
            if "host_over_device" in figures:
                ratios["the host"] = figures["host_over_device"]
            title = f"{device}, {section}, {part}"
            rows += [
                (f"{title}: {peer}'s time over ours", f"{ratio['median']:.3g}")
                for peer, ratio in ratios.items()
            ]
    return rows


def _coverage(record: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for problem, found in record["problems"].items():
        held = found["held_where_unwarned"]
        figure = "all warned" if held is None else f"{100 * held:.0f} %"
        rows.append((f"two bars of log Z hold, unwarned: {problem}", figure))
    return rows


def _digits(record: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (
            f"digits: held-out nats after {record['seconds']} s, {name}",
            f"{found['nats']['median']:.2f} ({found['nats']['least']:.2f} to "
            f"{found['nats']['most']:.2f})",
        )
        for name, found in record["held_out"].items()
    ]


def _forecasts(record: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, found in record["records"].items():
        scores = {k: v["crps"]["median"] for k, v in found["summary"].items()}
        mine = scores.pop("recipe", None)
        scores.pop("network", None)  # a part of the recipe
        if mine is None or not scores:
            continue
        best = min(scores, key=lambda k: scores[k])
        figure = f"{mine:.3g}, {scores[best]:.3g} ({best})"
        rows.append(
            (f"{name}: CRPS of forecasts, the recipe's and the best other's", figure)
        )
    return rows


def _first_metric(record: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (
            f"{name}: seconds to a first result, cold, and once more",
            f"{found['cold']['median']:.1f}, {found['warm']['median']:.1f}",
        )
        for name, found in record["seconds"].items()
    ]


def _regularization(record: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (f"digits, held-out nats over no regularization, {name}", f"{gain:+.2f}")
        for name, arm in record["arms"].items()
        if (gain := arm["gain"]["median"])
    ]


def _machines_time(record: dict[str, Any]) -> list[tuple[str, str]]:
    ratio = record["aim"]["ours_over_its_seconds"]
    figure = "not reached" if ratio is None else f"{ratio:.3g}"
    return [("RBMs, seconds to 0.05 nats of the best peer, over its own", figure)]


def _frozen(record: dict[str, Any]) -> list[tuple[str, str]]:
    arms = record["arms"].items()
    rows = [
        (f"MRR@10, {name}", f"{statistics.median(a['mrr']):.3f}") for name, a in arms
    ]
    return [(f"{record['name']}, {what}", value) for what, value in rows]


def _negative_documents(record: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (
            f"{corpus}: MRR with the asked documents as negatives less that with "
            f"{other}",
            f"{less['mean']:+.3f} ({less['low']:+.3f} to {less['high']:+.3f})",
        )
        for corpus in ("definitions", "debian")
        for other, less in record[corpus]["asked_less_theirs"].items()
    ]


def _normals(record: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (f"jax.random.normal's time over it, {name}", f"{ratio['median']:.3g}")
        for name, ratio in record["jax_over_it"].items()
    ]


def _recommended(record: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (
            f"MovieLens-100k: HR@10, nDCG@10 after {record['seconds']:g} s, {name}",
            f"{arm['hr']['median']:.3f}, {arm['ndcg']['median']:.3f}",
        )
        for name, arm in record["arms"].items()
    ]


def _densities(record: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for peer in ("flow", "mixture"):
        for table, found in record["held_out"].items():
            over = found[f"over {peer}"]
            figure = (
                f"{over['median']:+.2f} ({over['least']:+.2f} to {over['most']:+.2f})"
            )
            rows.append((f"{table}: held-out nats over a {peer}'s", figure))
    return rows


def _overhead(record: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for row in record["by_hand"]:
        cost = row["microseconds_per_step"]["by_hand"]
        ratio = row["ratio"]["median"]
        rows.append((f"time over a hand-written scan, {cost:.0f} us a step", ratio))
    for peer, ratio in record["peers"]["times_ours"].items():
        rows.append((f"{peer}'s loop over ours, small problem", ratio))
    return [(claim, f"{ratio:.3g}") for claim, ratio in rows]


def _drivers(record: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (f"chosen loop over {name}, convolutions", f"{ratio['median']:.3g}")
        for name, ratio in record["chosen_over"].items()
    ]


def _quality(figure: str) -> Callable[[dict[str, Any]], list[tuple[str, str]]]:
    def rows(record: dict[str, Any]) -> list[tuple[str, str]]:
        title = f"{record['benchmark']}, {figure.replace('_', ' ')}"
        return [
            (f"{title}, {name}", f"{method[figure]['median']:.4g}")
            for name, method in record["quality"].items()
        ]

    return rows


def _parts(record: dict[str, Any]) -> list[tuple[str, str]]:
    whole, *ways = record["ways"]
    return [
        (
            f"optimizer's bytes a device, split {way['way']}, over whole",
            f"{way['optimizer_bytes'] / whole['optimizer_bytes']:.3g}",
        )
        for way in ways
    ]


def _ratios(key: str, words: str) -> Callable[[dict[str, Any]], list[tuple[str, str]]]:
    def rows(record: dict[str, Any]) -> list[tuple[str, str]]:
        return [
            (f"{name} {words}", f"{ratio['median']:.3g}")
            for name, ratio in record[key].items()
        ]

    return rows


def _mixture_speed(record: dict[str, Any]) -> list[tuple[str, str]]:
    ratio = record["times_torch"]["median"]
    return [("steps a second over an equal PyTorch loop, mixture", f"{ratio:.3g}")]


def _images(record: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (f"{problem}, held-out nats, {name}", f"{row['nats']['median']:.5g}")
        for problem, found in record["problems"].items()
        for name, row in found["methods"].items()
    ]


def _learned(record: dict[str, Any]) -> list[tuple[str, str]]:
    problems = record.get("problems", {record["benchmark"]: record})
    return [
        (f"CasADi's time over ours, {name}", f"{p['casadi']['casadi_over_effgen']:.3g}")
        for name, p in problems.items()
    ]


def _chosen_laws(record: dict[str, Any]) -> list[tuple[str, str]]:
    rows = list(record["seeds"].values())
    errors = {
        arm: statistics.median(r[arm]["test_error"] for r in rows) for arm in rows[0]
    }
    law = record["benchmark"].removeprefix("learned_")
    return [(f"{law}, {arm}, test error", f"{x:.3g}") for arm, x in errors.items()]


def _pelts(record: dict[str, Any]) -> list[tuple[str, str]]:
    cuts = [cut for row in record["seeds"].values() for cut in row.values()]
    worst = max(cut["evidence"] / cut["constant"] for cut in cuts)
    return [
        (
            "pelts, the chosen law's error over the constant one's, at most",
            f"{worst:.3g}",
        )
    ]


def _real_records(record: dict[str, Any]) -> list[tuple[str, str]]:
    arms = {k: v for k, v in record.items() if isinstance(v, dict) and k != "machine"}
    return [
        (f"{name}, {arm}, error of the forecast", f"{found['error']['median']:.3g}")
        for name, rows in arms.items()
        for arm, found in rows.items()
    ]


def _passes(record: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (
            f"Gumbel-max's time over ours, {row['rows']} rows",
            f"{row['gumbel_max_over_ours']['median']:.3g}",
        )
        for row in record["passes"]
    ]


def _growth(record: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (
            f"step over encoder and pass, {row['rows']} rows",
            f"{row['step_over_encoder_and_pass']:.3g}",
        )
        for row in record["milliseconds"]
    ]


def _retrieval(record: dict[str, Any]) -> list[tuple[str, str]]:
    return _by_arm(record, f"after {record['seconds']:.0f} s")


def _equal_steps(record: dict[str, Any]) -> list[tuple[str, str]]:
    corpora = [x for x in record.values() if isinstance(x, dict) and "arms" in x]
    return [
        row
        for x in corpora
        for row in _by_arm(x, f"a bag of words, after {x['steps']:,} steps")
    ]


def _by_arm(record: dict[str, Any], after: str) -> list[tuple[str, str]]:
    means = {
        name: statistics.mean(run["mrr"] for run in arm["runs"])
        for name, arm in record["arms"].items()
        if arm["runs"]
    }
    title = f"{record['task']}, MRR@10 {after}"
    return [(f"{title}, {name}", f"{mrr:.3f}") for name, mrr in means.items()]


def _ceiling(record: dict[str, Any]) -> list[tuple[str, str]]:
    means = {
        name: statistics.mean(run["mrr"] for run in runs)
        for name, runs in record["runs"].items()
    }
    full = means.pop("full softmax")
    return [
        (
            f"{record['task']}, MRR@10 over the full softmax's, {name}",
            f"{mrr / full:.3f}",
        )
        for name, mrr in means.items()
    ]


def _crossing(record: dict[str, Any]) -> list[tuple[str, str]]:
    title = "a bag of words, MRR@10 after"
    return [
        (f"{title} {run['seconds']} s, {run['contestant']}", f"{run['mrr']:.3f}")
        for run in record["runs"]
        if run["seconds"] == record["runs"][-1]["seconds"]
    ]


def _counts(record: dict[str, Any]) -> list[tuple[str, str]]:
    groups = {
        name: {k: v for k, v in value.items() if isinstance(v, int)}
        for name, value in record.items()
        if isinstance(value, dict) and name != "machine"
    }
    groups = {name: counts for name, counts in groups.items() if counts}
    groups = groups or {
        record["benchmark"]: {k: v for k, v in record.items() if isinstance(v, int)}
    }
    return [
        (name, ", ".join(f"{count} {kind}" for kind, count in counts.items()))
        for name, counts in groups.items()
    ]


if __name__ == "__main__":
    for script in SCRIPTS:
        name, *given = script.split()
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *given], check=True)
    print(table())
