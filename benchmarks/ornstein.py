"""torchsde's own example, whose prior is an Ornstein-Uhlenbeck process: exact at step
0.

`python -m benchmarks.ornstein`. Prior rate 1, mean 0, noise 0.5; its irregular sine (16
times) and segmented cosine (20 times), noise 0.05. Our bound before any training
against the dense Gaussian in float64, and torchsde's after each hundred steps of
training, with its example's networks (200 x 200), 512 paths and learning rate.
"""

import jax
import numpy as np

from benchmarks import measure
from effgen import neural_sde as ns


NOISE = 0.05
TORCH_STEPS = 100
NUM_PATHS = 512


def irregular_sine():
    rng = np.random.default_rng(0)
    ts = np.sort(rng.uniform(0.3, 1.7, 16))
    return ts, np.sin(ts * 2 * np.pi) * 0.8


def segmented_cosine():
    ts = np.concatenate([np.linspace(0.3, 0.8, 10), np.linspace(1.2, 1.5, 10)])
    return ts, np.cos(ts * 2 * np.pi)


def truth(ts, ys):
    """Return `log p(y)`: one dense Gaussian."""
    gaps = np.abs(ts[:, None] - ts[None])
    covariance = 0.125 * np.exp(-gaps) + NOISE**2 * np.eye(len(ts))
    half = np.linalg.solve(np.linalg.cholesky(covariance), ys)
    logs = np.linalg.slogdet(2 * np.pi * covariance)[1]
    return float(-0.5 * half @ half - 0.5 * logs)


def ours(ts, ys):
    law = ns.Gaussian.independent(np.zeros(1), np.sqrt(0.125))
    linear = ns.DiagonalSDE(1.0, 0.0, 0.5, law)
    residual = ns.residual_network(linear, key=jax.random.key(0), width_size=200)
    model = ns.LatentSDE(
        linear, ns.LinearDecoder(np.eye(1), NOISE), residual=residual, dt=0.05
    )
    posterior = ns.posterior(model, ts, ys)
    found = posterior.evidence(key=jax.random.key(1), num_paths=1_000)
    draws = posterior.paths(1_000, key=jax.random.key(1))
    return {
        "elbo": float(found.elbo.value),
        "standard_deviation_of_paths": float(draws.log_weights.std()),
    }


def torchsde_curve(ts, ys):
    """Return the bound of torchsde's latent SDE as it trains."""
    import torch
    import torchsde
    from torch import nn

    torch.manual_seed(0)
    times = torch.tensor(np.concatenate([[0.0], ts, [2.0]]), dtype=torch.float32)
    values = torch.tensor(ys, dtype=torch.float32)[:, None, None]

    class LatentSDE(nn.Module):
        sde_type, noise_type = "ito", "diagonal"

        def __init__(self):
            nn.Module.__init__(self)
            last = nn.Linear(200, 1)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            layers = [nn.Linear(3, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh()]
            self.network = nn.Sequential(*layers, last)
            self.mean = nn.Parameter(torch.zeros(1))
            self.log_scale = nn.Parameter(torch.full((1,), 0.5 * float(np.log(0.125))))

        def f(self, t, x):
            t = t.expand_as(x)
            return self.network(torch.cat((torch.sin(t), torch.cos(t), x), dim=1))

        def h(self, t, x):
            return -x

        def g(self, t, x):
            return 0.5 + 0 * x

    model = LatentSDE()
    optim = torch.optim.Adam(model.parameters(), lr=1e-2)
    decay = torch.optim.lr_scheduler.ExponentialLR(optim, 0.999)
    prior = torch.distributions.Normal(0.0, float(np.sqrt(0.125)))

    def bound():
        start = torch.distributions.Normal(model.mean, model.log_scale.exp())
        x = start.rsample((NUM_PATHS,))
        xs, logqp = torchsde.sdeint(
            model, x, times, dt=1e-2, method="euler", logqp=True
        )
        seen = torch.distributions.Normal(xs[1:-1], NOISE)
        logs = seen.log_prob(values).sum((0, 2))
        divergence = torch.distributions.kl_divergence(start, prior).sum()
        return (logs - logqp.sum(0)).mean() - divergence

    curve = {}
    for i in range(TORCH_STEPS + 1):
        value = bound()
        if i % 50 == 0:
            curve[i] = float(value)
            print("torchsde", i, curve[i], flush=True)
        optim.zero_grad()
        (-value).backward()
        optim.step()
        decay.step()
    return curve


if __name__ == "__main__":
    figures = {}
    for data in (irregular_sine, segmented_cosine):
        ts, ys = data()
        # The first time is 0, where the law is the stationary one: nothing changes.
        row = {"log_evidence": truth(ts, ys), "effgen_at_step_0": ours(ts, ys)}
        row["torchsde_by_step"] = torchsde_curve(ts, ys)
        figures[data.__name__] = row
    measure.write("ornstein", {"series": figures})
