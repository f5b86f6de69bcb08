"""Pages that show a run: HTML that needs no other file and asks nobody for anything."""

import base64
import html
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from lrmil_jax import files

# A picture above this many bytes is kept in the page as WebP of at most so many px.
_LARGE_BYTES = 120_000
_LARGEST_PX = 1400
_FIGURE = re.compile(r"[-+±.,\d\s%x\[\]]+")
_SHORT = 24  # letters of a cell that is not broken over lines
# Even a page that was tampered with loads nothing from elsewhere.
_POLICY = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {}"


def document(title: str, *body: str, script: str = "") -> str:
    """A whole page of parts that are HTML already.

    Args:
      title: text.
      body: HTML.
      script: JavaScript that runs when the page is there.
    """
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    policy = _POLICY.format("'unsafe-inline'" if script else "'none'")
    tail = f"<script>{script}</script>" if script else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{html.escape(title)}</title><style>{style}</style></head>\n"
        f"<body>{''.join(body)}{tail}</body></html>\n"
    )


def section(heading: str, *parts: str) -> str:
    """Parts under a heading that `contents` links; nothing if there are no parts."""
    inside = "".join(parts)
    if not inside:
        return ""
    return f'<section id="{_anchor(heading)}"><h2>{html.escape(heading)}</h2>{inside}</section>\n'


def contents(sections: Sequence[str]) -> str:
    """Links to sections, as `section` made them."""
    found = re.findall(r'<section id="([^"]+)"><h2>(.*?)</h2>', "".join(sections))
    links = "".join(f'<a href="#{anchor}">{heading}</a>' for anchor, heading in found)
    return f'<nav aria-label="Contents">{links}</nav>'


def _anchor(heading: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")


def heading(text: str) -> str:
    """A heading below that of a section."""
    return f"<h3>{html.escape(text)}</h3>"


def paragraph(text: str, style: str = "") -> str:
    """Text as a paragraph; `style` is a class of page.css: "lead", "soft" or "warn"."""
    if style == "warn":
        return f'<p class="warn" role="note"><strong>Caution.</strong> {html.escape(text)}</p>'
    return f"<p{f' class={style}' if style else ''}>{html.escape(text)}</p>"


def paragraph_of(inside: str) -> str:
    """A paragraph of what is HTML already."""
    return f"<p>{inside}</p>"


def data(name: str, value: Any) -> str:
    """A value that scripts of the page read from the element of this name."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{html.escape(name)}">{text}</script>'


def link(href: str, text: str) -> str:
    """A link to a file beside the page, or to a place in it."""
    return f'<a href="{html.escape(href)}">{html.escape(text)}</a>'


def details(summary: str, *parts: str) -> str:
    """Parts that are shown on a click."""
    return f"<details><summary>{html.escape(summary)}</summary>{''.join(parts)}</details>"


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values as a table without a heading."""
    lines = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>"
        for name, value in rows
    )
    return f'<div class="scroll"><table class="facts">{lines}</table></div>'


def table(cells: Sequence[Sequence[str]]) -> str:
    """Cells as a table that scrolls where the page is too narrow; the first line is the heading."""
    rows = []
    for number, line in enumerate(cells):
        tag = "th" if number == 0 else "td"
        rows.append("".join(_cell(tag, cell) for cell in line))
    return f'<div class="scroll"><table>{"".join(f"<tr>{row}</tr>" for row in rows)}</table></div>'


def _cell(tag: str, cell: str) -> str:
    unbroken = len(cell) <= _SHORT or _FIGURE.fullmatch(cell)
    style = ' class="n"' if tag == "td" and " " in cell and unbroken else ""
    return f"<{tag}{style}>{html.escape(cell)}</{tag}>"


def figure(path: str, caption: str, *, folder: Path | None = None) -> str:
    """A picture with its caption.

    Args:
      path: of the file, below `folder`; the page links it.
      caption: text, also what the picture is to those who do not see it.
      folder: of the page; the picture is kept in the page itself. None: it is linked alone.
    """
    address = quote(path)  # names of slides may have # and &
    source = address if folder is None else embedded(folder / path)
    beside = "" if folder is None else f" {link(address, Path(path).name)}"
    return (
        f'<figure><div class="scroll" tabindex="0"><img src="{source}" '
        f'alt="{html.escape(caption)}"></div>'
        f"<figcaption>{html.escape(caption)}{beside}</figcaption></figure>"
    )


def embedded(path: Path) -> str:
    """A PNG file as a data URI; a large one as WebP, and of bounded size."""
    content = path.read_bytes()
    if len(content) <= _LARGE_BYTES:
        return data_uri("image/png", content)
    with Image.open(path) as picture:
        smaller = picture.convert("RGB")
    smaller.thumbnail((_LARGEST_PX, 2 * _LARGEST_PX))
    written = io.BytesIO()
    smaller.save(written, "WEBP", quality=80)
    return data_uri("image/webp", written.getvalue())


def data_uri(kind: str, content: bytes) -> str:
    """Bytes as the address of themselves."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def page(
    title: str,
    cells: Sequence[Sequence[str]],
    pictures: Sequence[tuple[str, str]],
    notes: Sequence[str],
    *,
    sections: Sequence[tuple[str, Sequence[Sequence[str]]]] = (),
    folder: Path | None = None,
) -> str:
    """A page of a table, notes, further tables and pictures.

    Args:
      title: heading.
      cells: rows of the table, the first being its heading.
      pictures: (path relative to the page, caption).
      notes: paragraphs below the table.
      sections: heading and rows of further tables, below the notes.
      folder: see `figure`.
    """
    return document(
        title,
        f"<h1>{html.escape(title)}</h1>",
        table(cells),
        *(paragraph(note) for note in notes),
        *(section(name, table(rows)) for name, rows in sections),
        *(figure(path, caption, folder=folder) for path, caption in pictures),
    )


def save(path: Path, content: str) -> None:
    """Writes a page, whole or not at all."""
    with files.atomic_path(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
