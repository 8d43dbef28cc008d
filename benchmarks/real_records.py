"""Laws on measured records: chosen by the evidence, by shooting, and without a law.

`python -m benchmarks.real_records [runoff] ["blood levels"] [pelts]` runs some and adds
them to `results/real_records.json`; by default all. Each record's later samples are
forecast by a simulation from the first time, and nobody sees them.

- `collocation, chosen`: `choose` of the law and of the law with a network.
- `collocation, law`: the law without a network.
- `shooting, network` and `shooting, law`: the same through diffrax and Adam. The rate,
  the number of segments and the step to stop at are those with the best forecast of
  the last quarter of what is seen, by a fit to the rest of it; then all that is seen is
  fitted with these. `luckiest` is the least error of all looks at what is forecast.
- `black box`: what scikit-learn makes of the record, its settings by cross-validation
  or by the evidence.

Errors are the root mean square of forecasts, in deviations of what is forecast.
"""

import json
import sys
import time
import warnings
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import effgen as eg
from benchmarks import measure, odes
from benchmarks.ode_records import RECORDS, Record
from effgen import collocation as co
from effgen.collocation.modeling.inputs import inputs_at, jumps, knots
from effgen.collocation.states.integration import (
    Integration,
    Sampled,
    integrated,
    no_inputs,
)


RATES, NUM_STEPS, EVERY = (1e-2, 3e-2, 1e-1), 300, 20
STEPS = 20_000  # of a solver: a record of years has many


def judge(record: Record, rows: tuple[int, ...], ends: tuple[int, ...]) -> Any:
    """Return a function of a model and of starts: the error of rows to `ends`."""
    problem = record.problem(tuple(len(t.ts) for t in record.whole))
    how = Integration(diffrax.Tsit5(), max_steps=STEPS)
    ahead = [(t, n, m) for t, n, m in zip(problem.data, rows, ends, strict=True)]
    spread = np.concatenate([t.ys[n:m] for t, n, m in ahead if m > n]).std(0)
    bare = problem.without_data()

    @eqx.filter_jit
    def outputs(model: Any, start: Any, ts: Any, inputs: Any, stops: Any, us: Any):
        states = integrated(bare, how, model, start, ts[0], ts, inputs, stops)
        given = (model.parameters, model.networks)
        return jax.vmap(lambda t, x, u: problem.outputs(t, x, u, *given))(
            ts, states, us
        )

    def error(model: Any, starts: Any) -> float:
        left = []
        for i, (t, n, m) in enumerate(ahead):
            if m > n:
                given = no_inputs
                if t.inputs is not None:
                    given = Sampled(*map(jnp.asarray, knots(t)))
                stops = (jnp.asarray(t.ts), jnp.asarray(jumps(t)))
                us = jnp.asarray(inputs_at(t, t.ts, "right"))
                found = outputs(
                    model, jnp.asarray(starts[i]), jnp.asarray(t.ts), given, stops, us
                )
                left.append((np.asarray(found) - t.ys)[n:m] / spread)
        left = np.concatenate(left)
        left = left[np.isfinite(np.concatenate([t.ys[n:m] for t, n, m in ahead]))]
        return float(np.sqrt(np.mean(left**2)))

    return error


def counts_of(record: Record) -> tuple[tuple[int, ...], ...]:
    """Return the rows of three quarters, those seen, and all, of each trajectory."""
    parts = tuple(int(np.ceil(0.75 * n)) for n in record.seen)
    return parts, record.seen, tuple(len(t.ts) for t in record.whole)


def networks_of(record: Record, seed: int) -> Any:
    return record.network(jax.random.key(seed))


def collocated(record: Record, seed: int, chosen: bool) -> dict[str, Any]:
    """Return the figures of the law that the evidence chooses, or of the law alone."""
    jax.clear_caches()
    began = time.perf_counter()
    problem = record.problem(record.seen)
    kinds = dict(intervals=record.intervals, stages=record.stages)
    level = co.transcribe(problem, **kinds)
    trainer = co.CollocationTrainer(max_iter=200)
    row: dict[str, Any] = {}
    if chosen:
        model = co.Model(record.parameters, networks_of(record, seed))
        found = co.choose(trainer, model, level, key=odes.KEY, num_rounds=1)
        state, gain = found.state, found.evidence
        row["network"] = found.network
        if gain is not None:
            row["nats"] = gain.log_evidence - found.plain.log_evidence
    else:
        model = co.Model(record.parameters, None)
        guess = level.guess(model)
        state, _ = eg.fit(trainer, trainer.init(model, guess), [level], key=odes.KEY)
    seconds = time.perf_counter() - began
    starts = [
        np.asarray(state.memory(float(t.ts[0]), i)).ravel()
        for i, t in enumerate(problem.data)
    ]
    _, seen, every = counts_of(record)
    return row | {
        "error": judge(record, seen, every)(state.model, starts),
        "seconds": seconds,
    }


