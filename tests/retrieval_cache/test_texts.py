"""Texts as they are on disk: Debian's descriptions, BEIR's folders, triples."""

import bz2
import gzip
import lzma
import shutil
import subprocess
import sys

import pytest

from effgen.retrieval_cache.data.debian import descriptions
from effgen.retrieval_cache.data.judgments import beir, triples
from effgen.retrieval_cache.data.lines import parsed
from tests.retrieval_cache.texts import lines, written


DEBIAN = """\
Package: cat
Description-md5: 0123
Description-en: shows files
 It shows them
 one after another.
 .
 Née à Paris.

Package: cat-dbg
Description-en: shows files
 Symbols of cat.
Package-Type: deb


Package: tac
Description: shows files backwards
\tIt shows them
Package: twice
Description-en: of the same length
 It shows them

Package: short
Description-en: nothing more

Package: nothing
"""


def packed(path, text):
    content = text.encode()
    packers = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    if path.suffix == ".lz4":
        done = subprocess.run(["lz4", "-c"], input=content, capture_output=True)
        content = done.stdout
    path.write_bytes(packers.get(path.suffix, lambda x: x)(content))
    return path


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz", ".lz4"])
def test_descriptions_of_packages(tmp_path, suffix):
    if suffix == ".lz4" and shutil.which("lz4") is None:
        pytest.skip("there is no lz4")
    text = DEBIAN.replace("Package: twice", "\nPackage: twice")
    path = packed(tmp_path / f"debian_i18n_Translation-en{suffix}", text)
    found = descriptions(path)
    assert found.queries == ["shows files", "shows files backwards"]
    assert found.documents == [
        "It shows them one after another. Née à Paris.",
        "It shows them",
    ]
    assert found.relevant == [(0,), (1,)]
    assert descriptions(tmp_path).digest() == found.digest()


@pytest.mark.parametrize("broken", [b"no field", "Née".encode("latin-1")])
def test_a_broken_line_of_packages_is_named_or_left_out(tmp_path, broken):
    path = tmp_path / "Translation-en"
    path.write_bytes(DEBIAN.encode() + broken + b"\n")
    number = len(DEBIAN.splitlines()) + 1
    with pytest.raises(ValueError, match=rf"Translation-en:{number}: .*max_broken"):
        descriptions(path)
    with pytest.warns(UserWarning, match=rf"1 broken left out.*:{number}"):
        found = descriptions(path, max_broken=1)
    path.write_text(DEBIAN)
    assert found.digest() == descriptions(path).digest()


def test_files_without_descriptions_say_what_to_do(tmp_path):
    for path in (tmp_path, packed(tmp_path / "empty", "")):
        with pytest.raises(ValueError, match=r"Acquire::Languages=en"):
            descriptions(path)
    with pytest.raises(FileNotFoundError):
        descriptions(tmp_path / "missing")
    with pytest.raises(FileNotFoundError):
        descriptions(tmp_path / "missing.lz4")


def test_what_is_not_packed_is_named(tmp_path):
    path = tmp_path / "a.lz4"
    path.write_text("plain")
    if shutil.which("lz4"):
        with pytest.raises(ValueError, match=r"a\.lz4"):
            descriptions(path)


def test_without_lz4_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    path = packed(tmp_path / "a.lz4", "")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(FileNotFoundError, match="apt-get install lz4"):
        descriptions(path)


BEIR = {
    "corpus.jsonl": lines(
        {"_id": "d1", "title": "Cats", "text": "They purr."},
        {"_id": "d2", "title": "", "text": "They bark: ©\u2028é."},
        {"_id": "d3", "text": "They purr."},
    ),
    "queries.jsonl": lines(
        {"_id": "q1", "text": "who purrs?"},
        {"_id": "q2", "text": "who barks?"},
        {"_id": "q3", "text": "who trains?"},
    ),
    "qrels/test.tsv": "query-id\tcorpus-id\tscore\nq1\td1\t2\nq2\td2\t1\nq1\td3\t1\n"
    "q1\td2\t0\n",
    "qrels/train.tsv": "q3\td1\t1\n",
}


