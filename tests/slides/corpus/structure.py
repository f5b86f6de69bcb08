"""Damage to header, directories and fields, and files that were cut or are none."""

import gzip

from tests.slides.corpus import editor as tiff
from tests.slides.corpus.changes import (
    AT,
    Mutation,
    as_big,
    edit,
    element,
    linked,
    on_page,
    other_order,
    patching,
    rewritten,
    setting,
    text,
    without,
)
from tests.slides.corpus.editor import put
from tests.slides.corpus.outcome import Damaged, Pixels, Refused

_NO_TIFF = Refused("not a (TIFF|slide)|header")
_CUT = Refused("cut short|truncated|past the end|beyond the end")
_SAME = Pixels()


def _far(data: bytes) -> int:
    return len(data) + 1000


def _header(kind: str, data: bytes) -> bytes:
    return kind.encode() + data


HEADER = [
    Mutation("header", "bad_byte_order", "jpeg", lambda d: b"MI" + d[2:], _NO_TIFF, True),
    Mutation("header", "version_44", "jpeg", lambda d: put(d, 2, "H", 44), _NO_TIFF, True),
    Mutation("header", "version_0", "jpeg", lambda d: put(d, 2, "H", 0), _NO_TIFF),
    Mutation("header", "wrong_byte_order", "jpeg", lambda d: b"MM" + d[2:], _NO_TIFF),
    Mutation("header", "other_byte_order", "jpeg", other_order, _SAME, True),
    Mutation("header", "garbage_before", "jpeg", lambda d: bytes(range(16)) + d, _NO_TIFF),
    Mutation("header", "garbage_behind", "jpeg", lambda d: d + b"garbage" * 99, _SAME, True),
    Mutation("header", "empty", "jpeg", lambda d: b"", Refused("is empty")),
    Mutation("header", "two_bytes", "jpeg", lambda d: d[:2], _NO_TIFF),
    Mutation("header", "four_bytes", "jpeg", lambda d: d[:4], Refused("not a TIFF|cut short")),
    Mutation("header", "eight_bytes", "jpeg", lambda d: d[:8], _CUT),
    Mutation("header", "png", "jpeg", lambda d: b"\x89PNG\r\n\x1a\n" + bytes(500), Refused("PNG")),
    Mutation("header", "zip", "jpeg", lambda d: b"PK\3\4" + bytes(500), Refused("ZIP")),
    Mutation("header", "gzip", "jpeg", gzip.compress, _NO_TIFF),
    Mutation("header", "web_page", "jpeg", lambda d: b"<!DOCTYPE html><html>" * 30, _NO_TIFF),
    Mutation(
        *("header", "lfs_pointer", "jpeg"),
        lambda d: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
        _NO_TIFF,
    ),
    Mutation("bigtiff", "big", "jpeg", as_big, _SAME, True),
    Mutation("bigtiff", "big_other_order", "jpeg", lambda d: other_order(as_big(d)), _SAME, True),
    Mutation("bigtiff", "version_43_alone", "jpeg", lambda d: put(d, 2, "H", 43), _CUT, True),
    Mutation("bigtiff", "offsets_of_4", "jpeg", lambda d: put(as_big(d), 4, "H", 4), _NO_TIFF),
    Mutation("bigtiff", "reserved_1", "jpeg", lambda d: put(as_big(d), 6, "H", 1), _NO_TIFF),
    Mutation("bigtiff", "version_42", "jpeg", lambda d: put(as_big(d), 2, "H", 42), _CUT),
    Mutation("bigtiff", "cut_header", "jpeg", lambda d: as_big(d)[:12], Refused("not a|cut short")),
    Mutation("bigtiff", "far_directory", "jpeg", lambda d: put(as_big(d), 8, "Q", 2**63), _CUT),
    Mutation(
        *("bigtiff", "too_many_fields", "jpeg"),
        lambda d: put(as_big(d), tiff.places(as_big(d)).starts[0], "Q", 2**60),
        Refused("tags|fields|entries|directory"),
    ),
    Mutation(
        *("bigtiff", "endless_offsets", "jpeg"),
        lambda d: tiff.patch(as_big(d), 0, tiff.OFFSETS, count=2**40),
        Refused("TileOffsets|tiles|count"),
    ),
]


