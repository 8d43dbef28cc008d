"""Held-out nats of three tables: an energy beside a spline flow and a mixture.

`python -m benchmarks.densities`. scikit-learn's digits (8 x 8, gray levels spread over
their step by uniform noise), wine and breast cancer (Gaussian noise of 0.1 standard
deviations, as their values are rounded), whitened by the training rows. Splits 3 : 1 :
1 by the seed. Each method's settings are chosen on split 100 by its validation part;
then each has `SECONDS` on splits 0 to 4, compilation apart, and stops by the validation
part (the flow by one of the same size that flowjax sets aside). Energies and flows are
trained on one thread. The energy's likelihood is that of fresh walkers, annealed after
training from the Gaussian start.
"""

import os


os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import itertools
import time
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets
from sklearn.mixture import GaussianMixture

import effgen as eg
from benchmarks import measure
from effgen import ebm


SECONDS = 20
TUNING_SPLIT = 100
SPLITS = range(5)
NUM_WALKERS = 1024
NUM_FRESH = 2048
RADIUS = 0.1
EVERY = 50
KERNEL = ebm.MALA(ebm.TargetAcceptance())
TABLES = ("digits", "wine", "breast cancer")
GRID = {
    "energy": list(itertools.product([3e-3, 1e-2], [0.0, 3.0], [128])),
    "flow": list(itertools.product([5e-4, 2e-3], [2, 8])),
    "mixture": list(
        itertools.product(
            ["full", "tied", "diag"], [1, 2, 3, 5, 8, 12, 20, 40], [1e-3, 1e-2, 1e-1]
        )
    ),
}


