"""Forecasts from rolling origins, by the recipe and by what a user would pick.

`python -m benchmarks.forecasts [record ...] [--keys 0 1 ...] [--contestants ...]` runs
some and adds them to `results/forecasts.json`; by default all. Each record is forecast
from six origins. What forecasts sees the record until the origin alone, and decides by
itself: no contestant is told what another scored.

- `recipe`: `neural_sde.forecaster`; its best structure and its network alone.
- `statsmodels`: structural models and autoregressions, the best by AIC.
- `gaussian process`: scikit-learn's, of the kernels the one with the best evidence.
- `plain vi`: the network's model trained by plain variational inference.
"""

import argparse
import dataclasses
import itertools
import json
import time
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
from scipy import stats

import effgen as eg
from benchmarks import measure
from benchmarks.forecast_records import RECORDS, SIMULATED
from demo.origins import Past, past_of
from demo.rivals import NUM_PATHS, gaussian_process, statsmodels
from demo.scores import BANDS, scored
from effgen import neural_sde as ns
from effgen.neural_sde.bounds.plain import plain_paths
from effgen.neural_sde.fits.recipe import network_of, returning, step_length
from effgen.neural_sde.fits.selection import candidates, ranked
from effgen.neural_sde.linear_sdes.linear import num_brownian


NUM_STEPS, NUM_ORIGINS = 250, 6


def recipe(past: Past, key: Any) -> dict[str, np.ndarray]:
    keys = jax.random.split(key)
    stack = ns.forecaster(
        past.ts,
        past.ys,
        horizon=past.horizon,
        season_period=past.season,
        key=keys[0],
        num_steps=NUM_STEPS,
    )
    drawn = {
        name: drawn_from(models, past, keys[1])
        for name, models in stack.members.items()
    }
    best = next(iter(stack.members))
    print(best, {k: round(v, 2) for k, v in stack.weights.items()}, end=" ")
    print({k: round(float(v.value), 1) for k, v in stack.held_out.items()})
    mixed = mixture(list(drawn.values()), list(stack.weights.values()))
    network = drawn.get("network", drawn[best])
    return {"recipe": mixed, "linear": drawn[best], "network": network}


def mixture(drawn: list[np.ndarray], weights: list[float]) -> np.ndarray:
    """Return draws of a mixture, from each member's: as `Stack.forecast` mixes."""
    counts = np.floor(np.diff([0, *np.cumsum(weights)]) * NUM_PATHS).astype(int)
    return np.concatenate(
        [
            x[np.floor((np.arange(n) + 0.5) * len(x) / max(n, 1)).astype(int)]
            for x, n in zip(drawn, counts, strict=True)
        ]
    )