def test_a_folder_of_beir_s(tmp_path):
    folder = written(tmp_path / "pets", BEIR)
    found = beir(folder)
    assert found.name == "pets, test"
    assert found.documents == ["Cats They purr.", "They bark: ©\u2028é.", "They purr."]
    assert found.queries == ["who purrs?", "who barks?"]
    assert found.relevant == [(0, 2), (1,)]
    assert found.gains == [(2.0, 1.0), (1.0,)]
    assert found.negatives == [(1,), ()]
    assert beir(folder, "train").queries == ["who trains?"]
    plain = folder / "corpus.jsonl"
    packed(folder / "corpus.jsonl.gz", plain.read_text(encoding="utf-8"))
    plain.unlink()
    assert beir(folder).digest() == found.digest()


@pytest.mark.parametrize(
    ("name", "line", "told"),
    [
        ("corpus.jsonl", b'{"_id": "d9"', r"corpus\.jsonl:4: JSONDecodeError"),
        ("corpus.jsonl", b'{"_id": "d9"}', r"corpus\.jsonl:4: KeyError: 'text'"),
        ("corpus.jsonl", b'{"_id": 9, "text": "a"}', "are to be strings"),
        ("corpus.jsonl", b"[1]", r"corpus\.jsonl:4: TypeError"),
        ("queries.jsonl", b'{"_id": "q9", "text": "\xff"}', r"jsonl:4: UnicodeDecode"),
        ("qrels/test.tsv", b"q1\td9\t1", r"test\.tsv:6: ValueError: .* no doc 'd9'"),
        ("qrels/test.tsv", b"q9\td1\t1", "there is no query 'q9'"),
        ("qrels/test.tsv", b"q1\td1\tyes", r"test\.tsv:6: "),
        ("qrels/test.tsv", b"q1 d1 1", r"test\.tsv:6: "),
    ],
)
def test_broken_lines_are_named_or_left_out(tmp_path, name, line, told):
    folder = written(tmp_path / "pets", BEIR)
    whole = beir(folder)
    with (folder / name).open("ab") as file:
        file.write(line + b"\n\n")
    with pytest.raises(ValueError, match=told):
        beir(folder)
    with pytest.warns(UserWarning, match="1 broken left out; the first is .*" + told):
        assert beir(folder, max_broken=1).digest() == whole.digest()


