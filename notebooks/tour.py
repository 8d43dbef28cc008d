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
# # A tour of effgen
#
# One core trains every model here. This notebook trains an energy-based model of
# handwritten digits. It shows what every run has: progress, logs, checkpoints, and
# errors that keep the last good state. It also shows a likelihood in nats with its
# error bar. At the end a method of your own has the same.

# %%
import os
import tempfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import effgen as eg
from effgen import ebm


# CI runs this with fewer steps; the figures in the documentation are of the full size.
NUM_STEPS = int(os.environ.get("EFFGEN_TOUR_STEPS", "6000"))
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## Data
#
# The data are 1,797 real digits of 8 by 8 pixels. Noise gives them a density. Whitening
# lets Langevin moves take steps of one size in every direction.

# %%
noise = 0.3
keys = jax.random.split(jax.random.key(0), 8)
digits = load_digits()
images = digits.images.reshape(-1, 64) / 8.0 - 1.0
noisy = images + noise * np.asarray(jax.random.normal(keys[0], images.shape))
mean, covariance = noisy[300:].mean(0), np.cov(noisy[300:].T)
values, vectors = np.linalg.eigh(covariance)
whitened = jnp.asarray((noisy - mean) @ (vectors / np.sqrt(values)), jnp.float32)
held_out, x = whitened[:300], whitened[300:]

# %% [markdown]
# ## A trainer, a state, a run
#
# The energy starts as a Gaussian, and the walkers start as exact samples of it. So
# `log Z` is known from the first step. The audit walkers never enter the gradient, so
# training does not bias their estimate of the likelihood.

# %%
rate = optax.linear_schedule(3e-4, 0.0, NUM_STEPS)
trainer = ebm.JarzynskiTrainer(optax.adam(rate, b1=0.0), kernel=ebm.ULA(0.05))
walkers, audit = (ebm.Walkers.from_gaussian(k, 1024, (64,)) for k in keys[1:3])
energy = ebm.mlp_energy((64,), key=keys[3], width_size=256)
state = trainer.init(energy, ebm.Audited(walkers, audit))
data = eg.Minibatches(x, 128)

run = eg.train(
    trainer, state, data, key=keys[4], num_steps=NUM_STEPS, every=NUM_STEPS // 12
)
run = eg.logged(eg.progress(run), folder / "log.jsonl")
run = eg.checkpointed(run, folder / "checkpoints", every=NUM_STEPS // 4)
steps, honest, errors, own = [], [], [], []
for state, metrics in run:
    density = ebm.NormalizedEnergy.from_state(state)
    value, error = density.log_likelihood(held_out)
    steps.append(int(state.step))
    honest.append(float(value))
    errors.append(float(error))
    own.append(float(value) - float(metrics["audit_gap"][-1]))
print("where the time went:", run.ledger)

# %%
band = 2 * np.array(errors)
plt.plot(steps, honest, label="by the audit walkers")
plt.fill_between(steps, np.array(honest) - band, np.array(honest) + band, alpha=0.2)
plt.plot(steps, own, ":", label="by the training walkers")
plt.xlabel("step")
plt.ylabel("held-out log-likelihood (nats, whitened)")
plt.legend()
plt.show()

# %% [markdown]
# ## Samples
#
# Samples are drawn in proportion to the walkers' weights, and mapped back to pixels.

# %%
samples = ebm.sample(state, 32, key=keys[5])
pixels = np.asarray(samples) * np.sqrt(values) @ vectors.T + mean
figure, panels = plt.subplots(2, 16, figsize=(10, 1.5))
for panel, picture in zip(panels.flat, pixels, strict=True):
    panel.imshow(picture.reshape(8, 8), cmap="gray", vmin=-1, vmax=1)
    panel.axis("off")
plt.show()

# %% [markdown]
# ## Stop and continue
#
# A run resumed from any checkpoint equals, bit for bit, the run that never stopped.

# %%
again = eg.restore(folder / "checkpoints", state, step=NUM_STEPS // 4 * 3)
rest = NUM_STEPS - int(again.step)
again, history = eg.fit(trainer, again, data, key=keys[4], num_steps=rest)
print(eg.state_digest(again) == eg.state_digest(state))
history.to_pandas()[["loss", "log_partition", "ess", "audit_gap"]].tail(3)

# %% [markdown]
# ## When something goes wrong
#
# Here the learning rate is far too high. The run stops before the step that breaks it,
# says why, and returns the last good state.

# %%
reckless = ebm.JarzynskiTrainer(optax.adam(10.0), kernel=ebm.ULA(0.05))
fresh = reckless.init(energy, walkers)
try:
    eg.fit(reckless, fresh, data, key=keys[4], num_steps=100)
except eg.TrainingError as error:
    print(error)
    print("the state before it is usable, at step", int(error.state.step))

# %% [markdown]
# ## Your own method, and its learning rate
#
# Two methods make a trainer. Here it trains a classifier of the same digits, at six
# learning rates. The rates are in the optimizer's state, so one compilation serves all.


# %%
def cross_entropy(model, pixels, labels):
    logits = jax.vmap(model)(pixels)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


class Classifier(eg.AbstractTrainer):
    """Labels of images, by cross-entropy."""

    optim: optax.GradientTransformation

    def init(self, model, memory=None):
        return eg.TrainState.start(model, eg.init_opt_state(self.optim, model), memory)

    def step(self, state, batch, *, key):
        loss, gradients = eqx.filter_value_and_grad(cross_entropy)(state.model, *batch)
        model, opt_state = eg.apply_gradients(
            self.optim, gradients, state.opt_state, state.model
        )
        return state.advance(model, opt_state, state.memory), {"loss": loss}


pixels, labels = jnp.asarray(images, jnp.float32), jnp.asarray(digits.target)
batches = eg.Minibatches((pixels[300:], labels[300:]), 64)
classifier = Classifier(optax.inject_hyperparams(optax.adam)(learning_rate=0.0))
begun = classifier.init(eqx.nn.MLP(64, 10, 32, 1, key=keys[6]))
losses, final = {}, {}
for rate in (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3):
    tried = eqx.tree_at(
        lambda state: state.opt_state.hyperparams["learning_rate"],
        begun,
        jnp.asarray(rate),
    )
    tried, history = eg.fit(classifier, tried, batches, key=keys[7], num_steps=400)
    losses[f"{rate:g}"] = history["loss"]
    final[f"{rate:g}"] = float(cross_entropy(tried.model, pixels[:300], labels[:300]))

# %% [markdown]
# Sums over the first hundred losses, which training computes anyway, predict the order
# on held-out digits after four hundred. `docs/sweeps.md` says what such sums are.

# %%
early = {name: values[:100] for name, values in losses.items()}
for estimator in (eg.sotl, eg.tse_ema):
    print("by", estimator.__name__, "after 100 steps:", *eg.rank_runs(early, estimator))
print("held out, after 400 steps:", *sorted(final, key=final.__getitem__))

# %% [markdown]
# Is it worth continuing? The tail of the curve is extended, with an interval.

# %%
for name in ("1e-05", "0.001"):
    found = eg.extrapolate(losses[name], at=600)
    print(f"{name}: {found.now:.3f} now, {found.low:.3f} to {found.high:.3f} at 600")
