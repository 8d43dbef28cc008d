"""The demonstration on one page: tables, pictures, and what a band means."""

from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem;
       padding: 0 1rem; color: #222; background: #fff; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .8rem; text-align: left; }
img { max-width: 100%; height: auto; }
figcaption { color: #555; }
"""


class Section(NamedTuple):
    """One part of the demonstration: Markdown, and pictures with their captions."""

    title: str
    text: str
    pictures: dict[str, str]


def markdown(sections: list[Section]) -> str:
    """Return all parts as one Markdown text."""
    parts = [f"## {section.title}\n\n{section.text}" for section in sections]
    return "\n\n".join(parts) + "\n"


def write_page(directory: Path, title: str, sections: list[Section]) -> None:
    """Write `index.html`, which needs nothing but the pictures beside it."""
    body = "\n".join(_section(section) for section in sections)
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    width = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    (directory / "index.html").write_text(
        f'<!doctype html><html lang="en"><head>{head}{width}</head>'
        f"<body><h1>{title}</h1>\n{body}\n</body></html>\n"
    )


def _section(section: Section) -> str:
    text = MarkdownIt().enable("table").render(section.text)
    figures = "".join(
        f'<figure><img src="{name}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
        for name, caption in section.pictures.items()
    )
    return f"<h2>{section.title}</h2>\n{text}{figures}"
