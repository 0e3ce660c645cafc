"""Probe rows from a csv table: one row per line, numbers, an optional header, an optional label column."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from cipm.errors import ProbeError
from cipm.load.probe_match import LABEL_ALIASES, Column
from cipm.trace.graph import Input

DELIMITERS = ",;\t"


def looks_like_csv(head: bytes) -> bool:
    """Tell whether the start of a file is a table: text whose second line (or only line) is mostly numbers."""
    text = head.decode("utf-8-sig", "replace")
    lines = [line for line in text.splitlines()[:2] if line.strip()]
    if "\x00" in text or not lines:
        return False
    cells = lines[-1].split(_delimiter(lines[0]))
    return 2 * sum(map(_is_number, cells)) >= len(cells)


def open_csv(path: Path, inputs: Sequence[Input]) -> tuple[list[Column], list[str]]:
    """List the columns of a table: all features as one array, or for several inputs one array for each name.

    A header cell `tokens[3]`, `tokens_3` or `tokens.3` belongs to the array `tokens`. Raises ProbeError for ragged
    rows; cells that are not numbers are refused when their rows are read.
    """
    table = _open(path)
    reserved = {spec.name for spec in inputs}
    label = next((i for i, name in enumerate(table.names)
                  if name.lower() in LABEL_ALIASES and name not in reserved), None)
    features = [i for i in range(len(table.names)) if i != label]
    groups = {"columns": features} if len(inputs) == 1 else _groups(table.names, features)
    rows = table.count()
    columns = [Column(name, (rows, len(cells)), np.dtype(np.float64), partial(table.numbers, cells))
               for name, cells in groups.items()]
    if label is not None:
        columns.append(_label_column(table, label, rows))
    return columns, [] if table.header else ["The table has no header, so no column is taken for labels."]


@dataclass(frozen=True)
class Table:
    """A csv file: how its cells are divided, whether its first line is a header, and the columns' names."""

    path: Path
    delimiter: str
    header: bool
    names: tuple[str, ...]

    def count(self) -> int:
        """Return the number of rows; raises ProbeError where one has another number of cells than the first."""
        number = 0
        for number, cells in enumerate(_lines(self.path, self.delimiter), start=1):
            if len(cells) != len(self.names):
                raise ProbeError(f"Line {number} of the probe has {len(cells)} cells; line 1 has {len(self.names)}.",
                                 where=f"line {number}", fix="Give every row the same number of cells.")
        return number - self.header

    def rows(self, wanted: Sequence[int] | None = None) -> Iterator[tuple[int, list[str]]]:
        """Yield (line number from 1, cells) of the wanted rows, ascending; of all rows without."""
        pending = None if wanted is None else iter(wanted)
        following = None if pending is None else next(pending, None)
        for number, cells in enumerate(_lines(self.path, self.delimiter), start=-self.header):
            if number >= 0 and (pending is None or number == following):
                yield number + 1 + self.header, cells
                following = None if pending is None else next(pending, None)

    def numbers(self, cells: Sequence[int], rows: np.ndarray) -> np.ndarray:
        """Return these cells of these rows as float64 [rows, cells]; raises ProbeError naming one that is no number."""
        taken = np.empty((len(rows), len(cells)))
        for place, (number, line) in enumerate(self.rows(rows.tolist())):
            try:
                taken[place] = [float(line[i]) for i in cells]
            except ValueError:
                raise self._not_a_number(number, line, cells) from None
        return taken

    def words(self, cell: int, rows: np.ndarray) -> np.ndarray:
        """Return one cell of these rows as text."""
        return np.array([line[cell].strip() for _, line in self.rows(rows.tolist())])

    def _not_a_number(self, number: int, line: Sequence[str], cells: Sequence[int]) -> ProbeError:
        bad = next(i for i in cells if not _is_number(line[i]))
        held = repr(line[bad][:40]) if line[bad].strip() else "empty"
        return ProbeError(f"Line {number}, {self.names[bad]!r} of the probe is {held}, not a number.",
                          where=f"line {number}, {self.names[bad]}",
                          fix="Keep the columns that the model takes, and name a column of classes 'label'.")


def _open(path: Path) -> Table:
    with path.open("rb") as file:
        delimiter = _delimiter(file.readline(1 << 20).decode("utf-8-sig", "replace"))
    first = [cell.strip() for cell in next(_lines(path, delimiter), [])]
    header = not all(map(_is_number, first))
    return Table(path, delimiter, header, tuple(first) if header else tuple(f"column {i}" for i in range(len(first))))


def _label_column(table: Table, label: int, rows: int) -> Column:
    name = table.names[label].lower()
    if all(_is_number(cells[label]) for _, cells in table.rows()):
        return Column(name, (rows,), np.dtype(np.float64), lambda taken: table.numbers([label], taken)[:, 0])
    return Column(name, (rows,), np.dtype(np.str_), partial(table.words, label))


def _delimiter(line: str) -> str:
    return max(DELIMITERS, key=line.count)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _lines(path: Path, delimiter: str) -> Iterator[list[str]]:
    """Yield the rows that are not blank; raises ProbeError where the text is damaged."""
    with path.open("rb") as raw, io.TextIOWrapper(raw, "utf-8-sig", newline="") as text:
        try:
            yield from (cells for cells in csv.reader(text, delimiter=delimiter) if cells)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ProbeError(f"The probe is a csv table that cannot be read ({error}).",
                             fix="Save it as UTF-8 text with one row per line.") from None


def _groups(names: Sequence[str], features: Sequence[int]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for i in features:
        stem = names[i].rstrip("]").rstrip("0123456789")
        indexed = stem != names[i] and len(stem) > 1 and stem[-1] in "[_."
        groups.setdefault(stem[:-1] if indexed else names[i], []).append(i)
    return groups
