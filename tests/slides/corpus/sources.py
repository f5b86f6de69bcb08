"""The undamaged slides of the corpus, each made once: 512 x 384 px, tiles of 128, levels 1 and 4.

The pixels that a reader must give are those of tifffile and Pillow, which read the whole file
another way than the reader under test does.
"""

import functools
import io

import numpy as np
import tifffile
from PIL import Image

from tests.slides.corpus import editor

WIDTH, HEIGHT, TILE = 512, 384, 128
DOWNSAMPLES = (1, 4)
MPP = 0.5


@functools.cache
def image() -> np.ndarray:
    """Level 0: no two places alike, and no sharp edges, which JPEG would blur."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(float)
    waves = 30 * np.sin(x / 5.3) * np.cos(y / 7.1)
    channels = (50 + 150 * x / WIDTH + waves, 60 + 140 * y / HEIGHT - waves, 128 + 2 * waves)
    return np.rint(np.clip(np.stack(channels, -1), 0, 255)).astype(np.uint8)


@functools.cache
def coarse() -> np.ndarray:
    """Level 1, a quarter of each side."""
    return np.asarray(Image.fromarray(image()).reduce(4))


def aperio_text(size: tuple[int, int] = (WIDTH, HEIGHT), extra: str = "AppMag = 20|MPP = 0.5"):
    """An Aperio ImageDescription."""
    width, height = size
    head = f"Aperio Image Library v12.0.0 \r\n{width}x{height} [0,0 {width}x{height}] (128x128) "
    return f"{head}JPEG/RGB Q=95|{extra}"


def ome_text(pixels: str = 'PhysicalSizeX="0.5" PhysicalSizeY="0.5"', size: str = "") -> str:
    """OME-XML of the slide."""
    size = size or f'SizeX="{WIDTH}" SizeY="{HEIGHT}"'
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        f'<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" {size} SizeC="3" SizeZ="1" '
        f'SizeT="1" {pixels} Interleaved="true"><Channel ID="Channel:0:0" SamplesPerPixel="3"/>'
        '<TiffData IFD="0" PlaneCount="1"/></Pixels></Image></OME>'
    )


def philips_text(spacing: str | None = '"0.0005" "0.0005"') -> str:
    """The XML of a Philips TIFF with two levels."""
    level_spacings = (spacing, '"0.002" "0.002"') if spacing is not None else (None, None)

    def representation(number: int, one: str | None) -> str:
        inner = "" if one is None else _philips("DICOM_PIXEL_SPACING", "IDoubleArray", one)
        inner += _philips("PIIM_PIXEL_DATA_REPRESENTATION_NUMBER", "IUInt16", str(number))
        return f'<DataObject ObjectType="PixelDataRepresentation">{inner}</DataObject>'

    levels = "".join(representation(i, one) for i, one in enumerate(level_spacings))
    own = "" if spacing is None else _philips("DICOM_PIXEL_SPACING", "IDoubleArray", spacing)
    scan = (
        f'<DataObject ObjectType="DPScannedImage">{_philips("PIM_DP_IMAGE_TYPE", "IString", "WSI")}'
        f'{own}<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE" Group="0x1001" '
        f'Element="0x8B01" PMSVR="IDataObjectArray"><Array>{levels}</Array></Attribute>'
        "</DataObject>"
    )
    return (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        f"{_philips('DICOM_MANUFACTURER', 'IString', 'Hamamatsu')}"
        '<Attribute Name="PIM_DP_SCANNED_IMAGES" Group="0x301D" Element="0x1003" '
        f'PMSVR="IDataObjectArray"><Array>{scan}</Array></Attribute></DataObject>'
    )


def _philips(name: str, kind: str, value: str) -> str:
    head = f'<Attribute Name="{name}" Group="0x0028" Element="0x0030" PMSVR="{kind}">'
    return f"{head}{value}</Attribute>"


def _page(writer: tifffile.TiffWriter, pixels: np.ndarray, **options) -> None:
    downsample = WIDTH / pixels.shape[1]
    per_cm = 1e4 / (MPP * downsample)
    settings = {
        "tile": (TILE, TILE),
        "photometric": "rgb",
        "metadata": None,
        "software": False,
        "resolution": (per_cm, per_cm),
        "resolutionunit": "CENTIMETER",
    }
    settings |= options
    writer.write(pixels, **settings)


def _pyramid(**options) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        _page(writer, image(), **options)
        _page(writer, coarse(), subfiletype=1, **options)
    return buffer.getvalue()


def _jpeg() -> dict:
    return {"compression": "jpeg", "compressionargs": {"level": 95}, "subsampling": (1, 1)}


def _aperio() -> bytes:
    """As scanners write it: thumbnail in strips second, then the level, label and macro."""
    buffer = io.BytesIO()
    small = np.asarray(Image.fromarray(image()).reduce(3))
    label = np.full((64, 48, 3), (230, 240, 210), np.uint8)
    strips = {"tile": None, "rowsperstrip": 16}
    with tifffile.TiffWriter(buffer) as writer:
        none = {"resolution": None, "resolutionunit": None}
        _page(writer, image(), description=aperio_text(), **_jpeg() | none)
        _page(writer, small, description=aperio_text((170, 128)), **_jpeg() | none | strips)
        _page(writer, coarse(), description=aperio_text((128, 96)), **_jpeg() | none)
        lzw = none | strips | {"compression": "lzw", "predictor": True}
        _page(writer, label, description=aperio_text((48, 64)) + "label", subfiletype=1, **lzw)
        _page(writer, label, description=aperio_text((48, 64)) + "macro", subfiletype=9, **lzw)
    return buffer.getvalue()


def _ome() -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        _page(writer, image(), subifds=1, description=ome_text(), **_jpeg())
        _page(writer, coarse(), subfiletype=1, **_jpeg())
    return buffer.getvalue()


def _philips_slide() -> bytes:
    buffer = io.BytesIO()
    none = {"resolution": None, "resolutionunit": None}
    with tifffile.TiffWriter(buffer) as writer:
        settings = _jpeg() | none | {"software": "Philips DP v1.0"}
        _page(writer, image(), description=philips_text(), **settings)
        _page(writer, coarse(), subfiletype=1, description="level=1", **_jpeg() | none)
    return buffer.getvalue()


def _jpeg2000(compression: str) -> bytes:
    return _pyramid(compression=compression, compressionargs={"codecformat": "j2k", "level": 0})


def _tables() -> bytes:
    """JPEG streams whose tables stand once, in the directory, as Aperio writes them."""
    tiff = editor.parse(data("jpeg"))
    for page in tiff.pages:
        segments, page.chunks[0] = _split(page.chunks[0])
        page.chunks[1:] = [_split(chunk)[1] for chunk in page.chunks[1:]]
        tables = b"\xff\xd8" + segments + b"\xff\xd9"
        page.fields[editor.JPEG_TABLES] = editor.Field(editor.UNDEFINED, tables)
    return editor.write(tiff)


def _split(stream: bytes) -> tuple[bytes, bytes]:
    """A JPEG stream's tables (DQT and DHT), and the stream without them."""
    tables, rest, place = b"", stream[:2], 2
    while stream[place + 1] != 0xDA:
        end = place + 2 + int.from_bytes(stream[place + 2 : place + 4], "big")
        if stream[place + 1] in (0xDB, 0xC4):
            tables += stream[place:end]
        else:
            rest += stream[place:end]
        place = end
    return tables, rest + stream[place:]


