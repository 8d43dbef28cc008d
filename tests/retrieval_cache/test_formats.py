"""Judgments in other programs' formats: read alike, or refused by file and line."""

import csv
import gzip
import json

import pandas as pd
import pytest

from effgen.retrieval_cache.data.corpora import judgments
from effgen.retrieval_cache.data.judgments import beir, triples
from effgen.retrieval_cache.data.trec_files import trec
from tests.retrieval_cache.texts import lines, written


# A query, what answers, and what does not; with all that a cell has to be quoted for.
ROWS = [
    ("who purrs, and why?", 'a "cat"\nor two', "a dog", "a cow"),
    ("who barks?", "a dog", "a cow", None),
]
NAMES = ["query", "positive", "negative_1", "negative_2"]


def said(corpus):
    """Return a corpus's judgments, by texts."""
    texts = corpus.queries, corpus.documents
    return {(texts[0][i], texts[1][j], gain) for i, j, gain in judgments(corpus)}


def expected(rows):
    found = set()
    for query, positive, *negatives in rows:
        found.add((query, positive, 1.0))
        found |= {(query, text, 0.0) for text in negatives if text}
    return found


def table(path, rows, separator=",", names=NAMES, opener=open):
    with opener(path, "wt", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerows([names, *rows] if names else rows)
    return path


def test_tables_say_what_rows_do(tmp_path):
    frame = pd.DataFrame(ROWS, columns=NAMES)
    frame.to_csv(tmp_path / "pandas.csv", index=False)
    sources = [
        table(tmp_path / "a.csv", ROWS),
        table(tmp_path / "a.tsv", ROWS, "\t"),
        table(tmp_path / "a.csv.gz", ROWS, opener=gzip.open),
        tmp_path / "pandas.csv",
        frame,
        [*ROWS[:1], ROWS[1][:3]],
    ]
    for source in sources:
        assert said(triples(source)) == expected(ROWS)


def test_frames_of_lists_and_missing_values():
    frame = pd.DataFrame(
        {
            "query": ["a", "b", "c"],
            "positives": [["p", "q"], "q", ["p"]],
            "negatives": [["n"], float("nan"), None],
            "score": [0.5, None, 1.0],
        }
    )
    found = said(triples(frame, ("query", "positives", "negatives")))
    assert found == {
        ("a", "p", 1.0),
        ("a", "q", 1.0),
        ("a", "n", 0.0),
        ("b", "q", 1.0),
        ("c", "p", 1.0),
    }
    frame.loc[1, "query"] = float("nan")
    with pytest.raises(ValueError, match=r"row 2: .*0 queries"):
        triples(frame)


def test_triples_of_ms_marco_have_no_names(tmp_path):
    rows = [
        ["what is a cat", 'a "cat" is a small animal that purrs', "a dog barks"],
        ["dog", '"a dog barks', "cats"],
    ]
    text = "".join("\t".join(row) + "\n" for row in rows)
    folder = written(tmp_path, {"triples.train.small.tsv": text})
    found = triples(folder / "triples.train.small.tsv")
    assert said(found) == expected(rows)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.csv", "asked,answer\nwho?,a cat\n", "a.csv:1: no column"),
        ("a.tsv", "1185869\t0\t16\n", "a.tsv:1: no column"),
        ("a.csv", "query,positive\nwho?,a cat\nwho, then?,a\n", "a.csv:3: .*3 cells"),
        ("a.csv", "query,positive\nwho?\n", "a.csv:2: .*1 cells"),
        ("a.csv", 'query,positive\n"w\no",a\n"who?,a\n', "a.csv:4: .*quotes"),
        ("a.csv", "query,positive\nwho?,\"['a', 'b']\"\n", "a.csv:2: .*a list"),
        ("a.csv", "query,positive,neg\nwho?,a,b\n", "a.csv:2: .*`neg` is in none"),
        ("a.csv", "query,positive,negative,negative\n", "a.csv:1: two columns"),
        ("a.csv", "query,positive\n,a cat\n", "a.csv:2: .*0 queries"),
        ("a.csv", "query,positive\nwho?,\n", "a.csv:2: .*nothing answers"),
        ("a.csv", "query,answer\nwho?,a\n", "a.csv:2: .*no columns.*`columns`"),
        ("a.tsv", "who in the world purrs?\t\ta dog\n", "a.tsv:1: .*no text"),
        ("a.txt", "who?\ta cat\n", r"a.txt:1: .*\.tsv"),
        ("a.json", '["who?", "a cat"\n', "a.json:1: .*no JSON"),
        ("a.json", json.dumps([{"query": "a"}]), "a.json: row 1: .*`columns`"),
    ],
)
def test_what_is_not_read_is_named(tmp_path, name, text, told):
    with pytest.raises(ValueError, match=told):
        triples(written(tmp_path, {name: text}) / name)


