"""Tutorials: the notebooks, executed, as pages with their outputs and pictures.

`python docs/tutorials.py forecasting collocation` writes `docs/tutorials/<name>.md` and
its pictures. Without a name it runs all notebooks.
"""

import base64
import io
import os
import re
import sys
import tempfile
from pathlib import Path


DOCS = Path(__file__).parent
PAGES = DOCS / "tutorials"
NOTEBOOKS = DOCS.parent / "notebooks"
NUM_COLORS = 64


def executed(path):
    """Return the notebook at `path` with the outputs of its cells."""
    import jupytext
    import nbclient

    os.environ.pop("MPLBACKEND", None)  # pictures are outputs of their cells
    notebook = jupytext.read(path)
    client = nbclient.NotebookClient(notebook, timeout=None, resources={})
    with tempfile.TemporaryDirectory() as folder:
        client.execute(cwd=folder)
    return notebook


def page(notebook, name):
    """Return a page's text, and the bytes of its pictures by their names."""
    parts, pictures, heading = [], {}, ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            heading = (re.findall(r"(?m)^#+ (.+)$", cell.source) or [heading])[-1]
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            path = f"{name}-{len(pictures) + 1}.png"
            text, picture = _shown(output, f"![{heading}]({path})")
            pictures |= {path: picture} if picture else {}
            parts += [text] if text else []
    note = (
        f"This page is `notebooks/{name}.py` with its output. `make tutorials` runs it."
    )
    return "\n\n".join([parts[0], note, *parts[1:]]) + "\n", pictures


def _shown(output, link):
    """Return an output's text, or the link and the picture; nothing of a bar."""
    if output.output_type == "stream":
        return (_quoted(output.text) if output.name == "stdout" else ""), None
    data = output.get("data", {})
    if "image/png" in data:
        return link, _small(base64.b64decode(data["image/png"]))
    bar = "application/vnd.jupyter.widget-view+json" in data
    return (
        "" if bar or "text/plain" not in data else _quoted(data["text/plain"])
    ), None


def _quoted(text):
    return f"```text\n{text.rstrip()}\n```"


def _small(png):
    """Return a picture of few colors, which takes a third of the bytes."""
    from PIL import Image

    picture, packed = Image.open(io.BytesIO(png)).convert("RGB"), io.BytesIO()
    picture.quantize(NUM_COLORS).save(packed, format="png", optimize=True)
    return packed.getvalue()


def write(name):
    """Run a notebook, and write its page and its pictures."""
    text, pictures = page(executed(NOTEBOOKS / f"{name}.py"), name)
    PAGES.mkdir(exist_ok=True)
    for path in PAGES.glob(f"{name}-*.png"):
        path.unlink()
    for path, packed in pictures.items():
        (PAGES / path).write_bytes(packed)
    (PAGES / f"{name}.md").write_text(text)


def cells(text):
    """Return the code of a page, cell by cell."""
    return re.findall(r"```python\n(.*?)\n```", text, re.DOTALL)


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(path.stem for path in NOTEBOOKS.glob("*.py")):
        write(name)
        print(PAGES / f"{name}.md")
