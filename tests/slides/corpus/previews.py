"""Damage to labels, macros and thumbnails: the slide is read all the same."""

from tests.slides.corpus import editor as tiff
from tests.slides.corpus.changes import Mutation, element, patching, setting, without
from tests.slides.corpus.outcome import Pixels

# Of an Aperio slide: page 1 is the thumbnail, 3 the label and 4 the macro.
PREVIEWS = [
    Mutation("previews", name, "aperio", change, Pixels(), name in ("no_width", "past_end"))
    for name, change in {
        "no_width": without(tiff.WIDTH, page=3),
        "width_of_unknown_type": patching(tiff.WIDTH, page=3, kind=99),
        "height_zero": setting(tiff.LENGTH, 0, page=4),
        "huge": setting(tiff.WIDTH, 2**31 - 1, page=4, kind=tiff.LONG),
        "past_end": patching(tiff.STRIP_OFFSETS, page=3, value=10**7),
        "one_strip_past_end": element(tiff.STRIP_OFFSETS, 1, 10**7, page=3),
        "no_strips": without(tiff.STRIP_OFFSETS, page=3),
        "thumbnail_without_counts": without(tiff.STRIP_COUNTS, page=1),
        "unknown_compression": setting(tiff.COMPRESSION, 999, page=3),
        "no_bits": setting(tiff.BITS, 0, page=4),
        "bits_as_text": patching(tiff.BITS, page=3, kind=tiff.ASCII),
        "text_past_end": patching(tiff.DESCRIPTION, page=4, value=10**7),
    }.items()
]
PREVIEWS += [
    Mutation(
        *("previews", "level_in_strips", "strips"),
        without(tiff.WIDTH, page=1),
        Pixels(levels=(1,)),
    )
]
