"""How often two error bars of `log Z` hold the truth, and when a warning is given.

`python -m benchmarks.coverage [problem [runs]]`. Each problem has a `log Z` that is
known exactly, or by a computation whose error is a fraction of the bars. Each is run
from 100 seeds, or from so many, with no setting but those that stand in the README.
Rows of other problems stay as they were; each row says of which commit it is.
"""

import json
import sys
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import effgen as eg
from benchmarks import measure
from effgen import ebm


RUNS = 100
NUM = 1024
KERNEL = ebm.MALA(ebm.TargetAcceptance())


def covariance(d):
    """Return a covariance whose directions differ in variance by up to forty."""
    a = np.random.default_rng(0).normal(size=(d, d))
    return a @ a.T / d + 0.1 * np.eye(d)


def quadratic(parameters, x):
    """Return the energy of a Gaussian of the given precision."""
    return 0.5 * x @ parameters["precision"] @ x


def gaussian_path(d):
    """Return a problem: from a wide Gaussian to a correlated one, by `annealed`."""
    c, scale = covariance(d), 3.0
    truth = 0.5 * d * np.log(2 * np.pi) + 0.5 * np.linalg.slogdet(c)[1]
    precision = jnp.asarray(np.linalg.inv(c), jnp.float32)
    start = ebm.FunctionEnergy(quadratic, {"precision": jnp.eye(d) / scale**2})
    end = ebm.FunctionEnergy(quadratic, {"precision": precision})
    return lambda seed: (followed(start, end, d, scale, seed), truth)


def followed(start, end, d, scale, seed):
    """Return the density of `end` by fresh walkers that follow from `start`."""
    keys = jax.random.split(jax.random.key(seed))
    walkers = ebm.Walkers.from_gaussian(keys[0], NUM, (d,), scale=scale)
    walkers = ebm.annealed([start, end], walkers, kernel=KERNEL, key=keys[1])
    return ebm.NormalizedEnergy.from_walkers(end, walkers)


def well(scale):
    """Return the energy of the Gaussian that `annealed` starts from."""
    return ebm.FunctionEnergy(
        lambda p, x: 0.5 * jnp.sum((x / p) ** 2), jnp.array(scale)
    )


def mixture_path(d):
    """Return a problem: three modes of unequal masses, five widths apart."""
    centers = 2.5 * jnp.asarray(np.eye(3, d), jnp.float32)
    masses = jnp.array([0.2, 0.3, 0.5])

    def energy(parameters, x):
        centers, masses = parameters
        squares = jnp.sum((x[None] - centers) ** 2, axis=1) / (2 * 0.7**2)
        logs = jnp.log(masses) - squares - d * jnp.log(0.7)
        return 0.5 * d * jnp.log(2 * jnp.pi) - jax.nn.logsumexp(logs)

    end = ebm.FunctionEnergy(energy, (centers, masses))
    start = well(2.0)
    return lambda seed: (followed(start, end, d, 2.0, seed), 0.0)


def funnel_path(d, width):
    """Return a problem: a funnel, whose neck and mouth differ in scale.

    Neal's has a `width` of 3, and scales that differ by a factor of twenty between one
    standard deviation below and one above.
    """

    def energy(parameters, x):
        logs = -0.5 * (x[0] / width) ** 2 - jnp.log(width * jnp.sqrt(2 * jnp.pi))
        rest = -0.5 * jnp.sum(x[1:] ** 2) * jnp.exp(-x[0]) - 0.5 * (d - 1) * x[0]
        return parameters - logs - rest + 0.5 * (d - 1) * jnp.log(2 * jnp.pi)

    end = ebm.FunctionEnergy(energy, jnp.zeros(()))
    start = well(3.0)
    return lambda seed: (followed(start, end, d, 3.0, seed), 0.0)


def gaussian_training(d):
    """Return a problem: a Gaussian's mean and scales are learned, and audited."""
    rng = np.random.default_rng(2)
    scales, mean = np.geomspace(0.4, 2.5, d), rng.normal(size=d)
    x = jnp.asarray(mean + scales * rng.normal(size=(4096, d)), jnp.float32)

    def energy(p, x):
        return 0.5 * jnp.sum(((x - p["mean"]) * jnp.exp(-p["log_scale"])) ** 2)

    optim = optax.adam(optax.linear_schedule(1e-2, 0.0, 500))

    def one(seed):
        model = ebm.FunctionEnergy(
            energy, {"mean": jnp.zeros(d), "log_scale": jnp.zeros(d)}
        )
        state = trained(optim, model, x, d, 1.0, 500, seed)
        truth = 0.5 * d * np.log(2 * np.pi) + jnp.sum(
            state.model.parameters["log_scale"]
        )
        return ebm.NormalizedEnergy.from_state(state), float(truth)

    return one


def correlated(d):
    """Return data of a correlated Gaussian, and a wider factor to sample it by."""
    factor = np.linalg.cholesky(covariance(d))
    x = np.random.default_rng(3).normal(size=(8192, d)) @ factor.T
    return jnp.asarray(x, jnp.float32), jnp.asarray(1.3 * factor, jnp.float32)