def test_broken_rows_of_tables_are_left_out(tmp_path):
    folder = written(tmp_path, {"a.csv": "query,positive\nwho?\nwho?,a cat\n"})
    with pytest.warns(UserWarning, match=r"a\.csv:2"):
        found = triples(folder / "a.csv", max_broken=1)
    assert said(found) == {("who?", "a cat", 1.0)}


def test_what_is_no_text_is_named_by_its_line(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"query,positive\nwho?,a\nwh\xff?,b\n")
    with pytest.raises(ValueError, match=r"a\.csv:3: .*UTF-8"):
        triples(tmp_path / "a.csv")


def test_folders_and_columns_are_no_rows(tmp_path):
    with pytest.raises(IsADirectoryError, match="load_from_disk"):
        triples(tmp_path)
    with pytest.raises(ValueError, match=r"row 1: .*a row is a str"):
        triples({"query": ["a"], "positive": ["b"]})
    frame = pd.DataFrame([["a", "b", "c"]], columns=["query", "positive", "positive"])
    with pytest.raises(ValueError, match="two columns"):
        triples(frame)


@pytest.mark.parametrize(
    ("columns", "answers", "negatives"),
    [
        (("sentence1", "sentence2", "negatives"), {"b"}, set()),
        (("sentence_0", "sentence_1", "sentence_2"), {"b"}, {"c"}),
        (("q", "doc1", "doc2"), {"b"}, {"c"}),
        (("text", "texts", "negative"), {"b"}, {"c"}),
        (("query", "pos", "po"), {"b"}, {"c"}),
    ],
)
def test_a_column_by_its_number_is_that_one_alone(columns, answers, negatives):
    row = dict(zip(columns, ("a", "b", "c"), strict=True))
    if not negatives:
        del row[columns[2]]
    wanted = {("a", x, 1.0) for x in answers} | {("a", x, 0.0) for x in negatives}
    assert said(triples([row], columns)) == wanted


@pytest.mark.parametrize("label", [{"label": 0}, {"label": "0"}, {"score": 0.0}])
def test_a_pair_labeled_as_no_answer_is_none(label):
    row = {"query": "a", "positive": "b"}
    with pytest.raises(ValueError, match="so that the text does not answer"):
        triples([row | label])
    assert said(triples([row | {"label": 1}])) == {("a", "b", 1.0)}


