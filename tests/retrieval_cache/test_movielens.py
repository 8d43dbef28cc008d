"""The benchmark on MovieLens: how it reads, splits, ranks and compares."""

import numpy as np
import pytest

from benchmarks import movielens


SMALL = movielens.Sizes(
    seeds=1,
    size=4,
    pairs=16,
    negatives=16,
    rates=(0.01,),
    temperatures=(0.2,),
    bpr_rates=(0.05,),
    bpr_decays=(0.01,),
    shares=2,
    steps=4,
)


@pytest.fixture
def written(tmp_path):
    """A file as recbole has it, of 20 users and 30 items, in no order of times."""
    rng = np.random.default_rng(0)
    rows = [
        f"{user}\t{item}\t3\t{rng.integers(10**9)}"
        for user in range(1, 21)
        for item in 100 + rng.permutation(30)[:6]
    ]
    path = tmp_path / "some.inter"
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def test_a_file_is_read_in_the_order_of_its_times(tmp_path):
    path = tmp_path / "u.data"  # GroupLens's own has no head
    path.write_text("7\t3\t5\t30\n9\t4\t1\t10\n7\t4\t2\t20\n7\t5\t2\t20\n")
    met, num_items = movielens.histories(path)
    # Items 4, 5 and 3 of the file come in this order; those of one second as they are.
    assert (met, num_items) == ([[0], [0, 1, 2]], 3)


def test_the_last_item_is_tested_and_the_one_before_validates(written):
    met, num_items = movielens.histories(written)
    test, choose = (movielens.task(met, num_items, last) for last in (1, 2))
    for items, known, wanted in zip(met, choose.met, choose.wanted, strict=True):
        assert [*known, wanted] == items[:-1]
    assert test.met == [items[:-1] for items in met]
    pairs = choose.pairs()
    assert len(pairs.ids) == choose.counts().sum() == 20 * 4
    row = np.asarray(pairs.known[5])
    assert pairs.queries[5] == 1
    assert row[row >= 0].tolist() == choose.met[1]


def test_popularity_ranks_what_a_user_has_not_met():
    met = [[0, 1], [0, 2], [0, 1], [3]]
    given = movielens.Task(met, np.asarray([2, 1, 3, 0]), 4)
    # Item 0 was met thrice, 1 twice, 2 and 3 once.
    found = movielens.popular(given)
    np.testing.assert_allclose(found[[1, 3]], [1, 1])
    gains = movielens.gains(np.asarray([1, 1 / 3, 0]))
    np.testing.assert_allclose(gains["hr"], [1, 1, 0])
    np.testing.assert_allclose(gains["ndcg"], [1, 1 / 2, 0])


@pytest.mark.slow
def test_all_contestants_are_measured(written):
    found = movielens.measured(written, SMALL)
    names = [movielens.POPULAR, *movielens.OURS]
    assert [x for x in found["arms"] if x != movielens.BPR] == names
    assert (movielens.BPR in found["arms"]) != (movielens.BPR in found["left_out"])
    for name, arm in found["arms"].items():
        assert 0 <= arm["hr"]["median"] <= 1
        assert len(arm["ranks"][0]) == found["users"] == 20
        if name != movielens.POPULAR:
            assert arm["share_of_seconds"] in (0.5, 1.0)
    one = f"{movielens.POPULAR} less {movielens.CACHE}"
    assert set(found["differences"]["hr"][one]) == {"mean", "low", "high"}