def neural_training(d):
    """Return a problem: the README's energy and rate on a correlated Gaussian.

    The truth is importance sampling from the data's own law, by 200,000 draws.
    """
    x, proposal = correlated(d)
    optim = optax.adam(optax.linear_schedule(1e-3, 0.0, 1000))

    def one(seed):
        model = ebm.mlp_energy((d,), key=jax.random.key(1000 + seed), scale=3.0)
        state = trained(optim, model, x, d, 3.0, 1000, seed)
        truth = importance(state.model, proposal)
        return ebm.NormalizedEnergy.from_state(state), truth

    return one


@eqx.filter_jit
def _energies(model, x):
    return jax.vmap(model)(x)


def importance(model, factor):
    """Return `log Z` by importance sampling from a Gaussian of the given factor."""
    d = factor.shape[0]
    z = jax.random.normal(jax.random.key(99), (200_000, d))
    density = -0.5 * jnp.sum(z**2, axis=1) - 0.5 * d * jnp.log(2 * jnp.pi)
    density = density - jnp.sum(jnp.log(jnp.diag(factor)))
    log_weights = -_energies(model, z @ factor.T) - density
    return float(jax.nn.logsumexp(log_weights) - np.log(z.shape[0]))


def trained(optim, model, x, d, scale, num_steps, seed):
    """Return the state after a training that audit walkers have watched."""
    keys = jax.random.split(jax.random.key(seed), 3)
    both = [ebm.Walkers.from_gaussian(k, NUM, (d,), scale=scale) for k in keys[:2]]
    trainer = ebm.JarzynskiTrainer(optim, kernel=KERNEL)
    state = trainer.init(model, ebm.Audited(*both))
    data = eg.Minibatches(x, 256)
    return eg.fit(trainer, state, data, key=keys[2], num_steps=num_steps)[0]


def neural_path(d):
    """Return a problem: one trained network's energy, from fresh walkers.

    The truth is importance sampling, as of `neural_training`.
    """
    x, proposal = correlated(d)
    start = ebm.mlp_energy((d,), key=jax.random.key(7), scale=3.0)
    optim = optax.adam(optax.linear_schedule(1e-3, 0.0, 1000))
    end = trained(optim, start, x, d, 3.0, 1000, 0).model
    truth = importance(end, proposal)
    return lambda seed: (followed(start, end, d, 3.0, seed), truth)


PROBLEMS = {
    "Gaussian, annealed, d = 2": lambda: gaussian_path(2),
    "Gaussian, annealed, d = 10": lambda: gaussian_path(10),
    "Gaussian, annealed, d = 50": lambda: gaussian_path(50),
    "three modes, annealed, d = 10": lambda: mixture_path(10),
    "funnel of width 1, annealed, d = 5": lambda: funnel_path(5, 1.0),
    "funnel of width 3, annealed, d = 5": lambda: funnel_path(5, 3.0),
    "Gaussian, trained, d = 2": lambda: gaussian_training(2),
    "Gaussian, trained, d = 10": lambda: gaussian_training(10),
    "Gaussian, trained, d = 50": lambda: gaussian_training(50),
    "network, annealed, d = 10": lambda: neural_path(10),
    "network, trained, d = 10": lambda: neural_training(10),
    "Gaussian, annealed, d = 200": lambda: gaussian_path(200),
    "Gaussian, trained, d = 200": lambda: gaussian_training(200),
}


def row(problem, runs=RUNS):
    """Return how a problem's bars do over so many seeds."""
    one = problem()
    errors, bars, warned = [], [], []
    for seed in range(runs):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", eg.RunWarning)
            density, truth = one(seed)
        errors.append(float(density.log_partition) - truth)
        bars.append(float(density.standard_error))
        warned.append(any(issubclass(w.category, eg.RunWarning) for w in caught))
    return summary(np.array(errors), np.array(bars), np.array(warned))


def summary(errors, bars, warned):
    """Return the rates of a problem's runs."""
    missed = np.abs(errors) > 2 * bars
    quiet = ~warned
    return {
        "runs": len(errors),
        "held_by_two_bars": float(np.mean(~missed)),
        "unwarned": int(quiet.sum()),
        "held_where_unwarned": float(np.mean(~missed[quiet])) if quiet.any() else None,
        "missed": int(missed.sum()),
        "missed_and_warned": int((missed & warned).sum()),
        "mean_error": float(errors.mean()),
        "standard_deviation": float(errors.std(ddof=1)),
        "median_bar": float(np.median(bars)),
        "rms_error_over_bar": float(np.sqrt(np.mean((errors / bars) ** 2))),
        "errors_over_bars": [round(float(z), 2) for z in errors / bars],
        "commit": measure.machine()["commit"],
    }


def known():
    """Return the rows that there are."""
    path = measure.RESULTS / "coverage.json"
    return json.loads(path.read_text())["problems"] if path.exists() else {}


if __name__ == "__main__":
    chosen = sys.argv[1:2] or list(PROBLEMS)
    runs = int(sys.argv[2]) if sys.argv[2:] else RUNS
    for name in chosen:
        found = {name: row(PROBLEMS[name], runs)}
        print(found, flush=True)
        # After each, for all of them take an hour.
        rows = known() | found
        rows = {name: rows[name] for name in PROBLEMS if name in rows}
        measure.write("coverage", {"walkers": NUM, "problems": rows})