def test_more_broken_lines_than_allowed_are_an_error(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('["a", "b"]\n{\n{\n{\n')
    with pytest.raises(ValueError, match=r"`max_broken`, 2, are broken: .*a\.jsonl:2"):
        triples(path, max_broken=2)
    with pytest.warns(UserWarning, match="3 broken"):
        assert triples(path, max_broken=3).queries == ["a"]


def test_repeated_ids_are_refused(tmp_path):
    again = BEIR["queries.jsonl"] + lines({"_id": "q2", "text": "again"})
    folder = written(tmp_path, BEIR | {"queries.jsonl": again})
    with pytest.raises(ValueError, match="2 texts of `_id` 'q2'"):
        beir(folder)


def test_missing_and_empty_files(tmp_path):
    folder = written(tmp_path, BEIR)
    with pytest.raises(FileNotFoundError, match=r"dev\.tsv.*test\.tsv"):
        beir(folder, "dev")
    (folder / "corpus.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"corpus\.jsonl` is missing"):
        beir(folder)
    with pytest.raises(ValueError, match="`documents` is empty"):
        beir(written(tmp_path, {"corpus.jsonl": "", "qrels/test.tsv": ""}))
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="`documents` is empty"):
        triples(tmp_path / "a.jsonl")
    with pytest.raises(FileNotFoundError):
        triples(tmp_path / "b.jsonl")


def test_a_file_may_begin_with_a_mark_and_end_its_lines_as_windows_does(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo")
    assert parsed(path, str) == ["one", "two"]


RECORDS = (
    {"query": "who purrs?", "positive": "a cat", "negatives": ["a dog", "a cow"]},
    {"query": "who purrs?", "positive": ["a lion", "a cat"], "negatives": None},
    {"query": "who barks?", "positive": "a dog"},
)


def triples_found(found):
    assert found.documents == ["a cat", "a dog", "a cow", "a lion"]
    assert found.queries == ["who purrs?", "who barks?"]
    assert found.relevant == [(0, 3), (1,)]
    assert found.negatives == [(1, 2), ()]


def test_triples_of_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(lines(*RECORDS))
    triples_found(triples(path))
    rows = [["who purrs?", "a cat", "a dog"], ["who barks?", "a dog"]]
    path.write_text(lines(*rows))
    assert triples(path).negatives == [(1,), ()]
    path.write_text(lines({"q": "who?", "pos": ["a cat"], "neg": ["a dog"]}))
    assert triples(path, ("q", "pos", "neg")).documents == ["a cat", "a dog"]


@pytest.mark.parametrize(
    "record",
    [
        {"query": "a"},
        {"query": "a", "positive": []},
        {"query": "a", "positive": 3},
        {"query": " ", "positive": "b"},
        {"query": None, "positive": "b"},
        ["a"],
        3,
    ],
)
def test_broken_triples_are_named(tmp_path, record):
    path = tmp_path / "a.jsonl"
    path.write_text(lines(RECORDS[0], record))
    with pytest.raises(ValueError, match=r"a\.jsonl:2: "):
        triples(path)


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "rows"])
@pytest.mark.parametrize(
    "columns",
    [
        ("query", "positive", "negatives"),
        ("query", "positive", "negative"),
        ("query", "positive", "negative_1"),
        ("query", "positives", "negative_3"),
    ],
)
def test_numbered_columns_are_read_together(tmp_path, ending, columns):
    rows = [
        {"query": "a", "positive": "p", "negative_10": "z", "negative_2": "x"}
        | {"negative_1": "w", "positive_2": "q", "negatives_kept": 3},
        {"query": "b", "positive": "q", "negative_10": None, "negative_2": "y"}
        | {"negative_1": None, "positive_2": None, "negatives_kept": 1},
    ]
    source = rows
    if ending == "jsonl":
        source = tmp_path / "a.jsonl"
        source.write_text(lines(*rows))
    if ending == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        source = tmp_path / "a.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(rows), source)
    found = triples(source, columns)
    text = found.documents
    assert [[text[i] for i in row] for row in found.negatives] == [list("wxz"), ["y"]]
    assert [[text[i] for i in row] for row in found.relevant] == [["p", "q"], ["q"]]


@pytest.mark.parametrize(
    "name", ["neg", "hard_negatives", "negative_passages", "NEG_2"]
)
def test_negatives_that_no_column_names_are_refused(tmp_path, name):
    path = tmp_path / "a.jsonl"
    path.write_text(lines({"query": "a", "positive": "p", name: ["n"]}))
    with pytest.raises(ValueError, match=rf"a\.jsonl:1: .*`{name}` is in none of"):
        triples(path)
    # Their scores are no texts.
    path.write_text(lines({"query": "a", "positive": "p", "neg": [0.3]}))
    assert triples(path).negatives is None


def test_triples_of_an_iterable():
    rows = [("a", "a cat", "a dog"), {"query": "b", "positive": ["a dog"]}]
    found = triples(iter(rows))
    assert found.queries == ["a", "b"]
    assert found.documents == ["a cat", "a dog"]
    assert found.negatives == [(1,), ()]
    with pytest.raises(ValueError, match=r"row 2: .*nothing answers"):
        triples([*rows[:1], ("a", [])])
    with pytest.warns(UserWarning, match="1 broken left out"):
        assert triples([*rows, ("c",)], max_broken=1).queries == ["a", "b"]


def test_triples_of_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {
        "query": ["who purrs?", "who purrs?", "who barks?", None],
        "positive": [["a cat"], ["a lion", "a cat"], ["a dog"], ["a cow"]],
        "negatives": [["a dog", "a cow"], None, [], None],
        "other": [1, 2, 3, 4],
    }
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(ValueError, match=r"a\.parquet: row 4: "):
        triples(path)
    with pytest.warns(UserWarning, match="row 4"):
        triples_found(triples(path, max_broken=1))


def test_without_pyarrow_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match="pip install pyarrow"):
        triples(tmp_path / "a.parquet")
