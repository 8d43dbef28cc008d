"""`make demo`: train on real data, show progress, leave `runs/demo/`."""

import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jax

from . import energy, page, predators, report, senses, series, yearly


DIRECTORY = Path("runs/demo")


def main() -> None:
    """Run every part of the demonstration and write the report."""
    # A rerun starts afresh: its checkpoints must not be mixed with an older run's.
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    DIRECTORY.mkdir(parents=True)
    # Most of their time is compilation and Ipopt's, for which one core is enough.
    beside = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    years, counts = yearly.records(), predators.records()
    forecasts = beside.submit(yearly.forecasts, years, 0)
    populations = beside.submit(predators.populations, counts)
    names = ", ".join(each.name for each in (*years, *counts))
    print(f"In a process beside this, forecasts and laws of: {names}")
    problem, key = energy.problem(), jax.random.key(0)
    outcomes = []
    for name, trainer in energy.trainers().items():
        print(f"Training on {len(problem.train)} images: {name}")
        outcomes.append(energy.train(name, trainer, problem, DIRECTORY, key))
    gaussian = energy.gaussian_likelihood(problem, key)
    record, seasons = series.record(), []
    print(f"Smoothing and forecasting {record.shown.sum()} weeks of carbon dioxide")
    seasons.append(series.baseline(record))
    for name, (model, objective) in series.models(key).items():
        print(name)
        seasons.append(series.train(name, model, objective, record, key))
    print("Embedding words and definitions of WordNet by MiniLM, once")
    words = senses.task()
    forecast, learned = forecasts.result(), populations.result()
    beside.shutdown()
    print(f"Finding words by {len(words.train.queries)} definitions")
    fixed, rankings = [senses.baseline(words), senses.untrained(words)], []
    for name, arm in senses.arms().items():
        print(name)
        rankings.append(senses.train(name, arm, words, DIRECTORY, key))
    best = max(rankings, key=lambda outcome: outcome.mrr[-1])
    sections = [
        page.Section(
            "Energy-based models",
            f"{report.heading()}\n\n{report.table(outcomes, gaussian)}",
            {
                "likelihood.png": "Log-likelihood while the models train, by fresh "
                "walkers that are annealed at each point. Bands are two standard "
                "errors of log Z.",
                "samples.png": "Held-out images and samples, both denoised alike.",
            },
        ),
        page.Section(
            "Neural SDEs",
            f"{report.series_table(seasons)}\n\n{report.series_lines(seasons)}\n\n"
            f"{report.yearly_table(forecast)}\n\n{report.yearly_lines(forecast)}",
            {
                "forecast.png": "Carbon dioxide over three years that were held out. "
                "A band holds that share of the weeks, if the model is right.",
                "yearly.png": "The last ten years of three yearly records, and their "
                "forecasts from the years before.",
            },
        ),
        page.Section(
            "Collocation",
            report.predators_table(learned),
            {
                "predators.png": "Hares and lynxes with the law that the evidence "
                "chose, fitted left of the gray line, and the attack rate by each "
                "law. Bands are 90 %, from the conditions of optimality."
            },
        ),
        page.Section(
            "Retrieval",
            f"{report.senses_table([*fixed, *rankings])}\n\n"
            f"{report.senses_lines(senses.difference(words, *rankings))}\n\n"
            f"{report.senses_list(best.name, senses.examples(best.model, words))}",
            {
                "retrieval.png": "MRR@10 of definitions that were held out, by a "
                "linear map of MiniLM's queries. The index stays as it is."
            },
        ),
    ]
    text = page.markdown(sections)
    (DIRECTORY / "results.md").write_text(text)
    page.write_page(DIRECTORY, "effgen: one model of each kind, seed 0", sections)
    report.write_figures(DIRECTORY, outcomes)
    report.plot_likelihoods(DIRECTORY / "likelihood.png", outcomes, gaussian)
    report.plot_forecasts(DIRECTORY / "forecast.png", seasons, record)
    report.plot_yearly(DIRECTORY / "yearly.png", years, forecast)
    report.plot_predators(DIRECTORY / "predators.png", counts, learned)
    report.plot_retrieval(DIRECTORY / "retrieval.png", rankings, fixed)
    report.plot_samples(DIRECTORY / "samples.png", outcomes, problem)
    written = ", ".join(sorted(path.name for path in DIRECTORY.iterdir()))
    print(f"\n{text}\nIn {DIRECTORY}: {written}")


if __name__ == "__main__":
    main()
