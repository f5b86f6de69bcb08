"""A small TIFF editor: directories as plain tables, so that any of it can be made wrong.

It knows of TIFF 6.0 and BigTIFF what their specifications say, and uses no TIFF library, so that
what a mutated file holds does not depend on what a library is willing to write.
"""

import dataclasses
import struct

WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
DESCRIPTION, STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS, STRIP_COUNTS = 270, 273, 274, 277, 278, 279
X_RESOLUTION, Y_RESOLUTION, PLANAR, RESOLUTION_UNIT, SOFTWARE = 282, 283, 284, 296, 305
SUBFILE, PREDICTOR, COLORMAP, TILE_WIDTH, TILE_LENGTH, OFFSETS, COUNTS = (
    *(254, 317, 320, 322, 323),
    *(324, 325),
)
SUB_IFDS, EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_TABLES, SUBSAMPLING = 330, 338, 339, 347, 530

BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED, SLONG, SRATIONAL = 1, 2, 3, 4, 5, 7, 9, 10
FLOAT, DOUBLE, IFD, LONG8 = 11, 12, 13, 16
_FORMATS = {BYTE: "B", ASCII: "s", SHORT: "H", LONG: "I", RATIONAL: "II", UNDEFINED: "s",
            SLONG: "i", SRATIONAL: "ii", FLOAT: "f", DOUBLE: "d", IFD: "I", LONG8: "Q",
            18: "Q"}  # fmt: skip


@dataclasses.dataclass
class Field:
    """Type code and values of a tag; text and bytes as bytes, rationals as flat pairs."""

    kind: int
    values: tuple | bytes


@dataclasses.dataclass
class Page:
    """A directory: its fields, the tiles or strips as stored, and directories below it."""

    fields: dict[int, Field]
    chunks: list[bytes]
    below: list["Page"] = dataclasses.field(default_factory=list)

    def set(self, tag: int, *values: float, kind: int | None = None) -> None:
        """Replace a field by numbers; its type stays unless given."""
        if kind is None:
            kind = self.fields[tag].kind if tag in self.fields else SHORT
        self.fields[tag] = Field(kind, values)

    def text(self, tag: int, text: str | bytes) -> None:
        """Replace a field by text with its closing zero byte."""
        data = text if isinstance(text, bytes) else text.encode("latin-1", "xmlcharrefreplace")
        self.fields[tag] = Field(ASCII, data + b"\0")


@dataclasses.dataclass
class Tiff:
    """A whole file."""

    pages: list[Page]
    order: str = "<"
    big: bool = False


def parse(data: bytes) -> Tiff:
    """Everything in a well-formed file."""
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    tiff = Tiff([], order, big)
    word = order + ("Q" if big else "I")
    (place,) = struct.unpack_from(word, data, 8 if big else 4)
    while place:
        page, place = _page(data, place, tiff)
        tiff.pages.append(page)
    return tiff


def _page(data: bytes, place: int, tiff: Tiff) -> tuple[Page, int]:
    page, entry_size, first = Page({}, []), *((20, 8) if tiff.big else (12, 2))
    (count,) = struct.unpack_from(tiff.order + ("Q" if tiff.big else "H"), data, place)
    for i in range(count):
        tag, field = _field(data, place + first + i * entry_size, tiff)
        page.fields[tag] = field
    for offsets, counts in ((OFFSETS, COUNTS), (STRIP_OFFSETS, STRIP_COUNTS)):
        if offsets in page.fields:
            pairs = zip(page.fields[offsets].values, page.fields[counts].values, strict=True)
            page.chunks = [data[start : start + size] for start, size in pairs]
    if SUB_IFDS in page.fields:
        page.below = [_page(data, at, tiff)[0] for at in page.fields[SUB_IFDS].values]
    word = tiff.order + ("Q" if tiff.big else "I")
    return page, struct.unpack_from(word, data, place + first + count * entry_size)[0]


def _field(data: bytes, place: int, tiff: Tiff) -> tuple[int, Field]:
    word, inline = ("Q", 8) if tiff.big else ("I", 4)
    tag, kind, count = struct.unpack_from(tiff.order + "HH" + word, data, place)
    place += 4 + inline
    size = struct.calcsize(tiff.order + _FORMATS[kind]) * count
    if size > inline:
        (place,) = struct.unpack_from(tiff.order + word, data, place)
    if _FORMATS[kind] == "s":
        return tag, Field(kind, data[place : place + size])
    return tag, Field(kind, struct.unpack_from(tiff.order + _FORMATS[kind] * count, data, place))


