"""Recommendations on MovieLens-100k: two towers of tables, BPR, and popularity.

`python -m benchmarks.movielens [SECONDS [SEEDS [FILE]]]`. The file is `ml-100k.inter`,
as `pip install --no-deps recbole` brings it, or GroupLens's own `u.data`. Each user's
items are in the order of their times. The last is for the test, the one before for the
validation. All items that a user has not met are ranked.

Each contestant trains for `SECONDS` of the processor (`time.process_time`, compilation
apart), once for every setting of a small grid. Its setting, and the share of the
seconds after which it stops, are those of the best nDCG@10 in validation. It then
trains for every seed on all but the last item. BPR is that of `implicit`, if it is
installed, with one thread.
"""

import csv
import importlib.util
import itertools
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import effgen as eg
from benchmarks import measure
from benchmarks.retrieval import bootstrapped, read as ranks_of, spelled
from effgen import retrieval_cache as rc
from effgen.core.data.ragged import Ragged


BEST = 10  # as deep as rankings are looked at
POPULAR, BATCH, FULL = "popularity", "in batch, log-frequency", "full softmax"
CACHE, BPR = "cache, known items", "BPR (implicit)"
OURS = (BATCH, FULL, CACHE)


class Sizes(NamedTuple):
    """What a run spends, and the grid of its settings."""

    seconds: float = 15.0
    seeds: int = 3
    size: int = 64
    pairs: int = 256
    negatives: int = 128
    rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    temperatures: tuple[float, ...] = (0.1, 0.2)
    bpr_rates: tuple[float, ...] = (0.01, 0.03, 0.1)
    bpr_decays: tuple[float, ...] = (0.001, 0.01)
    shares: int = 4
    steps: int | None = None  # of all contestants, without a clock


class Task(NamedTuple):
    """Users' earlier items, and the one that is to be found."""

    met: list[list[int]]
    wanted: np.ndarray
    num_items: int

    def pairs(self) -> rc.Pairs:
        """Return a pair for each user and item, with what else the user has met."""
        users = np.repeat(np.arange(len(self.met)), [len(x) for x in self.met])
        items = np.concatenate([np.asarray(x) for x in self.met]).astype(np.int32)
        users = users.astype(np.int32)
        return rc.Pairs(users, items, items, known=Ragged.of(self.met, users))

    def counts(self) -> np.ndarray:
        """Return how often each item was met."""
        return np.bincount(np.concatenate(self.met), minlength=self.num_items)


class Factors(eqx.Module):
    """A vector for each user: what `evaluate` asks of a model."""

    users: jax.Array

    def query(self, numbers):
        return self.users[numbers]


def shipped() -> Path:
    """Return where recbole's package has the file."""
    spec = importlib.util.find_spec("recbole")
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        raise FileNotFoundError(
            "MovieLens-100k is not here: pip install --no-deps recbole, or pass the "
            "path of ml-100k.inter or u.data."
        )
    return Path(folders[0]) / "dataset_example" / "ml-100k" / "ml-100k.inter"


def histories(path: Path) -> tuple[list[list[int]], int]:
    """Return each user's items in the order of their times, and how many there are.

    Items of one second stay in the file's order. Items are numbered as they come.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row[:4] for row in csv.reader(file, delimiter="\t")]
    rows = rows[not rows[0][0].isdigit() :]
    rows.sort(key=lambda row: float(row[3]))
    number: dict[str, int] = {}
    found: dict[str, list[int]] = {}
    for user, item, *_ in rows:
        found.setdefault(user, []).append(number.setdefault(item, len(number)))
    return list(found.values()), len(number)


def task(met: list[list[int]], num_items: int, last: int) -> Task:
    """Return the task to find the item that is the `last` from the end."""
    wanted = np.asarray([items[-last] for items in met])
    return Task([items[:-last] for items in met], wanted, num_items)


def ranked(model: Any, index: rc.Index, given: Task) -> np.ndarray:
    """Return one over the rank of each user's item, zero past the tenth."""
    users = np.arange(len(given.met), dtype=np.int32)
    found = rc.evaluate(model, users, given.wanted, index, k=BEST, known=given.met)
    return np.asarray(found.mrr)


