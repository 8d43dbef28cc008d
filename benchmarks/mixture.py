"""Two far modes in 50 dimensions, the paper's first experiment, with its settings.

`python -m benchmarks.mixture`. Carbone et al. (2023), section 4.1: 10,000 walkers and
data, 8,000 steps, `h = 0.1`. Masses, divergence and `log Z` are known in closed form.
"""

import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import effgen as eg
from benchmarks import measure
from effgen import ebm


SIZE = 50
NUM = 10_000
NUM_STEPS = 8_000
STEP_SIZE = 0.1
SEEDS = range(5)
ROUNDS = 5
STEPS_A_ROUND = 500


class Mixture(eqx.Module):
    """Two unit Gaussians; the second's mass is `sigmoid(-offset)`."""

    means: jax.Array
    offset: jax.Array

    def __call__(self, x):
        logits = self.means @ x - 0.5 * jnp.sum(self.means**2, axis=1)
        return 0.5 * jnp.sum(x**2) - jax.nn.logsumexp(logits - self._offsets())

    def _offsets(self):
        return jnp.stack([jnp.zeros(()), self.offset])

    @property
    def masses(self):
        return jax.nn.softmax(-self._offsets())

    @property
    def log_partition(self):
        free = jax.nn.logsumexp(-self._offsets())
        return 0.5 * SIZE * jnp.log(2 * jnp.pi) + free

    def draw(self, key, num):
        keys = jax.random.split(key)
        modes = jax.random.choice(keys[0], 2, (num,), p=self.masses)
        return self.means[modes] + jax.random.normal(keys[1], (num, SIZE))

    def walkers(self, key, num):
        """Exact samples of known density."""
        x = self.draw(key, num)
        return ebm.Walkers.from_samples(x, -jax.vmap(self)(x) - self.log_partition)


def teacher():
    axis = jnp.eye(SIZE)[0]
    return Mixture(jnp.stack([-10 * axis, 6 * axis]), -jnp.log(jnp.array(3.0)))


def student(key):
    axis = jnp.eye(SIZE)[0]
    jitter = 0.01 * jax.random.normal(key, (2, SIZE))
    return Mixture(jnp.stack([-0.1 * axis, 0.1 * axis]) + jitter, jnp.zeros(()))


def optimizer():
    rates = {
        "means": optax.sgd(0.2 / 8 * STEP_SIZE),
        "offset": optax.sgd(STEP_SIZE / 8),
    }
    return optax.multi_transform(rates, lambda _: Mixture("means", "offset"))


def contestants(data, keys):
    """Name each method: its trainer and its memory."""
    kernel, model = ebm.ULA(STEP_SIZE), student(keys[1])
    fresh, audit = model.walkers(keys[3], NUM), model.walkers(keys[4], NUM)
    many = ebm.Reservoir.from_walkers(model.walkers(keys[3], 10 * NUM), block_size=NUM)
    jarzynski = ebm.JarzynskiTrainer(optimizer(), kernel=kernel)
    from_data = ebm.Walkers.from_samples(data)
    return {
        "Jarzynski": (jarzynski, ebm.Audited(fresh, audit)),
        "Jarzynski, reservoir of 10 blocks": (jarzynski, ebm.Audited(many, audit)),
        "PCD": (ebm.PCDTrainer(optimizer(), kernel=kernel), from_data),
        "CD-1": (ebm.CDTrainer(optimizer(), kernel=kernel), None),
    }


def quality(name, seed):
    """Train one method with one seed; return how good it is."""
    keys = jax.random.split(jax.random.key(seed), 5)
    data = teacher().draw(keys[0], NUM)
    trainer, memory = contestants(data, keys)[name]
    state = trainer.init(student(keys[1]), memory)
    began = time.perf_counter()
    state, history = eg.fit(
        trainer, state, eg.Minibatches(data, NUM), key=keys[2], num_steps=NUM_STEPS
    )
    model, truth = state.model, teacher()
    density = lambda m: -jax.vmap(m)(data) - m.log_partition
    row = {
        "mass_of_the_first_mode": float(model.masses[0]),
        "its_share_in_the_data": float(jnp.mean(data[:, 0] < -2)),
        "mass_error": float(jnp.abs(model.masses[0] - 0.25)),
        "empirical_divergence": float(jnp.mean(density(truth) - density(model))),
        "seconds": time.perf_counter() - began,
    }
    if isinstance(state.memory, ebm.Audited):
        audited = ebm.NormalizedEnergy.from_state(state)
        row["audit_error"] = float(audited.log_partition - model.log_partition)
        row["audit_standard_error"] = float(audited.standard_error)
        row["training_error"] = float(np.asarray(history["audit_gap"])[-1])
        row["training_error"] += row["audit_error"]
    print(name, seed, row, flush=True)
    return row


def ours(trainer, state, data):
    """Return a function that takes a round of steps, compiled before."""

    def work():
        key = jax.random.key(0)
        return eg.fit(trainer, state, data, key=key, num_steps=STEPS_A_ROUND)[0]

    return work


def theirs(data, start):
    """Return the same in PyTorch, written plainly from the equations."""
    import torch

    torch.set_num_threads(torch.get_num_threads())
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
        for _ in range(STEPS_A_ROUND):
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


def speed() -> dict[str, Any]:
    """Time a weighted step of ours against the PyTorch loop, on equal work."""
    keys = jax.random.split(jax.random.key(0), 3)
    data = teacher().draw(keys[0], NUM)
    model = student(keys[1])
    start = model.walkers(keys[2], NUM)
    trainer = ebm.JarzynskiTrainer(optimizer(), kernel=ebm.ULA(STEP_SIZE))
    state = trainer.init(model, start)
    times = measure.interleaved(
        {
            "effgen": ours(trainer, state, eg.Minibatches(data, NUM)),
            "torch": theirs(data, start),
        },
        rounds=ROUNDS,
    )
    rates = {
        name: STEPS_A_ROUND / float(np.median(seconds))
        for name, seconds in times.items()
    }
    ratio = measure.paired_ratio(times["torch"], times["effgen"])
    return {"steps_per_second": rates, "times_torch": ratio}


if __name__ == "__main__":
    fast = speed()
    print(fast, flush=True)
    names = ("Jarzynski", "Jarzynski, reservoir of 10 blocks", "PCD", "CD-1")
    rows = {name: measure.by_seed([quality(name, s) for s in SEEDS]) for name in names}
    evaluations = {
        "Jarzynski": "2 walkers and 1 datum a walker's step; the audit 1 more",
        "PCD": "2 walkers and 1 datum a walker's step",
        "CD-1": "3 walkers and 1 datum a walker's step",
    }
    measure.write(
        "mixture", {"speed": fast, "quality": rows, "evaluations": evaluations}
    )
