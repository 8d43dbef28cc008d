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
# # Laws that are partly known, learned without a solver in the loop
#
# A physics-enhanced neural ODE has equations where they are known and networks where
# they are not. Here its states and its networks are found together, as one sparse
# nonlinear program, by Ipopt. We begin with an oscillator whose law is known to us and
# not to the model. We end with hares and lynxes.

# %%
import os
import tempfile
from pathlib import Path

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import scipy.integrate

import effgen as eg
from effgen import collocation as co


jax.config.update("jax_enable_x64", True)
figures = Path(os.environ.get("EFFGEN_FIGURES", tempfile.mkdtemp()))
key = jax.random.key(0)

# %% [markdown]
# ## An oscillator
#
# The data are eight runs of Van der Pol's oscillator, `x'' = 2 (1 - x^2) x' - x`, with
# 81 samples each and noise of 1 %. It is known that `x' = v` and that there is a
# spring, `-x`. The other force, `2 (1 - x^2) v`, is unknown. A network of `x` and `v`
# stands for it.


# %%
def law(t, x):
    return [x[1], 2 * (1 - x[0] ** 2) * x[1] - x[0]]


def truth(start, ts):
    return scipy.integrate.solve_ivp(
        law, (ts[0], ts[-1]), start, t_eval=ts, rtol=1e-10, atol=1e-10
    ).y.T


def vector_field(t, x, u, p, nets):
    return jnp.stack([x[1], nets(x) - x[0]])


rng = np.random.default_rng(0)
ts = np.linspace(0, 4, 81)
starts = np.stack([rng.permutation(np.linspace(-3, 3, 8)) for _ in range(2)], axis=1)
clean = [truth(start, ts) for start in starts]
spread = np.concatenate(clean).std(0)
data = [(ts, x + 0.01 * spread * rng.normal(size=x.shape)) for x in clean]
problem = co.Problem(vector_field, data, weight_decay=1e-6)
network = eqx.nn.MLP(2, "scalar", 8, 2, jax.nn.tanh, key=key)

# %% [markdown]
# Two meshes: a coarse one, and a fine one that begins from its states, networks and
# multipliers. The network begins near the slopes of the smoothed data (`pretrain`).

# %%
levels = [co.transcribe(problem, intervals=n, stages=4) for n in (10, 20)]
model = co.pretrain(network, levels[0], key=key)
trainer = co.CollocationTrainer(tol=1e-6)
state = trainer.init(model, levels[0].guess())
state, history = eg.drain(eg.progress(eg.train(trainer, state, levels, key=key)))
print("iterations:", history["iterations"], "status:", history["status"])
for name in ("seconds", "evaluating"):
    print(name, history[name].round(2))

# %% [markdown]
# Ipopt's trace is among the metrics. The constraints are the equations. They need to
# hold only at convergence, and there they hold to rounding.

# %%
figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
for level, trace in enumerate(history["trace"]):
    axes.semilogy(trace[:, 1], color=f"C{level}", label=f"mesh {level + 1}: primal")
    axes.semilogy(trace[:, 2], ":", color=f"C{level}", label="dual")
axes.set(xlabel="iteration", ylabel="infeasibility", title="Ipopt's convergence")
axes.set_xlim(0, 1 + int(history["iterations"].max()))
axes.legend()
figure.savefig(figures / "collocation-convergence.png", dpi=120)

# %% [markdown]
# ## The learned force
#
# The learned force stands beside the true one, over the box that training has visited.
# The dots are the nodes. Where no trajectory went, the data say nothing.

