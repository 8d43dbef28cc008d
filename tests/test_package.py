"""The package as a whole: its imports, its README, its notebooks."""

import ast
import functools
import graphlib
import re
import runpy
from pathlib import Path

import jax
import pytest


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "effgen"
FAMILIES = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {"core"}


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def imported(path: Path) -> set[str]:
    """Return the dotted names that a file imports, relative ones made absolute."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    names = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            names.add(".".join((*base, *(node.module or "").split("."))))
    return names


FILES = sorted(PACKAGE.rglob("*.py"))


def test_methods_import_the_core_and_themselves():
    for path in FILES:
        own = path.relative_to(PACKAGE).parts[0]
        others = FAMILIES - {own} if own != "__init__.py" else set()
        names = {name for name in imported(path) if name.startswith("effgen.")}
        assert not {name for name in names if name.split(".")[1] in others}, path


def test_every_file_says_what_lives_there_and_is_short():
    for path in FILES:
        assert ast.get_docstring(parsed(path)), f"{path}: no docstring"
        lines = path.read_text().splitlines()
        assert len(lines) <= 400, f"{path}: split it by concept"


def rooms_imported(folder: str) -> dict[str, set[str]]:
    """Return, of each room of a folder of the package, the others that it imports."""
    found: dict[str, set[str]] = {}
    for path in (PACKAGE / folder).glob("*/*.py"):
        room, prefix = path.parent.name, f"effgen.{folder}."
        others = {n.split(".")[2] for n in imported(path) if n.startswith(prefix)}
        found.setdefault(room, set()).update(others - {room})
    return found


@pytest.mark.parametrize("folder", ["core", *sorted(FAMILIES)])
def test_imports_between_rooms_run_one_way(folder):
    sorter = graphlib.TopologicalSorter(rooms_imported(folder))
    sorter.prepare()  # raises a CycleError that names the circle


@pytest.mark.parametrize("folder", ["core", *sorted(FAMILIES)])
def test_the_architecture_names_every_file(folder):
    text = (ROOT / "docs" / "architecture.md").read_text()
    sections = re.split(r"^In `(\w+)/`:$", text, flags=re.MULTILINE)
    told = dict(zip(["core", *sections[1::2]], sections[::2], strict=True))[folder]
    named = set(re.findall(r"`(\w+\.py)`", told.partition("\n## Dep")[0]))
    there = {path.name for path in (PACKAGE / folder).rglob("*.py")} - {"__init__.py"}
    assert there <= named
    if folder != "core":  # whose section tells of the whole
        assert named == there


def code_blocks(path: Path) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL))


def outputs(path: Path) -> str:
    return "".join(re.findall(r"```text\n(.*?)```", path.read_text(), re.DOTALL))


def assert_printed(printed: str, told: str) -> None:
    """Words are equal, and so are numbers up to what another machine rounds."""
    number = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")
    assert number.sub("0", printed).split() == number.sub("0", told).split()
    found, expected = (
        [float(n) for n in number.findall(text)] for text in (printed, told)
    )
    assert found == pytest.approx(expected, rel=0.05, abs=0.05)


def execute(text: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(directory)
    script = directory / "script.py"
    script.write_text(text)
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        jax.config.update("jax_enable_x64", False)


# Not `docs/clusters.md`: its blocks are for several processes, or go on from a state.
PAGES = [
    "README.md",
    "docs/collocation.md",
    "docs/ebm.md",
    "docs/examples.md",
    "docs/getting_started.md",
    "docs/how_to.md",
    "docs/neural_sde.md",
    "docs/retrieval_cache.md",
    "docs/sweeps.md",
]


# This page leaves files, from which it goes on: it runs twice.
LEAVES_FILES = "docs/getting_started.md"
PATIENT = pytest.mark.timeout(900)
QUICK = {
    "README.md": (1, [PATIENT]),
    LEAVES_FILES: (2, [PATIENT, pytest.mark.optimized]),
    "docs/collocation.md": (1, []),
    "docs/sweeps.md": (1, []),
}
TWICE = [page for page in PAGES if page != LEAVES_FILES]


@pytest.mark.parametrize(
    ("page", "times"),
    [
        *[pytest.param(page, n, marks=marks) for page, (n, marks) in QUICK.items()],
        *[pytest.param(page, 2, marks=pytest.mark.slow) for page in TWICE],
    ],
)
def test_examples_run_and_run_again_where_they_ran(
    page, times, tmp_path, monkeypatch, capsys
):
    for _ in range(times):
        execute(code_blocks(ROOT / page), tmp_path, monkeypatch)
    if page == "README.md":
        assert_printed(capsys.readouterr().out, outputs(ROOT / page) * times)
    if page == LEAVES_FILES:  # the second time there was nothing left to do
        lines = (tmp_path / "runs" / "first.jsonl").read_text().splitlines()
        assert len(lines) == 3


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path, monkeypatch):
    import jupytext
    import nbclient

    monkeypatch.setenv("EFFGEN_TOUR_STEPS", "120")
    notebook = jupytext.read(path)
    nbclient.NotebookClient(notebook, timeout=600, resources={}).execute(
        cwd=str(tmp_path)
    )
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert any("True" in out.get("text", "") for out in outputs)
