"""Tables of users and items: towers of numbers, cold items, and steps of a few rows."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import retrieval_cache as rc
from tests.retrieval_cache.cases import KEY


def model_of(num=40, dropout=0.0):
    """Return users by number, and items by number and kind."""
    keys = jax.random.split(KEY, 3)
    users, items, kinds = (
        rc.Table(n, 4, key=k) for n, k in zip((num, num, 5), keys, strict=True)
    )
    return rc.TwoTowers(users, rc.IdsAndFeatures(items, kinds, dropout))


def batch_of(step, num=40):
    """Return users and items, some of which come again, in a batch and in the next."""
    users = jnp.asarray([0, 1, 2, 2, 4, 5]) + step
    items = jnp.asarray([3, 3, 7, 8, 9, 10]) + 2 * step
    return rc.Pairs(users[:, None], (items % num, items[:, None] % 5), items)


def taken(trainer, model, num_steps=3):
    state, step = trainer.init(model), eqx.filter_jit(trainer.step)
    for i in range(num_steps):
        state, _ = step(state, batch_of(i), key=KEY)
    return state


def test_by_plain_descent_a_few_rows_move_as_all_do():
    dense = rc.InBatchTrainer(optax.sgd(0.3), 0.2)
    lazy = rc.LazyTablesTrainer(dense)
    states = [taken(trainer, model_of()) for trainer in (dense, lazy)]
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_moments_of_other_rows_stay_as_they_are():
    """By Adam: that of all rows, but for those that a batch has not."""
    optim = optax.adamw(0.1, weight_decay=0.3)
    dense, model = rc.InBatchTrainer(optim, 0.2), model_of()
    state, wanted = taken(rc.LazyTablesTrainer(dense), model), dense.init(model)
    step = eqx.filter_jit(dense.step)
    for i in range(3):
        new, _ = step(wanted, batch_of(i), key=KEY)
        users, (items, _) = batch_of(i).queries, batch_of(i).documents
        wanted = masked(wanted, new, users.reshape(-1), items)
    for a, b in zip(*map(jax.tree.leaves, (wanted, state)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def masked(old, new, users, items):
    """Return the new state, of tables only the rows of a batch."""
    kinds = items % 5

    def kept(path, a, b):
        name = jax.tree_util.keystr(path)
        if not name.endswith("vectors"):
            return b
        own = users if ".query" in name else items if ".table" in name else kinds
        return a.at[own].set(b[own])

    return jax.tree_util.tree_map_with_path(kept, old, new)


def test_a_step_needs_no_more_memory_for_a_larger_table():
    trainer = rc.LazyTablesTrainer(rc.InBatchTrainer(optax.adam(0.1)))

    def temporary(num):
        arrays, static = eqx.partition(trainer.init(model_of(num)), eqx.is_array)

        def step(arrays):
            new, _ = trainer.step(eqx.combine(arrays, static), batch_of(0), key=KEY)
            return eqx.filter(new, eqx.is_array)

        work = jax.jit(step, donate_argnums=0).lower(arrays).compile()
        return work.memory_analysis().temp_size_in_bytes

    assert temporary(1 << 16) < temporary(1 << 10) + (1 << 12)


def test_a_run_of_few_rows_may_be_resumed():
    trainer = rc.LazyTablesTrainer(rc.InBatchTrainer(optax.adam(0.1)))
    numbers = jnp.arange(40)
    pairs = rc.Pairs(numbers[:, None], (numbers, numbers[:, None] % 5), numbers)
    memory = rc.StreamedFrequencies.of(40)
    state = trainer.init(model_of(dropout=0.3), memory)
    state, history = eg.fit(
        trainer, state, eg.Minibatches(pairs, 8), key=KEY, num_steps=20, every=10
    )
    assert float(history["loss"][-1]) < float(history["loss"][0])
    assert int(state.memory.visits.sum()) == 160


def test_new_items_are_told_by_their_features():
    model = model_of(dropout=0.5)
    tower, kinds = model.document, jnp.arange(6)[:, None] % 5
    cold = tower((jnp.asarray([-1, 40, 99, -1, 41, 1_000]), kinds))
    np.testing.assert_allclose(cold, tower.features(kinds), rtol=1e-5)
    warm = tower((jnp.arange(6), kinds))
    both = tower.table.vectors[:6] + tower.features(kinds)
    np.testing.assert_allclose(warm, rc.normalized(both), rtol=1e-5)
    # In training each is one or the other.
    numbers, kinds = jnp.arange(40), jnp.arange(40)[:, None] % 5
    found = tower((numbers, kinds), key=KEY)
    cold, warm = tower.features(kinds), tower((numbers, kinds))
    near = lambda x: np.abs(np.asarray(found - x)).max(axis=1) < 1e-6
    assert (near(cold) ^ near(warm)).all()
    assert 8 < near(cold).sum() < 32
    assert tower.is_random
    assert not model_of().document.is_random


def test_a_catalog_grows_by_items_that_no_table_has():
    model = model_of()
    numbers = jnp.arange(40)
    cache = rc.NegativeCache.fill(
        model.document, (numbers, numbers[:, None] % 5), capacity=48
    )
    new = jnp.arange(40, 43)
    cache = cache.added(model.document, (new, new[:, None] % 5))
    np.testing.assert_array_equal(cache.ids[:43], np.arange(43))
    found = cache.rows.embeddings()[40:43]
    np.testing.assert_allclose(found, model.document.features(new[:, None] % 5))


def test_towers_and_trainers_that_do_not_fit_are_refused():
    model, plain = model_of(), rc.InBatchTrainer(optax.sgd(0.1))
    for numbers in (jnp.ones(3), jnp.zeros((3, 2), int), [1, 2]):
        with pytest.raises(TypeError, match="pass an array of integers"):
            model.query(numbers)
    with pytest.raises(TypeError, match=r"pass `\(numbers, features\)`"):
        model.document(jnp.arange(3))
    other = rc.IdsAndFeatures(model.query, rc.Table(5, 8, key=KEY))
    with pytest.raises(ValueError, match="make them one size"):
        other((jnp.arange(3), jnp.arange(3)))
    with pytest.raises(ValueError, match="`dropout` is 1"):
        rc.IdsAndFeatures(model.query, model.query, 1.0)
    with pytest.raises(ValueError, match="`num` is 0"):
        rc.Table(0, key=KEY)
    assert bool(jnp.isnan(model.query(jnp.asarray([40, -1]))).all())
    bag = rc.TwoTowers.tied(rc.HashedBag(8, 4, 4, key=KEY))
    with pytest.raises(TypeError, match="has no `Table`"):
        rc.LazyTablesTrainer(plain).init(bag)
    with pytest.raises(TypeError, match="pass an `InBatchTrainer`"):
        rc.LazyTablesTrainer(optax.sgd(0.1))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="has 2 `num_chunks`"):
        rc.LazyTablesTrainer(rc.InBatchTrainer(optax.sgd(0.1), num_chunks=2))
    added = optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation()
    with pytest.raises(ValueError, match=r"`optim` is of `optax\.MultiSteps`"):
        rc.LazyTablesTrainer(rc.InBatchTrainer(added)).init(model)
    history = rc.LazyTablesTrainer(rc.InBatchTrainer(optax.lbfgs()))
    with pytest.raises(ValueError, match=r"as `optax\.lbfgs` does"):
        history.init(model)


@pytest.mark.parametrize("optim", [optax.lamb, optax.lars, optax.contrib.muon])
def test_optimizers_of_whole_tables_are_refused(optim):
    model = rc.TwoTowers(rc.Table(40, 8, key=KEY), rc.Table(30, 8, key=KEY))
    trainer = rc.LazyTablesTrainer(rc.InBatchTrainer(optim(0.1)))
    with pytest.raises(ValueError, match="moves a row of a table by what is in other"):
        trainer.init(model)
    clipped = optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(0.1))
    rc.LazyTablesTrainer(rc.InBatchTrainer(clipped)).init(model)