# %%
grid = np.stack(
    np.meshgrid(np.linspace(-3, 3, 61), np.linspace(-4, 4, 61)), axis=-1
).reshape(-1, 2)
learned = jax.vmap(state.model.networks)(jnp.asarray(grid))
exact = 2 * (1 - grid[:, 0] ** 2) * grid[:, 1]
figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
for axes, values, title in zip(
    panels, (exact, learned), ("the true force", "the learned one"), strict=True
):
    picture = axes.contourf(
        *grid.T.reshape(2, 61, 61),
        np.clip(np.asarray(values), -15, 15).reshape(61, 61),
        levels=np.linspace(-15, 15, 13),
        cmap="RdBu",
    )
    axes.plot(*np.asarray(state.memory.positions).T, "k.", markersize=1)
    axes.set(xlabel="x", ylabel="v", title=title, xlim=(-3, 3), ylim=(-4, 4))
nodes = np.asarray(state.memory.positions)
known = 2 * (1 - nodes[:, 0] ** 2) * nodes[:, 1]
there = np.asarray(jax.vmap(state.model.networks)(jnp.asarray(nodes)))
error = np.sqrt(np.mean((there - known) ** 2)) / known.std()
print("error of the force at the nodes, relative:", error.round(3))
figure.colorbar(picture, ax=panels)
figure.savefig(figures / "collocation-force.png", dpi=120)

# %% [markdown]
# ## From starts that it has not seen
#
# The trained model is an ordinary vector field. `extrapolation` simulates it on other
# trajectories, here for twice as long. It also returns how far they went from what
# training had visited, in standard deviations.

# %%
unseen = rng.uniform(-2, 2, (4, 2))
longer = np.linspace(0, 8, 161)
runs = [truth(start, longer) for start in unseen]
other = co.Problem(vector_field, [(longer, x) for x in runs])
found = co.extrapolation(other, state.model, state.memory, starts=unseen)
figure, panels = plt.subplots(2, 2, figsize=(9, 4.5), layout="constrained")
for axes, run, states, error, distance in zip(
    panels.ravel(), runs, found.states, found.errors, found.distances, strict=True
):
    axes.plot(longer, run[:, 0], "k", linewidth=0.8, label="truth")
    axes.plot(longer, states[:, 0], "C1--", label="model")
    axes.set_title(f"error {error[0]:.3f}, distance {distance:.2f}", fontsize=9)
panels[0, 0].legend()
figure.supxlabel("time (training ends at 4)")
figure.savefig(figures / "collocation-unseen.png", dpi=120)
print("errors:", found.errors[:, 0].round(3))

# %% [markdown]
# ## The error between the nodes
#
# Between the nodes the equations hold only approximately. `residuals` returns the
# error, and `refine` cuts the intervals where it is too large.

# %%
between = np.linspace(0, 4, 801)
finer = co.refine(levels[-1], state, tol=1e-4)
refined, _ = eg.fit(trainer, state, [finer], key=key)
figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
worst = []
for label, at in (("20 intervals", state), ("refined", refined)):
    left = co.residuals(problem, at.model, at.memory, between)
    worst.append(np.abs(left).max())
    axes.semilogy(between, np.abs(left).max(1) + 1e-16, label=label, linewidth=0.8)
axes.set(xlabel="time", ylabel="residual, relative", title="The first trajectory")
axes.legend()
figure.savefig(figures / "collocation-residuals.png", dpi=120)
print("intervals:", [len(e) - 1 for e in finer.mesh.edges])
print("largest residual:", np.round(worst, 4), bool(worst[1] < 0.1 * worst[0]))

# %% [markdown]
# ## Hares and lynxes
#
# The data are pelts of the Hudson's Bay Company, 1900 to 1920. The law is Lotka and
# Volterra's: hares breed, meet lynxes at a rate, and are eaten; lynxes eat them and
# die. In logarithms: `d log h = breeding - rate l`, `d log l = conversion rate h -
# mortality`. Is the attack rate the same however many hares there are? A network of
# `log h` stands for it, with a prior of unit scale on its weights (`weight_decay`), for
# the years to 1914.