def drawn_from(models: Sequence[ns.LatentSDE], past: Past, key: Any) -> np.ndarray:
    """Return draws of models that count alike, as many of each."""
    each = -(-NUM_PATHS // len(models))
    keys = jax.random.split(key, len(models))
    found = [
        ns.posterior(model, past.ts, past.ys).observations(
            past.times, key=key, num_paths=each
        )
        for model, key in zip(models, keys, strict=True)
    ]
    return np.concatenate([np.asarray(x.samples[..., 0]) for x in found])


def plain_vi(past: Past, key: Any) -> dict[str, np.ndarray]:
    """Train the network's model by plain variational inference, in shorter steps."""
    keys = jax.random.split(key, 3)
    choices = candidates(past.ts, past.ys, season_period=past.season)
    best = returning(ranked(choices, past.ts, past.ys))
    assert best is not None
    start = network_of(best.model, past.ts, past.ys, None, key=keys[0])
    size = start.num_states
    columns = num_brownian(start.linear)
    control = ns.PlainControl(size, 1, num_brownian=columns, key=keys[1], width_size=32)
    model = dataclasses.replace(start, residual=None, control=control)
    optim = optax.chain(
        optax.clip_by_global_norm(100.0),
        optax.adam(optax.cosine_decay_schedule(5e-3, NUM_STEPS)),
    )
    dt = _euler_step(past, start)
    trainer = ns.LatentSDETrainer(optim, dt, num_paths=4, objective=ns.PlainELBO())
    ts, ys = np.asarray(past.ts, np.float32), np.asarray(past.ys, np.float32)
    data = eg.Minibatches((ts[None], ys[None]), 1)
    state, _ = eg.fit(
        trainer, trainer.init(model), data, key=keys[2], num_steps=NUM_STEPS
    )
    paths = plain_paths(state.model, (ts, ys), ts, num=NUM_PATHS, key=key)
    each = jax.random.split(key, paths.shape[:2])
    draw = jax.vmap(jax.vmap(lambda x, k: state.model.decoder.sample(x, key=k)))
    samples = np.asarray(draw(paths, each)[..., 0])
    return {"plain vi": samples[:, past.origin : past.origin + past.horizon]}


def _euler_step(past: Past, model: ns.LatentSDE) -> float:
    """Return a step in which Euler's steps let turns grow by at most `exp(1/2)`.

    A turn of frequency `w` grows by `w^2 dt / 2` in a unit of time.
    """
    matrix = np.asarray(model.linear.coefficients(0.0)[0], np.float64)
    fastest = float(np.max(np.abs(np.linalg.eigvals(matrix).imag)))
    gap = step_length(past.ts)
    span = float(past.ts[-1] - past.ts[0])
    return min(gap / 2, 1 / max(fastest**2 * span, 1e-12))


CONTESTANTS = {
    "recipe": recipe,
    "statsmodels": statsmodels,
    "gaussian process": gaussian_process,
    "plain vi": plain_vi,
}
EXACT = ("statsmodels", "gaussian process")  # which no key changes


def run(
    name: str, contestant: str, key: int, only: list[int] | None
) -> dict[str, list[dict[str, Any]]]:
    """Return each origin's scores, of all that a contestant forecasts."""
    record = SIMULATED[name](key) if name in SIMULATED else RECORDS[name]()
    rows: dict[str, list[dict[str, Any]]] = {}
    for i, origin in enumerate(record.origins(NUM_ORIGINS)):
        if only is not None and i not in only:
            continue
        past = past_of(record, origin)
        began = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            drawn = CONTESTANTS[contestant](past, jax.random.key(key))
        seconds = round(time.process_time() - began, 2)
        y = record.ys[origin : origin + record.horizon]
        for who, samples in drawn.items():
            row = {"origin": i, **scored(samples, y), "seconds": seconds}
            rows.setdefault(who, []).append(row)
            print(name, key, who, row, flush=True)
    return rows


def summary(runs: dict[str, Any]) -> dict[str, Any]:
    """Return, over the keys, medians of mean scores, and shares within the bands."""
    found = {}
    for who, by_key in runs.items():
        scores = [float(np.mean([r["crps"] for r in by_key[k]])) for k in by_key]
        rows = list(itertools.chain(*by_key.values()))
        found[who] = {"crps": measure.spread(scores), **held(rows)}
    return found


def gains(runs: dict[str, Any]) -> dict[str, Any]:
    """Return by how much the recipe scores less than each, over systems by key.

    The mean of the keys' differences, and the half of its 95 % interval by Student's t.
    """
    score = lambda rows: np.mean([row["crps"] for row in rows])
    found = {}
    for who in runs.keys() - {"recipe"}:
        keys = runs.get("recipe", {}).keys() & runs[who].keys()
        if len(keys) > 2:
            apart = [score(runs[who][k]) - score(runs["recipe"][k]) for k in keys]
            half = stats.t.ppf(0.975, len(keys) - 1) * stats.sem(apart)
            found[who] = {"mean": float(np.mean(apart)), "half": float(half)}
    return found


def held(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the shares of all values that bands hold, and a forecast's seconds."""
    count = sum(row["num"] for row in rows)
    shares = {band: sum(row[band] for row in rows) / count for band in BANDS}
    return shares | {"seconds": float(np.median([row["seconds"] for row in rows]))}


def table_of(records: dict[str, Any]) -> str:
    """Return mean scores as the table of the docs."""
    found = overall(records)
    names = ("recipe", "linear", "network", "statsmodels", "gaussian process")
    names = [name for name in (*names, "plain vi") if name in found]
    rows = ["| record | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for record, runs in records.items():
        scores = {n: s["crps"]["median"] for n, s in runs["summary"].items()}
        least = min(scores.values())
        cells = [
            ""
            if n not in scores
            else f"{scores[n]:.3g}".join(
                ("**", "**") if scores[n] == least else ("", "")
            )
            for n in names
        ]
        rows.append(f"| {record} | {' | '.join(cells)} |")
    shares = [", ".join(f"{100 * found[n][k]:.0f}" for k in BANDS) for n in names]
    rows.append(f"| within 50, 90 % | {' | '.join(shares)} |")
    seconds = [f"{found[n]['seconds']:.0f}" for n in names]
    rows.append(f"| seconds | {' | '.join(seconds)} |")
    return "\n".join(rows)


def overall(records: dict[str, Any]) -> dict[str, Any]:
    """Return each contestant's shares of all values within its bands, and its time."""
    rows: dict[str, list[Any]] = {}
    for record in records.values():
        for who, by_key in record["runs"].items():
            rows.setdefault(who, []).extend(itertools.chain(*by_key.values()))
    return {who: held(found) for who, found in rows.items()}


def stored() -> dict[str, Any]:
    path = measure.RESULTS / "forecasts.json"
    return json.loads(path.read_text())["records"] if path.exists() else {}


def main() -> None:
    every = [*RECORDS, *SIMULATED]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", nargs="*", help=f"of {every}", default=every)
    parser.add_argument("--keys", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS))
    parser.add_argument("--origins", type=int, nargs="+", help="try some; write none")
    parser.add_argument("--table", action="store_true", help="print the docs' table")
    asked = parser.parse_args()
    if asked.table:
        print(table_of(stored()))
        return
    for name, contestant in itertools.product(asked.records, asked.contestants):
        once = contestant in EXACT and name not in SIMULATED
        for key in asked.keys[:1] if once else asked.keys:
            rows = run(name, contestant, key, asked.origins)
            jax.clear_caches() if key == asked.keys[-1] else None
            if asked.origins is not None:
                continue
            records = stored()
            runs = records.setdefault(name, {}).setdefault("runs", {})
            for who, found in rows.items():
                runs.setdefault(who, {})[str(key)] = found
            records[name]["summary"] = summary(runs)
            if name in SIMULATED:
                records[name]["gains"] = gains(runs)
            figures = {"records": records, "overall": overall(records)}
            measure.write("forecasts", {"num_steps": NUM_STEPS, **figures})


if __name__ == "__main__":
    main()
