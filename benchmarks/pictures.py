"""A small picture of each claim, drawn from its committed results."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.measure import RESULTS, spread


IMAGES = RESULTS.parents[1] / "docs" / "images" / "claims"
OURS, OTHERS = "#1f77b4", "#d95f02"
WRITING = {
    "font.size": 8,
    "svg.fonttype": "none",
    "svg.hashsalt": "effgen",
    "axes.spines.top": False,
    "axes.spines.right": False,
}

Record = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One contestant: its figure, the interval's ends, and whether it is ours.

    One that was not run has no figure, and only its name is drawn.
    """

    label: str
    value: float | None
    least: float | None = None
    most: float | None = None
    ours: bool = True


@dataclass(frozen=True)
class Panel:
    """Rows on one axis, and a line where a contestant without spread stands."""

    axis: str
    rows: list[Row]
    logarithmic: bool = False
    line: float | None = None
    line_is_ours: bool = False


def _spread(label: str, found: Record, *, ours: bool, scale: float = 1.0) -> Row:
    """Return a row of a median with its range over seeds, or its quartiles."""
    ends = ("least", "most") if "least" in found else ("quartile_1", "quartile_3")
    return Row(label, *(scale * found[name] for name in ("median", *ends)), ours)


def _share(label: str, hits: int, of: int, *, ours: bool = True) -> Row:
    """Return a share in per cent with Wilson's interval of 95 %."""
    z, share = 1.96, hits / of
    center = (share + z**2 / (2 * of)) / (1 + z**2 / of)
    half = z * ((share * (1 - share) + z**2 / (4 * of)) / of) ** 0.5 / (1 + z**2 / of)
    low, high = max(center - half, 0.0), min(center + half, 1.0)
    return Row(label, 100 * share, 100 * low, 100 * high, ours)


def _overhead(overhead: Record) -> list[Panel]:
    rows = [
        _spread(
            f"steps of {row['microseconds_per_step']['by_hand']:.0f} us",
            row["ratio"],
            ours=True,
        )
        for row in overhead["by_hand"]
    ]
    axis = "time of train over that of a scan written by hand (orange line)"
    return [Panel(axis, rows, line=1.0)]


def _kills(kills: Record) -> list[Panel]:
    words = {
        "lost": "finished steps lost",
        "wrong": "a wrong state read",
        "unreadable": "nothing readable left",
    }
    rows = [_share(label, kills[k], kills["kills"]) for k, label in words.items()]
    return [Panel(f"share of {kills['kills']} kills, %", rows)]


def _coverage(coverage: Record) -> list[Panel]:
    rows = []
    for problem, found in coverage["problems"].items():
        if not found["unwarned"]:
            continue
        held = round(found["held_where_unwarned"] * found["unwarned"])
        rows.append(_share(problem, held, found["unwarned"]))
    axis = "runs without a warning whose log Z is within two bars, % (line: 95)"
    return [Panel(axis, rows, line=95.0, line_is_ours=True)]


def _plane_steps(plane_steps: Record) -> list[Panel]:
    def rows(figure: str) -> list[Row]:
        return [
            _spread(name, found[figure], ours=name.startswith("Jarzynski"))
            for name, found in plane_steps["quality"].items()
        ]

    return [
        Panel("exact KL, nats", rows("divergence"), logarithmic=True),
        Panel("training, seconds", rows("seconds")),
    ]


def _densities(densities: Record) -> list[Panel]:
    rows = [
        _spread(f"{table}: over the {peer}", found[f"over {peer}"], ours=True)
        for peer in ("flow", "mixture")
        for table, found in densities["held_out"].items()
    ]
    axis = "held-out nats of the energy over the other's (orange line)"
    return [Panel(axis, rows, line=0.0)]


def _lorenz(lorenz: Record) -> list[Panel]:
    rows = [
        _spread(name, found, ours=name.startswith("effgen"))
        for name, found in lorenz["over_ours"].items()
    ]
    axis = "time of a training step over that of effgen (blue line)"
    return [Panel(axis, rows, line=1.0, line_is_ours=True)]


LAWS = {
    "Gaussian process": "collocation, a Gaussian process, five seeds",
    "decay": "collocation, a network, five seeds",
}


def _law(learned_van_der_pol: Record, van_der_pol: Record) -> list[Panel]:
    found = learned_van_der_pol["seeds"].values()
    errors, seconds = [], []
    for arm, label in LAWS.items():
        of = lambda name, arm=arm: spread([row[arm][name] for row in found])
        errors.append(_spread(label, of("test_error"), ours=True))
        seconds.append(_spread(label, of("seconds"), ours=True))
    for name in ("multiple shooting", "shooting"):
        other = van_der_pol["problems"]["physics-enhanced"][name]
        label = f"{name}, tuned, one network"
        errors.append(Row(label, other["best"]["test_error"], ours=False))
        seconds.append(Row(label, other["curve"][-1]["seconds"], ours=False))
    return [
        Panel("relative test error", errors),
        Panel("training, seconds", seconds),
    ]


