"""Exact KL in the plane by optimizer: natural gradient steps beside Adam's.

`python -m benchmarks.plane_steps`. The energy, the data and the moves of
`benchmarks.plane`; a step has 1,024 chains moved once. Seeds 0 to 4; the settings of
`minsr` were chosen on seeds 100 and 101. Divergence and masses are sums over a fine
grid, times are whole trainings, compiled before.
"""

import time

import jax
import jax.numpy as jnp
import optax

import effgen as eg
from benchmarks import measure, plane
from effgen import ebm


SEEDS = range(5)
FEW, MANY = 1_000, 10_000
NUM_BLOCKS = 16
RADIUS = 0.1
KERNEL = ebm.ULA(plane.STEP_SIZE)
LINEAR = optax.linear_schedule
MINSR = ebm.minsr(LINEAR(0.5, 0.0, FEW), damping=1e-2, num_samples=128)
ADAM = optax.adam(LINEAR(plane.RATE, 0.0, MANY))
QUICK_ADAM = optax.adam(LINEAR(10 * plane.RATE, 0.0, FEW))
CONTESTANTS = {
    "Jarzynski, minsr": (
        ebm.JarzynskiTrainer(MINSR, kernel=KERNEL, radius=RADIUS),
        NUM_BLOCKS,
        FEW,
    ),
    "Jarzynski, Adam": (
        ebm.JarzynskiTrainer(QUICK_ADAM, kernel=KERNEL, radius=RADIUS),
        NUM_BLOCKS,
        FEW,
    ),
    "PCD, minsr": (
        ebm.PCDTrainer(MINSR, kernel=KERNEL, radius=RADIUS),
        NUM_BLOCKS,
        FEW,
    ),
    "Jarzynski, Adam, ten times the steps": (
        ebm.JarzynskiTrainer(ADAM, kernel=KERNEL),
        plane.NUM_BLOCKS,
        MANY,
    ),
    "PCD, Adam, ten times the steps": (
        ebm.PCDTrainer(ADAM, kernel=KERNEL),
        1,
        MANY,
    ),
}


def trained(trainer, num_blocks, num_steps, seed):
    """Train once; return the seconds and how good the model is."""
    keys = jax.random.split(jax.random.key(seed), 3)
    walkers = ebm.Walkers.from_gaussian(
        keys[0], num_blocks * plane.NUM, (2,), scale=plane.SCALE
    )
    if num_blocks > 1:
        walkers = ebm.Reservoir.from_walkers(walkers, block_size=plane.NUM)
    energy = ebm.mlp_energy((2,), key=keys[1], width_size=64, scale=plane.SCALE)
    state = trainer.init(energy, walkers)
    began = time.perf_counter()
    state, _ = eg.fit(trainer, state, plane.draw, key=keys[2], num_steps=num_steps)
    jax.block_until_ready(jax.tree.leaves(state.memory))
    row = {"seconds": time.perf_counter() - began}
    points = jnp.asarray(plane.grid()[0], jnp.float32)
    row |= plane.figures(plane.on(state.model, points))
    row.pop("log_partition")
    return row


if __name__ == "__main__":
    rows = {name: [] for name in CONTESTANTS}
    for settings in CONTESTANTS.values():
        trained(*settings, 99)  # compiles
    for seed in SEEDS:
        for name, settings in CONTESTANTS.items():
            rows[name].append(trained(*settings, seed))
            print(name, seed, rows[name][-1], flush=True)
    measure.write(
        "plane_steps",
        {
            "radius": RADIUS,
            "steps": {name: settings[2] for name, settings in CONTESTANTS.items()},
            "walkers": {
                name: settings[1] * plane.NUM for name, settings in CONTESTANTS.items()
            },
            "quality": {name: measure.by_seed(found) for name, found in rows.items()},
        },
    )
