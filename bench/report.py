"""The report: numbers and columns to read now, and a JSON file to come back to."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path


def number(value: float | None) -> str:
    """Three significant digits, without an exponent."""
    if value is None:
        return "-"
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def percent(share: float | None) -> str:
    """Whole ones, and below 10 with a digit more."""
    if share is None:
        return "-"
    return f"{share:.0%}" if share >= 0.0995 else f"{share:.1%}"


def columns(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Cells under their heads, to the right."""
    cells = [list(head), *[[str(cell) for cell in row] for row in rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join([cell.rjust(width) for cell, width in zip(line, widths, strict=True)])
        for line in cells
    ]
    return "\n".join([lines[0], "─" * len(lines[0]), *lines[1:]])


def write_figures(
    folder: Path, name: str, rows: Sequence[dict[str, object]], stamp: dict[str, object]
) -> Path:
    """At every moment the file is whole: it is what it was before, or what it is now."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = folder / f"{name}.json"
    record = {"stamp": stamp, "rows": rows}
    apart = folder / f".{name}.json"
    with apart.open("w", encoding="utf-8") as file:
        file.write(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    apart.replace(figures)
    return figures
