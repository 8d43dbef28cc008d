"""The demonstration's table and pictures."""

import json
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

from effgen import ebm

from .energy import (
    NOISE,
    NUM_WALKERS,
    SIDE,
    Outcome,
    Problem,
    denoised,
)
from .images import noisy


def table(outcomes: list[Outcome], gaussian: tuple[float, float]) -> str:
    """Return the results as a Markdown table."""
    rows = [
        "| model | held-out log-likelihood, nats per image | by its own walkers | "
        "seconds |",
        "|---|---|---|---|",
        f"| Gaussian (the start) | {gaussian[0]:.2f} ± {gaussian[1]:.2f} | | |",
    ]
    for outcome in outcomes:
        honest = f"{outcome.likelihoods[-1]:.2f} ± {outcome.errors[-1]:.2f}"
        own = f"{outcome.flattering[-1]:.2f}" if outcome.flattering else "unknown"
        rows.append(f"| {outcome.name} | {honest} | {own} | {outcome.seconds:.0f} |")
    return "\n".join(rows)


def write_figures(directory: Path, outcomes: list[Outcome]) -> None:
    """Keep the numbers behind the table and the curves."""
    names = ("steps", "likelihoods", "errors", "flattering", "seconds")
    record = {o.name: {n: getattr(o, n) for n in names} for o in outcomes}
    (directory / "results.json").write_text(json.dumps(record, indent=1) + "\n")


def plot_likelihoods(
    path: Path, outcomes: list[Outcome], gaussian: tuple[float, float]
) -> None:
    """Draw each trainer's held-out likelihood with a band of two standard errors."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for outcome in outcomes:
        value, error = np.array(outcome.likelihoods), np.array(outcome.errors)
        (line,) = axes.plot(outcome.steps, value, label=f"{outcome.name}, audited")
        band = {"alpha": 0.2, "color": line.get_color()}
        axes.fill_between(outcome.steps, value - 2 * error, value + 2 * error, **band)
        if outcome.flattering:
            label = f"{outcome.name}, by its own walkers"
            style = {"linestyle": ":", "color": line.get_color()}
            axes.plot(outcome.steps, outcome.flattering, label=label, **style)
    axes.axhline(gaussian[0], color="gray", linewidth=0.8, label="Gaussian")
    best = max(max(outcome.likelihoods) for outcome in outcomes)
    axes.set(
        xlabel="step",
        ylabel="held-out log-likelihood, nats per image",
        ylim=(gaussian[0] - 3, best + 8),
    )
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def plot_samples(path: Path, outcomes: list[Outcome], problem: Problem) -> None:
    """Draw training images beside samples, both noised and then denoised alike."""
    key = jax.random.key(5)
    panels = {}
    for outcome in outcomes:
        samples = ebm.sample(outcome.state, 64, key=key)
        panels[f"{outcome.name}: samples"] = denoised(
            outcome.state.model, samples, problem
        )
    data = problem.whitening(noisy(problem.held_out[:64], NOISE, key))
    title = f"held-out images, noise {NOISE}, denoised by {outcomes[0].name}"
    panels = {title: denoised(outcomes[0].state.model, data, problem)} | panels
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
    """Return the line above the table."""
    return (
        f"MNIST digits averaged to {SIDE} x {SIDE} pixels, noise {NOISE}; "
        f"{NUM_WALKERS} walkers, and as many that audit them and tell the likelihood."
    )