def _quarter_vehicle(quarter_vehicle: Record) -> list[Panel]:
    found = quarter_vehicle["casadi"]
    other = found["casadi"]
    whole = other["seconds_to_build"] + other["seconds_to_solve"]
    rows = [
        Row("effgen", found["effgen"]["seconds"]),
        Row("CasADi, the same program", whole, ours=False),
    ]
    return [Panel("building and solving, seconds", rows)]


def _negative_sampling(negative_sampling: Record) -> list[Panel]:
    times, memory = [], []
    for found in negative_sampling["passes"]:
        rows, used = f"{found['rows']:,} documents", found["temporary_bytes"]
        for asked, end in (("draws", ""), ("draws and mean", "_and_mean")):
            ratio = found[f"gumbel_max_over_ours{end}"]
            times.append(_spread(f"{rows}, {asked}", ratio, ours=False))
        mine = used["two-level and mean"] / 1e6
        memory.append(Row(f"{rows}, effgen", mine))
        memory.append(Row(f"{rows}, Gumbel-max", used["Gumbel-max"] / 1e6, ours=False))
    axis = "time of Gumbel-max over that of effgen (blue line)"
    return [
        Panel(axis, times, line=1.0, line_is_ours=True),
        Panel("temporary memory, MB", memory, logarithmic=True),
    ]


def _retrieval(examples: Record, debian: Record) -> list[Panel]:
    panels = []
    for title, record in (("WordNet's senses", examples), ("Debian", debian)):
        names = _equal_seconds(examples, debian)
        rows = [_mrr(name, record["arms"].get(name)) for name in names]
        panels.append(Panel(f"{title}, MRR@10", rows))
    return panels


def _mrr(name: str, arm: Record | None) -> Row:
    """Return the mean over seeds with its range."""
    mrr = [run["mrr"] for run in arm["runs"]] if arm else []
    ours = "pseudo-logit" in name
    if not mrr:
        return Row(name, None, ours=ours)
    return Row(name, sum(mrr) / len(mrr), min(mrr), max(mrr), ours)


def _equal_seconds(*records: Record) -> list[str]:
    """Return the contestants with equal seconds that were run on any corpus."""
    run = {n for r in records for n, arm in r["arms"].items() if arm["runs"]}
    names = dict.fromkeys(name for r in records for name in r["arms"])
    return [n for n in names if n in run and "as many steps" not in n]


# The picture's name, the results that it is drawn from, and what they show.
CLAIMS: dict[str, tuple[tuple[str, ...], Callable[..., list[Panel]]]] = {
    "overhead": (("overhead",), _overhead),
    "kills": (("kills",), _kills),
    "coverage": (("coverage",), _coverage),
    "plane": (("plane_steps",), _plane_steps),
    "densities": (("densities",), _densities),
    "lorenz": (("lorenz",), _lorenz),
    "law": (("learned_van_der_pol", "van_der_pol"), _law),
    "vehicle": (("quarter_vehicle",), _quarter_vehicle),
    "pass": (("negative_sampling",), _negative_sampling),
    "retrieval": (("retrieval_examples", "retrieval_debian"), _retrieval),
}


def panels(claim: str) -> list[Panel]:
    """Return what a claim's picture shows, read from the results."""
    names, read = CLAIMS[claim]
    texts = [(RESULTS / f"{name}.json").read_text() for name in names]
    return read(*map(json.loads, texts))


def digest(found: list[Panel]) -> str:
    """Return a digest of all that a picture shows."""
    text = json.dumps([asdict(panel) for panel in found])
    return hashlib.sha256(text.encode()).hexdigest()


def draw(claim: str, path: Path) -> None:
    """Draw the picture of a claim as an SVG, which holds its digest."""
    found = panels(claim)
    shared = len({tuple(row.label for row in panel.rows) for panel in found}) == 1
    across = len(found) if shared else 1
    down = 1 if shared else len(found)
    tall = max(len(panel.rows) for panel in found)
    with matplotlib.rc_context(WRITING):
        size = (6.8, down * (0.8 + 0.19 * tall))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(down, across, squeeze=False, sharey=shared)
        for axes, panel in zip(grid.ravel(), found, strict=True):
            _draw(axes, panel)
        metadata = {"Date": None, "Title": claim, "Description": digest(found)}
        figure.savefig(path, format="svg", metadata=metadata)


def _draw(axes: Axes, panel: Panel) -> None:
    if panel.line is not None:
        color = OURS if panel.line_is_ours else OTHERS
        axes.axvline(panel.line, color=color, linewidth=1)
    for i, row in enumerate(panel.rows):
        if row.value is None:
            continue
        color = OURS if row.ours else OTHERS
        if row.least is not None:
            axes.plot([row.least, row.most], [i, i], color=color, linewidth=2)
        axes.plot([row.value], [i], "o", color=color, markersize=5, clip_on=False)
    axes.set_yticks(range(len(panel.rows)), [row.label for row in panel.rows])
    axes.set(xlabel=panel.axis, ylim=(len(panel.rows) - 0.4, -0.6))
    if panel.logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    elif panel.line is None:
        axes.set_xlim(left=0)
    axes.grid(axis="x", alpha=0.3)


if __name__ == "__main__":
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name in CLAIMS:
        draw(name, IMAGES / f"{name}.svg")
        print(IMAGES / f"{name}.svg")