def test_a_quote_joins_no_two_rows_of_a_table(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('query\tpositive\nq\t"a b\nr\tc d"\n')
    with pytest.raises(ValueError, match=r"a\.tsv:2: a cell in quotes holds"):
        triples(path)
    path.write_text('query\tpositive\nq\t"a\nb"\n')
    assert said(triples(path)) == {("q", "a\nb", 1.0)}


PASSAGE = {"docid": "1", "title": "Cats", "text": "purr"}
OTHERS = [{"docid": "2", "title": "", "text": "dogs"}, {"docid": "3", "text": "cows"}]
TEVATRON = {
    "query_id": "7",
    "query": "who purrs?",
    "positive_passages": [PASSAGE],
    "negative_passages": OTHERS,
}
DPR = {
    "dataset": "nq",
    "question": "who purrs?",
    "answers": ["cats"],
    "positive_ctxs": [PASSAGE | {"score": 1000}],
    "negative_ctxs": OTHERS[:1],
    "hard_negative_ctxs": OTHERS[1:],
}


@pytest.mark.parametrize("record", [TEVATRON, DPR])
@pytest.mark.parametrize("ending", ["jsonl", "json", "list.json", "rows", "parquet"])
def test_passages_of_tevatron_and_dpr(tmp_path, record, ending):
    source = [record]
    if ending != "rows":
        source = tmp_path / f"a.{ending}"
        if ending == "parquet":
            pytest.importorskip("pyarrow")
            pd.DataFrame([record]).to_parquet(source)
        else:
            whole = json.dumps([record], indent=1)
            source.write_text(whole if "list" in ending else lines(record))
    answers = {("who purrs?", "Cats purr", 1.0)}
    worse = {("who purrs?", text, 0.0) for text in ("dogs", "cows")}
    assert said(triples(source)) == answers | worse


def test_rows_of_sentence_transformers():
    rows = [{"anchor": "who?", "positive": "a cat", "negative": "a dog"}]
    assert said(triples(rows)) == expected([("who?", "a cat", "a dog")])


COLLECTION = {
    "collection.tsv": 'd1\ta cat\nd2\ta "dog\nd3\ta cow\nd4\ta hen\n',
    "queries.tsv": "1\twho purrs?\n2\twho barks?\n",
    "qrels.txt": "1 0 d1 3\n1 Q0 d3 1\n1 0 d4 0\n2\t0\td2\t2\n",
    "run.txt": (
        "1 Q0 d1 1 9.5 bm25\n1 Q0 d2 3 8.5 bm25\n1 Q0 d3 2 9 bm25\n"
        "2 Q0 d3 2 1e0 bm25\n2 Q0 d4 1 2.5 bm25\n"
    ),
}


def test_collections_of_trec_and_ms_marco(tmp_path):
    folder = written(tmp_path, COLLECTION)
    three = [folder / name for name in list(COLLECTION)[:3]]
    found = trec(*three)
    assert found.documents == ["a cat", 'a "dog', "a cow", "a hen"]
    assert found.relevant == [(0, 2), (1,)]
    assert found.gains == [(3, 1), (2,)]
    assert found.negatives == [(3,), ()]
    assert found.full == [(0,), (1,)]
    # What a run has beside answers, by score, after what is judged to be none.
    assert trec(*three, run=folder / "run.txt").negatives == [(3, 1), (3, 2)]


def test_collections_of_json_lines_and_mappings(tmp_path):
    records = [
        {"docid": "d1", "title": "Cats", "text": "purr"},
        {"id": 2, "contents": "a dog"},
        {"_id": "d3", "text": "a cow"},
    ]
    files = {"c.jsonl": lines(*records), "q.txt": "1 0 2 1\n1 0 d1 1\n"}
    folder = written(tmp_path, files)
    found = trec(folder / "c.jsonl", {"1": "who?"}, folder / "q.txt")
    assert found.documents == ["Cats purr", "a dog", "a cow"]
    assert found.relevant == [(1, 0)]


@pytest.mark.parametrize(
    ("name", "line", "told"),
    [
        ("collection.tsv", "d5\turl\ttitle\tbody", "5: .*4 fields.*mapping"),
        ("queries.tsv", "no tab", "3: .*1 fields"),
        ("qrels.txt", "1\td1\t1", "5: .*3 fields.*`beir`"),
        ("qrels.txt", "1 0 d9 1", "5: .*no doc 'd9'"),
        ("qrels.txt", "9 0 d1 1", "5: .*no query '9'"),
        ("qrels.txt", "1 0 d1 nan", "5: .*the gain is nan"),
        ("qrels.txt", "1 0 d1 good", "5: .*good"),
        ("run.txt", "1\td1\t1", "6: .*3 fields"),
        ("run.txt", "1 Q0 d1 1 nan bm25", "6: .*the score is nan"),
    ],
)
def test_broken_lines_of_trec_are_named(tmp_path, name, line, told):
    folder = written(tmp_path, COLLECTION | {name: COLLECTION[name] + line + "\n"})
    four = [folder / name for name in COLLECTION]
    with pytest.raises(ValueError, match=rf"{name}:{told}"):
        trec(*four[:3], run=four[3])
    with pytest.warns(UserWarning, match="1 broken left out"):
        trec(*four[:3], run=four[3], max_broken=1)


def test_repeated_ids_and_folders_are_refused(tmp_path):
    text = COLLECTION["collection.tsv"]
    folder = written(tmp_path, COLLECTION | {"collection.tsv": text + "d1\tagain\n"})
    three = [folder / name for name in list(COLLECTION)[:3]]
    with pytest.raises(ValueError, match="2 texts of `_id` 'd1'"):
        trec(*three)
    with pytest.raises(IsADirectoryError):
        trec(tmp_path, *three[1:])


def test_judgments_of_trec_in_a_folder_of_beir_are_refused(tmp_path):
    record = {"_id": "1", "text": "a"}
    files = {
        "corpus.jsonl": lines(record),
        "queries.jsonl": lines(record),
        "qrels/test.tsv": "1\t0\t1\t1\n",
    }
    with pytest.raises(ValueError, match=r"test\.tsv:1: .*4 fields.*`trec`"):
        beir(written(tmp_path, files))