def _lone_end(data: bytes) -> bytes:
    """The last directory is at the file's end, and ends without the place of a next one."""
    opened = tiff.parse(data)
    for page in opened.pages[1:]:
        # Values that stand apart would come behind the directory.
        page.fields = {k: f for k, f in page.fields.items() if len(f.values) <= 1 or k == tiff.BITS}
        page.set(tiff.BITS, 8)
    data = tiff.write(opened)
    return data[: tiff.places(data).last_link]


def _unsorted(data: bytes) -> bytes:
    """Fields of the first directory in reverse."""
    data = rewritten(data)
    entries = sorted(tiff.places(data).entries[0].values())
    first, last = entries[0], entries[-1] + 12
    fields = [data[place : place + 12] for place in reversed(entries)]
    return data[:first] + b"".join(fields) + data[last:]


def _odd_place(data: bytes) -> bytes:
    """The first directory begins at an odd byte."""
    opened = tiff.parse(data)
    opened.pages[0].chunks[-1] += b"\0"
    data = rewritten(data)
    place = tiff.places(data).starts[0]
    directory = data[place : tiff.places(data).links[1] + 4]
    moved = data + b"\0" * (1 - len(data) % 2) + directory
    return put(moved, 4, "I", len(moved) - len(directory))


def _twice(tag: int):
    """A field stands twice in the first directory, with the same value."""

    def change(data: bytes) -> bytes:
        data = rewritten(data)
        at = tiff.places(data)
        place = at.entries[0][tag]
        end = at.links[1]
        directory = data[at.starts[0] : end]
        count = int.from_bytes(directory[:2], "little") + 1
        entry = data[place : place + 12]
        at_end = place + 12 - at.starts[0]
        directory = count.to_bytes(2, "little") + directory[2:at_end] + entry + directory[at_end:]
        moved = data + b"\0" * (len(data) % 2) + directory + data[end : end + 4]
        return put(moved, 4, "I", len(data) + len(data) % 2)

    return change


