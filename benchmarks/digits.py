"""Held-out nats of handwritten digits after the same seconds, each method tuned alike.

`python -m benchmarks.digits [seconds [seeds]]`. The demo's energy on MNIST's digits of
14 x 14 pixels, 3,500 to train on, 500 to choose each method's best of four settings
by, 1,000 held out. A setting is Muon's rate and weight decay. All make 8 moves a step
of 256 walkers, which an earlier grid had chosen for each. A step of each is timed
first, all in turn, on one thread; then each takes the steps that 100 seconds hold, or
so many. Nobody has audit walkers: every likelihood is one of fresh walkers, annealed
after training from the Gaussian start. Of the first seed, a run back from images is set
beside it. Two processes of one thread share the work.
"""

import os


os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import functools
import itertools
import sys
import warnings
from typing import NamedTuple

import jax
import optax

import effgen as eg
from benchmarks import measure
from demo import energy as demo
from demo.images import NoisyImages
from effgen import ebm


SECONDS = 100
ROUNDS = 7
CHUNK = 10
NUM_FRESH = 1024
BATCH = 256
DECAY = 0.99
NUM_SEEDS = 5


class Setting(NamedTuple):
    """What is chosen by validation: the rate and the weight decay of Muon."""

    rate: float
    weight_decay: float


SETTINGS = [
    Setting(1e-2, 0.1),
    Setting(1e-2, 0.3),
    Setting(2e-2, 0.1),
    Setting(2e-2, 0.3),
]
METHODS = ("Jarzynski", "PCD", "CD")
NUM_MOVES = 8
# Contrastive divergence has as many chains, one for each image of a batch.
NUM_WALKERS = BATCH
RADIUS = 0.2
SHAPE = (demo.SIDE**2,)


@functools.cache
def problem():
    """Return the demo's digits, which are read once."""
    return demo.problem()


def contestant(name, setting, num_steps, key):
    """Return a method's trainer and its memory."""
    optim = optax.contrib.muon(
        optax.linear_schedule(setting.rate, 0.0, num_steps),
        weight_decay=setting.weight_decay,
    )
    moves = {"kernel": demo.KERNEL, "num_moves": NUM_MOVES}
    if name == "CD":
        return ebm.CDTrainer(optim, **moves), None
    walkers = ebm.Walkers.from_gaussian(key, NUM_WALKERS, SHAPE)
    if name == "PCD":
        return ebm.PCDTrainer(optim, **moves), walkers
    return ebm.JarzynskiTrainer(optim, radius=RADIUS, **moves), walkers


def begun(name, setting, num_steps, seed):
    """Return a trainer, its first state, its data and the key of its steps."""
    task = problem()
    keys = jax.random.split(jax.random.key(seed), 3)
    trainer, memory = contestant(name, setting, num_steps, keys[0])
    state = trainer.init(demo.energy(task, keys[1]), memory)
    minibatches = eg.Minibatches(task.train, BATCH)
    data = NoisyImages(minibatches, task.coordinates, demo.NOISE)
    return trainer, state, data, keys[2]


def annealed(model, parts, seed):
    """Return each part's mean log-likelihood, and the bar of `log Z`, of one run."""
    task = problem()
    keys = jax.random.split(jax.random.key(1000 + seed), 3)
    walkers = ebm.Walkers.from_gaussian(keys[0], NUM_FRESH, SHAPE)
    models = [demo.gaussian_start(model), model]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", eg.RunWarning)
        fresh = ebm.annealed(models, walkers, kernel=demo.KERNEL, key=keys[1])
        density = ebm.NormalizedEnergy.from_walkers(model, fresh)
    told, shift = {}, float(task.coordinates.log_determinant)
    for name, images in parts.items():
        x = demo.noised(task, images, keys[2])
        told[name] = {
            "nats": float(density.log_likelihood(x).value) + shift,
            "bar": float(density.standard_error),
            "warned": bool(caught),
        }
    return told


