"""Regions that somebody drew in QuPath, read from the GeoJSON that it exports.

QuPath counts level-0 px from the corner of the scanned area (see `report.geojson`); what is given
here counts from the corner of the file.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from jaxtyping import Bool
from shapely.geometry import shape

from lrmil_jax import files
from lrmil_jax.errors import SlideError, one_line
from lrmil_jax.slides.slide import Slide
from lrmil_jax.slides.tissue import Tissue

SUFFIX = ".geojson"
_HINT = "in QuPath: File > Export objects as GeoJSON, as a FeatureCollection"
_ROWS = 256  # of a mask at once, which bounds memory


@dataclasses.dataclass(frozen=True)
class Annotations:
    """The regions of one slide.

    Attributes:
      path: the GeoJSON file.
      classes: names of the classifications that count; (): annotations of any, or of none.
      slide_id: the slide's name, which a file must not contradict; "": not known.
    """

    path: Path
    classes: tuple[str, ...] = ()
    slide_id: str = ""

    def polygons(
        self, dimensions: tuple[int, int], bounds: tuple[int, int, int, int] | None = None
    ) -> list[shapely.Polygon]:
        """What the regions cover together, without their holes, in level-0 px of the file.

        Args:
          dimensions: width and height of the slide.
          bounds: (x, y, width, height) of its scanned area.

        Returns:
          Polygons that do not overlap; none where the file has none of the classes.

        Raises:
          SlideError: the file cannot be read, is of another slide, has no area at all, or one that
            lies for more than half outside the slide.
        """
        areas = list(self._areas())
        if not areas:
            raise SlideError(
                f"{self.path} has no annotation with an area; draw the regions and export them "
                f"again ({_HINT})"
            )
        x, y = (0, 0) if bounds is None else bounds[:2]
        inside = shapely.box(-x, -y, dimensions[0] - x, dimensions[1] - y)
        for name, area in areas:
            if area.intersection(inside).area < area.area / 2:
                left, top, right, bottom = (round(side) for side in area.bounds)
                raise SlideError(
                    f"{self.path}: the region {name or 'without a class'} at x {left} to {right}, "
                    f"y {top} to {bottom} lies outside the slide of {dimensions[0]} x "
                    f"{dimensions[1]} px: it was drawn on another slide, or is not in level-0 px"
                )
        whole = shapely.union_all([area for name, area in areas if self._counts(name)])
        moved = shapely.transform(whole, lambda points: points + np.array([x, y]))
        return [one for one in shapely.get_parts(moved) if one.geom_type == "Polygon"]

    def named(self) -> list[str]:
        """The classifications of the file, "" of a region without one.

        Raises:
          SlideError: see `polygons`.
        """
        return sorted({name for name, _ in self._areas()})

    def _counts(self, name: str) -> bool:
        return not self.classes or name in self.classes

    def _areas(self) -> Iterator[tuple[str, shapely.Geometry]]:
        """Each region's classification and area, in QuPath's frame."""
        content = _parsed(self.path)
        _refuse_other_slide(self.path, content, self.slide_id)
        for number, feature in enumerate(_features(self.path, content)):
            properties = feature.get("properties") or {}
            kind = feature.get("geometry") or {}
            if properties.get("objectType", "annotation") != "annotation":
                continue  # cells, tiles, and the whole slide as QuPath's root
            try:
                area = shapely.make_valid(shape(kind))
            except Exception as error:  # shapely raises what it meets: KeyError, GEOSException, ...
                raise SlideError(
                    f"{self.path}: the geometry of object {number + 1} cannot be read "
                    f"({one_line(error)}); export it again ({_HINT})"
                ) from error
            if area.area > 0 and math.isfinite(area.area):
                yield _class_of(properties), area


def _parsed(path: Path) -> Any:
    try:
        return files.parse_json(path.read_bytes())
    except FileNotFoundError as error:
        raise SlideError(
            f"there is no {path}; draw the slide's regions and export them ({_HINT}), or leave the "
            "slide or the option out"
        ) from error
    except (OSError, ValueError) as error:
        raise SlideError(f"{path} is no GeoJSON ({one_line(error)}); {_HINT}") from error


def _refuse_other_slide(path: Path, content: Any, slide_id: str) -> None:
    """A file may say its slide, as those of `report.geojson` do."""
    properties = content.get("properties") if isinstance(content, dict) else None
    named = properties.get("slide") if isinstance(properties, dict) else None
    if slide_id and isinstance(named, str) and named != slide_id:
        raise SlideError(f"{path} says that it is of slide {named}, and not of {slide_id}")


def _features(path: Path, content: Any) -> Sequence[dict]:
    """A FeatureCollection, a list of features, or one of them: QuPath exports all three."""
    found = content.get("features", [content]) if isinstance(content, dict) else content
    if not isinstance(found, list) or not all(
        isinstance(one, dict) and one.get("type") == "Feature" for one in found
    ):
        raise SlideError(f"{path} holds no GeoJSON features; {_HINT}")
    for one in found:
        if not all(isinstance(one.get(key) or {}, dict) for key in ("properties", "geometry")):
            raise SlideError(f"{path} has a feature whose properties or geometry are none; {_HINT}")
    return found


def _class_of(properties: dict) -> str:
    """QuPath's name of a classification; of a derived one "Tumor: Positive", however exported."""
    said = properties.get("classification")
    if not isinstance(said, dict):
        return said if isinstance(said, str) else ""
    names = said.get("names")
    if isinstance(names, list):
        return ": ".join(map(str, names))
    return str(said.get("name") or "")


