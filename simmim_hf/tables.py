"""Rows of cells as the lines of a table, for a terminal or in Markdown."""

from collections.abc import Sequence

Rows = Sequence[Sequence[str]]

MARKDOWN_RULES = {"<": "---", ">": "---:"}


def plain(rows: Rows, align: str) -> list[str]:
    """The lines of a table for a terminal, columns two spaces apart.

    Args:
        rows: as many cells in each
        align: a letter for each column, `<` for left or `>` for right
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def markdown(rows: Rows, align: str) -> list[str]:
    """The lines of a table in Markdown, with the first row as its header.

    Args:
        rows: as many cells in each; line breaks in a cell become spaces
        align: as in `plain`
    """
    header, *body = [[_one_line(cell) for cell in row] for row in rows]
    rule = [MARKDOWN_RULES[side] for side in align]
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *body)]


def _one_line(cell: str) -> str:
    return " ".join(cell.replace("|", "\\|").split())
