"""The energy-based model's part: digits, two trainers, stopped by their likelihood."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

import effgen as eg
from effgen import ebm

from .images import NoisyImages, digits, noisy, unwhitened, whitened


SIDE = 14
NOISE = 0.3
NUM_WALKERS = 256
NUM_MOVES = 8
NUM_HELD_OUT = 1000
NUM_VALID = 500
NUM_FRESH = 512
NUM_STEPS = 1_500
EVERY = 250
PATIENCE = 2
BATCH = 256
GAIN = 3.0
LEARNING_RATE = 1e-2
WEIGHT_DECAY = 0.3
AVERAGE = 0.99
RADIUS = 0.2
KERNEL = ebm.MALA(ebm.TargetAcceptance())


class Pixels(eqx.Module):
    """A network that sees images, on coordinates that Langevin moves well in."""

    network: eqx.nn.MLP
    coordinates: ebm.Whitened
    gain: float = eqx.field(static=True)

    def __call__(self, z: Float[Array, " pixels"]) -> Float[Array, ""]:
        """Return the network's value at the image that whitens to `z`."""
        return self.network(self.gain * (self.coordinates.factor @ z))


class Outcome(NamedTuple):
    """What one trainer came to: likelihoods in nats of an image.

    `steps`, `likelihoods` and `errors` are of the validation images, as training went;
    `annealed`, of the held-out images by other walkers, with the bar of its `log Z`;
    `walkers` are these.
    """

    name: str
    state: eg.TrainState
    steps: list[int]
    likelihoods: list[float]
    errors: list[float]
    believed: list[bool]
    seconds: float
    annealed: tuple[float, float]
    walkers: ebm.Walkers


class Problem(NamedTuple):
    """The images, split, and the maps to the model's coordinates and back."""

    train: Float[Array, "images pixels"]
    valid: Float[Array, "images pixels"]
    held_out: Float[Array, "images pixels"]
    coordinates: ebm.Whitened


def problem() -> Problem:
    """Return the digits: 3,500 to train on, 500 to stop by, and 1,000 held out."""
    images, _ = digits(SIDE)
    ends = [NUM_HELD_OUT, NUM_HELD_OUT + NUM_VALID]
    held_out, valid, train = jnp.split(images, ends)
    return Problem(train, valid, held_out, ebm.Whitened.of(train, noise=NOISE))


def energy(problem: Problem, key: PRNGKeyArray) -> ebm.ConfinedEnergy:
    """Return an energy that starts as the Gaussian of the training images."""
    size = problem.train.shape[1]
    start = ebm.mlp_energy((size,), key=key, width_size=256, depth=2)
    network = Pixels(start.network.layers, problem.coordinates, GAIN)
    return ebm.ConfinedEnergy(network, 1.0)


def trainers() -> dict[str, eg.AbstractTrainer]:
    """Return the two methods: the same moves, with and without weights."""
    optim = optax.contrib.muon(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    moves = {"kernel": KERNEL, "num_moves": NUM_MOVES}
    return {
        "Jarzynski": ebm.JarzynskiTrainer(optim, radius=RADIUS, **moves),
        "PCD": ebm.PCDTrainer(optim, **moves),
    }


def train(
    name: str, trainer: Any, problem: Problem, directory: Path, key: PRNGKeyArray
) -> Outcome:
    """Train until the likelihood of the validation images no longer rises."""
    keys = jax.random.split(key, 4)
    shape = problem.train.shape[1:]
    walkers = ebm.Walkers.from_gaussian(keys[0], NUM_WALKERS, shape)
    state = trainer.init(energy(problem, keys[1]), walkers)
    data = NoisyImages(eg.Minibatches(problem.train, BATCH), problem.coordinates, NOISE)

    run = eg.train(trainer, state, data, key=keys[2], num_steps=NUM_STEPS, every=EVERY)
    run = eg.averaged(run, AVERAGE)
    run = eg.logged(eg.progress(run), directory / f"{name.lower()}.jsonl")
    run = eg.checkpointed(run, directory / f"{name.lower()}-checkpoints", every=500)
    began = time.perf_counter()
    found = ebm.early_stopped(
        run,
        noised(problem, problem.valid, keys[3]),
        patience=PATIENCE,
        density=lambda state: annealed_density(state.evaluated, problem, keys[3]),
    )
    seconds = time.perf_counter() - began
    key = jax.random.fold_in(key, 1)
    walkers = annealed_walkers(found.state.evaluated, problem, key)
    shift = float(problem.coordinates.log_determinant)
    return Outcome(
        name,
        found.state,
        found.steps,
        [value + shift for value in found.likelihoods],
        found.errors,
        found.believed,
        seconds,
        held_out_likelihood(problem, found.state.evaluated, walkers, key),
        walkers,
    )


def noised(
    problem: Problem, images: Float[Array, "images pixels"], key: PRNGKeyArray
) -> Float[Array, "images pixels"]:
    """Return images, noised and whitened."""
    return whitened(problem.coordinates, noisy(images, NOISE, key))


def held_out_likelihood(
    problem: Problem, model: Any, walkers: ebm.Walkers, key: PRNGKeyArray
) -> tuple[float, float]:
    """Return the held-out likelihood by walkers of its own, and the bar of `log Z`."""
    density = ebm.NormalizedEnergy.from_walkers(model, walkers)
    value = density.log_likelihood(noised(problem, problem.held_out, key)).value
    bar = float(density.standard_error)
    return float(value) + float(problem.coordinates.log_determinant), bar


def annealed_density(
    model: Any, problem: Problem, key: PRNGKeyArray
) -> ebm.NormalizedEnergy:
    """Return the density by fresh walkers."""
    walkers = annealed_walkers(model, problem, key)
    return ebm.NormalizedEnergy.from_walkers(model, walkers)


def annealed_walkers(model: Any, problem: Problem, key: PRNGKeyArray) -> ebm.Walkers:
    """Return fresh walkers of a model, annealed from the Gaussian start."""
    keys = jax.random.split(key)
    shape = problem.train.shape[1:]
    walkers = ebm.Walkers.from_gaussian(keys[0], NUM_FRESH, shape)
    models = [gaussian_start(model), model]
    return ebm.annealed(models, walkers, kernel=KERNEL, key=keys[1])


def gaussian_start(model: Any) -> Any:
    """Return the energy whose network is zero, of the same parameters else."""
    last = lambda energy: energy.network.network.layers[-1].weight
    return eqx.tree_at(last, model, replace_fn=jnp.zeros_like)


def gaussian_likelihood(problem: Problem, key: PRNGKeyArray) -> tuple[float, float]:
    """Return the held-out likelihood of where training starts: one Gaussian."""
    x = noised(problem, problem.held_out, key)
    values = np.asarray(jax.scipy.stats.norm.logpdf(x).sum(axis=1))
    error = values.std(ddof=1) / np.sqrt(len(values))
    shift = float(problem.coordinates.log_determinant)
    return float(values.mean()) + shift, float(error)


def denoised(
    energy: ebm.ConfinedEnergy, x: Float[Array, "images pixels"], problem: Problem
) -> Float[Array, "images pixels"]:
    """Return the mean image behind each noisy one, by the model (Tweedie's formula).

        image = noisy + NOISE^2 * gradient of the log-density

    taken in the coordinates of images, whatever the model's are.
    """
    scores = -jax.vmap(jax.grad(energy))(x) @ problem.coordinates.matrix.value
    return unwhitened(problem.coordinates, x) + NOISE**2 * scores
