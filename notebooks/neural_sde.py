# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Neural SDEs with the linear control in closed form
#
# The posterior of an SDE is the SDE itself with a further drift, the control. For a
# linear SDE with Gaussian observations the control is a closed form. A neural SDE needs
# a network for the rest. We begin with a linear model, where nothing is left to learn.
# Then the drift is a double well, whose exact likelihood a grid gives. We end with a
# real record that has gaps.

# %%
import dataclasses
import os
import tempfile
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import effgen as eg
from effgen import neural_sde as ns


# CI runs this with fewer steps; the figures in the documentation are of the full size.
num_steps = int(os.environ.get("EFFGEN_TOUR_STEPS", "1000"))
figures = Path(os.environ.get("EFFGEN_FIGURES", tempfile.mkdtemp()))
if num_steps < 1_000:  # then few paths may count, and it says so
    warnings.simplefilter("ignore", eg.RunWarning)

# %% [markdown]
# ## A linear model, solved at step 0
#
# An Ornstein-Uhlenbeck process is observed at sixteen irregular times. Before any
# training the bound is `log p(y)`, and every path has this value. It is compared with
# one dense Gaussian in float64.

# %%
rng = np.random.default_rng(0)
ts = np.sort(rng.uniform(0.3, 1.7, 16))
ys = 0.8 * np.sin(2 * np.pi * ts)
law = ns.Gaussian.independent(np.zeros(1), np.sqrt(0.125))
linear = ns.DiagonalSDE(rates=1.0, bias=0.0, scale=0.5, initial=law)
model = ns.LatentSDE(linear, ns.LinearDecoder(np.eye(1), 0.05), dt=0.02)
posterior = ns.posterior(model, ts, ys)
draws = posterior.paths(100, key=jax.random.key(0))

covariance = 0.125 * np.exp(-np.abs(ts[:, None] - ts)) + 0.05**2 * np.eye(16)
logs = np.linalg.slogdet(2 * np.pi * covariance)[1]
exact = -0.5 * (ys @ np.linalg.solve(covariance, ys) + logs)
print("log p(y):", exact, "ours:", float(posterior.log_evidence))
print("spread of the paths' bounds:", float(draws.log_weights.std()))
print(bool(abs(posterior.log_evidence - exact) < 1e-2))

# %%
times = np.linspace(ts[0], 3.0, 200)
band = posterior.marginals(times)
some = posterior.paths(8, key=jax.random.key(1), times=times)
figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
axes.plot(times, some.positions[..., 0].T, color="C0", linewidth=0.6, alpha=0.6)
mean, scale = band.mean[:, 0], band.scale[:, 0]
axes.fill_between(times, mean - 2 * scale, mean + 2 * scale, alpha=0.25)
axes.plot(ts, ys, "ko", markersize=4)
axes.set(xlabel="time", ylabel="state", title="A linear model: exact, untrained")
figure.savefig(figures / "sde-linear.png", dpi=120)

# %% [markdown]
# ## A double well
#
# `drift = 4 x (1 - x^2)`. The linear guide alone gives a bound. Linearized about the
# posterior (`RelinearizedAnchor`) it gives a far better one. A small network learns the
# rest. A grid filter gives the true likelihood.


# %%
def well(t, x):
    return 4 * x * (1 - x**2) + x  # beside the linear part, -x


