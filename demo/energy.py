"""The energy-based model's part: digits, two trainers, an honest likelihood."""

import time
import warnings
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
NUM_WALKERS = 1024
NUM_HELD_OUT = 1000
NUM_FRESH = 512
NUM_STEPS = 1_200
EVERY = 60
BATCH = 256
GAIN = 3.0
LEARNING_RATE = 1e-2
RADIUS = 0.1
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
    """What one trainer came to."""

    name: str
    state: eg.TrainState
    steps: list[int]
    likelihoods: list[float]
    errors: list[float]
    flattering: list[float]
    warned: list[bool]
    seconds: float
    annealed: tuple[float, float]


class Problem(NamedTuple):
    """The images, split, and the maps to the model's coordinates and back."""

    train: Float[Array, "images pixels"]
    held_out: Float[Array, "images pixels"]
    coordinates: ebm.Whitened


def problem() -> Problem:
    """Return the digits, 4,000 to train on and 1,000 held out."""
    images, _ = digits(SIDE)
    train, held_out = images[NUM_HELD_OUT:], images[:NUM_HELD_OUT]
    return Problem(train, held_out, ebm.Whitened.of(train, noise=NOISE))


def energy(problem: Problem, key: PRNGKeyArray) -> ebm.ConfinedEnergy:
    """Return an energy that starts as the Gaussian of the training images."""
    size = problem.train.shape[1]
    start = ebm.mlp_energy((size,), key=key, width_size=256, depth=2)
    network = Pixels(start.network.layers, problem.coordinates, GAIN)
    return ebm.ConfinedEnergy(network, 1.0)


def trainers() -> dict[str, eg.AbstractTrainer]:
    """Return the two methods: the same moves, with and without weights."""
    # Accepted or refused, moves cost no weights as the energy sharpens; and an update
    # costs at most one walker in a hundred.
    optim = optax.contrib.muon(optax.linear_schedule(LEARNING_RATE, 0.0, NUM_STEPS))
    return {
        "Jarzynski": ebm.JarzynskiTrainer(optim, kernel=KERNEL, radius=RADIUS),
        "PCD": ebm.PCDTrainer(optim, kernel=KERNEL),
    }


def train(
    name: str, trainer: Any, problem: Problem, directory: Path, key: PRNGKeyArray
) -> Outcome:
    """Train, with a bar, a log and checkpoints; measure the held-out likelihood."""
    keys = jax.random.split(key, 5)
    shape = problem.train.shape[1:]
    walkers = [ebm.Walkers.from_gaussian(k, NUM_WALKERS, shape) for k in keys[:2]]
    state = trainer.init(energy(problem, keys[2]), ebm.Audited(*walkers))
    data = NoisyImages(eg.Minibatches(problem.train, BATCH), problem.coordinates, NOISE)
    held_out = hidden(problem, keys[3])

    run = eg.train(trainer, state, data, key=keys[4], num_steps=NUM_STEPS, every=EVERY)
    run = eg.logged(eg.progress(run), directory / f"{name.lower()}.jsonl")
    run = eg.checkpointed(run, directory / f"{name.lower()}-checkpoints", every=400)
    outcome = Outcome(name, state, [], [], [], [], [], 0.0, (0.0, 0.0))
    began = time.perf_counter()
    for state, metrics in run:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            density = ebm.NormalizedEnergy.from_state(state)
        outcome.warned.append(any(w.category is eg.RunWarning for w in caught))
        value, error = density.log_likelihood(held_out)
        shift = float(problem.coordinates.log_determinant)
        outcome.steps.append(int(state.step))
        outcome.likelihoods.append(float(value) + shift)
        outcome.errors.append(float(error))
        if "audit_gap" in metrics:  # the training walkers' log Z less the audit's
            claim = outcome.likelihoods[-1] - float(metrics["audit_gap"][-1])
            outcome.flattering.append(claim)
    seconds = time.perf_counter() - began
    found = annealed_likelihood(problem, state.model, held_out, keys[3])
    return outcome._replace(state=state, seconds=seconds, annealed=found)


def hidden(problem: Problem, key: PRNGKeyArray) -> Float[Array, "images pixels"]:
    """Return the held-out images, noised and whitened."""
    return whitened(problem.coordinates, noisy(problem.held_out, NOISE, key))


def annealed_likelihood(
    problem: Problem, model: Any, held_out: Array, key: PRNGKeyArray
) -> tuple[float, float]:
    """Return the held-out likelihood by fresh walkers, and the bar of its `log Z`."""
    fresh, path = jax.random.split(jax.random.fold_in(key, 1))
    shape = problem.train.shape[1:]
    walkers = ebm.Walkers.from_gaussian(fresh, NUM_FRESH, shape)
    density = annealed_density(model, walkers, path)
    value = float(density.log_likelihood(held_out).value)
    value += float(problem.coordinates.log_determinant)
    return value, float(density.standard_error)


def annealed_density(
    model: Any, walkers: ebm.Walkers, key: PRNGKeyArray
) -> ebm.NormalizedEnergy:
    """Return the density by fresh walkers, annealed from the Gaussian start."""
    models = [gaussian_start(model), model]
    walkers = ebm.annealed(models, walkers, kernel=KERNEL, key=key)
    return ebm.NormalizedEnergy.from_walkers(model, walkers)


def gaussian_start(model: Any) -> Any:
    """Return the energy whose network is zero, of the same parameters else."""
    last = lambda energy: energy.network.network.layers[-1].weight
    return eqx.tree_at(last, model, replace_fn=jnp.zeros_like)


def gaussian_likelihood(problem: Problem, key: PRNGKeyArray) -> tuple[float, float]:
    """Return the held-out likelihood of where training starts: one Gaussian."""
    values = np.asarray(jax.scipy.stats.norm.logpdf(hidden(problem, key)).sum(axis=1))
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