def looks(
    record: Record, rows: tuple[int, ...], model: Any, test: Any, rate: float, per: int
) -> list[dict[str, float]]:
    """Return shooting's error and seconds at each look."""
    jax.clear_caches()
    began = time.perf_counter()
    problem = record.problem(rows, weight_decay=1e-3)
    level = co.transcribe(problem, intervals=record.intervals and rows[0] - 1, stages=2)
    segments = co.segments_of(problem, per)
    optim = optax.adam(rate)
    trainer = co.ShootingTrainer(optim, problem, rtol=1e-5, atol=1e-5, max_steps=STEPS)
    state = trainer.init(model, (segments, level.guess(model)))
    run = eg.train(
        trainer,
        state,
        [segments] * NUM_STEPS,
        key=odes.KEY,
        num_steps=NUM_STEPS,
        every=EVERY,
    )
    found, judged = [], 0.0
    firsts = [per * i for i in range(len(problem.data))]
    try:
        for state, _ in run:
            at = time.perf_counter()
            shot = state.model
            starts = trainer._starts(shot, segments) * jnp.asarray(problem.nominal)
            error = test(shot.model, np.asarray(starts)[firsts])
            judged += time.perf_counter() - at
            seconds = time.perf_counter() - began - judged
            found.append({"step": int(state.step), "error": error, "seconds": seconds})
    except eg.TrainingError as error:
        print("shooting stopped:", str(error)[:120], flush=True)
    return found


def shot(record: Record, networks: Any) -> dict[str, Any]:
    """Return the figures of shooting, tuned on the last quarter of what is seen."""
    parts, seen, every = counts_of(record)
    model = co.Model(record.parameters, networks)
    trial, test = judge(record, parts, seen), judge(record, seen, every)
    best: tuple[float, Any] = (np.inf, None)
    for rate in RATES:
        for per in record.segments:
            for row in looks(record, parts, model, trial, rate, per):
                if row["error"] < best[0]:
                    best = (row["error"], (rate, per, row["step"]))
    if best[1] is None:
        return {"error": float("nan"), "seconds": None}
    rate, per, step = best[1]
    print("shooting's choice", best, flush=True)
    rows = looks(record, seen, model, test, rate, per)
    done = [row for row in rows if row["step"] <= step]
    luckiest = min(row["error"] for row in rows)
    return (done or rows)[-1] | {"rate": rate, "segments": per, "luckiest": luckiest}


def black_box(record: Record) -> dict[str, Any]:
    """Return the figures of what knows no law."""
    began = time.perf_counter()
    found = record.black_box(record)
    seconds = time.perf_counter() - began
    ys = np.concatenate(
        [t.ys[n:] for t, n in zip(record.whole, record.seen, strict=True)]
    )
    left = (np.concatenate(found) - ys) / ys.std(0)
    return {"error": float(np.sqrt(np.nanmean(left**2))), "seconds": seconds}


def stored() -> dict[str, Any]:
    """Return the figures of the records that ran before."""
    path = measure.RESULTS / "real_records.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    return {name: found[name] for name in RECORDS if name in found}


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore")
    figures: dict[str, Any] = {"num_steps": NUM_STEPS, "rates": RATES, **stored()}
    for which in sys.argv[1:] or RECORDS:
        record = RECORDS[which]()
        rows: dict[str, list[Any]] = {
            "black box": [black_box(record)],
            "collocation, law": [collocated(record, 0, chosen=False)],
            "shooting, law": [shot(record, None)],
        }
        print(which, rows, flush=True)
        for seed in range(record.num_seeds):
            chosen = collocated(record, seed, chosen=True)
            rows.setdefault("collocation, chosen", []).append(chosen)
            through = shot(record, networks_of(record, seed))
            rows.setdefault("shooting, network", []).append(through)
            print(which, seed, chosen, through, flush=True)
        figures[which] = {
            kind: {
                name: measure.spread([row[name] for row in found])
                for name in ("error", "seconds", "luckiest")
                if name in found[0]
            }
            | {"runs": found}
            for kind, found in rows.items()
        }
        measure.write("real_records", figures)


if __name__ == "__main__":
    main()
