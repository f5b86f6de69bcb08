"""What a slide file is, by its content, and which readers give its true pixels.

A suffix proves nothing: a Ventana scan named .tif opens as a plain TIFF, and its overlapping tiles
are then read unstitched. A format that a reader knows in part is not in that reader's list.
"""

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

from tifffile import TiffFile, TiffPage

from lrmil_jax.errors import SlideError, one_line
from lrmil_jax.slides import tiff_structure

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_LEICA = "leica-microsystems.com/scn"
_ISCAN = re.compile(rb"<iScan|<EncodeInfo")


@dataclass(frozen=True)
class Format:
    """A slide format.

    Attributes:
      name: as users call it.
      readers: those that give its true pixels, the preferred one first; () where there is none.
      advice: what to do where no reader is there.
    """

    name: str
    readers: tuple[str, ...]
    advice: str = ""


APERIO = Format("Aperio SVS", ("tifffile", "tiffslide", "openslide", "fastslide"))
OME = Format("OME-TIFF", ("tifffile",))
PHILIPS = Format("Philips TIFF", ("tifffile", "openslide"))
QPTIFF = Format("Akoya QPTIFF", ("tifffile", "fastslide"))
TIFF = Format("TIFF", ("tifffile", "tiffslide", "openslide"))
VENTANA = Format("Ventana BIF", ("openslide",))
HAMAMATSU = Format("Hamamatsu NDPI", ("openslide",))
LEICA = Format("Leica SCN", ("openslide",))
TRESTLE = Format("Trestle TIFF", ("openslide",))
MIRAX = Format("3DHISTECH MRXS", ("openslide",))
HAMAMATSU_VMS = Format("Hamamatsu VMS/VMU", ("openslide",))
DICOM = Format("DICOM", ("openslide",))
SAKURA = Format("Sakura SVSLIDE", ("openslide",))
CZI = Format("Zeiss CZI", (), "export it as OME-TIFF, in ZEN or with Bio-Formats (bfconvert)")
ISYNTAX = Format("Philips iSyntax", (), "export it as Philips TIFF or as DICOM")
ZIP = Format("ZIP archive", (), "unpack it")
PICTURE = Format("JPEG or PNG picture", (), "give the scanner's own file, or a pyramidal TIFF")
UNKNOWN = Format("slide", ("tifffile", "openslide", "fastslide"))

# How files begin that are no TIFF.
_BEGINNINGS = (
    (b"ZISRAWFILE", CZI),
    (b"SQLite format 3\0", SAKURA),
    (b"PK\3\4", ZIP),
    (b"\x89PNG", PICTURE),
)


def identify(path: Path) -> Format:
    """The format of a file, by its first bytes and, of a TIFF, by its first page.

    Raises:
      SlideError: a TIFF without pages, or cut short before the first.
    """
    with path.open("rb") as file:
        start = file.read(4096)
    if start[128:132] == b"DICM":  # of some files the 128 bytes before are the header of a TIFF
        return DICOM
    if start[:4] in _TIFF_MAGIC:
        return _identify_tiff(path)
    for beginning, found in _BEGINNINGS:
        if start.startswith(beginning):
            return found
    if start[:3] == b"\xff\xd8\xff":  # an MRXS file is a picture beside the folder of its name
        return MIRAX if path.suffix.lower() == ".mrxs" else PICTURE
    if b"DPUfsImport" in start:
        return ISYNTAX
    if b"[Virtual Microscope Specimen]" in start or b"[Uncompressed Virtual Mic" in start:
        return HAMAMATSU_VMS
    return UNKNOWN


def _identify_tiff(path: Path) -> Format:
    try:
        with TiffFile(path, is_ndpi=False) as tiff:  # else it goes by the name
            return of_page(tiff.pages.first)
    except SlideError:
        raise
    except Exception as error:  # tifffile raises anything at all on damaged bytes
        if path.suffix.lower() == ".ndpi":  # a large one has offsets that no other TIFF has
            return HAMAMATSU
        with contextlib.suppress(ValueError):  # of the header, of which tifffile tells as well
            tiff_structure.check(path)
        raise SlideError(f"{path}: not a slide, or cut short ({one_line(error)}).") from error


def of_page(page: TiffPage) -> Format:
    """The format of a TIFF by its first page."""
    description, software = page.description, page.software
    if 65420 in page.tags:
        return HAMAMATSU
    if 700 in page.tags and _ISCAN.search(_bytes(page.tags[700].value)):
        return VENTANA
    if _LEICA in description[:1000]:
        return LEICA
    if description.startswith("Aperio ") or "\nAperio " in description[:200]:
        return APERIO
    if software.startswith("Philips") or "DPUfsImport" in description[:1000]:
        return PHILIPS
    if software.startswith("MedScan") or "OverlapsXY" in description:
        return TRESTLE
    if "<PerkinElmer-QPI-ImageDescription" in description or software.startswith("PerkinElmer-QPI"):
        return QPTIFF
    return OME if page.is_ome else TIFF


def _bytes(value: object) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)
