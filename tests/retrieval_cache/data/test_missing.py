"""Numbers of 64 bits that are missing, and negatives by names that are not read."""

import jax.numpy as jnp
import numpy as np
import pytest

from effgen import retrieval_cache as rc
from effgen.retrieval_cache.data.pairs import as_numbers


class Identity:
    def query(self, x):
        return x


@pytest.mark.parametrize("missing", [-1, -(2**32) + 1, -(2**63)])
def test_a_number_below_zero_is_no_document(missing):
    index = rc.Index.from_embeddings(np.eye(4, dtype=np.float32))
    queries = jnp.eye(4)[jnp.array([0, 2])]
    wanted = np.array([[3, missing], [2, 1]])
    for rows in (wanted, wanted.tolist()):
        found = rc.evaluate(Identity(), queries, rows, index, k=4).mrr
        np.testing.assert_allclose(found, [0.25, 1.0])
    assert 0 in index.search(queries, 4, known=wanted).ids[0]
    np.testing.assert_array_equal(as_numbers(wanted), [[3, -1], [2, 1]])
    np.testing.assert_array_equal(as_numbers(np.array([2**40])), [2**31 - 1])


@pytest.mark.parametrize(
    "name", ["negative_text", "negative_passage", "negative 1", "Hard Negative 2"]
)
def test_negatives_by_other_names_are_refused(name, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(f"query,positive,{name}\na b,c d,e f\n")
    with pytest.raises(ValueError, match=f"`{name}` is in none of the `columns`"):
        rc.triples(path)


def test_negatives_in_arrays_are_refused_as_in_lists():
    texts = np.array(["n one"], object)
    row = {"query": "a b", "positive": "p one", "hard_negatives": texts}
    with pytest.raises(ValueError, match="is in none of the `columns`"):
        rc.triples([row])


def test_a_long_document_is_read(tmp_path):
    path, text = tmp_path / "rows.csv", "word " * 40_000
    path.write_text(f'query,positive\na b,"{text}"\n')
    assert len(rc.triples(path).documents[0]) > 150_000
