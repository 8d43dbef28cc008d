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


ROUNDS = 5
NUM_STEPS = 10_000
WARM_UP = 5_000
BLOCK = 1_000
SIZE = 16


def work(num):
    """Return a function of how many steps to take with `num` walkers."""
    keys = jax.random.split(jax.random.key(0), 3)
    energy = ebm.mlp_energy((SIZE,), key=keys[0], width_size=64)
    walkers = ebm.Walkers.from_gaussian(keys[1], num, (SIZE,))
    trainer = ebm.JarzynskiTrainer(optax.adam(1e-5), kernel=ebm.ULA(1e-2))
    memory = ebm.Reservoir.from_walkers(walkers, block_size=BLOCK)
    state = trainer.init(energy, memory)
    x = eg.Minibatches(jax.random.normal(keys[2], (10_000, SIZE)), 256)

    def steps(count):
        return eg.fit(trainer, state, x, key=jax.random.key(0), num_steps=count)[0]

    return steps


def seconds_under_way(steps):
    """Return what `NUM_STEPS` take once a run has found its pace."""
    short = measure.seconds(lambda: steps(WARM_UP))
    return measure.seconds(lambda: steps(WARM_UP + NUM_STEPS)) - short


if __name__ == "__main__":
    works = {str(10**n): work(10**n) for n in (3, 4, 5, 6)}
    for steps in works.values():
        steps(WARM_UP)  # compiles
    times = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, steps in works.items():
            times[name].append(seconds_under_way(steps))
            print(name, times[name][-1], flush=True)
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
