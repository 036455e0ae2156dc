"""Markdown tables, and their places in a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table, columns padded so that it reads well as text too.

    The first column is aligned to the left, the others to the right.
    """
    widths = [max(3, *(len(row[i]) for row in [headers, *rows])) for i in range(len(headers))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join([first, *others])} |"

    rule = [("-" * width) if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join([line(headers), line(rule), *map(line, rows)])


def percent(share: float | None) -> str:
    """Write a share as a percentage; a dash for none."""
    return "–" if share is None or math.isnan(share) else f"{100 * share:.1f}"


def decibel(value: float) -> str:
    """Write a PSNR; a dash where there is none."""
    return "–" if math.isnan(value) else "exact" if math.isinf(value) else f"{value:.1f}"


def fill(page: Path, name: str, content: str) -> None:
    """Put content between `<!-- table:NAME -->` and the next `<!-- /table -->` of a page.

    Raises: ValueError if the page lacks one of the marks.
    """
    text = page.read_text(encoding="utf-8")
    opening, closing = f"<!-- table:{name} -->", "<!-- /table -->"
    before, found, rest = text.partition(opening)
    _, ended, after = rest.partition(closing)
    if not found or not ended:
        raise ValueError(f"{page.name} has no place for this table: add {opening} and {closing}")
    page.write_text(f"{before}{opening}\n{content}\n{closing}{after}", encoding="utf-8")
