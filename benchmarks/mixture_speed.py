"""Speed on the mixture, against an equal-work PyTorch loop.

`python -m benchmarks.mixture_speed`. Both take the same step: one value-and-gradient of
10,000 walkers, one gradient of the contrast, exact weights, systematic resampling.
Neither has an audit.
"""

import jax
import numpy as np

import effgen as eg
from benchmarks import measure
from benchmarks.mixture import NUM, STEP_SIZE, optimizer, student, teacher
from effgen import ebm
from effgen.ebm.contract.energy import evaluate
from effgen.ebm.training.learning import contrast


ROUNDS = 7
NUM_STEPS = 500


def ours(data, start):
    """Return a function that takes a round of steps, compiled before."""
    trainer = ebm.JarzynskiTrainer(optimizer(), kernel=ebm.ULA(STEP_SIZE))
    state = trainer.init(student(jax.random.key(1)), start)
    batches = eg.Minibatches(data, NUM)

    def work():
        key = jax.random.key(0)
        return eg.fit(trainer, state, batches, key=key, num_steps=NUM_STEPS)[0]

    return work


def theirs(data, start):
    """Return the same in PyTorch, written plainly from the equations."""
    import torch

    x0, y = torch.tensor(np.array(start.positions)), torch.tensor(np.array(data))

    def energy(means, offset, x):
        offsets = torch.stack([torch.zeros(()), offset])
        logits = x @ means.T - 0.5 * (means**2).sum(1) - offsets
        return 0.5 * (x**2).sum(1) - torch.logsumexp(logits, 1)

    def value_and_grad(means, offset, x):
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            energies = energy(means.detach(), offset.detach(), x)
            (gradients,) = torch.autograd.grad(energies.sum(), x)
        return energies.detach(), gradients

    def work():
        model = student(jax.random.key(1))
        means = torch.tensor(np.array(model.means), requires_grad=True)
        offset = torch.tensor(np.array(model.offset), requires_grad=True)
        optim = torch.optim.SGD(
            [
                {"params": [means], "lr": 0.2 / 8 * STEP_SIZE},
                {"params": [offset], "lr": STEP_SIZE / 8},
            ]
        )
        x, log_weights, h = x0, torch.zeros(NUM), STEP_SIZE
        log_z = torch.zeros(())
        energies, gradients = value_and_grad(means, offset, x)
        for _ in range(NUM_STEPS):
            weights = torch.softmax(log_weights, 0)
            loss = energy(means, offset, y).mean()
            loss = loss - (weights * energy(means, offset, x)).sum()
            optim.zero_grad()
            loss.backward()
            optim.step()
            with torch.no_grad():
                noise = torch.randn_like(x)
                new = x - h * gradients + (2 * h) ** 0.5 * noise
                after, new_gradients = value_and_grad(means, offset, new)
                step = new - x
                log_weights = log_weights + energies - after
                log_weights += 0.5 * (step * (gradients + new_gradients)).sum(1)
                squares = (gradients**2).sum(1) - (new_gradients**2).sum(1)
                log_weights += 0.25 * h * squares
                x, energies, gradients = new, after, new_gradients
                weights = torch.softmax(log_weights, 0)
                if 1 / (weights**2).sum() < 0.5 * NUM:
                    log_z += torch.logsumexp(log_weights, 0) - np.log(NUM)
                    points = (torch.arange(NUM) + torch.rand(())) / NUM
                    index = torch.searchsorted(weights.cumsum(0), points)
                    index = index.clamp(max=NUM - 1)
                    x, energies, gradients = x[index], energies[index], gradients[index]
                    log_weights = torch.zeros(NUM)
        return float(log_z + loss.detach())

    return work


def parts(start):
    """Return what the parts of our step take, in milliseconds."""
    model = student(jax.random.key(1))
    walkers = start.reweighted(model)
    y, weights = walkers.positions, walkers.weights
    works = {
        "noise": (lambda k: jax.random.normal(k, y.shape), (jax.random.key(0),)),
        "value and gradient": (lambda x: evaluate(model, x), (y,)),
        "contrast": (lambda x, w: contrast(model, x, x, w), (y, weights)),
    }
    times = {}
    for name, (function, arguments) in works.items():
        compiled = jax.jit(function)
        work = lambda f=compiled, a=arguments: [f(*a) for _ in range(50)]
        work()
        seconds = sorted(measure.seconds(work) for _ in range(ROUNDS))
        times[name] = 1e3 * seconds[ROUNDS // 2] / 50
    return times


if __name__ == "__main__":
    keys = jax.random.split(jax.random.key(0), 3)
    data = teacher().draw(keys[0], NUM)
    start = student(jax.random.key(1)).walkers(keys[2], NUM)
    times = measure.interleaved(
        {"effgen": ours(data, start), "torch": theirs(data, start)}, rounds=ROUNDS
    )
    measure.write(
        "mixture_speed",
        {
            "steps_per_second": {
                name: NUM_STEPS / float(np.median(seconds))
                for name, seconds in times.items()
            },
            "times_torch": measure.paired_ratio(times["torch"], times["effgen"]),
            "milliseconds_of_ours": parts(start),
        },
    )
