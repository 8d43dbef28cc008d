"""A cache split over devices: the same draws, and nothing gathered."""

import math
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import retrieval_cache as rc
from effgen.retrieval_cache import scan
from effgen.retrieval_cache.draws import nothing_excluded, sampled
from tests.retrieval_cache.cases import KEY, batch, drifted, filled, towers


@pytest.mark.one_case("5")
@pytest.mark.parametrize("tile", [1, pytest.param(3, marks=pytest.mark.slow), 5])
def test_draws_do_not_depend_on_devices_nor_on_tiles(tile, monkeypatch):
    """Tiles of one block, and of several, which do not divide what a device has."""
    monkeypatch.setitem(scan._TILE_SCORES, "cpu", 24 * 32 * tile)
    model, mesh = towers(2_048), eg.make_mesh()
    cache = filled(drifted(model), 2_048)
    split = eg.shard(eg.TrainState.start(None, None, cache), mesh).memory
    queries = model.query(batch(24, 2_048).queries)

    # A function of its own, as a compiled one would keep another's tiles.
    @eqx.filter_jit
    def draw(cache, mesh=None):
        given = cache, queries, jnp.asarray(20.0), 48, nothing_excluded(24)
        return sampled(*given, key=KEY, mesh=mesh)

    whole, found = draw(cache), draw(split, mesh)
    np.testing.assert_array_equal(found.slots, whole.slots)
    np.testing.assert_allclose(found.log_partition, whole.log_partition, rtol=1e-6)
    np.testing.assert_allclose(found.mean, whole.mean, atol=1e-6)


@pytest.mark.slow
def test_sharded_draws_and_losses_are_the_unsharded_ones(monkeypatch):
    monkeypatch.setitem(scan._TILE_SCORES, "cpu", 12 * 64)
    num = 2_048
    model = towers(num)
    cache = filled(model, num)
    trainer = rc.NegativeCacheTrainer(optax.adam(1e-2), 24, refresh=0.02)
    numbers = jnp.arange(num)[:, None]
    source = eg.Minibatches(rc.Pairs(numbers, numbers, numbers[:, 0]), 24)
    first = trainer.init(model, cache)

    def losses(state):
        run = eg.train(trainer, state, source, key=KEY, num_steps=12, every=1)
        return zip(*[(m["loss"], s.memory) for s, m in run], strict=True)

    whole, before = losses(first)
    split, after = losses(eg.shard(first, eg.make_mesh()))
    np.testing.assert_allclose(np.ravel(whole), np.ravel(split), rtol=1e-5)
    # The rows written at each step are the draws, the batch, and the oldest.
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a.stamps, b.stamps)
        np.testing.assert_array_equal(a.ids, b.ids)
    last = after[-1].rows.values
    assert len(last.sharding.device_set) == 8
    assert not last.is_fully_replicated


@pytest.mark.parametrize(
    "refresh",
    [
        0.02,
        pytest.param((rc.WriteBack(),), marks=pytest.mark.slow),
        (rc.PositivesIn(),),
    ],
)
def test_no_program_gathers_a_split_cache(refresh):
    """Devices send nothing that is larger than a number for each row, at once."""
    num = 4_096
    model = towers(num)
    trainer = rc.NegativeCacheTrainer(optax.sgd(1e-2), 8, refresh=refresh)
    state = eg.shard(trainer.init(model, filled(model, num)), eg.make_mesh())
    trainer = trainer.for_data(state, None)
    arrays, static = eqx.partition(state, eqx.is_array)

    def step(arrays):
        new, _ = trainer.step(eqx.combine(arrays, static), batch(6, num), key=KEY)
        return eqx.filter(new, eqx.is_array)

    text = jax.jit(step).lower(arrays).compile().as_text()
    sent = [line for line in text.splitlines() if _SENT.search(line)]
    shapes = [x for line in sent for x in re.findall(r"\[([\d,]*)\]", _result(line))]
    sizes = [math.prod(int(n) for n in shape.split(",") if n) for shape in shapes]
    assert 8 * 64 < max(sizes) <= num


_SENT = re.compile(r"(all-gather|all-reduce|all-to-all|collective-permute)(-start)?\(")


def _result(line):
    """Return what a line of a program makes, of its type and shape."""
    return _SENT.split(line)[0].split("=", 1)[1]


@pytest.mark.slow
def test_a_logit_for_a_loop_of_one_s_own_may_be_split():
    model = towers(2_048)
    cache, mesh = filled(drifted(model), 2_048), eg.make_mesh()
    split = eg.shard(eg.TrainState.start(None, None, cache), mesh).memory
    queries = model.query(batch(6, 2_048).queries)
    make = eqx.filter_jit(rc.cache_logit)
    given = {"key": KEY, "num_negatives": 12, "batch": batch(6, 2_048)}
    whole = make(queries, cache, model.document, **given)
    found = make(queries, split, model.document, mesh=mesh, **given)
    np.testing.assert_array_equal(found[1].slots, whole[1].slots)
    np.testing.assert_allclose(found[0], whole[0], rtol=1e-5)