def series(seed=1, fine=2_000):
    rng = np.random.default_rng(seed)
    dt, x, xs = 2 / fine, 0.5 * rng.normal(), []
    for k in range(fine):
        x = x + 4 * x * (1 - x**2) * dt + 0.7 * np.sqrt(dt) * rng.normal()
        if (k + 1) % (fine // 10) == 0:
            xs.append(x)
    return np.arange(1, 11) / 5, np.array(xs) + 0.1 * rng.normal(size=10)


def grid_filter(ts, ys, steps=100):
    x = np.linspace(-3, 3, 1_201)
    area, dt = x[1] - x[0], 0.2 / steps
    decay, spread = np.exp(-dt), 0.49 * (1 - np.exp(-2 * dt)) / 2
    mean = decay * x + (1 - decay) * well(0, x)
    kernel = np.exp(-((x[:, None] - mean) ** 2) / 2 / spread)
    kernel *= area / np.sqrt(2 * np.pi * spread)
    p, total = np.exp(-(x**2) / 0.5) / np.sqrt(0.5 * np.pi), 0.0
    for y in ys:
        for _ in range(steps):
            p = kernel @ p
        p = p * np.exp(-((y - x) ** 2) / 0.02) / np.sqrt(0.02 * np.pi)
        total, p = total + np.log(p.sum() * area), p / (p.sum() * area)
    return total


ts, ys = series()
truth = grid_filter(ts, ys)
linear = ns.DiagonalSDE(1.0, 0.0, 0.7, ns.Gaussian.independent(np.zeros(1), 0.5))
keys = jax.random.split(jax.random.key(0), 3)
whole = ns.LatentSDE(
    linear,
    ns.LinearDecoder(np.eye(1), 0.1),
    drift=well,
    residual=ns.residual_network(linear, key=keys[0]),
    control=ns.PlainControl(1, 1, key=keys[1]),
    anchor=ns.RelinearizedAnchor(),
    t0=0.0,
    frozen=("linear", "decoder"),
)
data = eg.Minibatches((jnp.asarray(ts)[None], jnp.asarray(ys)[None]), 1)
prior_anchor = dataclasses.replace(whole, anchor=ns.PriorAnchor())
runs = {
    "anchored about the posterior": (ns.AnchoredELBO(), whole),
    "anchored at the prior": (ns.AnchoredELBO(), prior_anchor),
    "the paper's objective": (ns.PathELBO(), prior_anchor),
    "plain VI": (ns.PlainELBO(), dataclasses.replace(prior_anchor, residual=None)),
}
curves, models = {}, {}
for name, (objective, start) in runs.items():
    trainer = ns.LatentSDETrainer(
        optax.adam(1e-2), dt=0.01, num_paths=32, objective=objective
    )
    state, history = eg.fit(
        trainer, trainer.init(start), data, key=keys[2], num_steps=num_steps, every=100
    )
    curves[name], models[name] = history["elbo"], state.model

# %%
figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
for name, curve in curves.items():
    smooth = np.convolve(curve, np.ones(10) / 10, "valid")
    axes.plot(np.arange(len(smooth)) + 1, truth - smooth, label=name)
axes.axhline(0.1, color="gray", linewidth=0.8)
axes.set(xscale="log", yscale="log", xlabel="step", ylabel="nats below log p(y)")
axes.legend()
figure.savefig(figures / "sde-double-well.png", dpi=120)

# %% [markdown]
# The posterior estimates its own error. Importance weights over its paths estimate
# `log p(y)`, and `gap` is what training could still gain.

# %%
posterior = ns.posterior(models["anchored about the posterior"], ts, ys)
evidence = posterior.evidence(key=keys[0], num_paths=4_000)
print(f"bound {evidence.elbo.value:.3f}, log p(y) {evidence.evidence.value:.3f}")
print(f"gap {evidence.gap.value:.3f} +- {evidence.gap.standard_error:.3f}")
print(f"a grid says {truth:.3f}; of 4,000 paths {evidence.ess:.0f} count")
print(bool(abs(evidence.evidence.value - truth) < 0.15))

# %% [markdown]
# ## Carbon dioxide, with its gaps
#
# The data are the first fifteen years of the weekly record of Mauna Loa. 53 weeks were
# never measured. The model is a trend and two harmonics of the year, each with its own
# noise. It is linear, so the bound is the exact likelihood. The last three years are
# forecast.

# %%
from statsmodels.datasets import co2


values = co2.load_pandas().data["co2"].to_numpy()[:780]
ts = np.arange(780) * 7 / 365.25
center, unit = np.nanmean(values[:624]), np.nanstd(values[:624])
ys = (values - center) / unit
turn = lambda k: 2 * np.pi * k * np.array([[0.0, -1.0], [1.0, 0.0]])
matrix = np.zeros((6, 6))
matrix[0, 1], matrix[2:4, 2:4], matrix[4:6, 4:6] = 1.0, turn(1), turn(2)
law = ns.Gaussian.independent(np.zeros(6), np.array([1.0, 0.5, 0.7, 0.7, 0.3, 0.3]))
noise = np.diag([0.1, 0.03, 0.05, 0.05, 0.05, 0.05])
seasons = ns.LatentSDE(
    ns.LinearSDE(matrix, np.zeros(6), noise, law),
    ns.LinearDecoder(np.array([[1.0, 0.0, 1.0, 0.0, 1.0, 0.0]]), 0.1),
    frozen=("linear.matrix", "linear.bias", "decoder.matrix", "decoder.offset"),
)
trainer = ns.LatentSDETrainer(optax.adam(1e-2), dt=7 / 365.25, num_paths=1)
past = eg.Minibatches((jnp.asarray(ts[:624])[None], jnp.asarray(ys[:624])[None]), 1)
state, history = eg.fit(
    trainer,
    trainer.init(seasons),
    past,
    key=keys[0],
    num_steps=max(num_steps // 5, 20),
)
print(f"log p(y): {history['elbo'][0]:.1f} before, {history['elbo'][-1]:.1f} after")
bands = ns.posterior(state.model, ts[:624], ys[:624]).observations(ts, key=keys[1])

# %%
low, lower, _, upper, high = center + unit * np.asarray(bands.quantiles)[..., 0]
future, never = slice(624, 780), np.isnan(values)
inside = np.mean((values[future] >= low[future]) & (values[future] <= high[future]))
figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
axes.fill_between(1958.24 + ts, low, high, alpha=0.3, label="90 %")
axes.fill_between(1958.24 + ts, lower, upper, alpha=0.6, label="50 %")
axes.plot(1958.24 + ts, values, "k.", markersize=1.5, label="measured")
axes.plot(1958.24 + ts[never], low[never], "C3|", label="never measured")
axes.axvline(1958.24 + ts[624], color="gray", linewidth=0.8)
axes.set(xlabel="year", ylabel="CO2, ppm")
axes.legend()
figure.savefig(figures / "sde-co2.png", dpi=120)
print(f"{100 * inside:.0f} % of three years lie within the band of 90 %")