def parts(table, split):
    """Return the training, validation and held-out rows, whitened by the first."""
    rng = np.random.default_rng(split)
    x = {
        "digits": datasets.load_digits,
        "wine": datasets.load_wine,
        "breast cancer": datasets.load_breast_cancer,
    }[table]().data
    if table == "digits":
        x = x + rng.uniform(size=x.shape)
    else:
        x = x / x.std(0) + 0.1 * rng.normal(size=x.shape)
    x = jnp.asarray(x[rng.permutation(len(x))], jnp.float32)
    train, valid, held_out = jnp.split(x, [3 * len(x) // 5, 4 * len(x) // 5])
    coordinates = ebm.Whitened.of(train)
    return [jax.vmap(coordinates)(rows) for rows in (train, valid, held_out)]


def energy(data, setting, split, seconds):
    """Train by weighted walkers; stop by the likelihood that they give."""
    rate, decay, width = setting
    train, valid, held_out = data
    keys = jax.random.split(jax.random.key(split), 6)
    shape = train.shape[1:]
    optim = optax.contrib.muon(rate, weight_decay=decay)
    trainer = ebm.JarzynskiTrainer(optim, kernel=KERNEL, radius=RADIUS)
    walkers = [ebm.Walkers.from_gaussian(k, NUM_WALKERS, shape) for k in keys[:2]]
    start = ebm.mlp_energy(shape, key=keys[2], width_size=width)
    state = trainer.init(start, ebm.Audited(*walkers))
    batches = eg.Minibatches(train, min(256, len(train)))
    run = eg.train(
        trainer, state, batches, key=keys[3], num_steps=1_000_000, every=EVERY
    )
    best, model, steps, began = -np.inf, start, 0, None
    with warnings.catch_warnings(), run:
        warnings.simplefilter("ignore", eg.RunWarning)
        for state, _ in run:
            density = ebm.NormalizedEnergy.from_state(state)
            value = float(density.log_likelihood(valid).value)
            if value > best:
                best, model, steps = value, state.model, int(state.step)
            began = began or time.perf_counter()  # the first chunk compiles
            if time.perf_counter() - began > seconds:
                break
    row = {"valid": best, "steps": int(state.step), "best_step": steps}
    return row | annealed(model, shape, keys[4:], held_out)


def annealed(model, shape, keys, held_out):
    """Return the held-out likelihood by fresh walkers, annealed from the Gaussian."""
    last = lambda tree: tree.network.layers.layers[-1].weight
    start = eqx.tree_at(last, model, replace_fn=jnp.zeros_like)
    walkers = ebm.Walkers.from_gaussian(keys[0], NUM_FRESH, shape)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", eg.RunWarning)
        walkers = ebm.annealed([start, model], walkers, kernel=KERNEL, key=keys[1])
        density = ebm.NormalizedEnergy.from_walkers(model, walkers)
    return {
        "nats": float(density.log_likelihood(held_out).value),
        "bar": float(density.standard_error),
        "warned": bool(caught),
    }


def flow(data, setting, split, seconds):
    """Train a neural spline flow by flowjax; stop by rows that it sets aside itself."""
    from flowjax.bijections import RationalQuadraticSpline
    from flowjax.distributions import Normal
    from flowjax.flows import coupling_flow
    from flowjax.train import fit_to_data

    rate, layers = setting
    train, valid, held_out = data
    keys = jax.random.split(jax.random.key(split), 3)
    model = coupling_flow(
        keys[0],
        base_dist=Normal(jnp.zeros(train.shape[1])),
        transformer=RationalQuadraticSpline(knots=8, interval=4),
        flow_layers=layers,
    )

    def fitted(num_epochs):
        return fit_to_data(
            keys[1],
            model,
            jnp.concatenate([train, valid]),
            val_prop=len(valid) / (len(train) + len(valid)),
            optimizer=optax.adam(rate),
            max_epochs=num_epochs,
            max_patience=num_epochs,
            batch_size=min(128, len(valid)),
            return_best=True,
            show_progress=False,
        )

    fitted(2)  # compiles
    began = time.perf_counter()
    fitted(5)
    num_epochs = max(5, int(5 * seconds / (time.perf_counter() - began)))
    found, losses = fitted(num_epochs)
    return {
        "valid": -float(np.min(losses["val"])),
        "steps": num_epochs,
        "best_step": int(np.argmin(losses["val"])),
        "nats": float(found.log_prob(held_out).mean()),
    }


def mixture(data, setting, split, seconds):
    """Fit scikit-learn's mixture, anew until the seconds end; keep the best."""
    kind, num, ridge = setting
    train, valid, held_out = (np.asarray(rows, float) for rows in data)
    best, model, began = -np.inf, None, time.perf_counter()
    for start in itertools.count():
        found = GaussianMixture(
            num, covariance_type=kind, reg_covar=ridge, random_state=start
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it need not have converged
            value = found.fit(train).score(valid)
        if value > best:
            best, model = value, found
        if num == 1 or time.perf_counter() - began > seconds:
            break
    return {"valid": best, "steps": start + 1, "nats": float(model.score(held_out))}


METHODS = {"energy": energy, "flow": flow, "mixture": mixture}


def outcome(task):
    """Train once; return what came out."""
    table, name, setting, split, seconds = task
    row = {"table": table, "method": name, "setting": setting, "split": split}
    row |= METHODS[name](parts(table, split), setting, split, seconds)
    print(row, flush=True)
    return row


def chosen(rows):
    """Return the setting of the best validation, by table and method."""
    best = {}
    for row in rows:
        place = (row["table"], row["method"])
        if place not in best or row["valid"] > best[place]["valid"]:
            best[place] = row
    return {place: row["setting"] for place, row in best.items()}


def differences(rows, peer):
    """Return our held-out nats less a peer's, split by split."""
    nats = {(row["method"], row["split"]): row["nats"] for row in rows}
    return measure.spread([nats["energy", s] - nats[peer, s] for s in SPLITS])


def summary(rows):
    """Return the spread of each method's nats, and of the differences."""
    found = {
        name: measure.spread([row["nats"] for row in rows if row["method"] == name])
        for name in METHODS
    }
    return {
        "nats": found,
        "warned": sum(row.get("warned", False) for row in rows),
        "over flow": differences(rows, "flow"),
        "over mixture": differences(rows, "mixture"),
    }


if __name__ == "__main__":
    tried = measure.by_two_processes(
        outcome,
        [
            (table, name, setting, TUNING_SPLIT, 0 if name == "mixture" else SECONDS)
            for table in TABLES
            for name, settings in GRID.items()
            for setting in settings
        ],
    )
    best = chosen(tried)
    finals = measure.by_two_processes(
        outcome,
        [
            (table, name, best[table, name], split, SECONDS)
            for table in TABLES
            for split in SPLITS
            for name in METHODS
        ],
    )
    measure.write(
        "densities",
        {
            "seconds": SECONDS,
            "radius": RADIUS,
            "tried": tried,
            "chosen": {f"{t}, {name}": s for (t, name), s in best.items()},
            "held_out": {
                table: summary([row for row in finals if row["table"] == table])
                for table in TABLES
            },
            "finals": finals,
        },
    )
