"""What a TIFF says of its scale: um/px, objective, and level-0 pixels per pixel of each level."""

import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

from tifffile import RESUNIT, TiffPage

from lrmil_jax.slides import formats
from lrmil_jax.slides.formats import Format
from lrmil_jax.slides.ome import OmeImage, number, um_per_unit

_UM_PER_RESOLUTION_UNIT = {
    RESUNIT.INCH: 25400.0,
    RESUNIT.CENTIMETER: 1e4,
    RESUNIT.MILLIMETER: 1e3,
    RESUNIT.MICROMETER: 1.0,
}
_IMAGEJ_UNIT = re.compile(r"^unit=(.+)$", re.M)
_OBJECTIVE = re.compile(r"<(?:Objective|Magnification)>\s*([\d.,]+)\s*[xX]?\s*</")


@dataclass(frozen=True)
class Scale:
    """What the file says of its scale.

    Attributes:
      mpp: (x, y) um/px of the finest level, None where it is not said or not to be understood.
      objective: power of the objective, None where it is not said.
      problem: why a um/px that is there is not to be understood; "" where nothing is wrong.
      levels: level-0 pixels per pixel of each level, None where the file does not say.
    """

    mpp: tuple[float, float] | None
    objective: float | None = None
    problem: str = ""
    levels: tuple[float | None, ...] = ()


def read(kind: Format, first: TiffPage, levels: list[TiffPage], ome: OmeImage | None) -> Scale:
    """What the file says of its scale.

    Args:
      kind: the format.
      first: the file's first page, which has the description.
      levels: the slide's levels, the finest first.
      ome: what the OME-XML says of the slide.
    """
    tags = [_resolution(page) for page in levels]
    if ome is not None and (ome.mpp is not None or ome.problem):
        return Scale(ome.mpp, ome.objective, ome.problem)
    if kind is formats.APERIO:
        return _aperio(first.description, tags[0])
    if kind is formats.PHILIPS:
        return _philips(first.description, len(levels)) or Scale(tags[0])
    objective = ome.objective if ome is not None else None
    if kind is formats.QPTIFF and (match := _OBJECTIVE.search(first.description)):
        objective = number(match[1])
    return Scale(tags[0], objective, levels=_ratios(tags))


def _aperio(description: str, tag: tuple[float, float] | None) -> Scale:
    """`MPP` and `AppMag` of the description, whose fields stand between bars."""
    fields = dict(
        (part.strip() for part in field.split("=", 1))
        for field in description.split("|")
        if "=" in field
    )
    objective, text = number(fields.get("AppMag")), fields.get("MPP")
    if text is None:
        return Scale(tag, objective)
    value = number(text)
    if value is None:
        return Scale(None, objective, f"its description gives MPP as {text!r}, which is no number")
    return Scale((value, value), objective)


def _philips(description: str, count: int) -> Scale | None:
    """Spacings in mm, `"down" "across"`, one a level."""
    try:
        root = ElementTree.fromstring(description)
    except ElementTree.ParseError:
        return None
    path = ".//DataObject[@ObjectType='PixelDataRepresentation']/Attribute"
    texts = [
        node.text for node in root.iterfind(path) if node.get("Name") == "DICOM_PIXEL_SPACING"
    ] or [node.text for node in root.iter("Attribute") if node.get("Name") == "DICOM_PIXEL_SPACING"]
    pairs = [tuple(map(number, (text or "").replace('"', " ").split())) for text in texts]
    valid = [len(pair) == 2 and all(pair) for pair in pairs]
    if not texts:
        return None
    if not valid[0]:
        problem = f"its XML gives DICOM_PIXEL_SPACING as {texts[0]!r}, which is no pair of numbers"
        return Scale(None, problem=problem)
    down, across = pairs[0]
    scales = [pair[1] / across for pair, is_valid in zip(pairs, valid, strict=True) if is_valid]
    stated = tuple(scales) if len(scales) == count else ()
    return Scale((across * 1e3, down * 1e3), levels=stated)


def _resolution(page: TiffPage) -> tuple[float, float] | None:
    """(x, y) um/px of the tags 282, 283 and 296, or of ImageJ's unit."""
    unit = _UM_PER_RESOLUTION_UNIT.get(page.tags.valueof(296, RESUNIT.INCH))
    if unit is None and page.is_imagej and (match := _IMAGEJ_UNIT.search(page.description)):
        unit = um_per_unit(match[1].replace("\\u00B5", "µ"))
    values = [_fraction(page.tags.valueof(tag)) for tag in (282, 283)]
    if unit is None or not all(values):
        return None
    return unit / values[0], unit / values[1]


def _fraction(value: object) -> float | None:
    try:
        return value[0] / value[1]
    except (TypeError, IndexError, ZeroDivisionError):
        return None


def _ratios(tags: list[tuple[float, float] | None]) -> tuple[float | None, ...]:
    """Level-0 pixels per pixel, where tags of both give one for both axes.

    Tags that say the same of every level were copied from level to level, and say nothing.
    """
    ratios: list[float | None] = []
    for tag in tags:
        ratio = None
        if tag is not None and tags[0] is not None:
            x, y = (a / b for a, b in zip(tag, tags[0], strict=True))
            ratio = x if math.isclose(x, y, rel_tol=0.005) and x > 1.01 else None
        ratios.append(ratio)
    return tuple(ratios)
