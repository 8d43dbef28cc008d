"""The demonstration's table and pictures."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

import effgen as eg

from . import predators, senses, series, yearly
from .energy import (
    NOISE,
    NUM_WALKERS,
    SIDE,
    Outcome,
    Problem,
    denoised,
)
from .images import noisy, whitened


def table(outcomes: list[Outcome], gaussian: tuple[float, float]) -> str:
    """Return the results as a Markdown table."""
    rows = [
        "| model | held-out log-likelihood, nats per image | of the validation images, "
        "where training stopped | kept step | stopped after step | seconds |",
        "|---|---|---|---|---|---|",
        f"| Gaussian (the start) | {gaussian[0]:.2f} (exact) | | | | |",
    ]
    for o in outcomes:
        kept = o.steps.index(int(o.state.step))
        rows.append(
            f"| {o.name} | {o.annealed[0]:.2f} ± {o.annealed[1]:.2f} | "
            f"{o.likelihoods[kept]:.2f} ± {o.errors[kept]:.2f} | {o.steps[kept]:,} | "
            f"{o.steps[-1]:,} | {o.seconds:.0f} |"
        )
    return "\n".join(rows)


def series_table(outcomes: list[series.Outcome]) -> str:
    """Return the scores of the carbon dioxide record as a Markdown table."""
    rows = [
        "| model | hidden weeks, CRPS in ppm | three-year forecast | within 50 % | "
        "within 90 % | bound, nats | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for o in outcomes:
        half, most = (f"{100 * share:.0f} %" for share in o.covered)
        bound = "" if o.elbo is None else f"{o.elbo:.1f}"
        rows.append(
            f"| {o.name} | {o.fill:.3f} | {o.crps:.3f} | {half} | {most} | {bound} | "
            f"{o.seconds:.0f} |"
        )
    return "\n".join(rows)


def series_lines(outcomes: list[series.Outcome]) -> str:
    """Return which model fills best, and which forecasts best."""
    filled = min(outcomes, key=lambda o: o.fill)
    ahead = min(outcomes, key=lambda o: o.crps)
    return (
        f"The hidden weeks are filled best by: {filled.name}. These three years are "
        f"forecast best by: {ahead.name}. One forecast is little evidence: eleven "
        "records from six origins each are in docs/benchmarks/neural_sde.md."
    )


def yearly_table(found: dict[str, list[yearly.Outcome]]) -> str:
    """Return the scores of the yearly records' forecasts as a Markdown table."""
    rows = [
        "| record | forecast by | CRPS | within 50 % | within 90 % | core's seconds |",
        "|---|---|---|---|---|---|",
    ]
    for record, outcomes in found.items():
        for o in outcomes:
            half, most = (f"{100 * share:.0f} %" for share in o.within)
            rows.append(
                f"| {record} | {o.name} | {o.crps:.3g} | {half} | {most} | "
                f"{o.seconds:.0f} |"
            )
    return "\n".join(rows)


def yearly_lines(found: dict[str, list[yearly.Outcome]]) -> str:
    """Return on how many records the first contestant is ahead of each other."""
    ours, *others = zip(*found.values(), strict=True)
    ahead = [
        f"than `{rival[0].name}` on "
        f"{sum(o.crps < r.crps for o, r in zip(ours, rival, strict=True))}"
        for rival in others
    ]
    return (
        f"Each record is forecast {yearly.HORIZON} years ahead, from "
        f"{yearly.NUM_ORIGINS} years. Of {len(ours)} records, `forecaster` has a lower "
        f"score {' and '.join(ahead)}. Its seconds are mostly compilation: a second "
        "forecast takes seconds. Plain VI takes minutes for a forecast of a cycle, as "
        "its steps have to be short there; it and eight more records are in "
        "docs/benchmarks/neural_sde.md."
    )


