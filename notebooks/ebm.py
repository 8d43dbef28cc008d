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
# # Energy-based models with a known likelihood
#
# Four modes in the plane that hold 10, 20, 30 and 40 % of the data, and a neural energy
# to learn them. In two dimensions everything can be integrated on a grid. So every
# estimate of the walkers can be checked: the likelihood, the masses, and the density.

# %%
import os
import tempfile
import warnings
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import effgen as eg
from effgen import ebm


# CI runs this with fewer steps; the figures in the documentation are of the full size.
num_steps = int(os.environ.get("EFFGEN_TOUR_STEPS", "10000"))
figures = Path(os.environ.get("EFFGEN_FIGURES", tempfile.mkdtemp()))
if num_steps < 1_000:  # then weights may well be poor, and say so
    warnings.simplefilter("ignore", eg.RunWarning)

# %%
masses = jnp.array([0.1, 0.2, 0.3, 0.4])
centers = 2.0 * jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
spread, scale = 0.35, 3.0


def draw(key, num=256):
    keys = jax.random.split(key)
    modes = jax.random.choice(keys[0], 4, (num,), p=masses)
    return centers[modes] + spread * jax.random.normal(keys[1], (num, 2))


line = jnp.linspace(-8, 8, 401)
grid = jnp.stack(jnp.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
area = float(line[1] - line[0]) ** 2
mode_of = lambda x: jnp.argmin(((x[:, None] - centers[None]) ** 2).sum(-1), axis=1)


@eqx.filter_jit
def exact(model):
    """The exact `log Z` and masses of an energy, by sums over the grid."""
    energies = jax.vmap(model)(grid)
    log_partition = jax.nn.logsumexp(-energies) + jnp.log(area)
    density = jnp.exp(-energies - log_partition) * area
    return log_partition, jax.ops.segment_sum(density, mode_of(grid), 4)


# %% [markdown]
# ## Two trainers, the same moves
#
# `JarzynskiTrainer` weighs its walkers for the change of the model and for the error of
# the discrete moves. Its walkers are a reservoir of 64 blocks of 1,024. A step moves
# one block, and costs as much as one block. `PCDTrainer` takes the same moves without
# weights. Audit walkers, which never enter a gradient, estimate the likelihood of both.
# A third run has one block of 1,024 weighted walkers, as many as PCD.

# %%
keys = jax.random.split(jax.random.key(0), 6)
optim = optax.adam(optax.linear_schedule(1e-3, 0.0, num_steps))
kernel = ebm.ULA(0.03)


def gaussian(key, num):
    return ebm.Walkers.from_gaussian(key, num, (2,), scale=scale)


audit = ebm.Reservoir.from_walkers(gaussian(keys[0], 32 * 1024))
reservoir = ebm.Reservoir.from_walkers(gaussian(keys[1], 64 * 1024))
energy = ebm.mlp_energy((2,), key=keys[2], width_size=64, scale=scale)
methods = {
    "Jarzynski": (
        ebm.JarzynskiTrainer(optim, kernel=kernel),
        ebm.Audited(reservoir, audit),
    ),
    "Jarzynski, 1 block": (
        ebm.JarzynskiTrainer(optim, kernel=kernel),
        ebm.Audited(gaussian(keys[1], 1024), audit),
    ),
    "PCD": (
        ebm.PCDTrainer(optim, kernel=kernel),
        ebm.Audited(gaussian(keys[1], 1024), audit),
    ),
}

# %%
held_out = draw(keys[3], 4_000)
curves, states = {}, {}
for name, (trainer, memory) in methods.items():
    state = trainer.init(energy, memory)
    curve = []
    run = eg.train(
        trainer, state, draw, key=keys[4], num_steps=num_steps, every=num_steps // 20
    )
    for state, metrics in run:
        data_energy = float(jax.vmap(state.model)(held_out).mean())
        density = ebm.NormalizedEnergy.from_state(state)
        truth = -data_energy - float(exact(state.model)[0])
        claimed = -data_energy - float(density.log_partition)
        flattery = float(metrics["audit_gap"][-1]) if "audit_gap" in metrics else np.nan
        error = float(density.standard_error)
        curve.append((int(state.step), truth, claimed, error, claimed - flattery))
    curves[name], states[name] = np.array(curve), state

# %% [markdown]
# ## Two estimates of the likelihood
#
# Solid: the estimate by the audit, with a band of two standard errors. Black: the
# truth, from the grid. Dotted: the estimate by the walkers that train the model. They
# have pulled the model to the places where they are, so their `log Z` is biased low and
# their likelihood is too high. The bias is larger for fewer walkers.

# %%
figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), sharey=True, layout="constrained")
for axis, (name, curve) in zip(axes, curves.items(), strict=True):
    steps, truth, claimed, error, flattering = curve.T
    axis.plot(steps, claimed, label="audit walkers")
    axis.fill_between(steps, claimed - 2 * error, claimed + 2 * error, alpha=0.3)
    axis.plot(steps, flattering, ":", color="C0", label="training walkers")
    axis.plot(steps, truth, "k--", linewidth=1, label="truth")
    axis.set(title=name, xlabel="step")
