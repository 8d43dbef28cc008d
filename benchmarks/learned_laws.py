"""Laws with networks by collocation, five seeds: weights by evidence, finer meshes.

`python -m benchmarks.learned_laws van_der_pol` (or `quarter_vehicle`, `pelts`), and
seeds behind it to run fewer. Van der Pol's oscillator as in `van_der_pol.py`: networks
with a fixed decay, pretrained; one hidden layer by evidence, pretrained; and a Gaussian
process, whose lengthscale the evidence chooses too. The quarter vehicle as in
`quarter_vehicle.py`, with networks of two hidden layers and of one: 240 intervals, and
multiple shooting, whose rate is tuned in short runs that are not counted. Pelts: log
counts forecast six years ahead, with a constant attack rate, and by evidence.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import effgen as eg
from benchmarks import measure, odes, quarter_vehicle, van_der_pol
from demo.predators import CENTER, LOWER, STARTS, UPPER, predation
from demo.records import pelts
from effgen import collocation as co


SEEDS = (0, 1, 2, 3, 4)
WIDTH = 16
LAYER, DECAY = 8, 1e-6  # of the vehicle's networks with one layer
LENGTHSCALES = (1, 2, 4)  # in standard deviations of the data
CUTS = (10, 11, 12, 13, 14, 15)
AHEAD = 6


def timed(function):
    """Return a function's result and its seconds, building and compiling included."""
    jax.clear_caches()
    began = time.perf_counter()
    found = function()
    return found, time.perf_counter() - began


def force(t, x, u, p, nets):
    return jnp.stack([x[1], nets(x) - x[0]])


def oscillator(seed):
    """Return the figures of one seed's noise and networks."""
    problem = van_der_pol.problem_of(van_der_pol.enhanced, seed=seed)
    model = co.Model({}, odes.network([2, 8, 8, 1], seed))
    level = van_der_pol.level_of(problem)
    test = van_der_pol.judge(problem, model)
    row = {}
    row["decay"], _ = odes.collocated(level, model, test, pretrained=True)
    data = [t[:2] for t in problem.data]
    points = np.concatenate([ys for _, ys in data])
    spread = points.std(0)
    network = co.Deviation(2, WIDTH, scale=spread, key=jax.random.key(seed))
    processes = [
        co.GaussianProcess(points, lengthscale=c * spread) for c in LENGTHSCALES
    ]
    row["evidence"] = weighed(data, [network], pretrained=True)
    row["Gaussian process"] = weighed(data, processes, pretrained=False)
    return row


def weighed(data, networks, *, pretrained):
    """Return the figures of the law that the evidence chooses."""

    def chosen():
        there = van_der_pol.level_of(co.Problem(force, data))()
        trainer = co.CollocationTrainer(max_iter=150)
        models = [co.Model({}, network) for network in networks]
        if pretrained:
            models = [co.pretrain(m, there, key=odes.KEY) for m in models]
        return co.choose(trainer, models, there, key=odes.KEY, num_rounds=1)

    choice, seconds = timed(chosen)
    judged = van_der_pol.judge(choice.transcription.problem, choice.state.model)
    return {
        "seconds": seconds,
        "test_error": judged(choice.state.model),
        "network": choice.network,
        "effective": choice.evidence.effective if choice.evidence else None,
    }


def forces(seed):
    """Return networks of one hidden layer of the spring and the damper."""
    keys = jax.random.split(jax.random.key(seed))
    nets = [co.Deviation(1, LAYER, key=key) for key in keys]
    return co.Model({}, quarter_vehicle.Forces(*nets))


def vehicle(seed):
    """Return the figures of one seed's noise and networks."""
    models = {
        "two layers": (quarter_vehicle.model_of(2 * seed), quarter_vehicle.DECAY),
        "one layer": (forces(seed), DECAY),
    }
    row = {}
    for name, (model, decay) in models.items():
        problem = quarter_vehicle.problem_of(seed, decay)
        row |= {f"{arm}, {name}": x for arm, x in driven(problem, model).items()}
    return row


def driven(problem, model):
    """Return the figures of collocation and of multiple shooting."""
    ts = np.linspace(0, quarter_vehicle.LAST, 401)
    unseen = quarter_vehicle.road(quarter_vehicle.TEST_ROAD)
    exact = quarter_vehicle.truth(unseen, ts)[None]
    test = odes.judge(problem, model, np.zeros((1, 4)), ts, exact, unseen)
    guess = quarter_vehicle.simulated
    level = lambda n: (
        lambda: co.transcribe(problem, intervals=n, stages=quarter_vehicle.STAGES)
    )
    fine = level(2 * quarter_vehicle.INTERVALS)
    row = {}
    row["collocation"], _ = odes.collocated(
        fine, model, test, pretrained=False, guess=guess
    )
    for per in (8, 16):
        found = odes.tuned(
            problem,
            level(quarter_vehicle.INTERVALS),
            model,
            test,
            per=per,
            rates=quarter_vehicle.RATES,
            short=quarter_vehicle.SHORT,
            long=quarter_vehicle.LONG,
            every=20,
            guess=guess,
        )
        row[f"shooting, {per}"] = found["best"] | {"rate": found["rate"]}
    return row


def counts(seed):
    """Return the forecast errors of one network's start, by the last year seen."""
    years, ys = pelts()
    years, ys = years - years[0], np.log(ys)
    network = co.Deviation(1, center=CENTER, key=jax.random.key(seed))
    row = {}
    for cut in CUTS:
        seen = years <= cut
        ahead = (years > cut) & (years <= cut + AHEAD)
        problem = co.Problem(
            predation, (years[seen], ys[seen]), parameter_bounds=(LOWER, UPPER)
        )
        level = co.transcribe(problem, intervals=2 * cut)
        trainer = co.CollocationTrainer(max_iter=200)
        given = co.Model(STARTS, network)
        choice = co.choose(trainer, given, level, key=odes.KEY, num_rounds=1)
        state = trainer.init(co.Model(STARTS, None), level.guess())
        state, _ = eg.fit(trainer, state, [level], key=odes.KEY)

        def error(problem, state, ahead=ahead, cut=cut):
            start = state.memory(float(cut))[0]
            ts = np.concatenate([[cut], years[ahead]])
            found = co.simulate(problem, state.model, start, ts)[1:]
            return float(np.sqrt(np.mean((np.asarray(found) - ys[ahead]) ** 2)))

        row[f"until {cut}"] = {
            "constant": error(problem, state),
            "evidence": error(choice.transcription.problem, choice.state),
            "network": choice.network,
        }
    return row


PROBLEMS = {"van_der_pol": oscillator, "quarter_vehicle": vehicle, "pelts": counts}


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    name, *seeds = sys.argv[1:]
    rows = {}
    for seed in map(int, seeds or SEEDS):
        rows[f"seed {seed}"] = PROBLEMS[name](seed)
        print(seed, rows[f"seed {seed}"], flush=True)
        if not seeds:
            measure.write(f"learned_{name}", {"seeds": rows})
