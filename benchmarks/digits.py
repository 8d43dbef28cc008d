"""Held-out nats of handwritten digits after the same seconds, each method tuned alike.

`python -m benchmarks.digits`. The demo's energy on MNIST's digits of 14 x 14 pixels,
3,500 to train on, 500 to choose the learning rate by, 1,000 held out. A step is timed
first, all methods in turn, on one thread; then each takes the steps that `SECONDS`
hold. Every likelihood is one of fresh walkers, annealed after training from the
Gaussian start. Two processes of one thread share the work.
"""

import os


os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import itertools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax

import effgen as eg
from benchmarks import measure
from demo import energy as demo
from demo.images import NoisyImages, digits, noisy, whitened
from effgen import ebm


SECONDS = 100
ROUNDS = 7
CHUNK = 10
NUM_WALKERS = 1024
NUM_AUDIT = 512
NUM_FRESH = 1024
BATCH = 256
RADIUS = 0.1
DECAY = 0.99
SEEDS = range(5)
GRID = {
    "Jarzynski": [("muon", 5e-3), ("muon", 1e-2), ("muon", 2e-2)],
    "PCD": [
        ("muon", 5e-3),
        ("muon", 1e-2),
        ("muon", 2e-2),
        ("adam", 5e-4),
        ("adam", 1e-3),
    ],
    "CD-8": [("muon", 5e-3), ("muon", 1e-2), ("muon", 2e-2)],
}
SHAPE = (demo.SIDE**2,)


def problem():
    """Return the digits' three parts and the coordinates."""
    images, _ = digits(demo.SIDE)
    held_out, valid, train = jnp.split(images, [1000, 1500])
    coordinates = ebm.Whitened.of(train, noise=demo.NOISE)
    return demo.Problem(train, held_out, coordinates), valid


def optimizer(kind, rate, num_steps):
    schedule = optax.linear_schedule(rate, 0.0, num_steps)
    if kind == "muon":
        return optax.contrib.muon(schedule)
    return optax.adam(schedule, b1=0.0)


def contestant(name, kind, rate, num_steps, key):
    """Return a method's trainer and its memory."""
    keys = jax.random.split(key)
    optim = optimizer(kind, rate, num_steps)
    walkers = ebm.Walkers.from_gaussian(keys[0], NUM_WALKERS, SHAPE)
    audit = ebm.Walkers.from_gaussian(keys[1], NUM_AUDIT, SHAPE)
    if name == "Jarzynski":
        trainer = ebm.JarzynskiTrainer(optim, kernel=demo.KERNEL, radius=RADIUS)
        return trainer, ebm.Audited(walkers, audit)
    if name == "PCD":
        return ebm.PCDTrainer(optim, kernel=demo.KERNEL), walkers
    return ebm.CDTrainer(optim, kernel=demo.KERNEL, num_moves=8), None


def begun(name, kind, rate, num_steps, seed):
    """Return a trainer, its first state, its data and the key of its steps."""
    task, _ = problem()
    keys = jax.random.split(jax.random.key(seed), 3)
    trainer, memory = contestant(name, kind, rate, num_steps, keys[0])
    state = trainer.init(demo.energy(task, keys[1]), memory)
    minibatches = eg.Minibatches(task.train, BATCH)
    data = NoisyImages(minibatches, task.coordinates, demo.NOISE)
    return trainer, state, data, keys[2]


def milliseconds():
    """Return what a step of each method takes, in turn."""
    work = {}
    for name in GRID:
        trainer, state, data, key = begun(name, "muon", 1e-2, 1000, 0)

        def steps(trainer=trainer, state=state, data=data, key=key):
            return eg.fit(trainer, state, data, key=key, num_steps=CHUNK)[0].model

        work[name] = steps
    times = measure.interleaved(work, rounds=ROUNDS)
    return {name: 1e3 * float(np.median(t)) / CHUNK for name, t in times.items()}