def gains(reciprocals: np.ndarray) -> dict[str, np.ndarray]:
    """Return each user's hit and gain of ten, for one item that is to be found."""
    hit = reciprocals > 0
    rank = 1 / np.where(hit, reciprocals, 1)
    return {"hr": hit * 1.0, "ndcg": hit / np.log2(rank + 1)}


def means(reciprocals: np.ndarray) -> dict[str, float]:
    return {name: float(x.mean()) for name, x in gains(reciprocals).items()}


def popular(given: Task) -> np.ndarray:
    """Return reciprocal ranks by how often items were met."""
    ones, counts = jnp.ones((len(given.met), 1)), given.counts()[:, None] * 1.0
    return ranked(Factors(ones), rc.Index.from_embeddings(counts), given)


def trainer_of(name: str, given: Task, sizes: Sizes, rate: float, temperature: float):
    """Return one of our trainers."""
    optim = optax.adam(rate)
    if name == BATCH:
        often = given.counts()
        return rc.InBatchTrainer(optim, temperature=temperature, frequencies=often)
    if name == FULL:
        return rc.FullSoftmaxTrainer(optim, temperature=temperature)
    options = {"temperature": temperature, "refresh": 0.1}
    return rc.NegativeCacheTrainer(optim, sizes.negatives, **options)


def begun(
    name: str, given: Task, sizes: Sizes, setting: tuple[float, float], seed: int
):
    """Return trainer, first state and data of one of ours."""
    keys = jax.random.split(jax.random.key(seed))
    tables = zip((len(given.met), given.num_items), keys, strict=True)
    model = rc.TwoTowers(*(rc.Table(n, sizes.size, key=k) for n, k in tables))
    trainer, pairs = trainer_of(name, given, sizes, *setting), given.pairs()
    items = np.arange(given.num_items, dtype=np.int32)
    cache = None if name == BATCH else rc.NegativeCache.fill(model.document, items)
    pairs = pairs if name == CACHE else pairs._replace(known=None)
    return trainer, trainer.init(model, cache), eg.Minibatches(pairs, sizes.pairs)