low = min(curve[:, 1].min() for curve in curves.values())
axes[0].set(ylabel="held-out log-likelihood, nats", ylim=(low - 0.5, low + 4))
axes[0].legend(loc="lower right")
figure.savefig(figures / "ebm-likelihood.png", dpi=110)

# %%
steps, truth, claimed, error, _ = curves["Jarzynski"].T
within = np.abs(claimed - truth) < 4 * error + 1e-3
print("claims within four error bars:", bool(within[-10:].all()))

# %% [markdown]
# ## The density and its walkers
#
# Left: the learned density with some walkers, whose area is their weight. Right: the
# share of the model in each mode.

# %%
figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
for axis, name in zip(axes[:2], ("Jarzynski", "PCD"), strict=True):
    values = -jax.vmap(states[name].model)(grid) - exact(states[name].model)[0]
    image = np.exp(np.asarray(values)).reshape(401, 401).T
    axis.imshow(image, origin="lower", extent=(-8, 8, -8, 8), cmap="Blues")
    positions, weights = ebm.weighted_samples(states[name], states[name].memory.walkers)
    some = np.random.default_rng(0).permutation(len(positions))[:400]
    sizes = 8 * weights[some] / weights[some].mean()
    axis.scatter(*positions[some].T, s=sizes, color="C1", alpha=0.6, linewidths=0)
    axis.set(title=name, xlim=(-3.5, 3.5), ylim=(-3.5, 3.5))
bars = {"data": masses} | {n: exact(s.model)[1] for n, s in states.items()}
for i, (name, found) in enumerate(bars.items()):
    axes[2].bar(np.arange(4) + 0.2 * i - 0.3, found, 0.2, label=name)
axes[2].set(xticks=range(4), xlabel="mode", title="masses of the model")
axes[2].legend()
figure.savefig(figures / "ebm-masses.png", dpi=110)

# %% [markdown]
# The walkers' own masses, weighted, have error bars too:

# %%
positions, weights = ebm.weighted_samples(states["Jarzynski"])
found, errors = ebm.mode_masses(positions, weights, mode_of, 4)
print(np.round(np.float64(found), 3), "+-", np.round(np.float64(errors), 3))

# %% [markdown]
# ## Samples, and whether they stay
#
# Samples are walkers drawn by weight. Long chains from them, under the final energy,
# should keep the same law, so their mean energy must not drift.

# %%
samples = ebm.sample(states["Jarzynski"], 2_000, key=keys[5])
chains = ebm.long_run(
    states["Jarzynski"].model,
    samples,
    kernel=ebm.MALA(ebm.TargetAcceptance(0.03)),
    key=keys[5],
    num_steps=min(num_steps, 10_000),
)
figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
axes[0].scatter(*held_out[:1500].T, s=2, color="gray")
axes[0].set_title("data")
axes[1].scatter(*samples[:1500].T, s=2)
axes[1].set_title("samples")
axes[2].plot(chains.mean_energies)
axes[2].set(title="mean energy of long chains", xlabel="record")
for axis in axes[:2]:
    axis.set(xlim=(-3.5, 3.5), ylim=(-3.5, 3.5))
figure.savefig(figures / "ebm-samples.png", dpi=110)

# %% [markdown]
# ## The likelihood after training
#
# `annealed` moves fresh walkers along any path of models to the trained one. Their `Z`
# is unbiased, whatever the training was. Here the path is the geometric one from the
# Gaussian start. The walkers determine the number of steps.

# %%
walkers = ebm.annealed(
    [energy, states["PCD"].model],
    gaussian(keys[5], 8_192),
    kernel=ebm.MALA(ebm.TargetAcceptance(0.1)),
    key=keys[5],
)
value, error = walkers.estimate()
truth = float(exact(states["PCD"].model)[0])
print(f"PCD's log Z: {value:.3f} +- {error:.3f}; by the grid {truth:.3f}")