def annealed(model, images, seed):
    """Return the mean log-likelihood of images, and the bar of `log Z`."""
    task, _ = problem()
    keys = jax.random.split(jax.random.key(1000 + seed), 3)
    walkers = ebm.Walkers.from_gaussian(keys[0], NUM_FRESH, SHAPE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", eg.RunWarning)
        density = demo.annealed_density(model, walkers, keys[1])
    x = whitened(task.coordinates, noisy(images, demo.NOISE, keys[2]))
    value = float(density.log_likelihood(x).value)
    return {
        "nats": value + float(task.coordinates.log_determinant),
        "bar": float(density.standard_error),
        "warned": bool(caught),
    }


def sandwiched(model, images, seed):
    """Return `log Z` by fresh walkers, and by a run back from images, with bars.

    The images stand in for samples of the model: the two agree where they are some.
    """
    task, _ = problem()
    keys = jax.random.split(jax.random.key(2000 + seed), 3)
    walkers = ebm.Walkers.from_gaussian(keys[0], NUM_FRESH, SHAPE)
    x = whitened(task.coordinates, noisy(images[:NUM_FRESH], demo.NOISE, keys[1]))
    models = [demo.gaussian_start(model), model]
    both = ebm.sandwich(models, walkers, x, kernel=demo.KERNEL, key=keys[2])
    return {
        side: {"log_z": float(told.value), "bar": float(told.standard_error)}
        for side, told in both._asdict().items()
    }


def outcome(setting):
    """Train once; return the likelihoods of the parts that are asked for."""
    name, kind, rate, num_steps, seed, part = setting
    trainer, state, data, key = begun(name, kind, rate, num_steps, seed)
    run = eg.averaged(
        eg.train(trainer, state, data, key=key, num_steps=num_steps), DECAY
    )
    row = {"method": name, "optimizer": kind, "rate": rate, "seed": seed}
    try:
        for last, _ in run:
            state = last
    except eg.TrainingError as error:
        return row | {"stopped": str(error)[:120], "nats": -math.inf}
    task, valid = problem()
    images = {"valid": valid, "held out": task.held_out}[part]
    row |= annealed(state.model, images, seed)
    if part == "held out":
        row["average"] = annealed(state.average, images, seed)
        row["train"] = annealed(state.model, task.train[:1000], seed)
        row["sandwich"] = sandwiched(state.model, task.held_out, seed)
    print(row, flush=True)
    return row


def chosen(rows):
    """Return each method's optimizer and rate of the best validation."""
    best = {}
    for row in rows:
        name = row["method"]
        if name not in best or row["nats"] > best[name]["nats"]:
            best[name] = row
    return {name: (row["optimizer"], row["rate"]) for name, row in best.items()}


def spread(rows):
    """Return the spread over seeds of one method's rows."""
    rows = [row for row in rows if "stopped" not in row]
    return {
        "nats": measure.spread([row["nats"] for row in rows]),
        "bar": measure.spread([row["bar"] for row in rows]),
        "train": measure.spread([row["train"]["nats"] for row in rows]),
        "average": measure.spread([row["average"]["nats"] for row in rows]),
        "sandwich_gap": measure.spread(
            [
                row["sandwich"]["upper"]["log_z"] - row["sandwich"]["lower"]["log_z"]
                for row in rows
            ]
        ),
        "warned": sum(row["warned"] for row in rows),
        "runs": len(rows),
    }


if __name__ == "__main__":
    per_step = milliseconds()
    print(per_step, flush=True)
    num_steps = {name: round(1e3 * SECONDS / ms) for name, ms in per_step.items()}
    tried = measure.by_two_processes(
        outcome,
        [
            (name, kind, rate, num_steps[name], 0, "valid")
            for name, settings in GRID.items()
            for kind, rate in settings
        ],
    )
    best = chosen(tried)
    finals = measure.by_two_processes(
        outcome,
        [
            (name, *best[name], num_steps[name], seed, "held out")
            for seed, name in itertools.product(SEEDS, GRID)
        ],
    )
    measure.write(
        "digits",
        {
            "seconds": SECONDS,
            "milliseconds_per_step": per_step,
            "steps": num_steps,
            "radius": RADIUS,
            "average_decay": DECAY,
            "validation": tried,
            "chosen": best,
            "held_out": {
                name: spread([row for row in finals if row["method"] == name])
                for name in GRID
            },
            "finals": finals,
        },
    )
