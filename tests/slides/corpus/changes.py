"""What is done to a file: each maker here gives a function over its bytes."""

import dataclasses
from collections.abc import Callable

from tests.slides.corpus import editor
from tests.slides.corpus.editor import Page, Tiff
from tests.slides.corpus.outcome import Damaged, Pixels, Refused

Change = Callable[[bytes], bytes]
TILE = 5  # the tile that is damaged, of the 4 x 3 of level 0
AT = ((1, 1),)  # its row and column
ALL = tuple((row, column) for row in range(3) for column in range(4))


@dataclasses.dataclass(frozen=True)
class Mutation:
    """A damaged or odd slide, and what must come of it.

    Attributes:
      name: of the file.
      kind: what of the format it changes.
      source: of `sources.NAMES`, the slide that is changed.
      change: gives the changed bytes.
      wanted: what must come.
      quick: whether every run of the tests tries it.
    """

    kind: str
    name: str
    source: str
    change: Change
    wanted: Pixels | Refused | Damaged
    quick: bool = False


def edit(change: Callable[[Tiff], object]) -> Change:
    """Parsed, changed, and written anew."""

    def edited(data: bytes) -> bytes:
        tiff = editor.parse(data)
        change(tiff)
        return editor.write(tiff)

    return edited


def on_page(change: Callable[[Page], object], page: int = 0) -> Change:
    """A page changed."""
    return edit(lambda tiff: change(tiff.pages[page]))


def setting(tag: int, *values: float, page: int = 0, kind: int | None = None) -> Change:
    """A field's values replaced, perhaps with another type."""
    return on_page(lambda one: one.set(tag, *values, kind=kind), page)


def without(*tags: int, page: int = 0) -> Change:
    """Fields left out."""
    return on_page(lambda one: [one.fields.pop(tag) for tag in tags], page)


def text(tag: int, value: str | bytes, page: int = 0) -> Change:
    """A field replaced by text."""
    return on_page(lambda one: one.text(tag, value), page)


def patching(tag: int, page: int = 0, **parts: int) -> Change:
    """Bytes of an entry overwritten and nothing else, see `editor.patch`."""
    return lambda data: editor.patch(rewritten(data), page, tag, **parts)


def chunk(change: Callable[[bytes], bytes], index: int = TILE, page: int = 0) -> Change:
    """The stored bytes of one tile changed."""

    def changed(one: Page) -> None:
        one.chunks[index] = change(one.chunks[index])

    return on_page(changed, page)


def every_chunk(change: Callable[[bytes], bytes], page: int = 0) -> Change:
    """The stored bytes of every tile changed."""
    return on_page(lambda one: setattr(one, "chunks", [change(c) for c in one.chunks]), page)


def element(tag: int, index: int, value: int, page: int = 0) -> Change:
    """One of the values of a LONG field that are stored apart overwritten."""

    def changed(data: bytes) -> bytes:
        data = rewritten(data)
        place = editor.places(data).entries[page][tag]
        start = int.from_bytes(data[place + 8 : place + 12], "little")
        return editor.put(data, start + 4 * index, "I", value)

    return changed


def linked(where: Callable[[editor.Places], int], value: Callable[[bytes], int]) -> Change:
    """The place of a directory overwritten where a header or directory states it."""

    def changed(data: bytes) -> bytes:
        data = rewritten(data)
        return editor.put(data, where(editor.places(data)), "I", value(data))

    return changed


def rewritten(data: bytes) -> bytes:
    """The same slide in the editor's layout: tiles first, each directory behind its tiles."""
    return editor.write(editor.parse(data))


def as_big(data: bytes) -> bytes:
    """The same slide as BigTIFF."""
    tiff = editor.parse(data)
    tiff.big = True
    return editor.write(tiff)


def other_order(data: bytes) -> bytes:
    """The same slide with the bytes of its numbers the other way round."""
    tiff = editor.parse(data)
    tiff.order = ">" if tiff.order == "<" else "<"
    return editor.write(tiff)
