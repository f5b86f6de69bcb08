"""Whether the directories of a TIFF are whole: what cannot be right is named before it is read.

Libraries forgive damage in the fields that say where the tiles are: a level is then lost in
silence, or tiles are put in the wrong places. Layout as in TIFF 6.0, section 2, and BigTIFF.
"""

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tifffile import TIFF

from lrmil_jax.errors import SlideError

# Types whose values are whole numbers: BYTE, SHORT, LONG, IFD, LONG8 and IFD8.
_WHOLE = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR = (
    256,
    257,
    258,
    259,
    262,
    277,
    284,
)
_STRIPS, _ROWS, _STRIP_BYTES, _PREDICTOR = 273, 278, 279, 317
_TILE_WIDTH, _TILE_LENGTH, _TILES, _TILE_BYTES, _BELOW = 322, 323, 324, 325, 330
_NAMES = {
    _WIDTH: "ImageWidth",
    _LENGTH: "ImageLength",
    _BITS: "BitsPerSample",
    _COMPRESSION: "Compression",
    _PHOTOMETRIC: "PhotometricInterpretation",
    _SAMPLES: "SamplesPerPixel",
    _PLANAR: "PlanarConfiguration",
    _STRIPS: "StripOffsets",
    _ROWS: "RowsPerStrip",
    _STRIP_BYTES: "StripByteCounts",
    _PREDICTOR: "Predictor",
    _TILE_WIDTH: "TileWidth",
    _TILE_LENGTH: "TileLength",
    _TILES: "TileOffsets",
    _TILE_BYTES: "TileByteCounts",
    _BELOW: "SubIFDs",
}
_SINGLE = _NAMES.keys() - {_BITS, _STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES, _BELOW}
_PRIVATE = 32768  # numbers from here on are anybody's
_OLD_JPEG = 6  # its strips may be stored in other fields
_ALL_ROWS = 2**32 - 1  # RowsPerStrip where it is not said


class _HeaderError(ValueError):
    """It is no TIFF, as far as its first bytes tell."""


class _DamageError(Exception):
    """What is wrong, as the end of a sentence."""


@dataclass(frozen=True)
class _Field:
    """Type and number of a field's values, and where in the file they stand."""

    kind: int
    count: int
    place: int


@dataclass(frozen=True)
class _Layout:
    """Byte order, and the formats of the two sorts of TIFF."""

    order: str
    word: str  # an offset, or a field's count of values
    entries: str  # the number of fields

    @property
    def inline(self) -> int:
        """Bytes of a value that stands in its field."""
        return struct.calcsize(self.word)


def check(path: Path) -> dict[int, str]:
    """Refuses a TIFF whose directories, or fields that say where tiles are, are damaged.

    Pages in strips behind the first are labels and previews, and may be damaged.

    Returns:
      What is wrong with these, by the place of their directory.

    Raises:
      SlideError: naming the first damage.
      ValueError: the file does not begin as a TIFF does.
    """
    with path.open("rb") as file:
        try:
            return _File(file).check()
        except _DamageError as error:
            raise SlideError(
                f"{path}: its TIFF structure is damaged: {error}; copy the file again."
            ) from error


def _is_tiled(fields: dict[int, _Field]) -> bool:
    return any(tag in fields for tag in (_TILE_WIDTH, _TILE_LENGTH, _TILES))


def _check_order(tags: list[int], what: str) -> None:
    """Fields stand in the order of their numbers, which some writers forget; but an unknown number
    that is out of order was another one, of a field that is now missing.

    Raises:
      _DamageError: there is one.
    """
    for before, tag, after in zip([0, *tags], tags, [*tags[1:], 1 << 16], strict=False):
        if tag < _PRIVATE and tag not in TIFF.TAGS and not before <= tag <= after:
            raise _DamageError(f"{what} has a field of the unknown number {tag} out of its order")