DIRECTORIES = [
    Mutation(
        *("directories", "none", "jpeg"),
        linked(lambda at: 4, lambda d: 0),
        Refused("no (page|director|image)"),
        True,
    ),
    Mutation(
        *("directories", "first_past_end", "jpeg"), linked(lambda at: at.links[0], _far), _CUT, True
    ),
    Mutation(
        *("directories", "first_in_header", "jpeg"),
        linked(lambda at: at.links[0], lambda d: 2),
        Refused("no (page|director|image)|not a TIFF|damaged"),
    ),
    Mutation(
        *("directories", "second_past_end", "jpeg"),
        linked(lambda at: at.links[1], _far),
        _CUT,
        True,
    ),
    Mutation(
        *("directories", "third_past_end", "jpeg"), linked(lambda at: at.last_link, _far), _CUT
    ),
    Mutation(
        *("directories", "loop_to_itself", "jpeg"),
        linked(lambda at: at.links[1], lambda d: tiff.places(d).starts[0]),
        Refused("loop|circular"),
        True,
    ),
    Mutation(
        *("directories", "loop_to_first", "jpeg"),
        linked(lambda at: at.last_link, lambda d: tiff.places(d).starts[0]),
        Refused("loop|circular"),
        True,
    ),
    Mutation(
        *("directories", "loop_to_last", "jpeg"),
        linked(lambda at: at.last_link, lambda d: tiff.places(d).starts[1]),
        Refused("loop|circular"),
    ),
    Mutation("directories", "next_absent", "jpeg", _lone_end, _CUT, True),
    Mutation(
        *("directories", "no_fields", "jpeg"),
        lambda d: put(rewritten(d), tiff.places(rewritten(d)).starts[0], "H", 0),
        Refused("tags|fields|directory|page"),
        True,
    ),
    Mutation(
        *("directories", "too_many_fields", "jpeg"),
        lambda d: put(rewritten(d), tiff.places(rewritten(d)).starts[0], "H", 65535),
        Refused("tags|fields|directory|cut short|loop"),
    ),
    Mutation("directories", "fields_not_sorted", "jpeg", _unsorted, _SAME, True),
    Mutation("directories", "odd_place", "jpeg", _odd_place, _SAME),
    Mutation("directories", "width_twice", "jpeg", _twice(tiff.WIDTH), _SAME),
    Mutation(
        *("directories", "coarse_level_first", "jpeg"),
        edit(lambda t: t.pages.reverse()),
        _SAME,
        True,
    ),
    Mutation(
        *("directories", "level_twice", "jpeg"), edit(lambda t: t.pages.append(t.pages[1])), _SAME
    ),
    Mutation(
        *("directories", "finest_twice", "jpeg"), edit(lambda t: t.pages.append(t.pages[0])), _SAME
    ),
    Mutation(
        *("directories", "one_level", "jpeg"), edit(lambda t: t.pages.pop()), Pixels(levels=(1,))
    ),
    Mutation(
        *("directories", "sub_directory_past_end", "ome"),
        patching(tiff.SUB_IFDS, value=10**6),
        _CUT,
        True,
    ),
    Mutation(
        *("directories", "sub_directory_loop", "ome"),
        lambda d: tiff.patch(
            rewritten(d), 0, tiff.SUB_IFDS, value=tiff.places(rewritten(d)).starts[0]
        ),
        Pixels(levels=(1,)),
    ),
    Mutation(
        *("directories", "sub_directory_zero", "ome"),
        patching(tiff.SUB_IFDS, value=0),
        Pixels(levels=(1,)),
    ),
    Mutation(*("directories", "subfile_type_absent", "jpeg"), without(tiff.SUBFILE, page=1), _SAME),
    Mutation(*("directories", "subfile_type_99", "jpeg"), setting(tiff.SUBFILE, 99, page=1), _SAME),
]

_ALL_OF_IT = {
    "no_width": without(tiff.WIDTH),
    "no_length": without(tiff.LENGTH),
    "width_zero": setting(tiff.WIDTH, 0),
    "length_zero": setting(tiff.LENGTH, 0),
    "width_huge": setting(tiff.WIDTH, 2**31 - 1, kind=tiff.LONG),
    "both_huge": on_page(
        lambda p: [p.set(tag, 2**31 - 1, kind=tiff.LONG) for tag in (tiff.WIDTH, tiff.LENGTH)]
    ),
    "width_doubled": setting(tiff.WIDTH, 1024),
    "width_less_a_tile": setting(tiff.WIDTH, 384),
    "length_less_a_tile": setting(tiff.LENGTH, 256),
    "level_width_zero": setting(tiff.WIDTH, 0, page=1),
    "width_as_text": patching(tiff.WIDTH, kind=tiff.ASCII),
    "width_of_unknown_type": patching(tiff.WIDTH, kind=99),
    "width_of_no_value": patching(tiff.WIDTH, count=0),
    "width_of_many_values": patching(tiff.WIDTH, count=1000),
    "width_as_float": setting(tiff.WIDTH, 512.0, kind=tiff.FLOAT),
}
_SIZE = Refused("width|length|size|empty|tiles|damaged")
_TILES = Refused("tile")

FIELDS = [Mutation("size", name, "jpeg", change, _SIZE, name in ("no_width", "width_zero",
          "both_huge", "width_less_a_tile", "width_of_unknown_type"))
          for name, change in _ALL_OF_IT.items()]  # fmt: skip
