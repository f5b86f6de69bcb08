"""DICOM slides: several files are one slide, one a level, and labels lie beside them.

DICOM PS3.3 C.8.12: an instance of VL Whole Slide Microscopy has an ImageType whose third value is
VOLUME, LABEL, OVERVIEW or THUMBNAIL; instances of a slide share SeriesInstanceUID.
"""

import contextlib
import functools
import importlib.util
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lrmil_jax.errors import SlideError
from lrmil_jax.progress import progress

_TAGS = (
    *("SOPClassUID", "SeriesInstanceUID", "ImageType", "ContainerIdentifier"),
    *("TotalPixelMatrixColumns", "TotalPixelMatrixRows", "SharedFunctionalGroupsSequence"),
)
_VOLUME = "VOLUME"
_UNFIT = re.compile(r"[^\w.\- ()+]")  # a container's identifier may hold anything
_MANY = 1000  # files from which on progress is shown: they take 2 s
_PER_FRAME = 0x52009230  # PerFrameFunctionalGroupsSequence; pixels come later still


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
    stat = path.stat()
    return _read(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=100_000)
def _read(path: Path, changed: int, size: int) -> Instance | None:
    """See `read`; a file that is as it was is not read again."""
    from pydicom.errors import InvalidDicomError
    from pydicom.filereader import read_partial
    from pydicom.tag import Tag

    tags = [Tag(name) for name in _TAGS]
    try:
        with path.open("rb") as file:
            data = read_partial(file, _is_after_header, specific_tags=tags)
    except (InvalidDicomError, OSError, EOFError):
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


def _is_after_header(tag: int, vr: str | None, length: int) -> bool:
    """Stops before the places of single frames, of which there may be a hundred thousand."""
    return tag >= _PER_FRAME


def _spacing(data) -> float | None:
    """PixelSpacing of the functional groups that all frames share."""
    for group in data.get("SharedFunctionalGroupsSequence") or ():
        for measures in group.get("PixelMeasuresSequence") or ():
            if spacing := measures.get("PixelSpacing"):
                return float(spacing[1])
    return None


def series(path: Path) -> str | None:
    """SeriesInstanceUID of the slide that a file is a part of; None of a file that is no DICOM, and
    where there is nothing to read it."""
    if not installed() and importlib.util.find_spec("openslide") is None:
        return None
    instance = _read_any(path)
    return None if instance is None else instance.series or None


def spacings(path: Path) -> dict[tuple[int, int], float]:
    """mm per pixel of each level of a slide, by the level's size; {} without pydicom."""
    return {one.size: one.spacing for one in _levels(path) if one.spacing}


def finest(path: Path) -> Path | None:
    """The file with level 0 of the slide that a file is a part of; None of a file that is no DICOM
    slide, and without pydicom."""
    levels = _levels(path)
    return max(levels, key=lambda one: one.size).path if levels else None


def _levels(path: Path) -> list[Instance]:
    """The levels of the slide that a file is a part of, which lie beside it; [] without pydicom."""
    own = read(path) if installed() else None
    if own is None:
        return []
    instances = (read(other) for other in sorted(path.parent.iterdir()) if other.is_file())
    return [
        one
        for one in instances
        if one is not None and one.series == own.series and one.kind == _VOLUME
    ]


def named(
    paths: Iterable[Path], wanted: Collection[str] | None = None
) -> Iterator[tuple[str, Path]]:
    """Slide files with their names: those of no DICOM as they are, of DICOM one a slide.

    A DICOM slide's finest level stands for it. It is called as its folder, if that holds no other
    slide; else by its container's identifier, or by its series; any of these, or the stem of one
    of its files, that is in `wanted` goes before.

    Args:
      paths: of any formats; of DICOM levels, labels and overviews in any order.
      wanted: names under which slides are looked for.

    Raises:
      SlideError: neither pydicom nor openslide is there to read the DICOM files.
    """
    beside: Counter[Path] = Counter()
    files = []
    for path in paths:
        if path.suffix.lower() == ".dcm":
            files.append(path)
        else:
            beside[path.parent] += 1
            yield path.stem, path
    slides = _by_series(files)
    finest = [max(instances, key=lambda one: one.size) for instances in slides.values()]
    beside.update(one.path.parent for one in finest)
    containers = Counter(one.container for one in finest)
    for one in finest:
        names = [one.path.parent.name] if beside[one.path.parent] == 1 else []
        if one.container and containers[one.container] == 1:
            names.append(one.container)
        names = [*names, one.series, *(other.path.stem for other in slides[one.series])]
        name = next((name for name in names if name in (wanted or ())), names[0])
        yield _UNFIT.sub("_", name), one.path  # it will be a file name


def _by_series(files: list[Path]) -> dict[str, list[Instance]]:
    """The levels among the files, by SeriesInstanceUID."""
    slides: dict[str, list[Instance]] = defaultdict(list)
    told = progress("DICOM headers", len(files)) if len(files) > _MANY else contextlib.nullcontext()
    with told as bar:
        for path in files:
            instance = _read_any(path)
            if instance is not None and instance.kind == _VOLUME:
                slides[instance.series].append(instance)
            if bar is not None:
                bar.advance()
    return slides


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
