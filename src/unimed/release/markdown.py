"""Markdown out of words that others wrote: tables, and text that stays text."""

from collections.abc import Sequence


def plain(text: object, most: int = 300) -> str:
    """Text as one line that no reader of Markdown takes for a table's edge, a tag or a link; longer than `most`, it is cut."""
    line = " ".join(str(text).split())
    line = line if len(line) <= most else f"{line[: most - 1]}…"
    for sign, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;"), ("[", "&#91;"), ("`", "&#96;"), ("*", "&#42;")):
        line = line.replace(sign, written)
    return line


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; a column of numbers leans to the right."""
    leans = ["--:" if rows and all(isinstance(row[place], int) for row in rows) else "---" for place in range(len(head))]
    cells = [[f"{cell:,}" if isinstance(cell, int) else plain(cell) or "–" for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(head), leans, *cells])


def page(*parts: str) -> str:
    """Parts of a page with an empty line between them; those without text are left out."""
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"