# %%
years = np.arange(1900.0, 1921.0)
hares = [30.0, 47.2, 70.2, 77.4, 36.3, 20.6, 18.1, 21.4, 22.0, 25.4, 27.1]
hares += [40.3, 57.0, 76.6, 52.3, 19.5, 11.2, 7.6, 14.6, 16.2, 24.7]
lynxes = [4.0, 6.1, 9.8, 35.2, 59.4, 41.7, 19.0, 13.0, 8.3, 9.1, 7.4]
lynxes += [8.0, 12.3, 19.5, 45.7, 51.1, 29.7, 15.8, 9.7, 10.1, 8.6]
counts = np.stack([hares, lynxes], axis=1)
shown = years <= 1914
noise = 0.25  # of the logarithms


def populations(t, x, u, p, nets):
    taken = jnp.exp(nets(x[:1] - 3.5) - 3.5)
    hares, lynxes = jnp.exp(x)
    return jnp.stack(
        [
            p["breeding"] - taken * lynxes,
            p["conversion"] * taken * hares - p["mortality"],
        ]
    )


pelts = co.Problem(
    populations,
    (years[shown] - 1900, np.log(counts[shown])),
    scale=noise,
    parameter_bounds=(1e-3, 5.0),
    weight_decay=1 / counts[shown].size,
)
rate = eqx.nn.MLP(1, "scalar", 8, 1, jax.nn.tanh, key=key)
guess = co.Model({"breeding": 0.6, "conversion": 0.8, "mortality": 0.8}, rate)
meshes = [co.transcribe(pelts, intervals=n, stages=3) for n in (14, 42)]
wild = trainer.init(guess, meshes[0].guess())
wild, history = eg.fit(trainer, wild, meshes, key=key)
covariance = co.covariance(meshes[-1], wild, noise=1.0).model
for i, name in enumerate(sorted(wild.model.parameters)):
    value = float(wild.model.parameters[name])
    print(f"{name}: {value:.2f} +- {covariance[i, i] ** 0.5:.2f}")

# %% [markdown]
# The bands are from the covariance of all parameters and weights, by the conditions of
# optimality. `propagated` carries it through the law and through a simulation to 1920.
# The literature's attack rate is 0.028 for all numbers of hares (Carpenter 2018). The
# band contains it except for the fewest hares. Fifteen years do not determine more.

# %%
hares = np.linspace(5, 90, 60)
times = np.linspace(0, 20, 201)
log_rate = lambda m: jax.vmap(m.networks)(jnp.log(jnp.asarray(hares))[:, None] - 3.5)
ahead = lambda m: co.integrate(
    pelts, m, wild.memory(0.0)[0], times, adjoint=diffrax.ForwardMode()
)
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
center, spread = log_rate(wild.model), co.propagated(log_rate, wild.model, covariance)
left.plot(hares, np.exp(center - 3.5), "C2")
band = [np.exp(np.asarray(center) + s * 1.64 * spread - 3.5) for s in (-1, 1)]
left.fill_between(hares, *band, color="C2", alpha=0.2, label="90 %")
left.axhline(0.028, color="gray", linewidth=0.8, label="literature")
left.set(xlabel="hares, thousands", ylabel="attack rate", ylim=(0, 0.06))
left.legend()
center, spread = ahead(wild.model), co.propagated(ahead, wild.model, covariance)
for i, animal in enumerate(("hares", "lynxes")):
    right.plot(years, counts[:, i], "o", color=f"C{i}", markersize=3)
    right.plot(1900 + times, np.exp(center[:, i]), color=f"C{i}", label=animal)
    band = [np.exp(np.asarray(center)[:, i] + s * 1.64 * spread[:, i]) for s in (-1, 1)]
    right.fill_between(1900 + times, *band, color=f"C{i}", alpha=0.2)
right.axvline(1914.5, color="gray", linewidth=0.8)
right.set(xlabel="year", ylabel="pelts, thousands", xticks=range(1900, 1921, 5))
right.legend()
figure.savefig(figures / "collocation-pelts.png", dpi=120)
