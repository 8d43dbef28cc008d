"""Stochastic Lorenz, torchsde's example: a learned prior, a hundred observations.

`python -m benchmarks.lorenz`. 1,024 series of 100 observations of noise 0.01 on [0, 2],
latent states 4, networks of 128, two steps from each observation to the next. First
the time of a training step on 64 series, one path each, in turn; then training:
torchsde for a budget of steps, its bound at the end, and how long effgen takes to the
same bound on held-out series.
"""

import time

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import effgen as eg
from benchmarks import measure
from effgen import neural_sde as ns
from effgen.neural_sde.bounds.trainer import bounds
from effgen.neural_sde.data.series import as_series, share_times


NUM_SERIES = 1_024
HELD_OUT = 64
BATCH = 64
LATENT = 4
HIDDEN = 128
CONTEXT = 64
DT = 2 / 198  # two steps from each observation to the next: 198 for all contestants
TORCH_STEPS = 100
SCALE = 0.01


def data(seed=0):
    """Return times and normalized, noisy values of paths by small Euler steps."""
    rng = np.random.default_rng(seed)
    num, fine = NUM_SERIES + HELD_OUT, 10
    noise = np.array([0.1, 0.28, 0.3])
    x, dt, xs = rng.normal(size=(num, 3)), 2 / 99 / fine, []
    for k in range(99 * fine + 1):
        if k % fine == 0:
            xs.append(x)
        drift = np.stack(
            [
                10 * (x[:, 1] - x[:, 0]),
                x[:, 0] * (28 - x[:, 2]) - x[:, 1],
                x[:, 0] * x[:, 1] - 8 / 3 * x[:, 2],
            ],
            1,
        )
        x = x + drift * dt + noise * x * np.sqrt(dt) * rng.normal(size=x.shape)
    xs = np.stack(xs, 1)
    xs = (xs - xs.mean((0, 1))) / xs.std((0, 1))
    xs = xs + SCALE * rng.normal(size=xs.shape)
    ts = np.tile(np.linspace(0, 2, 100), (num, 1))
    return ts.astype(np.float32), xs.astype(np.float32)


def model(key, objective):
    keys = jax.random.split(key, 4)
    law = ns.Gaussian.independent(np.zeros(LATENT), 1.0)
    linear = ns.DiagonalSDE(0.5, 0.0, 1.0, law)
    observe = np.eye(3, LATENT) + 0.1 * np.asarray(
        jax.random.normal(keys[0], (3, LATENT))
    )
    whole = ns.PlainControl(
        LATENT, 3, key=keys[3], width_size=HIDDEN, context_size=CONTEXT
    )
    beside = ns.residual_network(linear, key=keys[2], width_size=HIDDEN, depth=2)
    plain = isinstance(objective, ns.PlainELBO | ns.DiffraxELBO)
    return ns.LatentSDE(
        linear,
        ns.LinearDecoder(observe, SCALE, learned=("matrix", "offset")),
        drift=ns.DriftNetwork(LATENT, key=keys[1], width_size=HIDDEN, depth=2),
        residual=None if plain else beside,
        control=whole if plain else None,
    )


TUNED = diffrax.RecursiveCheckpointAdjoint(checkpoints=256)
CONTESTANTS = {
    "effgen": (ns.AnchoredELBO(), DT),
    "effgen, as if each series had its times": (ns.AnchoredELBO(), DT),
    "effgen, one step a gap": (ns.AnchoredELBO(), 2 / 99),
    "plain, scan": (ns.PlainELBO(), DT),
    "diffrax, default": (ns.DiffraxELBO(), DT),
    "diffrax, tuned": (ns.DiffraxELBO(adjoint=TUNED), DT),
}


def stepper(name, batch):
    """Return what takes a step, and the seconds of compiling and the first one."""
    objective, dt = CONTESTANTS[name]
    shared = False if "as if" in name else None
    trainer = ns.LatentSDETrainer(
        optax.adam(1e-3), dt, num_paths=1, objective=objective, shared_times=shared
    )
    state = trainer.init(model(jax.random.key(0), objective))
    trainer = trainer.for_data(state, eg.Minibatches(batch, BATCH))
    step = eqx.filter_jit(trainer.step)
    take = lambda: eqx.filter(step(state, batch, key=jax.random.key(1)), eqx.is_array)
    return take, measure.seconds(take)


