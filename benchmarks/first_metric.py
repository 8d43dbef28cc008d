"""How long a user waits for a first result: compilation, in a process that is new.

`python -m benchmarks.first_metric`. Of each model of the demo's carbon dioxide, from
the trainer's `init` to the first metric; and one forecast of a hundred years by
`neural_sde.forecaster`, cold and once more in the same process. No compiled program is
read from a disk. Five new processes each (the forecaster: three).
"""

import json
import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import effgen as eg
from benchmarks import measure
from demo import series, yearly
from demo.origins import past_of
from effgen import neural_sde as ns


REPEATS, FORECASTS = 5, 3
FORECASTER = "forecaster"


def first_metric(name: str) -> list[float]:
    """Return the seconds of a first step, and of a second."""
    record, key = series.record(), jax.random.key(0)
    model, objective = series.models(key)[name]
    past = ~record.forecast
    shown = np.where(record.shown, record.ys, np.nan)[past]
    batch = jnp.asarray(record.ts[past])[None], jnp.asarray(shown, jnp.float32)[None]
    optim = optax.adam(optax.cosine_decay_schedule(1e-2, series.NUM_STEPS))
    dt = series.WEEK / (4 if isinstance(objective, ns.PlainELBO) else 1)
    found = []
    for _ in range(2):
        began = time.perf_counter()
        trainer = ns.LatentSDETrainer(optim, dt=dt, num_paths=4, objective=objective)
        state = trainer.init(model)
        eg.fit(trainer, state, eg.Minibatches(batch, 1), key=key, num_steps=1)
        found.append(time.perf_counter() - began)
    return found


def forecast(_: str) -> list[float]:
    """Return the seconds of a record's first forecast, and of its second."""
    record, found = yearly.records()[0].record, []
    for origin in record.origins(2):
        began = time.perf_counter()
        yearly.ours(past_of(record, origin), jax.random.key(0))
        found.append(time.perf_counter() - began)
    return found


def measured(name: str, repeats: int) -> dict[str, object]:
    """Return the seconds of new processes, one after the other."""
    plain = {k: v for k, v in os.environ.items() if "COMPILATION_CACHE" not in k}
    command = [sys.executable, "-m", "benchmarks.first_metric", name]
    rows = []
    for _ in range(repeats):
        told = subprocess.run(
            command, check=True, capture_output=True, text=True, env=plain
        )
        rows.append(json.loads(told.stdout.splitlines()[-1]))
        print(name, rows[-1], file=sys.stderr, flush=True)
    cold, warm = zip(*rows, strict=True)
    return {"cold": measure.spread(list(cold)), "warm": measure.spread(list(warm))}


def main() -> None:
    if len(sys.argv) > 1:
        work = forecast if sys.argv[1] == FORECASTER else first_metric
        print(json.dumps(work(sys.argv[1])))
        return
    names = dict.fromkeys(series.models(jax.random.key(0)), REPEATS)
    names[FORECASTER] = FORECASTS
    found = {name: measured(name, repeats) for name, repeats in names.items()}
    measure.write("first_metric", {"seconds": found})


if __name__ == "__main__":
    main()
