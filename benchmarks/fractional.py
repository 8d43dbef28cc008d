"""The paper's runs: what the linear control and the network each do, for two noises.

`python -m benchmarks.fractional`. A double well seen ten times, driven by Brownian
motion and by fractional Brownian motion of Hurst index 0.3 (five processes). The
paper's objective with the network alone, the linear control alone and both; and the
anchored bound, linear and with a network. 32 paths of 200 steps, three seeds, one
learning rate.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import effgen as eg
from benchmarks import measure
from benchmarks.double_well import data, drift
from effgen import neural_sde as ns
from effgen.neural_sde.data.series import as_series


CHECKPOINTS = (0, 25, 100, 400, 1_000)
SEEDS = 3
RATE = 3e-3
HURST = 0.3


def linear_of(noise):
    if noise == "Brownian":
        law = ns.Gaussian.independent(np.zeros(1), 0.5)
        return ns.DiagonalSDE(1.0, 0.0, 0.7, law)
    return ns.FractionalSDE(
        -np.eye(1),
        0.0,
        0.7,
        ns.Gaussian(np.zeros(1), 0.5 * np.eye(1)),
        hurst=HURST,
        horizon=2.0,
        stationary=False,
    )


def model(noise, key):
    linear = linear_of(noise)
    size = linear.initial.mean.shape[0]
    keys = jax.random.split(key)
    push = jnp.zeros(size).at[0].set(1.0)
    return ns.LatentSDE(
        linear,
        ns.LinearDecoder(np.eye(1, size), 0.1),
        drift=lambda t, x: push * drift(t, x[0]),
        residual=ns.residual_network(linear, key=keys[0]),
        control=ns.PlainControl(
            size, 1, key=keys[1], num_brownian=1, learn_start=size == 1
        ),
        t0=0.0,
        frozen=("linear", "decoder"),
    )


def one_control(model, key):
    """Return the model with a residual of one number, as Euler's steps take it."""
    seen = ns.num_features(model.num_states)
    network = ns.zero_at_first(seen, 1, 64, 2, key=key)
    return dataclasses.replace(model, residual=ns.Residual(network))


def contestants(noise, key):
    whole = model(noise, key)
    alone = dataclasses.replace(whole, residual=None)
    single = one_control(whole, key)
    return {
        "paper: network alone": (ns.PlainELBO(), alone),
        "paper: linear alone": (ns.PathELBO(), alone),
        "paper: linear and network": (ns.PathELBO(), single),
        "anchored: linear alone": (ns.AnchoredELBO(), alone),
        "anchored: linear and network": (ns.AnchoredELBO(), whole),
        "anchored, relinearized: both": (
            ns.AnchoredELBO(),
            dataclasses.replace(whole, anchor=ns.RelinearizedAnchor(2)),
        ),
    }


@eqx.filter_jit
def judged(model, series, objective, key):
    one = jax.tree.map(lambda x: x[0], series)
    return objective(
        model, one, num_steps=200, num_paths=4_000, parallel=False, key=key
    ).values.mean()


def curve(objective, model, seed):
    ts, ys = data()
    batch = (jnp.asarray(ts, jnp.float32)[None], jnp.asarray(ys, jnp.float32)[None])
    trainer = ns.LatentSDETrainer(
        optax.adam(RATE), 0.01, num_paths=32, objective=objective
    )
    state = trainer.init(model)
    rows = {}
    for checkpoint in CHECKPOINTS:
        num = checkpoint - int(state.step)
        if num:
            state, _ = eg.fit(
                trainer,
                state,
                eg.Minibatches(batch, 1),
                key=jax.random.key(seed),
                num_steps=num,
                every=num,
            )
        key = jax.random.key(99)
        value = judged(state.model, as_series(batch), objective, key)
        rows[checkpoint] = float(value)
    return rows


if __name__ == "__main__":
    figures = {}
    for noise in ("Brownian", "fractional, H = 0.3"):
        figures[noise] = {}
        for name in contestants(noise, jax.random.key(0)):
            runs = []
            for seed in range(SEEDS):
                objective, start = contestants(noise, jax.random.key(seed))[name]
                runs.append(curve(objective, start, seed))
                jax.clear_caches()  # a process holds only so many programs
            rows = {k: measure.spread([run[k] for run in runs]) for k in CHECKPOINTS}
            figures[noise][name] = rows
            print(noise, name, {k: round(v["median"], 2) for k, v in rows.items()})
            measure.write("fractional", {"rate": RATE, "elbo": figures})
