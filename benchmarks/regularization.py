"""What regularization is worth: held-out nats of the digits, and what PCD is told.

`python -m benchmarks.regularization [steps [seeds]]`. The digits of `benchmarks.digits`
with 8 moves a step and as many steps as it takes, by which the images are
learned by heart. Each arm changes one thing: the model is averaged; the images get more
noise than those that the likelihood is of; weights decay; training stops by the
likelihood of the validation part. That is one of fresh walkers, annealed at every
hundredth step, for the audit's are worn out by then. Every likelihood in the table is
one of fresh walkers, annealed after training. PCD is watched by audit walkers: the
claims on its way are set beside long annealing. Values only: no seconds are measured.
"""

import sys
import warnings

import jax
import numpy as np
import optax

import effgen as eg
from benchmarks import measure
from benchmarks.digits import (
    BATCH,
    DECAY,
    NUM_MOVES,
    NUM_WALKERS,
    RADIUS,
    SHAPE,
    annealed,
    problem,
)
from demo import energy as demo
from demo.images import NoisyImages
from effgen import ebm


RATE = 1e-2
NUM_AUDIT = 64
NUM_STEPS = 2_600
EVERY = 100
PATIENCE = 5
NUM_CHECKED = 5
ARMS = {
    "none": {},
    "noise 0.35": {"noise": 0.35},
    "noise 0.4": {"noise": 0.4},
    "weight decay 0.3": {"weight_decay": 0.3},
    "weight decay 1": {"weight_decay": 1.0},
    "stopped early": {"stopped": True},
}


def begun(num_steps, seed, *, noise=demo.NOISE, weight_decay=0.0, stopped=False):
    """Return an arm's trainer, state and data, and the key of its steps."""
    task = problem()
    keys = jax.random.split(jax.random.key(seed), 4)
    # Who stops by the likelihood does not know for how many steps to plan.
    plan = optax.linear_schedule(RATE, 0.0, num_steps)
    rate = RATE if stopped else plan
    optim = optax.contrib.muon(rate, weight_decay=weight_decay)
    trainer = ebm.JarzynskiTrainer(
        optim, kernel=demo.KERNEL, radius=RADIUS, num_moves=NUM_MOVES
    )
    state = trainer.init(demo.energy(task, keys[2]), populations(keys[:2]))
    batches = eg.Minibatches(task.train, BATCH)
    return trainer, state, NoisyImages(batches, task.coordinates, noise), keys[3]


def populations(keys):
    sizes = NUM_WALKERS, NUM_AUDIT
    both = zip(keys, sizes, strict=True)
    return ebm.Audited(*(ebm.Walkers.from_gaussian(k, n, SHAPE) for k, n in both))


def fresh_density(state):
    """Return the density of a state by fresh walkers, the same for every state."""
    return demo.annealed_density(state.evaluated, problem(), jax.random.key(8))


def hidden():
    """Return the validation part, noised and whitened."""
    task = problem()
    return demo.noised(task, task.valid, jax.random.key(7))


def outcome(setting):
    """Train one arm; return its held-out nats, with the weights and their average."""
    name, num_steps, seed = setting
    trainer, state, data, key = begun(num_steps, seed, **ARMS[name])
    run = eg.train(trainer, state, data, key=key, num_steps=num_steps, every=EVERY)
    run = eg.averaged(run, DECAY)
    row = {"arm": name, "seed": seed}
    if ARMS[name].get("stopped"):
        found = ebm.early_stopped(
            run, hidden(), patience=PATIENCE, density=fresh_density
        )
        state = found.state
        row |= {"stopped_at": int(state.step), "seen": seen(found)}
    else:
        state, _ = eg.drain(run)
    task = problem()
    held_out = {"held out": task.held_out}
    images = held_out | {"train": task.train[:1000]}
    row |= annealed(state.model, images, seed)
    row["average"] = annealed(state.average, held_out, seed)["held out"]
    print(row, flush=True)
    return row


def seen(found):
    """Return what early stopping saw, step by step, in nats of images."""
    shift = float(problem().coordinates.log_determinant)
    rows = zip(
        found.steps, found.likelihoods, found.errors, found.believed, strict=True
    )
    return [
        {"step": step, "claim": value + shift, "bar": bar, "believed": believed}
        for step, value, bar, believed in rows
    ]


def watched_pcd(setting):
    """Train PCD under an audit; return its claims beside long annealing."""
    num_steps, seed = setting
    task = problem()
    keys = jax.random.split(jax.random.key(seed), 4)
    optim = optax.contrib.muon(optax.linear_schedule(RATE, 0.0, num_steps))
    trainer = ebm.PCDTrainer(optim, kernel=demo.KERNEL, num_moves=NUM_MOVES)
    state = trainer.init(demo.energy(task, keys[2]), populations(keys[:2]))
    batches = eg.Minibatches(task.train, BATCH)
    data = NoisyImages(batches, task.coordinates, demo.NOISE)
    every = max(1, num_steps // NUM_CHECKED)
    run = eg.train(trainer, state, data, key=keys[3], num_steps=num_steps, every=every)
    rows, x, shift = [], hidden(), float(task.coordinates.log_determinant)
    for state, _ in run:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", eg.RunWarning)
            density = ebm.NormalizedEnergy.from_state(state)
        row = {
            "step": int(state.step),
            "claim": float(density.log_likelihood(x).value) + shift,
            "bar": float(density.standard_error),
            "believed": not caught,
        }
        told = annealed(state.model, {"valid": task.valid}, seed)["valid"]
        rows.append(row | {"annealed": told})
        print("PCD", seed, rows[-1], flush=True)
    return {"seed": seed, "rows": rows}


def summary(rows):
    """Return the spread over seeds of each arm's nats, and of its gain over none."""
    table = {}
    plain = {row["seed"]: row["held out"]["nats"] for row in rows if not arm_of(row)}
    for name in ARMS:
        own = [row for row in rows if row["arm"] == name]
        for part in ("held out", "average", "train"):
            values = [row[part]["nats"] for row in own]
            table.setdefault(name, {})[part] = measure.spread(values)
        gains = [row["held out"]["nats"] - plain[row["seed"]] for row in own]
        table[name]["gain"] = measure.spread(gains)
        table[name]["bar"] = float(np.median([row["held out"]["bar"] for row in own]))
    return table


def arm_of(row):
    return ARMS[row["arm"]]


if __name__ == "__main__":
    steps = int(sys.argv[1]) if sys.argv[1:] else NUM_STEPS
    seeds = range(int(sys.argv[2]) if sys.argv[2:] else 3)
    arms = measure.by_two_processes(
        outcome, [(name, steps, seed) for seed in seeds for name in ARMS]
    )
    pcd = measure.by_two_processes(watched_pcd, [(steps, seed) for seed in seeds])
    measure.write(
        "regularization",
        {
            "steps": steps,
            "rate": RATE,
            "moves": NUM_MOVES,
            "walkers": NUM_WALKERS,
            "radius": RADIUS,
            "average_decay": DECAY,
            "arms": summary(arms),
            "runs": arms,
            "pcd": pcd,
        },
    )
