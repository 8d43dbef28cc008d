"""Two far modes in 50 dimensions, the paper's first experiment, with its settings.

`python -m benchmarks.mixture`. Carbone et al. (2023), section 4.1: 10,000 walkers and
data, 8,000 steps, `h = 0.1`. Masses, divergence and `log Z` are known in closed form.
One arm has a quarter of the steps at four times the paper's rates.
"""

import time

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
FASTER = {"Jarzynski, a quarter of the steps": 4}
SEEDS = range(5)


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


def optimizer(faster=1):
    """Return the paper's, or one that many times as fast."""
    rates = {
        "means": optax.sgd(faster * 0.2 / 8 * STEP_SIZE),
        "offset": optax.sgd(faster * STEP_SIZE / 8),
    }
    return optax.multi_transform(rates, lambda _: Mixture("means", "offset"))


def contestants(data, keys):
    """Name each method: its trainer and its memory."""
    kernel, model = ebm.ULA(STEP_SIZE), student(keys[1])
    fresh, audit = model.walkers(keys[3], NUM), model.walkers(keys[4], NUM)
    many = ebm.Reservoir.from_walkers(model.walkers(keys[3], 10 * NUM), block_size=NUM)
    jarzynski = ebm.JarzynskiTrainer(optimizer(), kernel=kernel)
    quick = ebm.JarzynskiTrainer(
        optimizer(FASTER["Jarzynski, a quarter of the steps"]), kernel=kernel
    )
    from_data = ebm.Walkers.from_samples(data)
    return {
        "Jarzynski": (jarzynski, ebm.Audited(fresh, audit)),
        "Jarzynski, a quarter of the steps": (quick, ebm.Audited(fresh, audit)),
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
    batches, num_steps = eg.Minibatches(data, NUM), NUM_STEPS // FASTER.get(name, 1)
    began = time.perf_counter()
    state, history = eg.fit(trainer, state, batches, key=keys[2], num_steps=num_steps)
    model, truth = state.model, teacher()
    density = lambda m: -jax.vmap(m)(data) - m.log_partition
    row = {
        "mass_of_the_first_mode": float(model.masses[0]),
        "its_share_in_the_data": float(jnp.mean(data[:, 0] < -2)),
        "mass_error": float(jnp.abs(model.masses[0] - 0.25)),
        "empirical_divergence": float(jnp.mean(density(truth) - density(model))),
        "seconds": time.perf_counter() - began,
    }
    if isinstance(state.memory, ebm.Audited) and state.memory.audit is not None:
        audited = ebm.NormalizedEnergy.from_state(state)
        row["audit_error"] = float(audited.log_partition - model.log_partition)
        row["audit_standard_error"] = float(audited.standard_error)
        row["training_error"] = float(np.asarray(history["audit_gap"])[-1])
        row["training_error"] += row["audit_error"]
    print(name, seed, row, flush=True)
    return row


if __name__ == "__main__":
    names = ("Jarzynski", *FASTER, "Jarzynski, reservoir of 10 blocks", "PCD", "CD-1")
    rows = {name: measure.by_seed([quality(name, s) for s in SEEDS]) for name in names}
    evaluations = {
        "Jarzynski": "2 walkers and 1 datum a walker's step; the audit 1 more",
        "PCD": "2 walkers and 1 datum a walker's step",
        "CD-1": "3 walkers and 1 datum a walker's step",
    }
    measure.write("mixture", {"quality": rows, "evaluations": evaluations})