class TorchSDE:
    """torchsde's example: posterior and prior drift, diagonal noise, a GRU encoder."""

    def __init__(self, seed=0, rate=1e-2):
        import torch
        import torchsde
        from torch import nn

        self.torch, self.torchsde = torch, torchsde
        torch.manual_seed(seed)
        torch.set_num_threads(2)

        def network(size, out):
            layers = [nn.Linear(size, HIDDEN), nn.Softplus()]
            layers += [nn.Linear(HIDDEN, HIDDEN), nn.Softplus()]
            return nn.Sequential(*layers, nn.Linear(HIDDEN, out))

        class LatentSDE(nn.Module):
            sde_type, noise_type = "ito", "diagonal"

            def __init__(self):
                nn.Module.__init__(self)
                self.encoder = nn.GRU(3, HIDDEN)
                self.to_context = nn.Linear(HIDDEN, CONTEXT)
                self.start = nn.Linear(CONTEXT, 2 * LATENT)
                self.posterior = network(LATENT + CONTEXT, LATENT)
                self.prior = network(LATENT, LATENT)
                self.log_noise = nn.Parameter(torch.zeros(LATENT))
                self.projector = nn.Linear(LATENT, 3)
                self.mean = nn.Parameter(torch.zeros(1, LATENT))
                self.log_scale = nn.Parameter(torch.zeros(1, LATENT))

            def f(self, t, x):
                i = min(int(torch.searchsorted(self.ts, t, right=True)), 99)
                return self.posterior(torch.cat((x, self.contexts[i]), dim=1))

            def h(self, t, x):
                return self.prior(x)

            def g(self, t, x):
                return self.log_noise.exp().expand_as(x)

        self.model = LatentSDE()
        self.optim = torch.optim.Adam(self.model.parameters(), lr=rate)
        self.decay = torch.optim.lr_scheduler.ExponentialLR(self.optim, 0.997)

    def bound(self, ts, ys, *, adjoint=False):
        torch, model = self.torch, self.model
        ys = ys.transpose(0, 1)
        hidden, _ = model.encoder(torch.flip(ys, dims=(0,)))
        contexts = torch.flip(model.to_context(hidden), dims=(0,))
        mean, log_scale = model.start(contexts[0]).chunk(2, dim=1)
        law = torch.distributions.Normal(mean, log_scale.exp())
        x = law.rsample()
        model.ts, model.contexts = ts, contexts
        solve = self.torchsde.sdeint_adjoint if adjoint else self.torchsde.sdeint
        more = {"adjoint_params": (*model.parameters(), contexts)}
        xs, logqp = solve(
            model,
            x,
            ts,
            dt=DT,
            method="euler",
            logqp=True,
            **(more | {"adjoint_method": "euler"} if adjoint else {}),
        )
        seen = torch.distributions.Normal(model.projector(xs), SCALE)
        logs = seen.log_prob(ys).sum((0, 2))
        prior = torch.distributions.Normal(model.mean, model.log_scale.exp())
        divergence = torch.distributions.kl_divergence(law, prior).sum(1)
        return (logs - logqp.sum(0) - divergence).mean()

    def step(self, ts, ys, *, adjoint=False):
        self.optim.zero_grad()
        loss = -self.bound(ts, ys, adjoint=adjoint)
        loss.backward()
        self.optim.step()
        return float(-loss)


def torch_training(ts, ys):
    run = TorchSDE()
    torch = run.torch
    times = torch.tensor(ts[0])
    train, held_out = (torch.tensor(x) for x in np.split(ys, [NUM_SERIES]))
    began, curve = time.perf_counter(), []
    for i in range(TORCH_STEPS):
        run.step(times, train[torch.randint(NUM_SERIES, (BATCH,))])
        run.decay.step()
        if (i + 1) % 50 == 0:
            seconds = time.perf_counter() - began
            with torch.no_grad():
                value = np.mean([float(run.bound(times, held_out)) for _ in range(4)])
            curve.append({"step": i + 1, "seconds": seconds, "elbo": float(value)})
            print("torchsde", curve[-1], flush=True)
            began = time.perf_counter() - seconds
    return curve


def our_training(ts, ys, rate=3e-3):
    trainer = ns.LatentSDETrainer(optax.adam(rate), DT, num_paths=1)
    state = trainer.init(model(jax.random.key(0), trainer.objective))
    train = eg.Minibatches((ts[:NUM_SERIES], ys[:NUM_SERIES]), BATCH)
    held_out = tuple(jnp.asarray(x[NUM_SERIES:]) for x in (ts, ys))
    sized = trainer.for_data(state, train)

    @eqx.filter_jit
    def bound(model):
        return bounds(
            model,
            share_times(as_series(held_out)),
            ns.AnchoredELBO(),
            num_steps=sized.max_steps,
            num_paths=4,
            parallel=False,
            key=jax.random.key(2),
        ).values.mean()

    curve = [{"step": 0, "seconds": 0.0, "elbo": float(bound(state.model))}]
    began = time.perf_counter()
    run = eg.train(
        trainer, state, train, key=jax.random.key(1), num_steps=150, every=10
    )
    for state, _ in run:
        seconds = time.perf_counter() - began
        value = float(bound(state.model))
        curve.append({"step": int(state.step), "seconds": seconds, "elbo": value})
        began = time.perf_counter() - seconds
        if int(state.step) % 50 == 0:
            print("effgen", curve[-1], flush=True)
    return curve


if __name__ == "__main__":
    ts, ys = data()
    batch = (jnp.asarray(ts[:BATCH]), jnp.asarray(ys[:BATCH]))
    steps, first = {}, {}
    for name in CONTESTANTS:
        steps[name], first[name] = stepper(name, batch)
    torch_run = TorchSDE()
    pair = [torch_run.torch.tensor(x) for x in (ts[0], ys[:BATCH])]
    steps["torchsde, backprop"] = lambda: torch_run.step(*pair)
    times = measure.interleaved(steps, rounds=7)
    slow = {"torchsde, adjoint": lambda: torch_run.step(*pair, adjoint=True)}
    times |= measure.interleaved(slow, rounds=2)
    milliseconds = {k: 1e3 * float(np.median(v)) for k, v in times.items()}
    print(milliseconds, first, flush=True)
    ours = our_training(ts, ys)
    peer = torch_training(ts, ys)
    target = peer[-1]["elbo"]
    reached = next((row for row in ours if row["elbo"] >= target), None)
    measure.write(
        "lorenz",
        {
            "seconds_to_compile_and_step": first,
            "step_milliseconds": milliseconds,
            "over_ours": {
                name: measure.paired_ratio(times[name], times["effgen"])
                for name in steps
            },
            "effgen": ours,
            "torchsde": peer,
            "seconds_to_torchsde_s_end": {
                "torchsde": peer[-1]["seconds"],
                "effgen": None if reached is None else reached["seconds"],
                "effgen_steps": None if reached is None else reached["step"],
            },
        },
    )
