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
# # Recommendations with two towers
#
# A user is a number, and so is an item. Each has a vector, and the score of both is
# their product. The data say which items a user has met, and when. The task is to rank
# the item that comes next among all items that the user has not met. We train by the
# batch's own items, which favors rare items unless it is corrected, and by a cache of
# all items. Then we add items that nobody has met.
#
# MovieLens-100k comes in a package of PyPI: `pip install --no-deps recbole`. Without
# it, the notebook runs on a simulated record of the same form.

# %%
import csv
import importlib.util
import os
import tempfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import effgen as eg
from effgen import retrieval_cache as rc
from effgen.core.data.ragged import Ragged


# CI runs this with fewer steps.
num_steps = int(os.environ.get("EFFGEN_TOUR_STEPS", "1500"))
figures = Path(os.environ.get("EFFGEN_FIGURES", tempfile.mkdtemp()))

# %% [markdown]
# ## The record
#
# A row is a user, an item, a rating and a time. We leave the ratings out: that a film
# was rated says that it was seen. Users and items are numbered from zero.


# %%
def rows_of(path):
    """Return the rows of a file of tab-separated cells, without its head."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter="\t"))[1:]


def shipped():
    """Return rows of user, item and time of MovieLens-100k, and genres by item."""
    spec = importlib.util.find_spec("recbole")
    folder = Path(spec.submodule_search_locations[0]) / "dataset_example" / "ml-100k"
    rows = rows_of(folder / "ml-100k.inter")
    films = {int(row[0]): row[3].split() for row in rows_of(folder / "ml-100k.item")}
    genres = sorted({genre for row in films.values() for genre in row})
    flags = np.zeros((max(films) + 1, len(genres)), np.float32)
    for film, row in films.items():
        flags[film, [genres.index(genre) for genre in row]] = 1
    return np.asarray([(int(u), int(i), float(t)) for u, i, _, t in rows]), flags


def simulated(num_users=300, num_items=400):
    """Return the same of users who like what is near, and what is popular."""
    rng = np.random.default_rng(0)
    tastes, kinds = (rng.normal(size=(n, 8)) for n in (num_users, num_items))
    popular = 1.5 * rng.normal(size=num_items)
    noise = rng.gumbel(size=(num_users, num_items))
    order = np.argsort(-(tastes @ kinds.T + popular + noise), axis=1)[:, :30]
    users = np.repeat(np.arange(num_users), 30)
    rows = np.stack([users, order.ravel(), rng.permutation(len(users))], 1)
    return rows * 1.0, (kinds > 0).astype(np.float32)


record, flags = shipped() if importlib.util.find_spec("recbole") else simulated()
record = record[np.argsort(record[:, 2], kind="stable")]
users = np.unique(record[:, 0], return_inverse=True)[1]
names, items = np.unique(record[:, 1].astype(int), return_inverse=True)
num_users, num_items, features = users.max() + 1, len(names), flags[names]
met = [items[users == i] for i in range(num_users)]
print(f"{num_users} users, {num_items} items, {len(items):,} rows")

# %% [markdown]
# The last item of each user is held out, and the rest is trained on. The order is that
# of the times, so nothing is learned from the future of a user. Half of all rows are of
# a few popular items.

# %%
earlier, last = [x[:-1] for x in met], np.asarray([x[-1] for x in met])
counts = np.bincount(np.concatenate(earlier), minlength=num_items)
share = np.cumsum(np.sort(counts)[::-1]) / counts.sum()
print(f"half of the rows are of {np.searchsorted(share, 0.5) + 1} of {num_items} items")

# %% [markdown]
# ## Pairs
#
# A pair is a user and an item. `known` are all items that the user has met. They are no
# negatives, and they are stored once for all pairs (`Ragged`).

# %%
asked = np.repeat(np.arange(num_users), [len(x) for x in earlier]).astype(np.int32)
given = np.concatenate(earlier).astype(np.int32)
pairs = rc.Pairs(asked, given, given)
knowing = pairs._replace(known=Ragged.of(earlier, asked))
everyone = np.arange(num_users, dtype=np.int32)
catalog = np.arange(num_items, dtype=np.int32)


def evaluated(model):
    """Return measures of ten recommendations, without what a user has met."""
    index = rc.Index.of(model.document, catalog)
    return rc.evaluate(model, everyone, last, index, k=10, known=earlier)


class Popularity:
    """A model that recommends to all what most have met."""

    def query(self, numbers):
        return jnp.ones((len(numbers), 1))


popular = rc.evaluate(
    Popularity(),
    everyone,
    last,
    rc.Index.from_embeddings(counts[:, None] * 1.0),
    known=earlier,
)
print({k: round(v, 3) for k, v in popular.means().items()})

# %% [markdown]
# ## Three softmaxes
#
# In batch, an item is a negative as often as it is popular. So its score becomes too
# low: it learns `log p(item | user) - log p(item)`. With `frequencies`, the loss takes
# the logarithm back. The cache has all items as negatives, each once, so it needs no
# correction. It can also leave out all items that a user has met.

# %%
keys = jax.random.split(jax.random.key(0), 3)
model = rc.TwoTowers(
    rc.Table(num_users, 32, key=keys[0]), rc.Table(num_items, 32, key=keys[1])
)
optim, temperature = optax.adam(3e-3), 0.1
arms = {
    "in batch": (rc.InBatchTrainer(optim, temperature=temperature), pairs, None),
    "in batch, corrected": (
        rc.InBatchTrainer(optim, temperature=temperature, frequencies=counts),
        pairs,
        None,
    ),
    "cache, known items": (
        rc.NegativeCacheTrainer(optim, 128, temperature=temperature, refresh=0.1),
        knowing,
        rc.NegativeCache.fill(model.document, catalog),
    ),
}
states, curves = {}, {}
for name, (trainer, data, cache) in arms.items():
    run = eg.train(
        trainer,
        trainer.init(model, cache),
        eg.Minibatches(data, 256),
        key=keys[2],
        num_steps=num_steps,
        every=num_steps // 5,
    )
    curves[name] = []
    for state, _ in eg.progress(run):
        curves[name].append(evaluated(state.model).means())
    states[name] = state
    print(name, {k: round(v, 3) for k, v in curves[name][-1].items()})

# %% [markdown]
# `recall` is the hit rate here, because one item is to be found. For one of these runs,
# with rates and temperatures that nobody tuned, the order of contestants says little.
# `benchmarks/movielens.py` tunes each on a validation item and compares at equal time.
#
# How often an item is recommended, by how often it was met, shows the correction:

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
steps = np.arange(1, 6) * (num_steps // 5)
for name, curve in curves.items():
    axes[0].plot(steps, [row["recall"] for row in curve], "o-", label=name)
reached = popular.means()["recall"]
axes[0].axhline(reached, color="gray", linestyle=":", label="popularity")
axes[0].set(xlabel="step", ylabel="hit rate of ten")
axes[0].legend()
order = np.argsort(-counts, kind="stable")
tenths, shares = np.array_split(order, 10), {}
for name, state in states.items():
    index = rc.Index.of(state.model.document, catalog)
    best = index.search(state.model.query(everyone), 10, known=earlier).ids
    often = np.bincount(np.asarray(best).ravel(), minlength=num_items)
    shares[name] = [often[tenth].sum() / often.sum() for tenth in tenths]
    axes[1].plot(np.arange(1, 11), shares[name], "o-", label=name)
axes[1].set(xlabel="tenth of the items, most popular first", ylabel="recommended")
figure.savefig(figures / "recommenders.png", dpi=120)
for name, row in shares.items():
    print(f"{name}: {row[0]:.0%} of the recommendations are of the first tenth")
more = shares["in batch, corrected"][0] > shares["in batch"][0]
print("the correction recommends popular items more:", bool(more))

# %% [markdown]
# ## Items that nobody has met
#
# A table knows nothing of a new item. `IdsAndFeatures` adds an embedding of features,
# here of a film's genres, and in training leaves out the numbers of some items, so that
# features alone must do. A tenth of the items is new: their pairs are left out.


# %%
class Genres(eqx.Module):
    """A vector for each genre; an item has the sum of its own."""

    vectors: jax.Array

    def __call__(self, flags):
        return flags @ self.vectors


new = np.random.default_rng(1).permutation(num_items)[: num_items // 10]
old = ~np.isin(given, new)
films = (given[old], features[given[old]])
table = rc.Table(num_items, 32, key=keys[1])
genres = Genres(jax.random.normal(keys[2], (features.shape[1], 32)) / 6)
cold = rc.TwoTowers(
    rc.Table(num_users, 32, key=keys[0]),
    rc.IdsAndFeatures(table, genres, dropout=0.3),
)
trainer = rc.LazyTablesTrainer(
    rc.InBatchTrainer(optim, temperature=temperature, frequencies=counts)
)
state, _ = eg.fit(
    trainer,
    trainer.init(cold),
    eg.Minibatches(rc.Pairs(asked[old], films, given[old]), 256),
    key=keys[2],
    num_steps=num_steps,
)

# %% [markdown]
# A user whose last item is new is asked for it among all new items. They have no
# number: they are embedded by their genres.

# %%
unknown = (np.full(len(new), -1, np.int32), features[new])
index = rc.Index.of(state.model.document, unknown, ids=new)
among = np.isin(last, new)
cold_ranks = rc.evaluate(state.model, everyone[among], last[among], index, k=10)
hits, chance = cold_ranks.means()["recall"], 10 / len(new)
print(f"{among.sum()} users met a new item last: {hits:.3f} are told it among ten")
print(f"by chance {chance:.3f}; better than that:", hits > chance)