def sandwiched(model, images, seed):
    """Return `log Z` by fresh walkers, and by a run back from images, with bars.

    The images stand in for samples of the model: the two agree where they are some.
    """
    task = problem()
    keys = jax.random.split(jax.random.key(2000 + seed), 3)
    walkers = ebm.Walkers.from_gaussian(keys[0], NUM_FRESH, SHAPE)
    x = demo.noised(task, images[:NUM_FRESH], keys[1])
    models = [demo.gaussian_start(model), model]
    both = ebm.sandwich(models, walkers, x, kernel=demo.KERNEL, key=keys[2])
    return {
        side: {"log_z": float(told.value), "bar": float(told.standard_error)}
        for side, told in both._asdict().items()
    }


def outcome(arm):
    """Train once; return the likelihoods of the parts that are asked for."""
    name, number, num_steps, seed, part = arm
    setting = SETTINGS[number]
    trainer, state, data, key = begun(name, setting, num_steps, seed)
    run = eg.averaged(
        eg.train(trainer, state, data, key=key, num_steps=num_steps), DECAY
    )
    row = {"method": name, "setting": number, **setting._asdict(), "seed": seed}
    try:
        for last, _ in run:
            state = last
    except eg.TrainingError as error:
        return row | {"stopped": str(error)[:120], "nats": None}
    task = problem()
    if part == "valid":
        row |= annealed(state.model, {"valid": task.valid}, seed)["valid"]
    else:
        images = {"held out": task.held_out, "train": task.train[:1000]}
        told = annealed(state.model, images, seed)
        row |= told["held out"] | {"train": told["train"]}
        average = annealed(state.average, {"held out": task.held_out}, seed)
        row["average"] = average["held out"]
        if seed == 0:
            row["sandwich"] = sandwiched(state.model, task.held_out, seed)
    print(row, flush=True)
    return row


def chosen(rows):
    """Return the number of each method's setting of the best validation."""
    ended = [row for row in rows if row["nats"] is not None]
    return {
        name: max(
            (row for row in ended if row["method"] == name), key=lambda row: row["nats"]
        )["setting"]
        for name in METHODS
    }


def spread(rows):
    """Return the spread over seeds of one method's rows."""
    rows = [row for row in rows if "stopped" not in row]
    return {
        "nats": measure.spread([row["nats"] for row in rows]),
        "bar": measure.spread([row["bar"] for row in rows]),
        "train": measure.spread([row["train"]["nats"] for row in rows]),
        "average": measure.spread([row["average"]["nats"] for row in rows]),
        "warned": sum(row["warned"] for row in rows),
        "runs": len(rows),
    }


if __name__ == "__main__":
    seconds = int(sys.argv[1]) if sys.argv[1:] else SECONDS
    seeds = range(int(sys.argv[2]) if sys.argv[2:] else NUM_SEEDS)
    runs = {name: begun(name, SETTINGS[0], 1000, 0) for name in METHODS}
    per_step = measure.step_milliseconds(runs, rounds=ROUNDS, chunk=CHUNK)
    print(per_step, flush=True)
    num_steps = {arm: round(1e3 * seconds / ms) for arm, ms in per_step.items()}
    grid = itertools.product(METHODS, range(len(SETTINGS)))
    tried = measure.by_two_processes(
        outcome, [(name, k, num_steps[name], 0, "valid") for name, k in grid]
    )
    best = chosen(tried)
    finals = measure.by_two_processes(
        outcome,
        [
            (name, best[name], num_steps[name], seed, "held out")
            for seed, name in itertools.product(seeds, METHODS)
        ],
    )
    measure.write(
        "digits",
        {
            "seconds": seconds,
            "milliseconds_per_step": per_step,
            "steps": num_steps,
            "moves": NUM_MOVES,
            "walkers": NUM_WALKERS,
            "radius": RADIUS,
            "average_decay": DECAY,
            "validation": tried,
            "chosen": {name: SETTINGS[k]._asdict() for name, k in best.items()},
            "held_out": {
                name: spread([row for row in finals if row["method"] == name])
                for name in METHODS
            },
            "finals": finals,
        },
    )
