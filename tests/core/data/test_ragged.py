"""Rows of different lengths, and batches of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import effgen as eg
from effgen.core.data.ragged import Ragged


ROWS = [(3, 1), (), (5, 6, 7), (2,)]
FILLED = [[3, 1, -1], [-1, -1, -1], [5, 6, 7], [2, -1, -1]]


def test_rows_are_filled_up_where_they_are_taken():
    ragged = Ragged.of(ROWS)
    assert (ragged.shape, ragged.ndim, ragged.dtype) == ((4, 3), 2, np.int32)
    assert ragged.tolist() == FILLED
    np.testing.assert_array_equal(ragged, FILLED)
    np.testing.assert_array_equal(ragged[np.array([2, 0])], [FILLED[2], FILLED[0]])
    assert [row.tolist() for row in ragged] == FILLED
    again = Ragged.of(ROWS, index=[2, 2, 1])
    assert again.tolist() == [FILLED[2], FILLED[2], FILLED[1]]
    assert again.values is not None
    assert Ragged.of([(), ()]).tolist() == [[-1], [-1]]


def test_a_row_that_many_share_is_held_once():
    ragged = Ragged.of([range(1_000)], index=np.zeros(5_000, int))
    assert ragged.shape == (5_000, 1_000)
    assert ragged.nbytes == 4 * (1_000 + 2 * 5_000)


@pytest.mark.parametrize("kind", [eg.Minibatches, eg.HostMinibatches])
@pytest.mark.parametrize("batch_size", [2, 4])
def test_batches_have_their_rows_filled_up(kind, batch_size):
    data = {"a": np.arange(4), "b": Ragged.of(ROWS)}
    source = kind(data, batch_size)
    for step in range(2):
        batch = source.batch_at(step, key=jax.random.key(0))
        wanted = np.array(FILLED)[np.asarray(batch["a"])]
        np.testing.assert_array_equal(batch["b"], wanted)
    with pytest.raises(ValueError, match="differ in their leading axis"):
        kind({"a": np.arange(3), "b": Ragged.of(ROWS)}, 2)


def test_a_device_holds_no_filled_rows():
    ragged = Ragged.of([range(1_000)], index=np.zeros(5_000, int))
    source = eg.Minibatches(ragged, 8)
    held = sum(x.nbytes for x in jax.tree.leaves(source.arrays))
    assert held == ragged.nbytes
    take = jax.jit(lambda step: source.batch_at(step, key=jax.random.key(0)))
    assert take(jnp.zeros((), int)).shape == (8, 1_000)