FIELDS += [
    Mutation("size", "width_as_long8", "jpeg", setting(tiff.WIDTH, 512, kind=tiff.LONG8), _SAME),
    Mutation("size", "width_as_short", "jpeg", setting(tiff.WIDTH, 512, kind=tiff.SHORT), _SAME),
    Mutation("tiles", "no_tile_width", "jpeg", without(tiff.TILE_WIDTH), _TILES),
    Mutation("tiles", "tile_width_zero", "jpeg", setting(tiff.TILE_WIDTH, 0), _TILES, True),
    Mutation("tiles", "tile_width_half", "jpeg", setting(tiff.TILE_WIDTH, 64), _TILES),
    Mutation("tiles", "tile_width_double", "jpeg", setting(tiff.TILE_WIDTH, 256), _TILES),
    Mutation(
        *("tiles", "tile_huge", "jpeg"),
        on_page(lambda p: [p.set(t, 2**30, kind=tiff.LONG) for t in (322, 323)]),
        _TILES,
    ),
    Mutation("tiles", "no_offsets", "jpeg", without(tiff.OFFSETS), _TILES, True),
    Mutation("tiles", "no_counts", "jpeg", without(tiff.COUNTS), _TILES),
    Mutation("tiles", "neither", "jpeg", without(tiff.OFFSETS, tiff.COUNTS), _TILES),
    Mutation("tiles", "offsets_too_few", "jpeg", patching(tiff.OFFSETS, count=11), _TILES, True),
    Mutation("tiles", "counts_too_few", "jpeg", patching(tiff.COUNTS, count=11), _TILES),
    Mutation("tiles", "counts_too_many", "jpeg", patching(tiff.COUNTS, count=13), _TILES),
    Mutation("tiles", "one_offset", "jpeg", patching(tiff.OFFSETS, count=1), _TILES),
    Mutation("tiles", "no_offset", "jpeg", patching(tiff.OFFSETS, count=0), _TILES),
    Mutation("tiles", "endless_offsets", "jpeg", patching(tiff.OFFSETS, count=2**32 - 1), _TILES),
    Mutation("tiles", "offsets_as_text", "jpeg", patching(tiff.OFFSETS, kind=tiff.ASCII), _TILES),
    Mutation("tiles", "offsets_of_unknown_type", "jpeg", patching(tiff.OFFSETS, kind=99), _TILES),
    Mutation("tiles", "counts_of_unknown_type", "jpeg", patching(tiff.COUNTS, kind=99), _TILES),
    Mutation(
        *("tiles", "offsets_past_end", "jpeg"),
        patching(tiff.OFFSETS, value=10**7),
        Refused("tile|cut short|truncated"),
        True,
    ),
    Mutation(
        *("tiles", "counts_past_end", "jpeg"),
        patching(tiff.COUNTS, value=10**7),
        Refused("tile|cut short|truncated"),
    ),
    Mutation("tiles", "one_past_end", "jpeg", element(tiff.OFFSETS, 5, 10**7), _CUT, True),
    Mutation("tiles", "one_at_2_31", "jpeg", element(tiff.OFFSETS, 5, 2**31), _CUT),
    Mutation("tiles", "one_endless", "jpeg", element(tiff.COUNTS, 5, 2**32 - 1), _CUT),
    Mutation(
        *("tiles", "one_in_header", "jpeg"),
        element(tiff.OFFSETS, 5, 2),
        Damaged(AT, "cannot be decoded"),
    ),
    Mutation("tiles", "one_without_offset", "jpeg", element(tiff.OFFSETS, 5, 0), Pixels(white=AT)),
    Mutation("tiles", "one_without_bytes", "jpeg", element(tiff.COUNTS, 5, 0), Pixels(white=AT)),
]


