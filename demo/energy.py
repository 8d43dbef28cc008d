"""The energy-based model's part: digits, two trainers, an honest likelihood."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

import effgen as eg
from effgen import ebm

from .images import NoisyImages, Whitening, digits, noisy


SIDE = 14
NOISE = 0.3
NUM_WALKERS = 1024
NUM_HELD_OUT = 1000
NUM_STEPS = 5_000
EVERY = 250
LEARNING_RATE = 1e-4
STEP_SIZE = 0.03  # at first; moves find their own


class Whitened(eqx.Module):
    """A network that sees images, on coordinates that Langevin moves well in."""

    network: eqx.nn.MLP
    whitening: Whitening
    gain: float = eqx.field(static=True)

    def __call__(self, x: Float[Array, " pixels"]) -> Float[Array, ""]:
        """Return the network's value at the image that whitens to `x`."""
        inverse = jax.lax.stop_gradient(self.whitening.inverse)
        return self.network(self.gain * (x @ inverse))


class Outcome(NamedTuple):
    """What one trainer came to."""

    name: str
    state: eg.TrainState
    steps: list[int]
    likelihoods: list[float]
    errors: list[float]
    flattering: list[float]
    seconds: float


class Problem(NamedTuple):
    """The images, split, and the maps to the model's coordinates and back."""

    train: Float[Array, "images pixels"]
    held_out: Float[Array, "images pixels"]
    whitening: Whitening


def problem() -> Problem:
    """Return the digits, 4,000 to train on and 1,000 held out."""
    images, _ = digits(SIDE)
    train, held_out = images[NUM_HELD_OUT:], images[:NUM_HELD_OUT]
    return Problem(train, held_out, Whitening.of(train, NOISE))


def energy(problem: Problem, key: PRNGKeyArray) -> ebm.ConfinedEnergy:
    """Return an energy that starts as the Gaussian of the training images."""
    size = problem.train.shape[1]
    start = ebm.mlp_energy((size,), key=key, width_size=256, depth=2)
    network = Whitened(start.network.layers, problem.whitening, 3.0)
    return ebm.ConfinedEnergy(network, 1.0)


def trainers() -> dict[str, eg.AbstractTrainer]:
    """Return the two methods: the same moves, with and without weights."""
    rate = optax.linear_schedule(LEARNING_RATE, 0.0, NUM_STEPS)
    # Accepted or refused, moves cost no weights as the energy sharpens; and an update
    # that would cost more than a tenth of the walkers is halved.
    optim = optax.adam(rate, b1=0.0)
    kernel = ebm.MALA(ebm.TargetAcceptance(STEP_SIZE))
    return {
        "Jarzynski": ebm.JarzynskiTrainer(optim, kernel=kernel, keep_above=0.9),
        "PCD": ebm.PCDTrainer(optim, kernel=kernel),
    }


def train(
    name: str, trainer: Any, problem: Problem, directory: Path, key: PRNGKeyArray
) -> Outcome:
    """Train, with a bar, a log and checkpoints; measure the held-out likelihood."""
    keys = jax.random.split(key, 5)
    shape = problem.train.shape[1:]
    walkers = [ebm.Walkers.from_gaussian(k, NUM_WALKERS, shape) for k in keys[:2]]
    state = trainer.init(energy(problem, keys[2]), ebm.Audited(*walkers))
    data = NoisyImages(eg.Minibatches(problem.train, 128), problem.whitening, NOISE)
    held_out = problem.whitening(noisy(problem.held_out, NOISE, keys[3]))

    run = eg.train(trainer, state, data, key=keys[4], num_steps=NUM_STEPS, every=EVERY)
    run = eg.logged(eg.progress(run), directory / f"{name.lower()}.jsonl")
    run = eg.checkpointed(run, directory / f"{name.lower()}-checkpoints", every=1_000)
    outcome = Outcome(name, state, [], [], [], [], 0.0)
    began = time.perf_counter()
    for state, metrics in run:
        density = ebm.NormalizedEnergy.from_state(state)
        value, error = density.log_likelihood(held_out)
        shift = problem.whitening.log_determinant
        outcome.steps.append(int(state.step))
        outcome.likelihoods.append(float(value) + shift)
        outcome.errors.append(float(error))
        if "audit_gap" in metrics:  # the training walkers' log Z less the audit's
            claim = outcome.likelihoods[-1] - float(metrics["audit_gap"][-1])
            outcome.flattering.append(claim)
    return outcome._replace(state=state, seconds=time.perf_counter() - began)


def gaussian_likelihood(problem: Problem, key: PRNGKeyArray) -> tuple[float, float]:
    """Return the held-out likelihood of where training starts: one Gaussian."""
    held_out = problem.whitening(noisy(problem.held_out, NOISE, key))
    values = np.asarray(jax.scipy.stats.norm.logpdf(held_out).sum(axis=1))
    error = values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()) + problem.whitening.log_determinant, float(error)


def denoised(
    energy: ebm.ConfinedEnergy, x: Float[Array, "images pixels"], problem: Problem
) -> Float[Array, "images pixels"]:
    """Return the mean image behind each noisy one, by the model (Tweedie's formula).

        image = noisy + NOISE^2 * gradient of the log-density

    taken in the coordinates of images, whatever the model's are.
    """
    scores = -jax.vmap(jax.grad(energy))(x)
    return problem.whitening.undo(x) + NOISE**2 * scores @ problem.whitening.matrix.T
