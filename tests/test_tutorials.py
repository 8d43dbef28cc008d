"""Tutorials on the site: the notebooks' own code, with small pictures of it."""

import base64
import io
import re
import runpy

import pytest

from .test_package import NOTEBOOKS, ROOT


TOOL = runpy.run_path(str(ROOT / "docs" / "tutorials.py"))
PAGES = sorted(TOOL["PAGES"].glob("*.md"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_tutorial_has_the_notebook_s_code_and_its_pictures(path):
    jupytext = pytest.importorskip("jupytext")
    (notebook,) = [each for each in NOTEBOOKS if each.stem == path.stem]
    text = path.read_text()
    code = [c for c in jupytext.read(notebook).cells if c.cell_type == "code"]
    stale = f"run `make tutorials NAMES={path.stem}`: the notebook has changed"
    assert TOOL["cells"](text) == [cell.source for cell in code], stale
    shown = re.findall(r"!\[.*?\]\((.*?\.png)\)", text)
    assert shown, "no picture"
    assert sorted(shown) == sorted(p.name for p in path.parent.glob(f"{path.stem}-*"))
    assert all((path.parent / name).stat().st_size < 60_000 for name in shown)
    assert f"tutorials/{path.name}" in (ROOT / "mkdocs.yml").read_text()


def test_a_page_keeps_what_is_printed_and_drawn():
    nbformat = pytest.importorskip("nbformat")
    Image = pytest.importorskip("PIL.Image")
    drawn = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(drawn, format="png")
    outputs = [
        nbformat.v4.new_output("stream", name="stdout", text="2\n"),
        nbformat.v4.new_output("stream", name="stderr", text="a bar"),
        nbformat.v4.new_output(
            "display_data", {"image/png": base64.b64encode(drawn.getvalue()).decode()}
        ),
        nbformat.v4.new_output("execute_result", {"text/plain": "3"}),
    ]
    cells = [
        nbformat.v4.new_markdown_cell("# A title"),
        nbformat.v4.new_code_cell("print(1 + 1)", outputs=outputs),
    ]
    text, pictures = TOOL["page"](nbformat.v4.new_notebook(cells=cells), "sums")
    assert text.startswith("# A title\n")
    assert TOOL["cells"](text) == ["print(1 + 1)"]
    assert re.findall(r"```text\n(.*?)\n```", text) == ["2", "3"]
    assert "![A title](sums-1.png)" in text
    assert Image.open(io.BytesIO(pictures["sums-1.png"])).size == (4, 4)
    assert "a bar" not in text
