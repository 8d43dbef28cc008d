"""A neural energy of four modes in the plane, where everything can be integrated.

`python -m benchmarks.plane`. Every method has PCD's budget: 1,024 moves of chains a
step, 10,000 steps. Divergence, masses and `log Z` are sums over a fine grid.
"""

import time
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import effgen as eg
from benchmarks import measure
from effgen import ebm


MASSES = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
CENTERS = 2.0 * np.array([[1, 0], [0, 1], [-1, 0], [0, -1]], np.float32)
SPREAD = 0.35
BATCH = 256
NUM = 1024
NUM_BLOCKS = 128
NUM_STEPS = 10_000
SCALE = 3.0
RATE = 1e-3
STEP_SIZE = 0.03
SEEDS = range(5)


def draw(key):
    """Return a batch of the data, which never repeat."""
    keys = jax.random.split(key)
    modes = jax.random.choice(keys[0], 4, (BATCH,), p=jnp.asarray(MASSES))
    noise = SPREAD * jax.random.normal(keys[1], (BATCH, 2))
    return jnp.asarray(CENTERS)[modes] + noise


def grid():
    """Return the points of a fine grid, the area of each, and the true log-density."""
    line = np.linspace(-8, 8, 801)
    points = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    squares = ((points[:, None] - CENTERS[None]) ** 2).sum(-1)
    logs = np.log(MASSES) - squares / (2 * SPREAD**2) - np.log(2 * np.pi * SPREAD**2)
    truth = np.logaddexp.reduce(logs, axis=1)
    return points, (line[1] - line[0]) ** 2, truth, squares.argmin(1)


def figures(energies):
    """Return exact divergence, masses and `log Z` of energies on the grid."""
    _, area, truth, modes = grid()
    energies = np.asarray(energies, np.float64)
    log_z = np.logaddexp.reduce(-energies) + np.log(area)
    p = np.exp(truth) * area
    q = np.exp(-energies - log_z) * area
    masses = np.bincount(modes, q, 4)
    return {
        "divergence": float(np.sum(p * (truth + energies + log_z))),
        "largest_mass_error": float(np.abs(masses - MASSES).max()),
        "log_partition": float(log_z),
    }


@eqx.filter_jit
def on(model, points):
    """Return the energies of a model on the grid."""
    return jax.vmap(model)(points)


