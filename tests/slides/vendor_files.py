"""Slide files of scanners as small as they can be: Leica SCN, Ventana BIF, DICOM."""

from pathlib import Path

import numpy as np
import tifffile

# A main image of 1024 x 768 px at 0.5 um/px that lies at (500, 250) px of its slide.
SCN_BOUNDS = (500, 250, 1024, 768)


def write_scn(path: Path, image: np.ndarray, macro: np.ndarray) -> Path:
    """A Leica SCN: a macro of the whole slide, and `image` (768 x 1024) with one level at 4."""
    nm, (width, height) = 500, SCN_BOUNDS[2:]
    scan = (
        "<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings>"
        "<illuminationSettings><numericalAperture>0.4</numericalAperture><illuminationSource>"
        "brightfield</illuminationSource></illuminationSettings></scanSettings>"
    )
    text = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection sizeX="{2000 * nm}" sizeY="{1500 * nm}"><barcode>x</barcode>'
        + "".join(
            f'<image><creationDate>2012-01-01</creationDate><device model="m" version="1"/>'
            f"<pixels>{dimensions}</pixels>"
            f'<view sizeX="{w * nm}" sizeY="{h * nm}" offsetX="{x * nm}" offsetY="{y * nm}"/>'
            f"{scan}</image>"
            for dimensions, (x, y, w, h) in (
                ('<dimension sizeX="250" sizeY="187" r="0" ifd="0"/>', (0, 0, 2000, 1500)),
                (
                    f'<dimension sizeX="{width}" sizeY="{height}" r="0" ifd="1"/>'
                    f'<dimension sizeX="{width // 4}" sizeY="{height // 4}" r="1" ifd="2"/>',
                    SCN_BOUNDS,
                ),
            )
        )
        + "</collection></scn>"
    )
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "deflate"}
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(macro, description=text, metadata=None, **options)
        for level, per_cm in ((image, 20000), (image[2::4, 2::4], 5000)):
            options |= {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}
            writer.write(level, metadata=None, **options)
    return path


def write_ventana(path: Path, image: np.ndarray, *, overlap: int) -> Path:
    """A Ventana scan of 3 x 2 tiles of 256 px that overlap across; `image` is what they show."""
    across, down, side = 3, 2, 256
    initial = '<iScan Magnification="20" ScanRes="0.5" Z-layers="1" BuildDate="x"/>'
    joints = "".join(
        _joint(number, number + 1, "RIGHT", overlap)
        for number in range(1, across)  # the lowest row, from the left
    )
    info = (
        f'<EncodeInfo Ver="2"><SlideStitchInfo><ImageInfo AOIScanned="1" AOIIndex="0" '
        f'Width="{side}" Height="{side}" NumRows="{down}" NumCols="{across}" '
        f'Pos-X="0" Pos-Y="0">{joints}'
        f"{_joint(1, 2 * across, 'UP', 0)}</ImageInfo></SlideStitchInfo>"
        '<AoiOrigin><AOI0 OriginX="0" OriginY="0"/></AoiOrigin></EncodeInfo>'
    )
    stored = np.zeros((down * side, across * side, 3), np.uint8)
    for row in range(down):
        for column in range(across):
            x, y = column * (side - overlap), row * side
            tile = image[y : y + side, x : x + side]
            stored[row * side :, column * side :][: tile.shape[0], : tile.shape[1]] = tile
    options = {"tile": (side, side), "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(
            np.zeros((256, 256, 3), np.uint8),
            description="Label Image",
            extratags=[(700, 1, len(initial), initial.encode(), True)],
            **options,
        )
        writer.write(
            stored,
            description="level=0 mag=20 quality=90",
            extratags=[(700, 1, len(info), info.encode(), True)],
            **options,
        )
    return path


def _joint(first: int, second: int, direction: str, overlap: int) -> str:
    return (
        f'<TileJointInfo FlagJoined="1" Confidence="100" Direction="{direction}" Tile1="{first}" '
        f'Tile2="{second}" OverlapX="{overlap}" OverlapY="0"/>'
    )


def write_dicom(
    path: Path,
    image: np.ndarray,
    *,
    series: str,
    spacing: float,
    kind: str = "VOLUME",
    container: str = "S-1",
    side: int = 256,
) -> Path:
    """One instance of VL Whole Slide Microscopy: an image in uncompressed frames of `side` px.

    Args:
      spacing: mm per pixel.
      kind: third value of ImageType.
    """
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    slide_microscopy = "1.2.840.10008.5.1.4.1.1.77.1.6"
    height, width = image.shape[:2]
    rows, columns = -(-height // side), -(-width // side)
    padded = np.zeros((rows * side, columns * side, 3), np.uint8)
    padded[:height, :width] = image
    frames = padded.reshape(rows, side, columns, side, 3).swapaxes(1, 2)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = slide_microscopy
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    measures, group, organization, optical, origin = (Dataset() for _ in range(5))
    measures.PixelSpacing, measures.SliceThickness = [spacing, spacing], 0.001
    group.PixelMeasuresSequence = [measures]
    organization.DimensionOrganizationUID = generate_uid()
    optical.OpticalPathIdentifier, optical.ObjectiveLensPower = "0", 20
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = slide_microscopy, meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID, data.StudyInstanceUID, data.Modality = series, series + ".1", "SM"
    data.FrameOfReferenceUID, data.ContainerIdentifier = series + ".2", container
    for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate",
                 "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"):  # fmt: skip
        setattr(data, name, container if name == "PatientID" else "")
    # As a scanner lays a slide: its rows run up the slide's x, its columns up the slide's y.
    data.ImageOrientationSlide, data.TotalPixelMatrixOriginSequence = [0, -1, 0, -1, 0, 0], [origin]
    origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = 20.0, 40.0
    flavour = "RESAMPLED" if kind == "THUMBNAIL" else "NONE"
    data.ImageType = ["ORIGINAL", "PRIMARY", kind, flavour]
    data.DimensionOrganizationType = "TILED_FULL"
    data.DimensionOrganizationSequence = [organization]
    data.SharedFunctionalGroupsSequence = [group]
    data.OpticalPathSequence, data.NumberOfOpticalPaths = [optical], 1
    data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows = width, height
    data.TotalPixelMatrixFocalPlanes, data.ImagedVolumeDepth = 1, 0.001
    data.Rows, data.Columns, data.NumberOfFrames = side, side, rows * columns
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.PixelData = np.ascontiguousarray(frames).tobytes()
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return path