class _File:
    """An open TIFF."""

    def __init__(self, file: BinaryIO):
        self._file, self._size = file, os.fstat(file.fileno()).st_size
        self._seen: set[int] = set()

    def check(self) -> dict[int, str]:
        """See `check`; raises _DamageError for the first damage of other pages."""
        self._layout, place = self._header()
        if place == 0:
            raise _DamageError("it has no pages (the header points to none)")
        number, damaged = 0, {}
        while place:
            number += 1
            here, (fields, place) = place, self._directory(place, f"page {number}")
            try:
                self._check_page(fields, f"page {number}")
            except _DamageError as error:
                if number == 1 or _is_tiled(fields):
                    raise
                damaged[here] = str(error)
            for below in self._values(fields[_BELOW], _BELOW) if _BELOW in fields else ():
                name = f"a level below page {number}"
                if below and below not in self._seen:
                    self._check_page(self._directory(below, name)[0], name)
        return damaged

    def _header(self) -> tuple[_Layout, int]:
        start = self._read(0, min(16, self._size), "the header")
        order = {b"II": "<", b"MM": ">"}.get(start[:2])
        if order is None or len(start) < 8:
            raise _HeaderError("it has no TIFF header")
        (version,) = struct.unpack_from(order + "H", start, 2)
        if version == 42:
            return _Layout(order, "I", "H"), struct.unpack_from(order + "I", start, 4)[0]
        if version != 43:
            raise _HeaderError(f"its TIFF header gives the version {version}, not 42 or 43")
        if len(start) < 16 or struct.unpack_from(order + "HH", start, 4) != (8, 0):
            raise _HeaderError("its BigTIFF header is damaged")
        return _Layout(order, "Q", "Q"), struct.unpack_from(order + "Q", start, 8)[0]

    def _read(self, place: int, size: int, what: str) -> bytes:
        if place + size > self._size:
            raise _DamageError(
                f"{what} should end at byte {place + size:,}, past the end of the file, which is "
                f"cut short or damaged ({self._size:,} bytes)"
            )
        self._file.seek(place)
        return self._file.read(size)

    def _directory(self, place: int, name: str) -> tuple[dict[int, _Field], int]:
        """The fields of a directory, and the place of the next or 0."""
        if place in self._seen:
            raise _DamageError(f"{name} is a page before it (its directories form a loop)")
        self._seen.add(place)
        layout, what = self._layout, f"the directory of {name}"
        head, size = struct.calcsize(layout.order + layout.entries), 4 + 2 * layout.inline
        (count,) = struct.unpack(layout.order + layout.entries, self._read(place, head, what))
        if place < 8 or count == 0:
            raise _DamageError(f"{what} has no fields")
        data = self._read(place + head, count * size + layout.inline, what)
        fields: dict[int, _Field] = {}
        tags: list[int] = []
        for i in range(count):
            tag, kind, number = struct.unpack_from(
                layout.order + "HH" + layout.word, data, i * size
            )
            inline = place + head + i * size + 4 + layout.inline
            length = struct.calcsize(_WHOLE.get(kind, "B")) * number
            at = inline
            if length > layout.inline:
                value = i * size + 4 + layout.inline
                (at,) = struct.unpack_from(layout.order + layout.word, data, value)
            fields.setdefault(tag, _Field(kind, number, at))
            tags.append(tag)
        _check_order(tags, what)
        return fields, struct.unpack_from(layout.order + layout.word, data, count * size)[0]

    def _values(self, field: _Field, tag: int, most: int = 16) -> tuple[int, ...]:
        """The first whole numbers of a field."""
        name = f"the field {_NAMES[tag]}"
        if field.kind not in _WHOLE or not field.count:
            raise _DamageError(f"{name} has the type {field.kind} and {field.count} values")
        form = _WHOLE[field.kind]
        self._read(field.place + field.count * struct.calcsize(form) - 1, 1, name)
        number = min(field.count, most)
        data = self._read(field.place, number * struct.calcsize("<" + form), name)
        return struct.unpack(self._layout.order + form * number, data)

    def _check_page(self, fields: dict[int, _Field], name: str) -> None:
        try:
            values = {tag: self._values(fields[tag], tag) for tag in _NAMES if tag in fields}
            for tag in _SINGLE & values.keys():
                if fields[tag].count != 1:
                    raise _DamageError(
                        f"the field {_NAMES[tag]} has {fields[tag].count:,} values, not one"
                    )
            if values.get(_COMPRESSION, (1,))[0] != _OLD_JPEG:
                self._check_tiles(fields, values, tiled=_is_tiled(fields))
        except _DamageError as error:
            raise _DamageError(f"in {name}, {error}") from error

    def _check_tiles(
        self, fields: dict[int, _Field], values: dict[int, tuple[int, ...]], *, tiled: bool
    ) -> None:
        """Whether there are as many tiles, or strips, as the sizes of page and tile ask for."""
        kind, sides = ("tiles", (_TILE_WIDTH, _TILE_LENGTH)) if tiled else ("strips", ())
        offsets, counts = (_TILES, _TILE_BYTES) if tiled else (_STRIPS, _STRIP_BYTES)
        for tag in (_WIDTH, _LENGTH, *sides, offsets, counts):
            if tag not in fields:
                raise _DamageError(f"the field {_NAMES[tag]} is missing")
            if tag not in (offsets, counts) and not values[tag][0]:
                raise _DamageError(f"the field {_NAMES[tag]} is 0")
        if values.get(_SAMPLES, (1,))[0] < 1:
            raise _DamageError("its pixels have no samples (SamplesPerPixel is 0)")
        if values.get(_PLANAR, (1,))[0] not in (1, 2):
            raise _DamageError(f"the field {_NAMES[_PLANAR]} is {values[_PLANAR][0]}, not 1 or 2")
        size = values[_WIDTH][0], values[_LENGTH][0]
        rows = values.get(_ROWS, (_ALL_ROWS,))[0]
        side = tuple(values[tag][0] for tag in sides) or (size[0], min(rows, size[1]))
        if not side[1]:
            raise _DamageError(f"the field {_NAMES[_ROWS]} of its strips is 0")
        planes = values.get(_SAMPLES, (1,))[0] if values.get(_PLANAR, (1,))[0] == 2 else 1
        wanted = planes * math.prod(math.ceil(n / m) for n, m in zip(size, side, strict=True))
        for tag in (offsets, counts):
            if fields[tag].count != wanted:
                raise _DamageError(
                    f"the field {_NAMES[tag]} has {fields[tag].count:,} values where "
                    f"{size[0]} x {size[1]} px need {wanted:,} {kind}"
                )
