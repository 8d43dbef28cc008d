"""A step's time by the number of walkers, of which it touches one block.

`python -m benchmarks.reservoir`. 16 dimensions, a network of two layers of 64, blocks
of
1,000: from one of them to a thousand.
"""

import jax
import numpy as np
import optax

import effgen as eg
from benchmarks import measure
from effgen import ebm


ROUNDS = 7
NUM_STEPS = 2_000
BLOCK = 1_000
SIZE = 16


def work(num):
    """Return a function that takes a round of steps with `num` walkers."""
    keys = jax.random.split(jax.random.key(0), 3)
    energy = ebm.mlp_energy((SIZE,), key=keys[0], width_size=64)
    walkers = ebm.Walkers.from_gaussian(keys[1], num, (SIZE,))
    trainer = ebm.JarzynskiTrainer(optax.adam(1e-5), kernel=ebm.ULA(1e-2))
    memory = ebm.Reservoir.from_walkers(walkers, block_size=BLOCK)
    state = trainer.init(energy, memory)
    x = eg.Minibatches(jax.random.normal(keys[2], (10_000, SIZE)), 256)

    def steps():
        return eg.fit(trainer, state, x, key=jax.random.key(0), num_steps=NUM_STEPS)[0]

    return steps


if __name__ == "__main__":
    sizes = [10**n for n in (3, 4, 5, 6)]
    times = measure.interleaved({str(n): work(n) for n in sizes}, rounds=ROUNDS)
    measure.write(
        "reservoir",
        {
            "microseconds_per_step": {
                n: 1e6 * float(np.median(t)) / NUM_STEPS for n, t in times.items()
            },
            "over_one_block": {
                n: measure.paired_ratio(t, times["1000"]) for n, t in times.items()
            },
        },
    )
