"""Rows of CSV, TSV, JSON, Parquet and data frames, each with where it stands."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .lines import Place, opened


_PACKED = (".gz", ".bz2", ".xz", ".lz4")
_READ = (
    "files end in .jsonl, .json, .csv, .tsv or .parquet (text may be packed, .gz): "
    "read others with pandas, and pass the frame"
)
# A list of texts as Python and pandas write it into a cell.
_LIST = re.compile(r"""\[\s*(['"].*['"])?\s*\]""", re.DOTALL)
# From how many words on a cell of the first line is a text, and no column's name.
_WORDS = 5


class Cells(NamedTuple):
    """A row of a table: its cells, and what the columns are called, if that is said."""

    header: list[str] | None
    cells: list[str]

    def record(self) -> dict[str, str | None] | list[str]:
        """Return the row by name; nothing where a cell is empty.

        Raises:
            ValueError: For cells without a name, or a list in one.
        """
        for cell in self.cells:
            if _LIST.fullmatch(cell):
                raise ValueError(
                    f"{cell[:40]!r} is a list written as a text: write rows as JSON "
                    "lines, or texts in columns of their own (`negative_1`, ...)"
                )
        if self.header is None:
            return [*self.cells[:2], *(x for x in self.cells[2:] if x.strip())]
        if len(self.cells) != len(self.header):
            raise ValueError(
                f"there are {len(self.cells)} cells and {len(self.header)} columns: "
                "quote cells that hold the separator"
            )
        named = zip(self.header, self.cells, strict=True)
        return {name: x if x.strip() else None for name, x in named}


def ending(path: Path) -> str:
    """Return what a file's name ends in, leaving out that it is packed."""
    plain = Path(path.stem) if path.suffix in _PACKED else path
    return plain.suffix.lower()


def check_file(path: Path) -> None:
    """Raise `IsADirectoryError` for a folder."""
    if path.is_dir():
        raise IsADirectoryError(
            f"`{path}` is a folder: pass a file, or, of a data set of Hugging Face, "
            "`datasets.load_from_disk(folder)` and a split of it; BEIR's are read by "
            "`beir`."
        )


def cells(path: Path, is_header: Callable[[str], bool]) -> Iterator[tuple[int, Cells]]:
    """Yield the rows of a CSV or TSV file, each with its first line's number.

    The first line names the columns: `is_header` knows the query's. A TSV file may do
    without, where its first line is of texts; quotes then are part of these.

    Raises:
        ValueError: For a broken row, with file and line.
    """
    csv.field_size_limit(2**31 - 1)  # documents may be longer than the default
    with opened(path) as file:
        first = next(_decoded(path, file.readline), "")
    separator = "\t" if ending(path) == ".tsv" else ","
    named = any(map(is_header, next(csv.reader([first], delimiter=separator), [])))
    if not named and (separator == "," or not _is_text(first)):
        raise ValueError(
            f"{path}:1: no column is the query's in {first.strip()[:80]!r}: name it "
            "first in `columns`, or, of a file without names, pass its rows, such as "
            "`csv.reader(file)`."
        )
    quoting = csv.QUOTE_MINIMAL if named else csv.QUOTE_NONE
    with opened(path) as file:
        found = csv.reader(
            _decoded(path, file.readline),
            delimiter=separator,
            quoting=quoting,
            strict=True,
        )
        yield from _numbered(path, found, named=named)


def _is_text(line: str) -> bool:
    return any(len(cell.split()) >= _WORDS for cell in line.split("\t"))


def _numbered(path: Path, rows: Any, *, named: bool) -> Iterator[tuple[int, Cells]]:
    header, before = None, 0
    try:
        for row in rows:
            if row and named and header is None:
                header = row
                check_names(f"{path}:1: ", header)
            elif any(cell.strip() for cell in row):
                _check_quotes(path, before + 1, row)
                yield before + 1, Cells(header, row)
            before = rows.line_num
    except csv.Error as error:
        raise ValueError(f"{path}:{before + 1}: {error}: mend its quotes.") from error


def _check_quotes(path: Path, line: int, row: list[str]) -> None:
    """Raise `ValueError` where a quote seems to have joined two rows of a TSV file."""
    if ending(path) == ".tsv" and any("\n" in cell and "\t" in cell for cell in row):
        raise ValueError(
            f"{path}:{line}: a cell in quotes holds the end of a line and a tab: write "
            'quotes of texts twice and in quotes, `"a ""b"" c"`, or take them out.'
        )


def _decoded(path: Path, read: Callable[[], bytes]) -> Iterator[str]:
    for number, line in enumerate(iter(read, b""), 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}:{number}: {error}: save as UTF-8.") from error


def json_line(line: str) -> Any:
    """Return what a line of JSON holds.

    Raises:
        ValueError: For an object that is no JSON; the message says what files are read.
    """
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON ({error}); {_READ}") from error


def json_rows(path: Place) -> list[Any] | None:
    """Return the rows of a JSON file that is one list of them, `None` of any other."""
    with opened(path) as file:
        try:
            found = json.loads(file.read().decode("utf-8-sig"))
        except ValueError:
            return None
    several = isinstance(found, list) and not any(isinstance(x, str) for x in found)
    return found if several else None


def parquet_rows(
    path: Path, is_wanted: Callable[[str], bool]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file, of the columns that are wanted.

    Raises:
        ImportError: Without pyarrow.
    """
    with _pyarrow().ParquetFile(path) as file:
        there = [name for name in file.schema_arrow.names if is_wanted(name)]
        check_names(f"{path}: ", there)
        for batch in file.iter_batches(columns=there):
            yield from batch.to_pylist()


def check_names(where: str, names: list[Any]) -> None:
    """Raise `ValueError` for two columns of one name, of which one would be lost."""
    again = [name for i, name in enumerate(names) if name in names[:i]]
    if again:
        raise ValueError(
            f"{where}two columns are called {again[0]!r}: number them, such as "
            "`negative_1`, `negative_2`."
        )


def rows_of(source: Any) -> Iterable[Any]:
    """Return the rows of a data frame, nothing where a value is missing, or of any."""
    if not (hasattr(source, "notna") and hasattr(source, "to_dict")):
        return source
    check_names("", list(source.columns))
    return source.astype(object).where(source.notna(), None).to_dict("records")


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet as parquet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "Parquet needs pyarrow: `pip install pyarrow`, or convert to JSON lines."
        ) from error
    return parquet
