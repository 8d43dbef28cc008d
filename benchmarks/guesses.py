"""Which first guess, and which easier problems first, end soonest and best.

`python -m benchmarks.guesses`. Van der Pol's oscillator of `benchmarks.van_der_pol`,
noise of 5 %, three networks each; seconds are whole, compilation and all.
"""

import time
import warnings

import jax

import effgen as eg
from benchmarks import measure, odes, van_der_pol
from effgen import collocation as co


SEEDS = range(3)
INTERVALS = van_der_pol.INTERVALS


def level_of(problem, intervals=INTERVALS):
    return van_der_pol.level_of(problem, intervals)()


def plain(problem, model):
    level = level_of(problem)
    return [level], level.guess(), model


def simulated(problem, model):
    level = level_of(problem)
    return [level], level.simulated(model), model


def pretrained(problem, model):
    level = level_of(problem)
    return [level], level.guess(), co.pretrain(model, level, key=odes.KEY)


def coarse(problem, model):
    levels = [level_of(problem, n) for n in (8, INTERVALS)]
    return levels, levels[0].guess(), model


def coarse_pretrained(problem, model):
    levels, guess, _ = coarse(problem, model)
    return levels, guess, co.pretrain(model, levels[1], key=odes.KEY)


def growing(problem, model):
    shares = (0.3, 0.6, 1.0)
    levels = [
        level_of(p, round(share * INTERVALS))
        for share, p in zip(shares, co.windows(problem, shares), strict=True)
    ]
    return levels, levels[0].guess(), model


WAYS = {
    "smoothed data": plain,
    "simulation": simulated,
    "smoothed data, pretrained": pretrained,
    "coarse to fine": coarse,
    "coarse to fine, pretrained": coarse_pretrained,
    "growing windows": growing,
}


def outcome(way, problem, out, seed, test):
    jax.clear_caches()
    model = co.Model({}, odes.network([2, 8, 8, out], seed))
    began = time.perf_counter()
    levels, guess, model = way(problem, model)
    trainer = co.CollocationTrainer(max_iter=300)
    state = trainer.init(model, guess)
    try:
        state, history = eg.fit(trainer, state, levels, key=odes.KEY)
    except eg.TrainingError as error:
        print("failed:", str(error)[:80], flush=True)
        return None
    return {
        "seconds": time.perf_counter() - began,
        "iterations": float(history["iterations"].sum()),
        "loss": float(history["loss"][-1]),
        "test_error": test(state.model),
    }


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore", eg.RunWarning)
    figures = {}
    for name, (field, out) in van_der_pol.FIELDS.items():
        problem = van_der_pol.problem_of(field)
        test = van_der_pol.judge(problem, van_der_pol.model_of(out))
        figures[name] = {}
        for label, way in WAYS.items():
            rows = [outcome(way, problem, out, seed, test) for seed in SEEDS]
            done = [row for row in rows if row is not None]
            summary = measure.by_seed(done) if done else {}
            figures[name][label] = summary | {"failed": len(rows) - len(done)}
            medians = {k: v["median"] for k, v in summary.items()}
            print(name, label, medians, len(rows) - len(done), flush=True)
            measure.write("guesses", {"problems": figures})
