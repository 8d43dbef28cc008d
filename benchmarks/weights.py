"""What the weights cost: our weighted step over our unweighted one.

`python -m benchmarks.weights`. A convolutional energy of images, 28 pixels wide; the
same walkers, batch, kernel and optimizer; `JarzynskiTrainer` against `PCDTrainer`.
"""

import jax
import numpy as np
import optax

import effgen as eg
from benchmarks import measure
from effgen import ebm


ROUNDS = 9
NUM_STEPS = 20
NUM = 256
BATCH = 64
SHAPE = (1, 28, 28)


def work(trainer):
    """Return a function that takes a round of steps."""
    keys = jax.random.split(jax.random.key(0), 3)
    energy = ebm.image_energy(SHAPE, key=keys[0])
    state = trainer.init(energy, ebm.Walkers.from_gaussian(keys[1], NUM, SHAPE))
    x = eg.Minibatches(jax.random.normal(keys[2], (1024, *SHAPE)), BATCH)

    def steps():
        return eg.fit(trainer, state, x, key=jax.random.key(0), num_steps=NUM_STEPS)[0]

    return steps


if __name__ == "__main__":
    optim, kernel = optax.adam(1e-4, b1=0.0), ebm.ULA(1e-3)
    bounded = ebm.JarzynskiTrainer(optim, kernel=kernel, radius=0.1)
    contestants = {
        "unweighted": work(ebm.PCDTrainer(optim, kernel=kernel)),
        "weighted": work(ebm.JarzynskiTrainer(optim, kernel=kernel)),
        "weighted, updates bounded": work(bounded),
    }
    times = measure.interleaved(contestants, rounds=ROUNDS)
    measure.write(
        "weights",
        {
            "milliseconds_per_step": {
                name: 1e3 * float(np.median(t)) / NUM_STEPS for name, t in times.items()
            },
            "over_unweighted": {
                name: measure.paired_ratio(t, times["unweighted"])
                for name, t in times.items()
                if name != "unweighted"
            },
        },
    )
