"""Which pages of a TIFF are the slide and its levels, and which are labels or other images.

Neither the first page nor the first series of pages is the slide by right: overviews and labels
stand before it in some files, and what follows may be another scene, focal planes or channels.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tifffile import PHOTOMETRIC, TiffFile, TiffPage

from lrmil_jax.errors import one_line
from lrmil_jax.slides import formats
from lrmil_jax.slides.formats import Format
from lrmil_jax.slides.ome import OmeImage
from lrmil_jax.slides.tiff_pixels import PixelsError

_REDUCED, _MASK, _MACRO = 1, 4, 9  # bits and values of NewSubfileType (254)
_NAME = re.compile(r"^\s*(label|macro|thumbnail|overview|probability)(?![a-z])", re.I | re.M)
_QPTIFF_KIND = re.compile(r"<ImageType>\s*(\w+)\s*</ImageType>")
_OME_NAME = re.compile(r"label|macro|thumbnail|overview", re.I)
_IMAGEJ_CHANNELS = re.compile(r"^channels=(\d+)", re.M)
# Tiled images go before larger ones in strips up to this factor of area: scanners store slides in
# tiles, and labels and macros beside them in strips.
_TILED = 4


@dataclass(frozen=True)
class TiffImages:
    """The slide in a TIFF.

    Attributes:
      levels: of each level its pages, the finest first: one, or the planes of red, green and blue.
      ome: what the OME-XML says of it, if there is one.
      notes: sentences on what was chosen and left out.
    """

    levels: tuple[tuple[TiffPage, ...], ...]
    ome: OmeImage | None
    notes: tuple[str, ...]


def choose(
    tiff: TiffFile, kind: Format, ome: Sequence[OmeImage], damaged: Mapping[int, str]
) -> TiffImages:
    """The largest plausible image and the pages that are its levels.

    Args:
      tiff: open.
      kind: its format.
      ome: of its OME-XML, in the order of its images.
      damaged: what is wrong with its previews, by the place of their directory.

    Raises:
      PixelsError: there is no image, or it is made of grey channels.
    """
    pages, left_out = _readable(tiff, damaged)
    named = {
        index: _name(page, pages[0], kind) for index, page in enumerate(pages) if page is not None
    }
    for image in ome:
        if match := _OME_NAME.search(image.name):
            named[image.first_ifd] = match[0].lower()
    images = [index for index, name in named.items() if not name and min(_size(pages[index])) > 0]
    if not images:
        raise PixelsError("no image but labels and previews")
    main = max(images, key=lambda index: (*_rank(pages[index]), -index))
    described = [one for one in ome if one.size == _size(pages[main])]
    ome_image = described[0] if described else None
    planes, notes = _planes(pages, images, main, ome_image)
    several = kind is formats.OME and len(ome) > 1  # each image has its levels as SubIFDs
    below = [page for plane in planes for page in _subpages(plane)]
    left_out += _unlike(below, planes)
    if not below and not several:
        below = _following(pages, images, planes[0])
    levels = [planes, *_groups(below, planes)]
    used = {page.index for level in levels for page in level}
    rest = [index for index in images if index not in used]
    return TiffImages(tuple(levels), ome_image, (*notes, *_told(pages, main, rest), *left_out))


def _readable(
    tiff: TiffFile, damaged: Mapping[int, str]
) -> tuple[list[TiffPage | None], list[str]]:
    """All pages, None of one that is damaged and not the first; and a sentence for each such."""
    pages, notes = [tiff.pages.first], []
    for index in range(1, len(tiff.pages)):
        page, reason = None, ""
        try:
            page = tiff.pages[index]
            reason = damaged.get(page.offset, "")
        except Exception as error:  # tifffile raises anything at all on damaged bytes
            reason = one_line(error)
        if reason:
            notes.append(f"page {index + 1}, a preview or a level in strips, is left out: {reason}")
        pages.append(None if reason else page)
    return pages, notes


def _unlike(below: Sequence[TiffPage], planes: tuple[TiffPage, ...]) -> list[str]:
    """A sentence for each page below the slide's whose pixels are of another kind than its."""
    return [
        f"the level of {_text(page)} is left out: its samples are not those of the slide"
        for page in below
        if not _alike(page, planes[0])
    ]


def _size(page: TiffPage) -> tuple[int, int]:
    return page.imagewidth, page.imagelength


