"""RBMs by the clock: the exact held-out likelihood, and the seconds that it takes.

`python -m benchmarks.machines_time [scale]`. The clustered bits of
`benchmarks.machines`, at several lengths of training each, one thread, compiled before.
The aim: within 0.05 nats of the best of rbms and scikit-learn in half of its seconds. A
`scale` below one shortens all trainings alike, to try the script.
"""

import os


os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import effgen as eg
from benchmarks import machines, measure
from benchmarks.machines import BATCH, HIDDEN, NUM, NUM_DATA, VISIBLE
from effgen import ebm


SCALE = float(sys.argv[1]) if sys.argv[1:] else 1.0
SEEDS = range(3)
CLOSE = 0.05
LENGTHS = {
    "minsr": [250, 500, 1_000, 2_000],
    "sgd": [1_250, 2_500, 5_000],
    "rbms": [2_500, 5_000, 10_000],
    "scikit-learn": [2_500, 5_000, 10_000],
}


def trainer(name, num_steps):
    """Return one of our trainers, its rate down to zero."""
    kernel = ebm.BlockGibbs()
    if name == "minsr":
        optim = ebm.minsr(optax.linear_schedule(0.5, 0.0, num_steps))
        return ebm.JarzynskiTrainer(optim, kernel=kernel, radius=0.1)
    warm = num_steps // 5
    rate = optax.join_schedules(
        [
            optax.linear_schedule(0.0, machines.RATE, warm),
            optax.linear_schedule(machines.RATE, 0.0, num_steps - warm),
        ],
        [warm],
    )
    return ebm.JarzynskiTrainer(optax.sgd(rate), kernel=kernel, radius=0.2)


def ours(name, num_steps, seed, rows):
    """Train with 16 blocks of walkers; return the machine and the seconds."""
    keys = jax.random.split(jax.random.key(seed), 5)
    bias = machines.bias_of(rows)
    many = ebm.Walkers.from_bernoulli(keys[1], 16 * NUM, bias)
    rbm = ebm.RBM.independent(bias, HIDDEN, key=keys[2], scale=0.01)
    method = trainer(name, num_steps)
    state = method.init(rbm, ebm.Reservoir.from_walkers(many, block_size=NUM))
    data = eg.Minibatches(rows, BATCH)
    eg.fit(method, state, data, key=keys[3], num_steps=2)  # compiles
    began = time.perf_counter()
    state, _ = eg.fit(method, state, data, key=keys[3], num_steps=num_steps)
    jax.block_until_ready(state.model)
    return state.model, time.perf_counter() - began


def rbms(num_steps, seed, rows):
    """Train with rbms' own PCD steps on one thread."""
    import torch
    from rbms.bernoulli_bernoulli.classes import BBRBM
    from rbms.training.pcd import fit_batch_pcd

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    bias = torch.tensor(np.array(machines.bias_of(rows)))
    rows = torch.tensor(np.array(rows))
    weights = 0.01 * torch.randn(VISIBLE, HIDDEN)
    params = BBRBM(weights, bias, torch.zeros(HIDDEN))
    optim = torch.optim.SGD(params.parameters(), lr=machines.RATE, maximize=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optim, lambda i: 1 - i / num_steps)
    for parameter in params.parameters():
        parameter.grad = torch.zeros_like(parameter)
    chains = params.init_chains(NUM)
    began = time.perf_counter()
    for _ in range(num_steps):
        batch = rows[torch.randint(len(rows), (BATCH,))]
        optim.zero_grad(set_to_none=False)
        chains, _ = fit_batch_pcd((batch, torch.ones(BATCH)), chains, params, 1, 1.0)
        optim.step()
        schedule.step()
    seconds = time.perf_counter() - began
    found = (params.weight_matrix, params.vbias, params.hbias)
    return ebm.RBM(*(jnp.asarray(x.detach().numpy()) for x in found)), seconds


def scikit(num_steps, seed, rows):
    """Train scikit-learn's BernoulliRBM, whose chains are as many as its batch."""
    from sklearn.neural_network import BernoulliRBM

    passes = max(1, round(num_steps * BATCH / NUM_DATA))
    model = BernoulliRBM(
        HIDDEN,
        learning_rate=machines.RATE,
        batch_size=BATCH,
        n_iter=passes,
        random_state=seed,
    )
    began = time.perf_counter()
    model.fit(np.asarray(rows))
    seconds = time.perf_counter() - began
    found = (model.components_.T, model.intercept_visible_, model.intercept_hidden_)
    return ebm.RBM(*(jnp.asarray(x, jnp.float32) for x in found)), seconds


def outcome(name, num_steps, seed):
    """Return the exact held-out likelihood of one training, and its seconds."""
    key = jax.random.split(jax.random.key(seed), 5)[0]
    train, held_out, _, _ = machines.data(key)
    num_steps = max(2, round(SCALE * num_steps))
    if name in ("minsr", "sgd"):
        rbm, seconds = ours(name, num_steps, seed, train)
    else:
        rbm, seconds = {"rbms": rbms, "scikit-learn": scikit}[name](
            num_steps, seed, train
        )
    nats = float(-jax.vmap(rbm)(held_out).mean() - rbm.log_partition())
    row = {"log_likelihood": nats, "seconds": seconds}
    print(name, num_steps, seed, row, flush=True)
    return row


def aim(table):
    """Return the least seconds of ours close to the best peer's nats, over its own."""
    median = lambda row, figure: row[figure]["median"]
    peers = [table[name][k] for name in ("rbms", "scikit-learn") for k in table[name]]
    best = max(peers, key=lambda row: median(row, "log_likelihood"))
    wanted = median(best, "log_likelihood") - CLOSE
    good = [
        median(row, "seconds")
        for name in ("minsr", "sgd")
        for row in table[name].values()
        if median(row, "log_likelihood") >= wanted
    ]
    seconds = median(best, "seconds")
    return {
        "best_peer": {"log_likelihood": wanted + CLOSE, "seconds": seconds},
        "ours_over_its_seconds": min(good) / seconds if good else None,
    }


if __name__ == "__main__":
    table = {
        name: {
            str(length): measure.by_seed([outcome(name, length, s) for s in SEEDS])
            for length in lengths
        }
        for name, lengths in LENGTHS.items()
    }
    measure.write(
        "machines_time", {"scale": SCALE, "aim": aim(table), "methods": table}
    )
