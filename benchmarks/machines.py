"""RBMs of clustered binary data: the likelihood against enumeration, and rbms' PCD.

`python -m benchmarks.machines`. Six prototypes of 60 bits at unequal masses, 3 % of the
bits flipped: modes that Gibbs chains do not leave. 12 hidden units, so that `log Z` is
a sum. All methods take the same steps: 1,024 chains, one sweep, batches of 500.
"""

import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax

import effgen as eg
from benchmarks import measure
from effgen import ebm


VISIBLE = 60
HIDDEN = 12
NUM_MODES = 6
FLIPS = 0.03
NUM_DATA = 6_000
NUM = 1_024
BATCH = 500
NUM_STEPS = 5_000
RATE = 0.05
WARM_UP = 1_000
SEEDS = range(3)


def rate(step):
    """Up, so that waiting blocks can follow the first fast steps, and down to zero."""
    up = jnp.minimum(step / WARM_UP, 1.0)
    return RATE * up * jnp.minimum((NUM_STEPS - step) / (NUM_STEPS - WARM_UP), 1.0)


def data(key):
    """Return rows to train on, rows held out, the prototypes and their masses."""
    keys = jax.random.split(key, 3)
    prototypes = jax.random.bernoulli(keys[0], 0.5, (NUM_MODES, VISIBLE))
    masses = jnp.arange(1.0, NUM_MODES + 1) / jnp.arange(1, NUM_MODES + 1).sum()
    modes = jax.random.choice(keys[1], NUM_MODES, (NUM_DATA + 2_000,), p=masses)
    flips = jax.random.bernoulli(keys[2], FLIPS, (len(modes), VISIBLE))
    rows = (prototypes[modes] ^ flips).astype(jnp.float32)
    return rows[:NUM_DATA], rows[NUM_DATA:], prototypes.astype(jnp.float32), masses


def bias_of(x):
    return jax.scipy.special.logit(jnp.clip(x.mean(0), 0.01, 0.99))


def figures(rbm, held_out, prototypes, masses, chains, weights):
    """Return the exact held-out likelihood, and how far the modes' masses are off."""
    log_z = rbm.log_partition()
    distances = jnp.abs(chains[:, None] - prototypes[None]).sum(-1)
    nearest = jnp.argmin(distances, axis=1)
    found = jax.ops.segment_sum(weights, nearest, NUM_MODES)
    return {
        "log_likelihood": float(-jax.vmap(rbm)(held_out).mean() - log_z),
        "mass_error_of_the_chains": float(0.5 * jnp.abs(found - masses).sum()),
        "mass_error_of_the_model": float(
            0.5 * jnp.abs(exact_masses(rbm, prototypes) - masses).sum()
        ),
    }


def exact_masses(rbm, prototypes):
    """Return the modes' masses by summing over all hidden states.

    Given its hidden state the model is a product, whose mean is rounded to a prototype.
    """
    codes = jnp.arange(2**HIDDEN)
    hidden = ((codes[:, None] >> jnp.arange(HIDDEN)[None]) & 1).astype(jnp.float32)
    fields = rbm.visible_bias[None] + hidden @ rbm.weights.T
    logs = hidden @ rbm.hidden_bias + jax.nn.softplus(fields).sum(1)
    means = jax.nn.sigmoid(fields)
    nearest = jnp.argmin(jnp.abs(means[:, None] - prototypes[None]).sum(-1), axis=1)
    return jax.ops.segment_sum(jax.nn.softmax(logs), nearest, NUM_MODES)


def contestants(bias, key):
    """Name each of our methods: its trainer and its memory."""
    keys = jax.random.split(key)
    optim, kernel = optax.sgd(rate), ebm.BlockGibbs()
    walkers = ebm.Walkers.from_bernoulli(keys[0], NUM, bias)
    many = ebm.Walkers.from_bernoulli(keys[0], 16 * NUM, bias)
    watching = ebm.Walkers.from_bernoulli(keys[1], 16 * NUM, bias)
    audit = ebm.Reservoir.from_walkers(watching, block_size=NUM)
    reservoir = ebm.Reservoir.from_walkers(many, block_size=NUM)
    jarzynski = ebm.JarzynskiTrainer(optim, kernel=kernel, radius=0.2)
    return {
        "Jarzynski, 16 blocks": (jarzynski, ebm.Audited(reservoir, audit)),
        "Jarzynski, 1 block": (jarzynski, ebm.Audited(walkers, audit)),
        "PCD": (ebm.PCDTrainer(optim, kernel=kernel), ebm.Audited(walkers, audit)),
        "CD-2": (ebm.CDTrainer(optim, kernel=kernel, num_moves=2), audit),
    }