def write(tiff: Tiff) -> bytes:
    """The file's bytes: chunks first, then each directory with its values behind it.

    Offsets and sizes of chunks follow the chunks; sort order of the fields is that of the dict's
    keys, as the format demands.
    """
    header = struct.pack(tiff.order + "2sH", b"II" if tiff.order == "<" else b"MM", 42 + tiff.big)
    header += struct.pack(tiff.order + "HHQ", 8, 0, 0) if tiff.big else bytes(4)
    out = bytearray(header)
    link = 8 if tiff.big else 4  # where the place of the next directory belongs
    for page in tiff.pages:
        below = [_write_page(out, one, tiff, ())[0] for one in page.below]
        place, next_link = _write_page(out, page, tiff, below)
        struct.pack_into(tiff.order + ("Q" if tiff.big else "I"), out, link, place)
        link = next_link
    return bytes(out)


def _write_page(out: bytearray, page: Page, tiff: Tiff, below: list | tuple) -> tuple[int, int]:
    """Append a page; where its directory begins, and where the place of the next belongs."""
    fields = dict(page.fields)
    starts = []
    for chunk in page.chunks:
        starts.append(len(out) if chunk else 0)
        out += chunk + b"\0" * (len(chunk) % 2)
    wide = LONG8 if tiff.big else LONG
    for offsets, counts in ((OFFSETS, COUNTS), (STRIP_OFFSETS, STRIP_COUNTS)):
        if offsets in fields:
            fields[offsets] = Field(wide, tuple(starts))
        if counts in fields:
            fields[counts] = Field(wide, tuple(map(len, page.chunks)))
    if below:
        fields[SUB_IFDS] = Field(wide, tuple(below))
    return _write_directory(out, fields, tiff)


def _write_directory(out: bytearray, fields: dict[int, Field], tiff: Tiff) -> tuple[int, int]:
    word, inline, number = ("Q", 8, "Q") if tiff.big else ("I", 4, "H")
    start = len(out)
    head = struct.calcsize(tiff.order + number)
    link = start + head + len(fields) * (4 + 2 * inline)
    out += bytes(link + inline - start)
    struct.pack_into(tiff.order + number, out, start, len(fields))
    for i, (tag, field) in enumerate(sorted(fields.items())):
        data, count = _encode(field, tiff.order)
        place = start + head + i * (4 + 2 * inline)
        struct.pack_into(tiff.order + "HH" + word, out, place, tag, field.kind, count)
        if len(data) <= inline:
            out[place + 4 + inline : place + 4 + inline + len(data)] = data
        else:
            struct.pack_into(tiff.order + word, out, place + 4 + inline, len(out))
            out += data + b"\0" * (len(data) % 2)
    return start, link


def _encode(field: Field, order: str) -> tuple[bytes, int]:
    if isinstance(field.values, bytes):
        return field.values, len(field.values)
    form = _FORMATS[field.kind]
    count = len(field.values) // len(form)
    if form == "s":
        return bytes(field.values), count
    return struct.pack(order + form * count, *field.values), count


@dataclasses.dataclass(frozen=True)
class Places:
    """Where in a file its pointers and entries are.

    Attributes:
      links: of each page, where the place of its directory is written.
      starts: of each page, where its directory begins.
      entries: of each page, tag -> place of its entry.
      last_link: where the last page says that none follows.
    """

    links: list[int]
    starts: list[int]
    entries: list[dict[int, int]]
    last_link: int


def places(data: bytes) -> Places:
    """Of a well-formed file, for changes that `write` would refuse or put right."""
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    word, size, first, number = ("Q", 20, 8, "Q") if big else ("I", 12, 2, "H")
    links, starts, entries, link = [], [], [], 8 if big else 4
    while place := struct.unpack_from(order + word, data, link)[0]:
        (count,) = struct.unpack_from(order + number, data, place)
        at = [place + first + i * size for i in range(count)]
        links.append(link)
        starts.append(place)
        entries.append({struct.unpack_from(order + "H", data, one)[0]: one for one in at})
        link = place + first + count * size
    return Places(links, starts, entries, link)


def put(data: bytes, place: int, form: str, *values: float) -> bytes:
    """The bytes with values written at `place`, in the file's byte order."""
    out = bytearray(data)
    struct.pack_into(("<" if data[:2] == b"II" else ">") + form, out, place, *values)
    return bytes(out)


def patch(data: bytes, page: int, tag: int, *, kind: int | None = None,
          count: int | None = None, value: int | None = None, form: str = "") -> bytes:  # fmt: skip
    """Overwrite type, count or value (or the pointer to it) of an entry, and nothing else."""
    big = data[2:4] in (b"\x2b\0", b"\0\x2b")
    word, inline = ("Q", 8) if big else ("I", 4)
    place = places(data).entries[page][tag]
    if kind is not None:
        data = put(data, place + 2, "H", kind)
    if count is not None:
        data = put(data, place + 4, word, count)
    if value is not None:
        data = put(data, place + 4 + inline, form or word, value)
    return data