def _shifted(data: bytes) -> bytes:
    """A tile's place 300 bytes behind its own, within the next tile's bytes."""
    data = rewritten(data)
    start = int.from_bytes(data[(at := tiff.places(data).entries[0][tiff.OFFSETS] + 8) : at + 4],
                           "little")  # fmt: skip
    value = int.from_bytes(data[start + 20 : start + 24], "little")
    return put(data, start + 20, "I", value + 300)


def _renumbered(tag: int, number: int):
    """A field with another number, in the place of its own."""

    def change(data: bytes) -> bytes:
        data = rewritten(data)
        return put(data, tiff.places(data).entries[0][tag], "H", number)

    return change


FIELDS += [
    Mutation(
        *("tiles", "raw_count_less", "raw"),
        element(tiff.COUNTS, 5, 9000),
        Damaged(AT, "not the bytes"),
    ),
    Mutation(
        *("tiles", "raw_within_another", "raw"),
        _shifted,
        Damaged(((1, 1), (1, 2)), "another tile"),
        True,
    ),
    Mutation(
        *("tiles", "predictor_of_many_values", "lzw"),
        patching(tiff.PREDICTOR, count=201),
        Refused("Predictor has 201 values"),
        True,
    ),
    Mutation(
        *("tiles", "predictor_renumbered", "lzw"),
        _renumbered(tiff.PREDICTOR, 125),
        Refused("unknown number 125"),
    ),
]

OTHER_FIELDS = [
    Mutation(
        *("unused fields", "private_of_unknown_type", "jpeg"),
        lambda d: tiff.patch(setting(65001, 1, 2, 3, kind=tiff.LONG)(d), 0, 65001, kind=99),
        _SAME,
        True,
    ),
    Mutation(
        *("unused fields", "private_past_end", "jpeg"),
        lambda d: tiff.patch(setting(65001, 1, 2, 3, kind=tiff.LONG)(d), 0, 65001, value=10**7),
        _SAME,
    ),
    Mutation(
        *("unused fields", "profile_past_end", "jpeg"),
        lambda d: tiff.patch(text(34675, b"icc" * 50)(d), 0, 34675, value=10**7),
        _SAME,
        True,
    ),
    Mutation("unused fields", "bad_profile", "jpeg", text(34675, b"no profile " * 9), _SAME),
    Mutation("unused fields", "bad_date", "jpeg", text(306, "yesterday, about noon"), _SAME),
    Mutation("unused fields", "software_not_text", "jpeg", text(305, b"\xff\xfe\x80\0\1"), _SAME),
    Mutation("unused fields", "turned", "jpeg", setting(tiff.ORIENTATION, 3), Refused("turned")),
    Mutation(
        *("unused fields", "subsampling_of_another", "jpeg"), setting(tiff.SUBSAMPLING, 2, 2), _SAME
    ),
    Mutation("unused fields", "empty_xmp", "jpeg", text(700, ""), _SAME),
]


def _cut(share: float):
    return lambda data: data[: int(share * len(data))]


def _level_of_zeros(data: bytes) -> bytes:
    """What is left of a copy that ended early on a file system that had made room for it all."""
    whole = tiff.parse(data)
    tail = sum(map(len, whole.pages[1].chunks))
    return data[:-tail] + bytes(tail)


CUTS = [
    Mutation("cut", f"at_{share:.0%}", "jpeg", _cut(share), _CUT, share == 0.9)
    for share in (0.1, 0.3, 0.5, 0.7, 0.9, 0.99)
]
CUTS += [
    Mutation("cut", "last_byte", "raw", lambda d: d[:-1], _CUT),
    Mutation("cut", "aperio_half", "aperio", _cut(0.5), _CUT),
    Mutation("cut", "directories_gone", "jpeg", lambda d: _cut(0.9)(rewritten(d)), _CUT, True),
    Mutation(
        *("cut", "zeros_at_end", "jpeg"),
        _level_of_zeros,
        Damaged(((0, 0),), "cannot be decoded", level=4),
        True,
    ),
]