def ours(name, seed):
    """Train one of our methods; return how good it is."""
    keys = jax.random.split(jax.random.key(seed), 5)
    train, held_out, prototypes, masses = data(keys[0])
    bias = bias_of(train)
    trainer, memory = contestants(bias, keys[1])[name]
    rbm = ebm.RBM.independent(bias, HIDDEN, key=keys[2], scale=0.01)
    state = trainer.init(rbm, memory)
    began = time.perf_counter()
    state, _ = eg.fit(
        trainer, state, eg.Minibatches(train, BATCH), key=keys[3], num_steps=NUM_STEPS
    )
    row = {"seconds": time.perf_counter() - began}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", eg.RunWarning)  # the figures tell as much
        density = ebm.NormalizedEnergy.from_state(state)
    kept = state.memory.walkers
    kept = kept if isinstance(kept, ebm.Walkers | ebm.Reservoir) else None
    chains, weights = ebm.weighted_samples(state, kept)
    row |= figures(state.model, held_out, prototypes, masses, chains, weights)
    row["audit_error"] = float(density.log_partition - state.model.log_partition())
    row["audit_standard_error"] = float(density.standard_error)
    print(name, seed, row, flush=True)
    return row


def rbms_pcd(seed):
    """Train with rbms' own PCD steps; it is left its centered gradient."""
    import torch
    from rbms.bernoulli_bernoulli.classes import BBRBM
    from rbms.training.pcd import fit_batch_pcd

    keys = jax.random.split(jax.random.key(seed), 5)
    train, held_out, prototypes, masses = data(keys[0])
    torch.manual_seed(seed)
    rows = torch.tensor(np.array(train))
    weights = 0.01 * torch.randn(VISIBLE, HIDDEN)
    bias = torch.tensor(np.array(bias_of(train)))
    params = BBRBM(weights, bias, torch.zeros(HIDDEN))
    optim = torch.optim.SGD(params.parameters(), lr=RATE, maximize=True)
    rates = np.asarray(jax.vmap(rate)(jnp.arange(NUM_STEPS + 1))) / RATE
    decay = lambda i: float(rates[i])
    schedule = torch.optim.lr_scheduler.LambdaLR(optim, decay)
    for parameter in params.parameters():
        parameter.grad = torch.zeros_like(parameter)
    chains = params.init_chains(NUM)
    began = time.perf_counter()
    for _ in range(NUM_STEPS):
        batch = rows[torch.randint(len(rows), (BATCH,))]
        optim.zero_grad(set_to_none=False)
        chains, _ = fit_batch_pcd((batch, torch.ones(BATCH)), chains, params, 1, 1.0)
        optim.step()
        schedule.step()
    row = {"seconds": time.perf_counter() - began}
    rbm = ebm.RBM(
        *(
            jnp.asarray(x.detach().numpy())
            for x in (params.weight_matrix, params.vbias, params.hbias)
        )
    )
    equal = jnp.full(NUM, 1 / NUM)
    visible = jnp.asarray(chains["visible"].numpy())
    row |= figures(rbm, held_out, prototypes, masses, visible, equal)
    print("rbms", seed, row, flush=True)
    return row


if __name__ == "__main__":
    bias = jnp.zeros(VISIBLE)
    quality = {
        name: measure.by_seed([ours(name, seed) for seed in SEEDS])
        for name in contestants(bias, jax.random.key(0))
    }
    quality["rbms, PCD"] = measure.by_seed([rbms_pcd(seed) for seed in SEEDS])
    sweeps = {"walkers": "1,024 one sweep a step", "CD-2": "500 two sweeps a step"}
    measure.write("machines", {"steps": NUM_STEPS, "work": sweeps, "quality": quality})
