"""Numbers that README and docs state are read off the committed results."""

import re

import pytest

from benchmarks.__main__ import SCRIPTS

from .figures import NUMBER, RESULTS, figures, holds, numbers, read
from .test_package import ROOT


README = (ROOT / "README.md").read_text()
FRONT = (ROOT / "docs" / "benchmarks.md").read_text()
METHODS = sorted((ROOT / "docs" / "benchmarks").glob("*.md"))
LINK = re.compile(r"benchmarks/results/([\w.]+)\.json")
PROSE = re.compile(r"\[([^\]]*)\]\([^)]*\)|`[^`]*`|\*\*|!\[.*?\]\(.*?\)", re.DOTALL)


def plain(text: str) -> str:
    """Return a text without code, and with links by their words alone."""
    return PROSE.sub(r"\1", PROSE.sub(r"\1", text))  # code may stand in a link


def sections() -> dict[str, tuple[list[str], str]]:
    """Return each section's title, the results that it names, and its text."""
    found = {}
    for page in METHODS:
        for section in re.split(r"(?m)^## ", page.read_text())[1:]:
            head, _, body = section.partition("\n")
            title = f"{page.stem}: {head.partition(' ([')[0].strip()}"
            assert title not in found
            found[title] = (LINK.findall(head), body)
    return found


SECTIONS = sections()


def settings(names: list[str]) -> list[float]:
    """Return the constants of the scripts that wrote these results."""
    found = []
    for record in read(*names):
        module = record["machine"]["command"].split()[2].replace(".", "/")
        text = (ROOT / f"{module}.py").read_text()
        found += numbers(text.replace("_", ""))
    return found


@pytest.mark.parametrize("title", SECTIONS)
def test_a_section_states_what_its_results_hold(title):
    names, body = SECTIONS[title]
    assert names, f"{title}: name the results in the heading"
    held = sorted({x for record in read(*names) for x in figures(record)})
    lines = body.splitlines()
    cells = " ".join(line for line in lines if line.startswith("|"))
    unheld = [token for token in NUMBER.findall(cells) if not holds(held, token)]
    assert not unheld, f"{title}: no result has {unheld}"
    prose = PROSE.sub(r"\1", " ".join(x for x in lines if not x.startswith("|")))
    said = sorted({*held, *settings(names)})
    unheld = [token for token in NUMBER.findall(prose) if not holds(said, token)]
    assert not unheld, f"{title}: neither results nor settings have {unheld}"


def claims(text: str) -> list[str]:
    """Return the rows of a table of figures."""
    return [line for line in text.splitlines() if LINK.search(line)]


@pytest.mark.parametrize("row", claims(README))
def test_the_readme_states_what_results_hold(row):
    names = LINK.findall(row)
    held = [x for record in read(*names) for x in figures(record)]
    said = sorted({*held, *settings(names)})
    unheld = [t for t in NUMBER.findall(PROSE.sub(r"\1", row)) if not holds(said, t)]
    assert not unheld, f"no result has {unheld}"


MEASURED = re.compile(
    r"\d ?(?:%|times\b|nats\b|ms\b|us\b|s\b|seconds\b|minutes\b|MB\b|GB\b)"
)

# What a named test asserts; limits, defaults and definitions, which no run measures.
SETTINGS = (
    "tests/",
    "up to 64 MB",
    "up to 64 or 16 MB",
    "by default",
    "holds the truth in 95 % of runs",
    "above 2.5 nats",
    "5 nats below the most",
    " GB |",
)
PAGES = [page for page in (ROOT / "docs").glob("*.md") if page.name != "benchmarks.md"]


def paragraphs(page):
    """Return what stands between blank lines, rows of tables one by one."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    parts = re.split(r"\n\s*\n|\n(?=- |\| )", text)
    return [" ".join(part.split()) for part in parts]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_other_pages_state_figures_of_results_alone(page):
    names = LINK.findall(page.read_text())
    held = sorted({x for record in read(*names) for x in figures(record)})
    for part in paragraphs(page):
        if any(words in part for words in SETTINGS):
            continue
        plain = PROSE.sub(r"\1", part)
        stated = [
            NUMBER.findall(plain[: m.start() + 1])[-1:]
            for m in MEASURED.finditer(plain)
        ]
        unheld = [
            token for tokens in stated for token in tokens if not holds(held, token)
        ]
        assert not unheld, f"{page.name}: no result of its links has {unheld}: {part}"


def cells(row: str) -> list[str]:
    """Return what stands between the bars of a row."""
    return [cell.strip() for cell in row.strip().strip("|").split(" | ")]


@pytest.mark.parametrize("row", claims(FRONT))
def test_the_front_page_states_what_results_hold(row):
    records = read(*LINK.findall(row))
    held = [x for record in records for x in figures(record)]
    unheld = [token for token in NUMBER.findall(plain(row)) if not holds(held, token)]
    assert not unheld, f"no result has {unheld}"
    told = re.findall(r"`(.+?)`", cells(row)[3])
    given = [record["machine"]["command"] for record in records]
    assert [f"python -m benchmarks.{command}" for command in told] == given


def test_the_front_page_names_the_machine():
    machines = [record["machine"] for record in read(*there())]
    for machine in (m for m in machines if m["device"] == "cpu"):
        assert machine["cores"] == 2
        for named in (machine["processor"], f"jax {machine['versions']['jax']}"):
            assert named in FRONT
        assert f"Python {machine['python'].rpartition('.')[0]}" in FRONT


def beside_sections() -> dict[str, str]:
    """Return the texts whose figures stand in rows or sections with their results."""
    heads = {page.stem: page.read_text().partition("\n## ")[0] for page in METHODS}
    return {"README": README, "front page": FRONT, **heads}


@pytest.mark.parametrize("title", beside_sections())
def test_figures_stand_nowhere_else(title):
    text = re.sub(r"```.*?```", "", beside_sections()[title], flags=re.DOTALL)
    rows = [line for line in text.splitlines() if not LINK.search(line)]
    assert not [line for line in rows if MEASURED.search(PROSE.sub(r"\1", line))]


def test_the_front_page_has_its_numbers_in_rows():
    _, *lines = FRONT.partition("## Ten claims")[2].splitlines()
    assert not [x for x in lines if not LINK.search(x) and NUMBER.search(plain(x))]


def there() -> list[str]:
    return sorted(path.stem for path in RESULTS.glob("*.json"))


def test_one_command_measures_every_result_anew():
    commands = [record["machine"]["command"] for record in read(*there())]
    named = {command.removeprefix("python -m benchmarks.") for command in commands}
    scripts = {*SCRIPTS, *[script.split()[0] for script in SCRIPTS]}
    assert named <= scripts


def test_every_result_is_told_of():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    told = {name for page in pages for name in LINK.findall(page.read_text())}
    assert sorted(told) == there()
