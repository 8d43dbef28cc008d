"""Pages of the site that are made when it is built: the first, the reference, results.

MkDocs calls these functions by their names.
"""

import ast
import re
from pathlib import Path

from mkdocs.structure.files import File  # pyright: ignore[reportMissingImports]


ROOT = Path(__file__).parents[1]
PACKAGES = ("effgen", "ebm", "neural_sde", "collocation", "retrieval_cache")


def on_files(files, config):
    """Add what does not lie in `docs/`."""
    for uri, text in _pages().items():
        files.append(File.generated(config, uri, content=text))
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        generated = File.generated(
            config, f"results/{path.name}", abs_src_path=str(path)
        )
        files.append(generated)
    return files


def on_page_markdown(markdown, page, config, files):
    """Lead links out of `docs/` to where the site has what they name."""
    up = "../" * page.file.src_uri.count("/")
    return re.sub(r"\]\((?:\.\./)*benchmarks/results/", f"]({up}results/", markdown)


def _pages():
    first = (ROOT / "README.md").read_text().replace("](docs/", "](")
    first = first.replace("](CITATION.cff)", "](CITATION.cff.txt)")
    changes = (ROOT / "CHANGELOG.md").read_text()
    reference = {f"reference/{name}.md": _reference(name) for name in PACKAGES}
    citation = (ROOT / "CITATION.cff").read_text()
    return {
        "index.md": first,
        "changelog.md": changes,
        "CITATION.cff.txt": citation,
        **reference,
    }


def _reference(name):
    """Return a page with every public name of a package, in alphabetical order."""
    module = "effgen" if name == "effgen" else f"effgen.{name}"
    tree = ast.parse((ROOT.joinpath(*module.split(".")) / "__init__.py").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    names = [a.name for node in imports for a in node.names if a.asname == a.name]
    parts = [f"# {module}", (ast.get_docstring(tree) or ""), f"`import {module}`"]
    return "\n\n".join([*parts, *(f"::: {module}.{n}" for n in sorted(names))]) + "\n"
