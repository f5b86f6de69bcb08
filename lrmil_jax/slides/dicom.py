"""DICOM slides: several files are one slide, one a level, and labels lie beside them.

DICOM PS3.3 C.8.12: an instance of VL Whole Slide Microscopy has an ImageType whose third value is
VOLUME, LABEL, OVERVIEW or THUMBNAIL; instances of a slide share SeriesInstanceUID.
"""

import importlib.util
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lrmil_jax.errors import SlideError

_TAGS = (
    *("SOPClassUID", "SeriesInstanceUID", "ImageType", "ContainerIdentifier"),
    *("TotalPixelMatrixColumns", "TotalPixelMatrixRows", "SharedFunctionalGroupsSequence"),
)
_VOLUME = "VOLUME"


@dataclass(frozen=True)
class Instance:
    """One DICOM file.

    Attributes:
      path: of the file.
      series: SeriesInstanceUID.
      container: the slide's identifier, "" without one.
      kind: VOLUME, LABEL, OVERVIEW, THUMBNAIL, or "" of other images.
      size: (width, height) in pixels.
      spacing: mm between columns, None where it is not said.
    """

    path: Path
    series: str
    container: str
    kind: str
    size: tuple[int, int]
    spacing: float | None


def installed() -> bool:
    """Whether pydicom is there."""
    return importlib.util.find_spec("pydicom") is not None


def read(path: Path) -> Instance | None:
    """The header of a file; None where it is no DICOM image."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
    except (InvalidDicomError, OSError):
        return None
    if "SeriesInstanceUID" not in data:
        return None
    kinds = [str(value).upper() for value in data.get("ImageType") or ()]
    size = (data.get("TotalPixelMatrixColumns") or 0, data.get("TotalPixelMatrixRows") or 0)
    return Instance(
        path,
        str(data.SeriesInstanceUID),
        str(data.get("ContainerIdentifier") or ""),
        kinds[2] if len(kinds) > 2 else "",
        (int(size[0]), int(size[1])),
        _spacing(data),
    )


def _spacing(data) -> float | None:
    """PixelSpacing of the functional groups that all frames share."""
    for group in data.get("SharedFunctionalGroupsSequence") or ():
        for measures in group.get("PixelMeasuresSequence") or ():
            if spacing := measures.get("PixelSpacing"):
                return float(spacing[1])
    return None


def spacings(path: Path) -> dict[tuple[int, int], float]:
    """mm per pixel of each level of a slide, by the level's size; {} without pydicom."""
    own = read(path) if installed() else None
    if own is None:
        return {}
    instances = (read(other) for other in sorted(path.parent.iterdir()) if other.is_file())
    return {
        one.size: one.spacing
        for one in instances
        if one is not None and one.series == own.series and one.kind == _VOLUME and one.spacing
    }


def one_a_slide(paths: Iterable[Path], wanted: Iterable[str] | None = None) -> dict[str, Path]:
    """DICOM slides by name, each once: its finest level stands for it.

    A slide is called as its folder, if that holds no other; else by its container's identifier,
    or by its series. A name in `wanted` that is the stem of one of its files goes before.

    Args:
      paths: DICOM files, levels, labels and overviews in any order.
      wanted: names under which slides are looked for.

    Raises:
      SlideError: neither pydicom nor openslide is there to read the files.
    """
    slides: dict[str, list[Instance]] = defaultdict(list)
    for path in paths:
        instance = _read_any(path)
        if instance is not None and instance.kind == _VOLUME:
            slides[instance.series].append(instance)
    in_folder = defaultdict(set)
    containers = defaultdict(set)
    for series, instances in slides.items():
        in_folder[instances[0].path.parent].add(series)
        containers[instances[0].container].add(series)
    names = {}
    for series, instances in slides.items():
        finest = max(instances, key=lambda one: one.size)
        stems = [one.path.stem for one in instances if one.path.stem in (wanted or ())]
        if stems:
            name = stems[0]
        elif len(in_folder[finest.path.parent]) == 1:
            name = finest.path.parent.name
        elif finest.container and len(containers[finest.container]) == 1:
            name = finest.container
        else:
            name = series
        names[name] = finest.path
    return names


def _read_any(path: Path) -> Instance | None:
    """The header through pydicom, or through openslide, which opens levels alone."""
    if installed():
        return read(path)
    if importlib.util.find_spec("openslide") is None:
        raise SlideError(
            f"{path}: a DICOM file, and nothing to read it is installed; run "
            "pip install 'lrmil_jax[openslide,dicom]'."
        )
    import openslide

    try:
        with openslide.OpenSlide(path) as slide:
            properties = slide.properties
            series, container = (
                properties.get(f"dicom.{name}", "")
                for name in ("SeriesInstanceUID", "ContainerIdentifier")
            )
            return Instance(path, series, container, _VOLUME, slide.dimensions, None)
    except openslide.OpenSlideError:
        return None
