"""Held-out nats of handwritten digits after the same seconds, each method tuned alike.

`python -m benchmarks.digits [seconds [seeds]]`. The demo's energy on MNIST's digits of
14 x 14 pixels, 3,500 to train on, 500 to choose each method's best of four settings
by, 1,000 held out. A setting is Muon's rate, the trust region's radius, the moves a
step, and the walkers. A step of each is timed first, all in turn, on one thread; then
each takes the steps that 100 seconds hold, or so many. Every likelihood is one of fresh
walkers, annealed after training from the Gaussian start. Of the first seed, a run back
from images is set beside it. Two processes of one thread share the work.
"""

import os


os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import itertools
import math
import sys
import warnings
from typing import NamedTuple

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
NUM_FRESH = 1024
BATCH = 256
DECAY = 0.99
NUM_SEEDS = 5


class Setting(NamedTuple):
    """What is chosen by validation: the rate of Muon, and the walkers' work."""

    rate: float
    num_moves: int
    num_walkers: int
    num_audit: int = 0
    radius: float | None = None


# Four settings each. Contrastive divergence has as many chains as a batch has images.
GRID = {
    "Jarzynski": [
        Setting(1e-2, 1, 1024, num_audit=512, radius=0.1),
        Setting(2e-2, 4, 256, num_audit=128, radius=0.2),
        Setting(1e-2, 8, 256, num_audit=64, radius=0.2),
        Setting(2e-2, 8, 256, num_audit=64, radius=0.2),
    ],
    "PCD": [
        Setting(1e-2, 1, 1024),
        Setting(5e-3, 8, 256),
        Setting(1e-2, 8, 256),
        Setting(2e-2, 8, 256),
    ],
    "CD": [
        Setting(5e-3, 8, BATCH),
        Setting(1e-2, 8, BATCH),
        Setting(2e-2, 8, BATCH),
        Setting(1e-2, 16, BATCH),
    ],
}
SHAPE = (demo.SIDE**2,)


def problem():
    """Return the digits' three parts and the coordinates."""
    images, _ = digits(demo.SIDE)
    held_out, valid, train = jnp.split(images, [1000, 1500])
    coordinates = ebm.Whitened.of(train, noise=demo.NOISE)
    return demo.Problem(train, held_out, coordinates), valid


def contestant(name, setting, num_steps, key):
    """Return a method's trainer and its memory."""
    keys = jax.random.split(key)
    optim = optax.contrib.muon(optax.linear_schedule(setting.rate, 0.0, num_steps))
    moves = {"kernel": demo.KERNEL, "num_moves": setting.num_moves}
    if name == "CD":
        return ebm.CDTrainer(optim, **moves), None
    walkers = ebm.Walkers.from_gaussian(keys[0], setting.num_walkers, SHAPE)
    if name == "PCD":
        return ebm.PCDTrainer(optim, **moves), walkers
    audit = ebm.Walkers.from_gaussian(keys[1], setting.num_audit, SHAPE)
    trainer = ebm.JarzynskiTrainer(optim, radius=setting.radius or math.inf, **moves)
    return trainer, ebm.Audited(walkers, audit)


def begun(name, setting, num_steps, seed):
    """Return a trainer, its first state, its data and the key of its steps."""
    task, _ = problem()
    keys = jax.random.split(jax.random.key(seed), 3)
    trainer, memory = contestant(name, setting, num_steps, keys[0])
    state = trainer.init(demo.energy(task, keys[1]), memory)
    minibatches = eg.Minibatches(task.train, BATCH)
    data = NoisyImages(minibatches, task.coordinates, demo.NOISE)
    return trainer, state, data, keys[2]


def milliseconds():
    """Return what a step of each method and setting takes, all in turn."""
    work = {}
    for name, settings in GRID.items():
        for number, setting in enumerate(settings):
            trainer, state, data, key = begun(name, setting, 1000, 0)

            def steps(trainer=trainer, state=state, data=data, key=key):
                return eg.fit(trainer, state, data, key=key, num_steps=CHUNK)[0].model

            work[name, number] = steps
    times = measure.interleaved(work, rounds=ROUNDS)
    return {arm: 1e3 * float(np.median(t)) / CHUNK for arm, t in times.items()}


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


def outcome(arm):
    """Train once; return the likelihoods of the parts that are asked for."""
    name, number, num_steps, seed, part = arm
    setting = GRID[name][number]
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
    """Return the number of each method's setting of the best validation."""
    ended = [row for row in rows if row["nats"] is not None]
    return {
        name: max(
            (row for row in ended if row["method"] == name), key=lambda row: row["nats"]
        )["setting"]
        for name in GRID
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
    num_steps = {arm: round(1e3 * seconds / ms) for arm, ms in per_step.items()}
    tried = measure.by_two_processes(
        outcome, [(*arm, num_steps[arm], 0, "valid") for arm in per_step]
    )
    best = {name: (name, number) for name, number in chosen(tried).items()}
    finals = measure.by_two_processes(
        outcome,
        [
            (*best[name], num_steps[best[name]], seed, "held out")
            for seed, name in itertools.product(seeds, GRID)
        ],
    )
    measure.write(
        "digits",
        {
            "seconds": seconds,
            "milliseconds_per_step": {n: per_step[arm] for n, arm in best.items()},
            "steps": {n: num_steps[arm] for n, arm in best.items()},
            "average_decay": DECAY,
            "validation": tried,
            "chosen": {n: GRID[n][k]._asdict() for n, (_, k) in best.items()},
            "held_out": {
                name: spread([row for row in finals if row["method"] == name])
                for name in GRID
            },
            "finals": finals,
        },
    )
