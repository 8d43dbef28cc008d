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
# not to the model. We go on with hares and lynxes, and end with a drug in twelve
# people.

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

# %% [markdown]
# ## A drug in twelve people
#
# Twelve people took theophylline by mouth. Their blood was sampled eleven times over a
# day (Boeckmann, Sheiner and Beal 1994, in R's `datasets`). It is absorbed from a depot
# and cleared: `depot' = -absorption depot`, `level' = (absorption depot - clearance
# level) / volume`. Each person has three parameters of their own, and a `Prior` says
# that their logarithms are normal around shared means. Six people are seen for the
# whole day, and six for the first five hours. Does clearance depend on the level? A
# `Deviation` may say so, and `choose` asks the evidence.

# %%
table = """
4.02
0 0.25 0.57 1.12 2.02 3.82 5.1 7.03 9.05 12.12 24.37
0.74 2.84 6.57 10.5 9.66 8.58 8.36 7.47 6.89 5.94 3.28
4.4
0 0.27 0.52 1 1.92 3.5 5.02 7.03 9 12 24.3
0 1.72 7.91 8.31 8.33 6.85 6.08 5.4 4.55 3.01 0.9
4.53
0 0.27 0.58 1.02 2.02 3.62 5.08 7.07 9 12.15 24.17
0 4.4 6.9 8.2 7.8 7.5 6.2 5.3 4.9 3.7 1.05
4.4
0 0.35 0.6 1.07 2.13 3.5 5.02 7.02 9.02 11.98 24.65
0 1.89 4.6 8.6 8.38 7.54 6.88 5.78 5.33 4.19 1.15
5.86
0 0.3 0.52 1 2.02 3.5 5.02 7.02 9.1 12 24.35
0 2.02 5.63 11.4 9.33 8.74 7.56 7.09 5.9 4.37 1.57
4
0 0.27 0.58 1.15 2.03 3.57 5 7 9.22 12.1 23.85
0 1.29 3.08 6.44 6.32 5.53 4.94 4.02 3.46 2.78 0.92
4.95
0 0.25 0.5 1.02 2.02 3.48 5 6.98 9 12.05 24.22
0.15 0.85 2.35 5.02 6.58 7.09 6.66 5.25 4.39 3.53 1.15
4.53
0 0.25 0.52 0.98 2.02 3.53 5.05 7.15 9.07 12.1 24.12
0 3.05 3.05 7.31 7.56 6.59 5.88 4.73 4.57 3 1.25
3.1
0 0.3 0.63 1.05 2.02 3.53 5.02 7.17 8.8 11.6 24.43
0 7.37 9.03 7.14 6.33 5.66 5.67 4.24 4.11 3.16 1.12
5.5
0 0.37 0.77 1.02 2.05 3.55 5.05 7.08 9.38 12.1 23.7
0.24 2.89 5.22 6.41 7.83 10.21 9.18 8.02 7.14 5.68 2.42
4.92
0 0.25 0.5 0.98 1.98 3.6 5.02 7.03 9.03 12.12 24.08
0 4.86 7.24 8 6.81 5.87 5.22 4.45 3.62 2.69 0.86
5.3
0 0.25 0.5 1 2 3.52 5.07 7.07 9.03 12.05 24.15
0 1.25 3.96 7.82 9.72 9.75 8.57 6.59 6.11 4.57 1.17
"""  # of each person the dose in mg/kg, the hours, and the levels in mg/l
lines = [np.array(line.split(), float) for line in table.split("\n") if line]
people = list(zip(lines[::3], lines[1::3], lines[2::3], strict=True))
names = {"absorption": 0.6, "clearance": 0.25, "volume": 0.15}  # and their spreads


def drug(t, x, u, p, nets):
    own = {name: jnp.exp(p[name][u[-1].astype(int)]) for name in names}
    absorbed = own["absorption"] * x[0]
    cleared = own["clearance"] * jnp.exp(nets(x[1]) if nets else 0.0) * x[1]
    return jnp.stack([-absorbed, (absorbed - cleared) / own["volume"]])


def prior(name):
    return co.Prior(lambda p, nets: p[name] - p[f"mean {name}"], names[name], name=name)


seen = [11] * 6 + [7] * 6
trials = co.Problem(
    drug,
    co.numbered([(h[:n], y[:n]) for (_, h, y), n in zip(people, seen, strict=True)]),
    observe=lambda t, x, u, p, nets: x[1:],
    num_states=2,
    nominal=[4.0, 8.0],
    initial=co.Initial(np.array([[dose[0], 0.0] for dose, _, _ in people])),
    scale=0.7,
    priors=[prior(name) for name in names],
)
first = {"absorption": 0.0, "clearance": -3.0, "volume": -1.0}
parameters = {name: np.full(12, value) for name, value in first.items()}
parameters |= {f"mean {name}": value for name, value in first.items()}
cleared = co.Deviation(1, center=5.0, scale=3.0, key=key)
mesh = co.transcribe(trials, stages=3)
choice = co.choose(trainer, co.Model(parameters, cleared), mesh, key=key, num_rounds=1)
gain = choice.evidence.log_evidence - choice.plain.log_evidence
print("a network:", choice.network, f"({gain:.1f} nats)")
for name in names:
    print(name, f"{np.exp(choice.state.model.parameters[f'mean {name}']):.3f}")

# %% [markdown]
# The evidence refuses the network: at these doses clearance does not depend on the
# level. The bands of the six people who are seen for five hours hold their parameters
# and the noise of a sample. What these people share with the others tells how fast
# their levels will fall.

# %%
hours = np.linspace(0, 25, 101)
late = jnp.arange(6, 12)


def levels(model):
    def one(i):
        start = jnp.asarray(trials.initial.values)[i]
        number = lambda t: jnp.reshape(i, 1).astype(float)
        how = dict(adjoint=diffrax.ForwardMode())
        return co.integrate(trials, model, start, hours, number, **how)[:, 1]

    return jax.vmap(one)(late)


covariance = co.covariance(choice.transcription, choice.state, noise=1.0).model
center = levels(choice.state.model)
spread = co.propagated(levels, choice.state.model, covariance)
spread = np.sqrt(np.asarray(spread) ** 2 + 0.7**2)
figure, panels = plt.subplots(2, 3, figsize=(10, 5), sharex=True, sharey=True)
held = []
for panel, i, middle, wide in zip(panels.flat, late, center, spread, strict=True):
    _, at, y = people[i]
    panel.plot(hours, middle, "C0")
    band = (middle - 1.64 * wide, middle + 1.64 * wide)
    panel.fill_between(hours, *band, color="C0", alpha=0.2)
    panel.plot(at[:7], y[:7], "ko", markersize=3, label="seen")
    panel.plot(at[7:], y[7:], "C3o", markersize=3, label="not seen")
    gap = np.abs(np.interp(at[7:], hours, middle) - y[7:])
    held.append(gap < 1.64 * np.interp(at[7:], hours, wide))
panels[0, 0].legend()
figure.supxlabel("hours after the dose")
figure.supylabel("theophylline, mg/l")
figure.tight_layout()
figure.savefig(figures / "collocation-levels.png", dpi=120)
print(f"{np.sum(held)} of {np.size(held)} later samples are within the bands of 90 %")