_MADE = {
    "jpeg": lambda: _pyramid(**_jpeg()),
    "tables": _tables,
    "raw": _pyramid,
    "lzw": lambda: _pyramid(compression="lzw", predictor=True),
    "deflate": lambda: _pyramid(compression="deflate"),
    "packbits": lambda: _pyramid(compression="packbits"),
    "jpeg2000": lambda: _jpeg2000("jpeg2000"),
    "strips": lambda: _pyramid(tile=None, rowsperstrip=48),
    "aperio": _aperio,
    "ome": _ome,
    "philips": _philips_slide,
}
NAMES = tuple(_MADE)
LOSSY = ("jpeg", "tables", "aperio", "ome", "philips")


@functools.cache
def data(name: str) -> bytes:
    """The file's bytes."""
    return _MADE[name]()


@functools.cache
def levels(name: str) -> dict[int, np.ndarray]:
    """downsample -> all pixels of that level, as tifffile reads them."""
    with tifffile.TiffFile(io.BytesIO(data(name))) as tiff:
        first = tiff.pages[0]
        if name == "aperio":
            return {d: tiff.pages[i].asarray() for d, i in ((1, 0), (3, 1), (4, 2))}
        second = first.pages[0] if first.subifds else tiff.pages[1]
        return {1: first.asarray(), 4: second.asarray()}