def contestants(key):
    """Name each of our methods: its trainer, its memory, its number of steps."""
    keys = jax.random.split(key)
    rate = lambda steps: optax.adam(optax.linear_schedule(RATE, 0.0, steps))
    kernel = ebm.ULA(STEP_SIZE)
    fresh = ebm.Walkers.from_gaussian(keys[0], NUM, (2,), scale=SCALE)
    many = ebm.Walkers.from_gaussian(keys[0], NUM_BLOCKS * NUM, (2,), scale=SCALE)
    # Begun from afar, a chain must arrive before it is replaced: few, of many moves.
    fewer = ebm.Walkers.from_gaussian(keys[0], NUM // 8, (2,), scale=SCALE)
    watching = ebm.Walkers.from_gaussian(keys[1], 32 * NUM, (2,), scale=SCALE)
    audit = ebm.Reservoir.from_walkers(watching, block_size=NUM)
    reservoir = ebm.Reservoir.from_walkers(many, block_size=NUM)
    optim = rate(NUM_STEPS)
    return {
        f"Jarzynski, {NUM_BLOCKS} blocks": (
            ebm.JarzynskiTrainer(optim, kernel=kernel),
            ebm.Audited(reservoir, audit),
        ),
        "Jarzynski, 1 block": (
            ebm.JarzynskiTrainer(optim, kernel=kernel),
            ebm.Audited(fresh, audit),
        ),
        "PCD": (ebm.PCDTrainer(optim, kernel=kernel), ebm.Audited(fresh, audit)),
        "PCD, 5 % restarts": (
            ebm.PCDTrainer(
                optim, kernel=kernel, num_moves=8, restarts=0.05, restart_scale=SCALE
            ),
            ebm.Audited(fewer, audit),
        ),
        "CD-4": (ebm.CDTrainer(optim, kernel=kernel, num_moves=4), audit),
        "score matching": (
            ebm.ScoreMatchingTrainer(optim, kernel=kernel, noise_scale=0.1),
            audit,
        ),
    }


EVALUATIONS = {  # of the energy, walkers' and data's alike, without the audit's
    f"Jarzynski, {NUM_BLOCKS} blocks": 2 * NUM + BATCH,
    "Jarzynski, 1 block": 2 * NUM + BATCH,
    "PCD": 2 * NUM + BATCH,
    "PCD, 5 % restarts": NUM + NUM // 8 + BATCH + 6,
    "CD-4": 6 * BATCH + BATCH,
    "score matching": 2 * BATCH,
    "torchebm, PCD": 2 * NUM + NUM,
}


def ours(name, seed):
    """Train one of our methods; return how good it is."""
    keys = jax.random.split(jax.random.key(seed), 3)
    trainer, memory = contestants(keys[0])[name]
    energy = ebm.mlp_energy((2,), key=keys[1], width_size=64, scale=SCALE)
    state = trainer.init(energy, memory)
    began = time.perf_counter()
    state, _ = eg.fit(trainer, state, draw, key=keys[2], num_steps=NUM_STEPS)
    row = {"seconds": time.perf_counter() - began}
    points = jnp.asarray(grid()[0], jnp.float32)
    row |= figures(on(state.model, points))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", eg.RunWarning)  # the figures tell as much
        density = ebm.NormalizedEnergy.from_state(state)
    row["audit_error"] = float(density.log_partition) - row.pop("log_partition")
    row["audit_standard_error"] = float(density.standard_error)
    row["errors_in_bars"] = abs(row["audit_error"]) / row["audit_standard_error"]
    print(name, seed, row, flush=True)
    return row


def torchebm_pcd(seed):
    """Train torchebm's PCD on the same energy, moves and steps."""
    import torch
    from torchebm.core import BaseModel
    from torchebm.losses import PersistentContrastiveDivergence
    from torchebm.samplers import LangevinDynamics

    class Energy(BaseModel):
        def __init__(self):
            super().__init__()
            layers = [torch.nn.Linear(2, 64), torch.nn.SiLU()]
            layers += [torch.nn.Linear(64, 64), torch.nn.SiLU()]
            self.network = torch.nn.Sequential(*layers, torch.nn.Linear(64, 1))
            torch.nn.init.zeros_(self.network[-1].weight)
            torch.nn.init.zeros_(self.network[-1].bias)

        def forward(self, x):
            return 0.5 * (x**2).sum(-1) / SCALE**2 + self.network(x).squeeze(-1)

    torch.manual_seed(seed)
    energy = Energy()
    sampler = LangevinDynamics(energy, step_size=STEP_SIZE)
    # It moves as many chains as there are data in the batch, and so gets more data.
    loss_of = PersistentContrastiveDivergence(
        energy,
        sampler,
        k_steps=1,
        buffer_size=NUM,
        init_steps=0,
        energy_reg_weight=0.0,
    )
    optim = torch.optim.Adam(energy.parameters(), lr=RATE)
    decay = lambda i: 1 - i / NUM_STEPS
    schedule = torch.optim.lr_scheduler.LambdaLR(optim, decay)
    masses, centers = torch.tensor(MASSES), torch.tensor(CENTERS)
    began = time.perf_counter()
    for _ in range(NUM_STEPS):
        modes = torch.multinomial(masses, NUM, replacement=True)
        x = centers[modes] + SPREAD * torch.randn(NUM, 2)
        loss, _ = loss_of(x)
        optim.zero_grad()
        loss.backward()
        optim.step()
        schedule.step()
    row = {"seconds": time.perf_counter() - began}
    with torch.no_grad():
        row |= figures(energy(torch.tensor(grid()[0], dtype=torch.float32)).numpy())
    row.pop("log_partition")
    print("torchebm", seed, row, flush=True)
    return row


if __name__ == "__main__":
    quality = {
        name: measure.by_seed([ours(name, seed) for seed in SEEDS])
        for name in contestants(jax.random.key(0))
    }
    quality["torchebm, PCD"] = measure.by_seed([torchebm_pcd(s) for s in SEEDS])
    measure.write(
        "plane",
        {
            "evaluations_per_step": EVALUATIONS,
            "steps": NUM_STEPS,
            "quality": quality,
        },
    )
