"""What the XML of an OME-TIFF says of its images: size of a pixel, channels, names.

OME data model 2016-06: Image > Pixels (SizeX, SizeC, PhysicalSizeX, PhysicalSizeXUnit) > Channel
(SamplesPerPixel, ContrastMethod, Name) and TiffData (IFD).
"""

import dataclasses
import unicodedata
import xml.etree.ElementTree as ElementTree

_RGB = ["red", "green", "blue"]
# Micrometres per unit. NFKC, which is applied first, makes of the micro sign the Greek letter.
_UM_PER_UNIT = dict.fromkeys(("μm", "um", "micron", "microns", "micrometer", "micrometre"), 1.0) | {
    "m": 1e6,
    "cm": 1e4,
    "mm": 1e3,
    "nm": 1e-3,
    "in": 25400.0,
    "inch": 25400.0,
}


@dataclasses.dataclass(frozen=True)
class OmeImage:
    """One image of the XML.

    Attributes:
      name: as its writer called it; first_ifd: index of its first page.
      size: (width, height) in pixels.
      channels: grey channels; 1 where a pixel's samples are colours.
      rgb: the grey channels are the red, green and blue of a brightfield image.
      mpp: (x, y) um/px, None where it is not said, or not to be understood.
      problem: why um/px that are there are not to be understood; "" where nothing is wrong.
      objective: power of the objective, if there is one alone.
    """

    name: str
    first_ifd: int
    size: tuple[int, int]
    channels: int
    rgb: bool
    mpp: tuple[float, float] | None
    problem: str
    objective: float | None


def read(text: str | None) -> list[OmeImage]:
    """The images of an OME-XML in its order; none where it is no XML."""
    try:
        root = ElementTree.fromstring(text or "")
    except ElementTree.ParseError:
        return []
    powers = {
        number(node.get("NominalMagnification")) for node in root.iterfind(".//{*}Objective")
    } - {None}
    objective = powers.pop() if len(powers) == 1 else None
    images, ifd = [], 0
    for image in root.iterfind("{*}Image"):
        pixels = image.find("{*}Pixels")
        if pixels is None:
            continue
        channels = pixels.findall("{*}Channel")
        planes = [one for one in channels if int(one.get("SamplesPerPixel") or 1) == 1]
        count = len(planes) if channels else int(pixels.get("SizeC") or 1)
        data = pixels.find("{*}TiffData")
        first = ifd if data is None else int(data.get("IFD") or ifd)
        mpp, problem = _mpp(pixels)
        size = int(pixels.get("SizeX") or 0), int(pixels.get("SizeY") or 0)
        name = image.get("Name") or ""
        images.append(
            OmeImage(name, first, size, max(count, 1), _is_rgb(planes), mpp, problem, objective)
        )
        ifd = first + max(count, 1) * int(pixels.get("SizeZ") or 1) * int(pixels.get("SizeT") or 1)
    return images


def _is_rgb(channels: list[ElementTree.Element]) -> bool:
    if len(channels) != 3:
        return False
    names = [(one.get("Name") or "").strip().lower() for one in channels]
    contrast = [(one.get("ContrastMethod") or "").lower() for one in channels]
    return names in (_RGB, ["r", "g", "b"]) or contrast == ["brightfield"] * 3


def _mpp(pixels: ElementTree.Element) -> tuple[tuple[float, float] | None, str]:
    sizes = []
    for axis in "XY":
        value, unit = (pixels.get(f"PhysicalSize{axis}{part}") for part in ("", "Unit"))
        if value is None:
            return None, ""
        scale = um_per_unit("µm" if unit is None else unit)
        if number(value) is None or scale is None:
            stated = value if unit is None else f"{value} {unit}"
            return None, f"its OME-XML gives PhysicalSize{axis} as {stated!r}, which is no length"
        sizes.append(number(value) * scale)
    return (sizes[0], sizes[1]), ""


def um_per_unit(unit: str) -> float | None:
    """Micrometres per unit; None for one that is no length."""
    return _UM_PER_UNIT.get(unicodedata.normalize("NFKC", unit).strip().lower())


def number(text: object) -> float | None:
    """A number with a decimal point or a decimal comma; None for anything else, also inf."""
    digits = str(text).strip()
    if digits.count(",") == 1 and "." not in digits:
        digits = digits.replace(",", ".")
    try:
        value = float(digits)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None
