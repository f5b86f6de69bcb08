"""One page that shows a run: the table, the curves, the heatmaps."""

import html
from collections.abc import Sequence
from pathlib import Path

from lrmil_jax import files

_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.3em .6em;text-align:left}"
    "img{max-width:100%}figure{margin:1em 0}"
)


def page(
    title: str,
    table: Sequence[Sequence[str]],
    pictures: Sequence[tuple[str, str]],
    notes: Sequence[str],
    *,
    sections: Sequence[tuple[str, Sequence[Sequence[str]]]] = (),
) -> str:
    """A page without scripts or outside files.

    Args:
      title: heading.
      table: rows of cells, the first being the heading.
      pictures: (path relative to the page, caption).
      notes: paragraphs below the table.
      sections: heading and rows of further tables, below the notes.
    """
    figures = [
        f'<figure><img src="{html.escape(path)}" alt="{html.escape(caption)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for path, caption in pictures
    ]
    paragraphs = [f"<p>{html.escape(note)}</p>" for note in notes]
    paragraphs += [f"<h2>{html.escape(head)}</h2>{_table(rows)}" for head, rows in sections]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>"
        f"{_table(table)}{''.join(paragraphs)}{''.join(figures)}</html>\n"
    )


def _table(table: Sequence[Sequence[str]]) -> str:
    rows = []
    for number, cells in enumerate(table):
        tag = "th" if number == 0 else "td"
        line = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
        rows.append(f"<tr>{line}</tr>")
    return f"<table>{''.join(rows)}</table>"


def save(path: Path, content: str) -> None:
    """Writes a page, whole or not at all."""
    with files.atomic_path(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