def _rank(page: TiffPage) -> tuple[int, bool]:
    return math.prod(_size(page)) * (_TILED if page.is_tiled else 1), page.samplesperpixel >= 3


def _name(page: TiffPage, first: TiffPage, kind: Format) -> str:
    """What a page is if it is no image of the tissue at any level; "" else."""
    if page.subfiletype & _MASK or (
        page.photometric == PHOTOMETRIC.MASK and page.samplesperpixel == 1
    ):
        return "mask"
    if page.subfiletype == _MACRO:
        return "macro"
    if kind is formats.QPTIFF:
        match = _QPTIFF_KIND.search(page.description[:4096])
        return match[1].lower() if match and not match[1].endswith("Resolution") else ""
    if match := _NAME.search(page.description[:1000]):
        return match[1].lower()
    beside = kind in (formats.APERIO, formats.PHILIPS)
    return "thumbnail" if beside and first.is_tiled and not page.is_tiled else ""


def _planes(
    pages: Sequence[TiffPage | None], images: Sequence[int], main: int, ome: OmeImage | None
) -> tuple[tuple[TiffPage, ...], list[str]]:
    """The page of the slide, or its three colour planes; and what is told of others of its size.

    Raises:
      PixelsError: grey channels that are no colours.
    """
    page = pages[main]
    same = [i for i in images if _size(pages[i]) == _size(page) and _alike(pages[i], page)]
    if page.samplesperpixel > 1:
        others = len(same) - 1
        told = f"holds {others + 1} images of {_text(page)} (focal planes or scenes); the first is "
        return (pages[same[0]],), [told + "read"] if others else []
    match = _IMAGEJ_CHANNELS.search(page.description) if page.is_imagej else None
    channels = max(len(same), ome.channels if ome else 1, int(match[1]) if match else 1)
    if channels == 1:
        return (page,), []
    if channels == 3 == len(same) and ome is not None and ome.rgb:
        return tuple(pages[index] for index in same), []
    raise PixelsError(
        f"{channels} grey channels (fluorescence, or masks beside the image) and no colours; only "
        "brightfield RGB is read"
    )


def _alike(page: TiffPage, other: TiffPage) -> bool:
    return page.samplesperpixel == other.samplesperpixel and page.dtype == other.dtype


def _following(
    pages: Sequence[TiffPage | None], images: Sequence[int], main: TiffPage
) -> list[TiffPage]:
    """Pages that may be levels of `main`: marked as reduced, or after it, one smaller than the
    other. A larger one begins another scene."""
    first, width = pages.index(main), main.imagewidth
    before = [pages[i] for i in images if i < first and pages[i].subfiletype & _REDUCED]
    after = []
    for page in (pages[i] for i in images if i > first):
        if page.imagewidth > width:
            break
        width = page.imagewidth
        after.append(page)
    return before + after


def _groups(pages: Sequence[TiffPage], planes: tuple[TiffPage, ...]) -> list[tuple[TiffPage, ...]]:
    """Pages by size, the largest first: as many of each as the slide has planes."""
    by_size: dict[tuple[int, int], list[TiffPage]] = {}
    for page in pages:
        smaller = all(a < b for a, b in zip(_size(page), _size(planes[0]), strict=True))
        if smaller and min(_size(page)) > 0 and _alike(page, planes[0]):
            by_size.setdefault(_size(page), []).append(page)
    groups = [same[: len(planes)] for same in by_size.values() if len(same) >= len(planes)]
    return [tuple(group) for group in sorted(groups, key=lambda group: -_size(group[0])[0])]


def _subpages(page: TiffPage) -> list[TiffPage]:
    return [] if page.pages is None else [one for one in page.pages if isinstance(one, TiffPage)]


def _told(pages: Sequence[TiffPage | None], main: int, rest: Sequence[int]) -> list[str]:
    """That other images are in the file, if they may matter: those that are no small previews."""
    sizes = {_text(pages[i]) for i in rest if _size(pages[i]) != _size(pages[main])}
    if not sizes:
        return []
    return [
        f"of several images the largest is read, {_text(pages[main])} (page {main + 1}); left "
        f"out: {', '.join(sorted(sizes)[:5])}"
    ]


def _text(page: TiffPage) -> str:
    return f"{page.imagewidth} x {page.imagelength} px"