def mask(
    polygons: Sequence[shapely.Polygon],
    size: tuple[int, int],
    scale: tuple[float | int, float | int],
) -> Bool[np.ndarray, "h w"]:
    """Which pixels have their centre in one of the polygons.

    Args:
      polygons: in level-0 px.
      size: (width, height) of the mask.
      scale: level-0 px per pixel of it, along x and y.
    """
    made = np.zeros((size[1], size[0]), bool)
    for polygon in polygons:
        shapely.prepare(polygon)
        low, high = np.reshape(polygon.bounds, (2, 2)) / scale
        left, top = np.maximum(np.floor(low), 0).astype(int).tolist()
        right, bottom = np.minimum(np.ceil(high), size).astype(int).tolist()
        for row in range(top, bottom, _ROWS):
            rows = slice(row, min(row + _ROWS, bottom))
            y, x = np.mgrid[rows, left : max(left, right)] + 0.5
            made[rows, left:right] |= shapely.contains_xy(polygon, x * scale[0], y * scale[1])
    return made


def inside(found: Tissue, slide: Slide, drawn: Annotations | None) -> Tissue:
    """The tissue inside of what was drawn on a slide; all of it where nothing was.

    Raises:
      SlideError: there is none, or what was drawn cannot be used (`Annotations.polygons`).
    """
    if drawn is None:
        return found
    polygons = drawn.polygons(slide.dimensions, slide.bounds)
    if not polygons:
        there = ", ".join(name or "(none)" for name in drawn.named())
        raise SlideError(
            f"{drawn.path} has no region of class {' or '.join(drawn.classes)}, but of {there}; "
            "name the class as QuPath does"
        )
    kept = restricted(found, polygons)
    if not kept.mask.any():
        raise SlideError(
            f"{slide.path}: no tissue lies in the regions of {drawn.path}; look at the tissue with "
            "--stages check"
        )
    return kept


def restricted(found: Tissue, polygons: Sequence[shapely.Polygon]) -> Tissue:
    """The tissue that lies in the polygons."""
    height, width = found.mask.shape
    drawn = mask(polygons, (width, height), (found.downsample, found.downsample))
    return dataclasses.replace(found, mask=found.mask & drawn)
