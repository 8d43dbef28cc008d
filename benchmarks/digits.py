"""Held-out nats of handwritten digits after the same seconds, each method tuned alike.

`python -m benchmarks.digits [seconds [seeds]]`. The demo's energy on MNIST's digits of
14 x 14 pixels, 3,500 to train on, 500 to choose each method's best of three settings
by, 1,000 held out. A step is timed first, all methods in turn, on one thread; then each
takes the steps that 100 seconds hold, or so many. Every likelihood is one of fresh
walkers, annealed after training from the Gaussian start. Of the first seed, a run back
from images is set beside it. Two processes of one thread share the work.
"""

import os


os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import itertools
import math
import sys
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
NUM_SEEDS = 5
# Three settings each: Muon's rate and the radius, which weighted walkers need.
GRID = {
    "Jarzynski": [(1e-2, RADIUS), (1e-2, 0.3), (2e-2, 0.3)],
    "PCD": [(5e-3, math.inf), (1e-2, math.inf), (2e-2, math.inf)],
    "CD-8": [(5e-3, math.inf), (1e-2, math.inf), (2e-2, math.inf)],
}
SHAPE = (demo.SIDE**2,)


def problem():
    """Return the digits' three parts and the coordinates."""
    images, _ = digits(demo.SIDE)
    held_out, valid, train = jnp.split(images, [1000, 1500])
    coordinates = ebm.Whitened.of(train, noise=demo.NOISE)
    return demo.Problem(train, held_out, coordinates), valid


def contestant(name, rate, radius, num_steps, key):
    """Return a method's trainer and its memory."""
    keys = jax.random.split(key)
    optim = optax.contrib.muon(optax.linear_schedule(rate, 0.0, num_steps))
    walkers = ebm.Walkers.from_gaussian(keys[0], NUM_WALKERS, SHAPE)
    audit = ebm.Walkers.from_gaussian(keys[1], NUM_AUDIT, SHAPE)
    if name == "Jarzynski":
        trainer = ebm.JarzynskiTrainer(optim, kernel=demo.KERNEL, radius=radius)
        return trainer, ebm.Audited(walkers, audit)
    if name == "PCD":
        return ebm.PCDTrainer(optim, kernel=demo.KERNEL), walkers
    return ebm.CDTrainer(optim, kernel=demo.KERNEL, num_moves=8), None


def begun(name, rate, radius, num_steps, seed):
    """Return a trainer, its first state, its data and the key of its steps."""
    task, _ = problem()
    keys = jax.random.split(jax.random.key(seed), 3)
    trainer, memory = contestant(name, rate, radius, num_steps, keys[0])
    state = trainer.init(demo.energy(task, keys[1]), memory)
    minibatches = eg.Minibatches(task.train, BATCH)
    data = NoisyImages(minibatches, task.coordinates, demo.NOISE)
    return trainer, state, data, keys[2]


def milliseconds():
    """Return what a step of each method takes, in turn."""
    work = {}
    for name in GRID:
        trainer, state, data, key = begun(name, *GRID[name][0], 1000, 0)

        def steps(trainer=trainer, state=state, data=data, key=key):
            return eg.fit(trainer, state, data, key=key, num_steps=CHUNK)[0].model

        work[name] = steps
    times = measure.interleaved(work, rounds=ROUNDS)
    return {name: 1e3 * float(np.median(t)) / CHUNK for name, t in times.items()}


def annealed(model, parts, seed):
    """Return each part's mean log-likelihood, and the bar of `log Z`, of one run."""
    task, _ = problem()
    keys = jax.random.split(jax.random.key(1000 + seed), 3)
    walkers = ebm.Walkers.from_gaussian(keys[0], NUM_FRESH, SHAPE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", eg.RunWarning)
        density = demo.annealed_density(model, walkers, keys[1])
    told, shift = {}, float(task.coordinates.log_determinant)
    for name, images in parts.items():
        x = whitened(task.coordinates, noisy(images, demo.NOISE, keys[2]))
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
    name, rate, radius, num_steps, seed, part = setting
    trainer, state, data, key = begun(name, rate, radius, num_steps, seed)
    run = eg.averaged(
        eg.train(trainer, state, data, key=key, num_steps=num_steps), DECAY
    )
    bound = radius if math.isfinite(radius) else None
    row = {"method": name, "rate": rate, "radius": bound, "seed": seed}
    try:
        for last, _ in run:
            state = last
    except eg.TrainingError as error:
        return row | {"stopped": str(error)[:120], "nats": -math.inf}
    task, valid = problem()
    if part == "valid":
        row |= annealed(state.model, {"valid": valid}, seed)["valid"]
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
    """Return each method's rate and radius of the best validation."""
    best = {}
    for row in rows:
        name = row["method"]
        if name not in best or row["nats"] > best[name]["nats"]:
            best[name] = row
    return {
        name: (row["rate"], row["radius"] or math.inf) for name, row in best.items()
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
    per_step = milliseconds()
    print(per_step, flush=True)
    num_steps = {name: round(1e3 * seconds / ms) for name, ms in per_step.items()}
    tried = measure.by_two_processes(
        outcome,
        [
            (name, *setting, num_steps[name], 0, "valid")
            for name, settings in GRID.items()
            for setting in settings
        ],
    )
    best = chosen(tried)
    finals = measure.by_two_processes(
        outcome,
        [
            (name, *best[name], num_steps[name], seed, "held out")
            for seed, name in itertools.product(seeds, GRID)
        ],
    )
    measure.write(
        "digits",
        {
            "seconds": seconds,
            "milliseconds_per_step": per_step,
            "steps": num_steps,
            "average_decay": DECAY,
            "validation": tried,
            "chosen": {
                name: {"rate": rate, "radius": radius if radius < math.inf else None}
                for name, (rate, radius) in best.items()
            },
            "held_out": {
                name: spread([row for row in finals if row["method"] == name])
                for name in GRID
            },
            "finals": finals,
        },
    )