def ours(
    name: str,
    given: Task,
    sizes: Sizes,
    setting: tuple[float, float],
    num_steps: int,
    seed: int,
) -> Iterator[np.ndarray]:
    """Yield reciprocal ranks after each share of the steps."""
    trainer, state, source = begun(name, given, sizes, setting, seed)
    every, key = max(1, num_steps // sizes.shares), jax.random.key(seed + 1)
    run = {"num_steps": every * sizes.shares, "every": every}
    items = np.arange(given.num_items, dtype=np.int32)
    for now, _ in eg.train(trainer, state, source, key=key, **run):
        index = rc.Index.of(now.model.document, items)
        yield ranked(now.model, index, given)


def bpr(given: Task, sizes: Sizes, setting: tuple[float, float], num: int, seed: int):
    """Return implicit's model, untrained, and the matrix that it is trained on."""
    from implicit.cpu.bpr import BayesianPersonalizedRanking
    from scipy.sparse import csr_matrix

    pairs, (rate, decay) = given.pairs(), setting
    shape = (len(given.met), given.num_items)
    ones = np.ones(len(pairs.ids), np.float32)
    model = BayesianPersonalizedRanking(
        factors=sizes.size,
        learning_rate=rate,
        regularization=decay,
        iterations=num,
        num_threads=1,
        random_state=seed,
    )
    return model, csr_matrix((ones, (pairs.queries, pairs.ids)), shape)


def theirs(
    name: str,
    given: Task,
    sizes: Sizes,
    setting: tuple[float, float],
    num_steps: int,
    seed: int,
) -> Iterator[np.ndarray]:
    """Return reciprocal ranks after each share of the epochs, of BPR."""
    every, found = max(1, num_steps // sizes.shares), []
    model, matrix = bpr(given, sizes, setting, every * sizes.shares, seed)

    def look(epoch: int, *_: Any) -> None:
        if (epoch + 1) % every == 0:
            factors = (np.array(x) for x in (model.user_factors, model.item_factors))
            users, items = factors
            index = rc.Index.from_embeddings(items)
            found.append(ranked(Factors(jnp.asarray(users)), index, given))

    model.fit(matrix, show_progress=False, callback=look)
    return iter(found)


def seconds_per_step(given: Task, sizes: Sizes, names: list[str]) -> dict[str, float]:
    """Return the median of a step's processor seconds, or an epoch's, in turns."""

    def several(name: str):
        if name == BPR:
            model, matrix = bpr(given, sizes, (0.01, 0.01), 4, 0)
            return lambda: model.fit(matrix, show_progress=False), 4
        setting = sizes.rates[0], sizes.temperatures[0]
        trainer, state, source = begun(name, given, sizes, setting, 0)
        key = jax.random.key(0)
        fit = lambda: eg.fit(trainer, state, source, key=key, num_steps=100, every=100)
        return lambda: fit()[0].model, 100

    work = {name: several(name) for name in names}
    turns = {name: take for name, (take, _) in work.items()}
    times = measure.interleaved(turns, rounds=5, clock=time.process_time)
    return {name: statistics.median(t) / work[name][1] for name, t in times.items()}


def grid(name: str, sizes: Sizes) -> list[tuple[float, float]]:
    """Return a contestant's settings: rates, and temperatures or decays."""
    if name == BPR:
        return list(itertools.product(sizes.bpr_rates, sizes.bpr_decays))
    return list(itertools.product(sizes.rates, sizes.temperatures))


def entered(
    name: str, choose: Task, test: Task, sizes: Sizes, num_steps: int
) -> dict[str, Any]:
    """Return what a contestant reaches: over the grid, and at its best by seed."""
    run = theirs if name == BPR else ours
    chosen = {
        (setting, share): means(found)
        for setting in grid(name, sizes)
        for share, found in enumerate(run(name, choose, sizes, setting, num_steps, 0))
    }
    setting, share = max(chosen, key=lambda x: chosen[x]["ndcg"])
    after = lambda found: next(itertools.islice(found, share, None))
    runs = [
        after(run(name, test, sizes, setting, num_steps, seed))
        for seed in range(sizes.seeds)
    ]
    return {
        "validation": {
            f"{s[0]:g}, {s[1]:g}, {(i + 1) / sizes.shares:g}": x["ndcg"]
            for (s, i), x in chosen.items()
        },
        "setting": list(setting),
        "share_of_seconds": (share + 1) / sizes.shares,
        **measure.by_seed([means(x) for x in runs]),
        "ranks": [spelled(x) for x in runs],
    }


def differences(arms: dict[str, Any]) -> dict[str, Any]:
    """Return differences of all to each other, with paired intervals over users."""
    kept = {
        name: [gains(ranks_of(ranks)) for ranks in arm["ranks"]]
        for name, arm in arms.items()
    }
    mean = lambda name, of: np.mean([x[of] for x in kept[name]], axis=0)
    return {
        of: {
            f"{one} less {other}": bootstrapped(mean(one, of), mean(other, of))
            for one, other in itertools.combinations(arms, 2)
        }
        for of in ("hr", "ndcg")
    }


def measured(path: Path, sizes: Sizes) -> dict[str, Any]:
    """Return the figures of all contestants."""
    met, num_items = histories(path)
    test, choose = task(met, num_items, 1), task(met[:], num_items, 2)
    here = importlib.util.find_spec("implicit") is not None
    names = [*OURS, BPR] if here else [*OURS]
    cost = {} if sizes.steps else seconds_per_step(choose, sizes, names)
    steps = {n: sizes.steps or round(sizes.seconds / cost[n]) for n in names}
    by_count = popular(test)
    arms = {
        POPULAR: {
            **measure.by_seed([means(by_count)]),
            "ranks": [spelled(by_count)],
        }
    }
    for name in names:
        arms[name] = entered(name, choose, test, sizes, steps[name])
        told = {k: round(arms[name][k]["median"], 4) for k in ("hr", "ndcg")}
        print(name, arms[name]["setting"], told, file=sys.stderr, flush=True)
    return {
        "users": len(met),
        "items": num_items,
        "interactions": sum(map(len, met)),
        **sizes._asdict(),
        "seconds_per_step": cost,
        "steps": steps,
        "left_out": [] if here else [BPR],
        "arms": arms,
        "differences": differences(arms),
    }


def main(seconds: float = 15.0, seeds: int = 3, path: str | None = None) -> None:
    sizes = Sizes(seconds=float(seconds), seeds=int(seeds))
    measure.write("movielens", measured(Path(path) if path else shipped(), sizes))


if __name__ == "__main__":
    main(*sys.argv[1:])  # pyright: ignore[reportArgumentType]