def predators_table(found: dict[str, list[predators.Outcome]]) -> str:
    """Return what each way to a law came to, by record, as a Markdown table."""
    rows = [
        "| record | law | has a network | error of logarithms, first 14 years | "
        "six years ahead | evidence over the constant's, nats | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for record, outcomes in found.items():
        for o in outcomes:
            gain = "" if o.gain is None else f"{o.gain:+.1f}"
            rows.append(
                f"| {record} | {o.name} | {'yes' if o.network else 'no'} | "
                f"{o.fit:.2f} | {o.forecast:.2f} | {gain} | {o.seconds:.1f} |"
            )
    return "\n".join(rows)


def senses_table(outcomes: list[senses.Outcome]) -> str:
    """Return how well held-out definitions find their words as a Markdown table."""
    rows = [
        "| ranking | MRR@10 | recall@10 | steps | seconds |",
        "|---|---|---|---|---|",
    ]
    for o in outcomes:
        steps = f"{o.steps[-1]:,}" if o.steps[-1] else ""
        rows.append(
            f"| {o.name} | {o.mrr[-1]:.3f} | {o.recall[-1]:.3f} | {steps} | "
            f"{o.seconds[-1]:.0f} |"
        )
    return "\n".join(rows)


def senses_lines(apart: tuple[float, float]) -> str:
    """Return what the table shows, and where the other way is the better choice."""
    return (
        f"The softmax of the asked documents less that of the batch: {apart[0]:+.3f} "
        f"± {apart[1]:.3f} in MRR@10 (1.96 standard errors, over the same queries). "
        "If both towers are trained and a text takes microseconds to encode, a large "
        "batch is the better choice (docs/retrieval_cache.md)."
    )


def senses_list(name: str, examples: list[senses.Example]) -> str:
    """Return queries and the words found for them as a Markdown list."""
    rows = [f"The first five by the best of these, {name}:", ""]
    for example in examples:
        held_out = "" if example.answer is None else f" (held out: {example.answer})"
        rows.append(f"- *{example.query}*{held_out}")
        rows += [f"  {i}. {words}" for i, words in enumerate(example.found, 1)]
    return "\n".join(rows)


def plot_retrieval(
    path: Path, outcomes: list[senses.Outcome], fixed: list[senses.Outcome]
) -> None:
    """Draw the held-out MRR by steps and by seconds, with lines of what is fixed."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    by_steps, by_seconds = figure.subplots(1, 2, sharey=True)
    for outcome in outcomes:
        by_steps.plot(outcome.steps, outcome.mrr, ".-", label=outcome.name)
        by_seconds.plot(outcome.seconds, outcome.mrr, ".-", label=outcome.name)
    for axes in (by_steps, by_seconds):
        for outcome, style in zip(fixed, (":", "-"), strict=True):
            line = {"color": "gray", "linewidth": 0.8, "linestyle": style}
            axes.axhline(outcome.mrr[-1], label=outcome.name, **line)
        axes.set(xlim=(0, None))
    by_steps.set(xlabel="step", ylabel="MRR@10 of held-out definitions")
    by_seconds.set(xlabel="seconds of training")
    by_steps.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def plot_predators(
    path: Path,
    records: list[predators.Record],
    found: dict[str, list[predators.Outcome]],
) -> None:
    """Draw the populations by the chosen law, and all attack rates; a row a record."""
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    grid = figure.subplots(2, 2)
    for (left, right), record in zip(grid, records, strict=True):
        _draw_populations(left, record, found[record.name][-1])
        _draw_rates(right, record, found[record.name])
    for axes in (grid[0, 0], *grid[:, 1]):
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def _with_band(center: np.ndarray, spread: np.ndarray) -> Iterator[np.ndarray]:
    """Return what logarithms are of, and a band of 90 %."""
    return (np.exp(center + away * spread) for away in (0, -1.64, 1.64))


def _draw_populations(
    axes: Any, record: predators.Record, outcome: predators.Outcome
) -> None:
    center, low, high = _with_band(*outcome.curves)
    first = record.ts[0]
    for i, animal in enumerate(("hares", "lynxes")):
        color = f"C{i}"
        axes.plot(first + outcome.times, center[:, i], color=color)
        band = {"color": color, "alpha": 0.2, "label": f"{animal}, 90 %"}
        axes.fill_between(first + outcome.times, low[:, i], high[:, i], **band)
        axes.plot(record.ts, np.exp(record.ys[:, i]), "o", color=color, markersize=3)
    axes.axvline(first + predators.LAST_SHOWN + 0.5, color="gray", linewidth=0.8)
    law = "a network" if outcome.network else "a constant"
    axes.set_title(f"{record.name}: the evidence chose {law}", fontsize=10)
    ticks = first + np.arange(0, predators.LAST + 1, 5)
    axes.set(xlabel="year", ylabel="thousands", ylim=(0, 150), xticks=ticks)


def _draw_rates(
    axes: Any, record: predators.Record, outcomes: list[predators.Outcome]
) -> None:
    for i, outcome in enumerate(outcomes):
        center, low, high = _with_band(*outcome.rates)
        style = "--" if i == len(outcomes) - 1 else "-"
        axes.plot(outcome.hares, center, style, color=f"C{i + 2}")
        band = {"color": f"C{i + 2}", "alpha": 0.2, "label": f"{outcome.name}, 90 %"}
        axes.fill_between(outcome.hares, low, high, **band)
    if record.attack is not None:
        hares = outcomes[0].hares
        axes.plot(hares, record.attack(hares), "k:", label="the truth")
    axes.set(xlabel="hares, thousands", ylim=(0, 0.08))
    axes.set_ylabel("attack rate per year\nand thousand lynxes")


def plot_forecasts(
    path: Path, outcomes: list[series.Outcome], record: series.Record
) -> None:
    """Draw the forecasts' bands of 50 and 90 % over the years held out."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey=True).ravel()
    years = 1958.24 + record.ts
    recent = years > years[record.forecast][0] - 2
    future = years[record.forecast]
    for axes, outcome in zip(grid, outcomes, strict=True):
        low, lower, upper, high = record.unit * outcome.bands
        axes.fill_between(future, low, high, alpha=0.25, color="C0", label="90 %")
        axes.fill_between(future, lower, upper, alpha=0.5, color="C0", label="50 %")
        values = record.unit * record.ys[recent]
        axes.plot(years[recent], values, "k.", markersize=2, label="measured")
        axes.set_title(outcome.name, fontsize=10)
    spread = record.unit * np.nanmax(np.abs(record.ys))
    grid[0].set(ylim=(-0.5 * spread, 2.0 * spread))
    for axes in grid[2:]:
        axes.set(xlabel="year")
    for axes in grid[::2]:
        axes.set(ylabel="CO2 less its mean, ppm")
    grid[0].legend()
    figure.savefig(path, dpi=150)


def plot_yearly(
    path: Path, records: list[yearly.Yearly], found: dict[str, list[yearly.Outcome]]
) -> None:
    """Draw the last forecast of each record; a column a record, a row a contestant."""
    names = [o.name for o in found[records[0].name]]
    figure = Figure(figsize=(10, 2.2 * len(names)), layout="constrained")
    grid = figure.subplots(len(names), len(records), sharex="col", sharey="col")
    for i, column in enumerate(grid.T):
        for axes, outcome in zip(column, found[records[i].name], strict=True):
            _draw_forecast(axes, records[i], outcome.bands)
            axes.set_title(f"{records[i].name}, {outcome.name}", fontsize=10)
            axes.set(ylabel=records[i].unit)
        column[-1].set(xlabel="year")
    grid[0, 0].legend(fontsize=7, loc="upper left")
    figure.savefig(path, dpi=120)


def _draw_forecast(axes: Any, given: yearly.Yearly, bands: np.ndarray) -> None:
    shown = slice(-4 * yearly.HORIZON, None)
    years = given.first + given.record.ts
    future, (low, lower, upper, high) = years[-yearly.HORIZON :], bands
    axes.fill_between(future, low, high, alpha=0.25, color="C0", label="90 %")
    axes.fill_between(future, lower, upper, alpha=0.5, color="C0", label="50 %")
    values = given.record.ys[shown]
    axes.plot(years[shown], values, "k.", markersize=3, label="measured")


def write_figures(directory: Path, outcomes: list[Outcome]) -> None:
    """Keep the numbers behind the table and the curves."""
    names = ("steps", "likelihoods", "errors", "believed", "seconds")
    record = {o.name: {n: getattr(o, n) for n in names} for o in outcomes}
    (directory / "results.json").write_text(json.dumps(record, indent=1) + "\n")


def plot_likelihoods(
    path: Path, outcomes: list[Outcome], gaussian: tuple[float, float]
) -> None:
    """Draw each trainer's likelihoods, with bars of two standard errors."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for outcome in outcomes:
        value, error = np.array(outcome.likelihoods), np.array(outcome.errors)
        (line,) = axes.plot(
            outcome.steps, value, label=f"{outcome.name}, validation images"
        )
        band = {"alpha": 0.2, "color": line.get_color()}
        axes.fill_between(outcome.steps, value - 2 * error, value + 2 * error, **band)
        center, bar = outcome.annealed
        point = {"fmt": "o", "color": line.get_color(), "markersize": 5}
        label = f"{outcome.name}, held-out images, at the kept step"
        kept = int(outcome.state.step)
        axes.errorbar([kept], [center], yerr=[2 * bar], label=label, **point)
    axes.axhline(gaussian[0], color="gray", linewidth=0.8, label="Gaussian")
    best = max(max(outcome.likelihoods) for outcome in outcomes)
    axes.set(
        xlabel="step",
        ylabel="log-likelihood, nats per image",
        ylim=(gaussian[0] - 3, best + 3),
    )
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=120)


def plot_samples(path: Path, outcomes: list[Outcome], problem: Problem) -> None:
    """Draw training images beside samples, both noised and then denoised alike."""
    key = jax.random.key(5)
    panels = {}
    for outcome in outcomes:
        model = outcome.state.evaluated
        # Fresh walkers: those of a long training descend from few.
        walkers = outcome.walkers
        index = eg.resample(walkers.joint_log_weights, 64, key=key)
        samples = walkers.positions[index]
        panels[f"{outcome.name}: samples"] = denoised(model, samples, problem)
    images = noisy(problem.held_out[:64], NOISE, key)
    data = whitened(problem.coordinates, images)
    title = f"held-out images, noise {NOISE}, denoised by {outcomes[0].name}"
    panels = {title: denoised(outcomes[0].state.evaluated, data, problem)} | panels
    figure = Figure(figsize=(4 * len(panels), 4.3), layout="constrained")
    for axes, (name, images) in zip(
        figure.subplots(1, len(panels)), panels.items(), strict=True
    ):
        axes.imshow(_tiled(np.asarray(images)), cmap="gray", vmin=-1, vmax=1)
        axes.set_title(name, fontsize=9)
        axes.set_axis_off()
    figure.savefig(path, dpi=120)


def _tiled(images: np.ndarray) -> np.ndarray:
    side = 8
    grid = images.reshape(side, side, SIDE, SIDE).transpose(0, 2, 1, 3)
    return grid.reshape(side * SIDE, side * SIDE)


def heading() -> str:
    """Return the lines above the table."""
    return (
        f"MNIST digits averaged to {SIDE} x {SIDE} pixels, noise {NOISE}; "
        f"{NUM_WALKERS} walkers. Both trainers stop by one rule: the likelihood of "
        "validation images, by fresh walkers that are annealed from a Gaussian at each "
        "point. Tuned alike and after the same seconds, both models are level, and "
        "that of CD is likelier (docs/benchmarks/ebm.md)."
    )
