"""A double well seen ten times: how fast, and how near to its exact evidence.

`python -m benchmarks.double_well`. Drift `4 x (1 - x^2)`, noise 0.7, observations of
noise 0.1; the model is known and only the posterior is learned, by networks of 64 x 64.
Every method takes 32 paths of 200 steps; its end is judged by 8,000 paths of 1,000
steps, and its way there by 2,000 paths of 200.
The exact `log p(y)` is a grid filter's. JAX methods: each at its
best learning rate of four, five seeds at once. diffrax's and torchsde's plain latent
SDE, whose steps are slow: one seed, plain's rate, 400 steps.
"""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import measure
from effgen import neural_sde as ns
from effgen.neural_sde.data.series import as_series


RATES = (3e-4, 1e-3, 3e-3, 1e-2)
CHECKPOINTS = (0, 5, 10, 25, 50, 100, 200, 400, 800, 1_500)
SEEDS = 5
DT = 0.01
FINE = 0.002
NUM_PATHS = 32
NUM_JUDGES = 8_000
TORCH_STEPS = 400


def drift(t, x):
    return 4 * x * (1 - x**2) + x


def data(seed=1, num=10, fine=2_000):
    """Return times and values of one path by small Euler steps."""
    rng = np.random.default_rng(seed)
    dt, x, xs = 2 / fine, 0.5 * rng.normal(), []
    for k in range(fine):
        x = x + 4 * x * (1 - x**2) * dt + 0.7 * np.sqrt(dt) * rng.normal()
        if (k + 1) % (fine // num) == 0:
            xs.append(x)
    ts = np.arange(1, num + 1) * 2 / num
    return ts, np.array(xs) + 0.1 * rng.normal(size=num)


def exact(ts, ys, steps_per_gap):
    """Return `log p(y)` of the chain of exponential Euler steps, on a grid."""
    x = np.linspace(-3, 3, 1_201)
    area, dt = x[1] - x[0], 0.2 / steps_per_gap
    decay, spread = np.exp(-dt), 0.49 * (1 - np.exp(-2 * dt)) / 2
    mean = decay * x + (1 - decay) * drift(0, x)
    kernel = np.exp(-((x[:, None] - mean[None]) ** 2) / 2 / spread)
    kernel *= area / np.sqrt(2 * np.pi * spread)
    p, total = np.exp(-(x**2) / 0.5) / np.sqrt(0.5 * np.pi), 0.0
    for y in ys:
        for _ in range(steps_per_gap):
            p = kernel @ p
        p = p * np.exp(-((y - x) ** 2) / 0.02) / np.sqrt(0.02 * np.pi)
        total, p = total + np.log(p.sum() * area), p / (p.sum() * area)
    return float(total)


def model(key, anchor, objective):
    keys = jax.random.split(key)
    linear = ns.DiagonalSDE(1.0, 0.0, 0.7, ns.Gaussian.independent(np.zeros(1), 0.5))
    plain = isinstance(objective, ns.PlainELBO | ns.DiffraxELBO)
    return ns.LatentSDE(
        linear,
        ns.LinearDecoder(np.eye(1), 0.1),
        drift=drift,
        residual=None if plain else ns.residual_network(linear, key=keys[0]),
        control=ns.PlainControl(1, 1, key=keys[1]) if plain else None,
        anchor=anchor,
        t0=0.0,
        frozen=("linear", "decoder"),
    )


CONTESTANTS = {
    "anchored, relinearized": (ns.AnchoredELBO(), ns.RelinearizedAnchor(2)),
    "anchored": (ns.AnchoredELBO(), ns.PriorAnchor()),
    "the paper's objective": (ns.PathELBO(), ns.PriorAnchor()),
    "plain, scan": (ns.PlainELBO(), ns.PriorAnchor()),
    "plain, diffrax": (ns.DiffraxELBO(), ns.PriorAnchor()),
}


@eqx.filter_jit
def judged(model, series, objective, key, dt, num_paths):
    """Return the bound, by many paths."""
    if isinstance(objective, ns.DiffraxELBO):
        objective = ns.PlainELBO()  # the same bound, in a loop that is not so slow
    model = dataclasses.replace(model, dt=dt)
    one = jax.tree.map(lambda x: x[0], series)
    return objective(
        model,
        one,
        num_steps=round(2 / dt),
        num_paths=num_paths,
        parallel=False,
        key=key,
    ).values.mean()


@functools.cache
def problem():
    ts, ys = data()
    batch = (jnp.asarray(ts)[None], jnp.asarray(ys)[None, :, None])
    return ts, ys, tuple(x.astype(jnp.float32) for x in batch)


def trained(name, rate, num_seeds, last):
    """Train seeds side by side; return their bounds on the way, and an end's judge."""
    objective, anchor = CONTESTANTS[name]
    trainer = ns.LatentSDETrainer(
        optax.adam(rate), DT, num_paths=NUM_PATHS, objective=objective, max_steps=200
    )
    _, _, batch = problem()
    series = as_series(batch)
    states = eqx.filter_vmap(lambda key: trainer.init(model(key, anchor, objective)))(
        jax.random.split(jax.random.key(0), num_seeds)
    )
    keys = jax.random.split(jax.random.key(1), num_seeds)

    def judge(models, dt, num_paths):
        one = lambda model: judged(
            model, series, objective, jax.random.key(2), dt, num_paths
        )
        return np.asarray(eqx.filter_vmap(one)(models)).tolist()

    @eqx.filter_jit(donate="all-except-first")
    def advanced(num, states):
        arrays, static = eqx.partition(states, eqx.is_array)

        def one(_, arrays):
            def step(state, key):
                state = eqx.combine(state, static)
                key = jax.random.fold_in(key, state.step)
                return eqx.filter(trainer.step(state, batch, key=key)[0], eqx.is_array)

            return jax.vmap(step)(arrays, keys)

        return eqx.combine(jax.lax.fori_loop(0, num, one, arrays), static)

    curve, done = {}, 0
    for checkpoint in [c for c in CHECKPOINTS if c <= last]:
        states = advanced(jnp.asarray(checkpoint - done), states)
        done = checkpoint
        curve[checkpoint] = judge(states.model, DT, 2_000)
    return curve, lambda: judge(states.model, FINE, NUM_JUDGES)


def timed(name):
    """Return a run's seconds to compile and take one step, and a step's after."""
    objective, anchor = CONTESTANTS[name]
    trainer = ns.LatentSDETrainer(
        optax.adam(1e-3), DT, num_paths=NUM_PATHS, objective=objective, max_steps=200
    )
    batch = problem()[2]
    state = trainer.init(model(jax.random.key(0), anchor, objective))
    step = eqx.filter_jit(trainer.step)
    key = jax.random.key(0)
    first = measure.seconds(
        lambda: eqx.filter(step(state, batch, key=key), eqx.is_array)
    )
    return first, lambda: eqx.filter(step(state, batch, key=key), eqx.is_array)


class TorchSDE:
    """torchsde's latent SDE on the same problem, with networks of the same size."""

    def __init__(self, rate, seed=0):
        import torch
        import torchsde

        self.torch, self.torchsde = torch, torchsde
        torch.manual_seed(seed)
        ts, ys, _ = problem()
        self.ts = torch.tensor(np.concatenate([[0.0], ts]), dtype=torch.float32)
        self.ys = torch.tensor(ys, dtype=torch.float32)[:, None, None]
        self.sde = self._sde()
        self.optim = torch.optim.Adam(self.sde.parameters(), lr=rate)

    def _sde(self):
        torch = self.torch
        nn = torch.nn

        class LatentSDE(nn.Module):
            noise_type, sde_type = "diagonal", "ito"

            def __init__(self):
                nn.Module.__init__(self)
                last = nn.Linear(64, 1)
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
                layers = [nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()]
                self.network = nn.Sequential(*layers, last)
                self.mean = nn.Parameter(torch.zeros(1))
                self.log_scale = nn.Parameter(torch.full((1,), float(np.log(0.5))))

            def h(self, t, x):
                return 4 * x * (1 - x**2)

            def f(self, t, x):
                seen = torch.cat([t.expand_as(x), x], dim=1)
                return self.h(t, x) + 0.7 * self.network(seen)

            def g(self, t, x):
                return 0.7 + 0 * x

        return LatentSDE()

    def bound(self, num_paths, dt):
        torch, sde = self.torch, self.sde
        start = torch.distributions.Normal(sde.mean, sde.log_scale.exp())
        prior = torch.distributions.Normal(0.0, 0.5)
        x = start.rsample((num_paths,))
        xs, logqp = self.torchsde.sdeint(
            sde, x, self.ts, dt=dt, method="euler", logqp=True
        )
        logs = torch.distributions.Normal(xs[1:], 0.1).log_prob(self.ys).sum((0, 2))
        divergence = torch.distributions.kl_divergence(start, prior).sum()
        return (logs - logqp.sum(0)).mean() - divergence

    def step(self):
        self.optim.zero_grad()
        (-self.bound(NUM_PATHS, DT)).backward()
        self.optim.step()

    def judged(self, num_paths=2_000, dt=DT):
        with self.torch.no_grad():
            return float(self.bound(num_paths, dt))


def torchsde_curve(rate):
    run, curve, done = TorchSDE(rate), {}, 0
    for checkpoint in [c for c in CHECKPOINTS if c <= TORCH_STEPS]:
        for _ in range(checkpoint - done):
            run.step()
        done = checkpoint
        curve[checkpoint] = [run.judged()]
        print("torchsde", rate, checkpoint, curve[checkpoint], flush=True)
    return {"rate": rate, "elbo": curve, "end": [run.judged(NUM_JUDGES, FINE)]}


def best(name):
    """Return the curve of the rate whose median ends best."""
    rates = RATES
    seeds, last = SEEDS, CHECKPOINTS[-1]
    if name == "plain, diffrax":
        rates, seeds, last = (curves["plain, scan"]["rate"],), 1, 400
    runs = {rate: trained(name, rate, seeds, last) for rate in rates}
    ends = {rate: np.median(run[0][last]) for rate, run in runs.items()}
    rate = max(ends, key=ends.get)
    curve, judge = runs[rate]
    row = {"rate": rate, "elbo": curve, "end": judge()}
    row["ends_at_each_rate"] = {str(r): float(v) for r, v in ends.items()}
    medians = {k: round(float(np.median(v)), 3) for k, v in curve.items()}
    print(name, rate, medians, row["end"], flush=True)
    return row


def steps_to(curve, value):
    """Return the first checkpoint whose median is at least `value`."""
    there = [k for k, v in curve.items() if np.median(v) >= value]
    return int(min(there)) if there else None


curves: dict = {}


def figures(truth, times, first):
    """Return all that is known so far."""
    plain = curves.get("plain, scan")
    ends = None
    if plain is not None:
        value = float(np.median(plain["elbo"][1_500]))
        ends = {name: steps_to(row["elbo"], value) for name, row in curves.items()}
    return {
        "log_evidence": truth,
        "step_milliseconds": {k: 1e3 * float(np.median(v)) for k, v in times.items()},
        "step_over_ours": {
            name: measure.paired_ratio(times[name], times["anchored"]) for name in times
        },
        "seconds_to_compile_and_step": first,
        "curves": curves,
        "steps_to_plain_s_1500": ends,
    }


if __name__ == "__main__":
    ts, ys, _ = problem()
    truth = {"dt 0.002": exact(ts, ys, 100), "dt 0.01": exact(ts, ys, 20)}
    print(truth, flush=True)
    first, steps = {}, {}
    for name in CONTESTANTS:
        first[name], steps[name] = timed(name)
    steps["torchsde"] = TorchSDE(1e-3).step
    times = measure.interleaved(steps, rounds=7)
    for name in CONTESTANTS:
        curves[name] = best(name)
    measure.write("double_well", figures(truth, times, first))
    curves["torchsde"] = torchsde_curve(curves["plain, scan"]["rate"])
    measure.write("double_well", figures(truth, times, first))
