"""One slide whose features another tool made: looked at, and prepared like any other.

This runs in worker processes, one slide each; memory is bounded by one slide's features.
"""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from lrmil_jax.data import regions
from lrmil_jax.data.slide_jobs import SlideJob, file_identity
from lrmil_jax.errors import SlideError
from lrmil_jax.interchange import grid
from lrmil_jax.interchange.bag import Bag
from lrmil_jax.interchange.grid import GridError, Parents
from lrmil_jax.interchange.layout import Layout
from lrmil_jax.slides import lattice, likeness, open_slide, tissue

# Relative difference between um/px of the patches and those of the config that is no mistake:
# nominal magnifications are as loose ("20x" is 0.4 to 0.6 um/px).
_LOOSE = 0.25


@dataclasses.dataclass(frozen=True)
class BagFile:
    """Where the features of one slide at one resolution are.

    Attributes:
      layout: of the folder; folder: as the config names it.
      path: of the slide's file; None if it has none.
    """

    layout: Layout
    folder: Path
    path: Path | None

    def open(self, slide_id: str, mpp: float | None) -> Bag:
        """The bag.

        Raises:
          SlideError: there is no file, or see `Layout.open`.
        """
        if self.path is None:
            raise SlideError(
                f"slide {slide_id} has no feature file in {self.folder}; extract its features, or "
                "leave the slide out of the CSV"
            )
        return self.layout.open(self.path, mpp)

    def identity(self) -> list[dict] | None:
        """Of all files that the bag is read from; None without any."""
        if self.path is None or not self.path.is_file():
            return None
        paths = (self.path, *self.layout.beside(self.path))
        return [file_identity(path) for path in paths if path.is_file()]


@dataclasses.dataclass(frozen=True)
class FeatureJob(SlideJob):
    """A slide to be taken over; `path` is the slide's where LR tiles are read, else its features'.

    Attributes:
      bags: by resolution, "hr" and "lr": those that the method reads.
      slide: the slide file, if um/px or tiles are read from it.
      with_tiles: LR tiles are read from the slide, for stage 1.
      with_parents: the method needs to know which LR patch an HR patch lies in.
    """

    bags: Mapping[str, BagFile] = dataclasses.field(default_factory=dict)
    slide: Path | None = None
    with_tiles: bool = False
    with_parents: bool = False

    @property
    def finest_mpp(self) -> float:
        """See `SlideJob`: HR patches were another tool's."""
        return self.settings.geometry.lr_mpp

    def is_complete(self, status: dict | None) -> bool:
        """See `SlideJob`; without tiles there are no regions."""
        if self.with_tiles:
            return super().is_complete(status)
        return status is not None and status["status"] == "ok" and status["source"] == self.source()

    def was_enlarged(self, status: dict | None) -> bool:
        """See `SlideJob`; without tiles no pixels were read."""
        return self.with_tiles and super().was_enlarged(status)

    def source(self) -> dict:
        """See `SlideJob`."""
        made = {level: file.identity() for level, file in self.bags.items()}
        return (super().source() if self.with_tiles else {"mpp": self.mpp}) | made


def prepare_slide(job: FeatureJob) -> dict:
    """Notes what there is of a slide, and cuts LR tiles if they are wanted; see `tile_slide`."""
    return regions.attempt(job, _prepared)


def inspect_slide(job: FeatureJob) -> dict:
    """What `check` tells of a slide, nothing written; never raises for a bad slide."""
    try:
        facts = _facts(job, open_bags(job))
        return {"slide_id": job.slide_id, "status": "ok", "reason": ""} | facts
    except SlideError as error:
        return {"slide_id": job.slide_id, "status": "failed", "reason": str(error)}
    except Exception as error:  # one slide's surprise must not hide the others' state
        reason = f"{type(error).__name__}: {error}"
        return {"slide_id": job.slide_id, "status": "failed", "reason": reason}


@dataclasses.dataclass(frozen=True)
class OpenBags:
    """The bags of a slide, um/px and where they are from, and HR patches' parents if there are."""

    bags: dict[str, Bag]
    mpp: float | None
    mpp_source: str
    parents: Parents | None
    why_no_parents: str


def open_bags(job: FeatureJob) -> OpenBags:
    """Opens a slide's feature files; features themselves are read later.

    Raises:
      SlideError: HR patches have no exact LR parents, and somebody needs them; or a file cannot be
        read.
    """
    mpp, origin = job.mpp, "CSV"
    asks = any(file.layout.needs_mpp for file in job.bags.values())
    if mpp is None and job.slide is not None and (asks or job.with_tiles):
        with open_slide(job.slide, reader=job.settings.reader) as slide:
            mpp, origin = slide.mpp, f"slide: {slide.mpp_source}"
    bags = {level: file.open(job.slide_id, mpp) for level, file in job.bags.items()}
    if mpp is None:
        mpp = next((bag.mpp for bag in bags.values() if bag.mpp is not None), None)
        origin = "" if mpp is None else "features"
    parents, why = None, ""
    try:
        parents = _parents(bags, job.settings.geometry.ratio)
    except GridError as error:
        why = str(error)
        if job.with_parents:
            raise SlideError(
                f"{job.bags['hr'].path}: exact LR parents of its patches do not exist: {error}; "
                "methods mil and mil_lr need none where data.slides is not set"
            ) from error
    return OpenBags(bags, mpp, origin, parents, why)


def _parents(bags: Mapping[str, Bag], ratio: int) -> Parents | None:
    """Of the HR patches; None where there are none.

    Raises:
      GridError: they have no exact LR parents.
    """
    if "hr" not in bags:
        return None
    for level, bag in bags.items():
        if bag.xy is None or bag.side is None or bag.step is None:
            known = "coordinates" if bag.xy is None else "size of a patch"
            raise GridError(f"the file of its {level.upper()} features tells no {known}")
    high = bags["hr"]
    place = {"side": high.side, "step": high.step, "ratio": ratio, "why": high.grid}
    if "lr" not in bags:
        return grid.from_lattice(high.xy, **place)
    low = bags["lr"]
    ordered = low.xy[row_major(low.xy)]
    return grid.from_lr_patches(high.xy, ordered, lr_side=low.side, **place)


def row_major(xy: Int[np.ndarray, "n 2"]) -> Int[np.ndarray, " n"]:
    """The order of a lattice: row by row."""
    return np.lexsort((xy[:, 0], xy[:, 1]))


def _prepared(job: FeatureJob) -> dict:
    start = time.perf_counter()
    opened = open_bags(job)
    facts = _facts(job, opened)
    seconds = time.perf_counter() - start
    if job.with_tiles:
        tiled = regions.write_planned(job, _plan(job, opened, seconds))
        return facts | tiled | {"hr_patches": facts["hr_patches"]}
    return facts | {
        "status": "ok",
        "reason": "",
        "hr": False,
        "unreadable": [],
        "seconds": {"open_tissue": round(seconds, 4), "read_write": 0.0},
    }


def _facts(job: FeatureJob, opened: OpenBags) -> dict[str, Any]:
    """What is known of a slide from its features alone, as `slides.csv` and exports need it."""
    counts = {level: bag.shape[0] for level, bag in opened.bags.items()}
    if "lr" not in counts:
        counts["lr"] = 0 if opened.parents is None else len(opened.parents.lr_xy)
    sides = {f"{level}_side": bag.side for level, bag in opened.bags.items()}
    if opened.parents is not None:
        sides["lr_side"] = opened.parents.lr_side
    held = 0 if opened.parents is None else int((opened.parents.parent >= 0).sum())
    size = next((bag.dimensions for bag in opened.bags.values() if bag.dimensions), None)
    px = {level: bag.px or job.settings.geometry.patch_px for level, bag in opened.bags.items()}
    return {
        "mpp": opened.mpp,
        "mpp_source": opened.mpp_source,
        "dimensions": None if size is None else list(size),
        "lr_patches": counts["lr"],
        "hr_patches": counts.get("hr", 0),
        "hr_in_lr_patches": held,
        "why_no_parents": opened.why_no_parents,
        "width": {level: bag.shape[1] for level, bag in opened.bags.items()},
        "encoder": {level: bag.encoder for level, bag in opened.bags.items()},
        "px": px,
        "um_px": {
            level: opened.mpp * bag.side / px[level]
            for level, bag in opened.bags.items()
            if opened.mpp is not None and bag.side is not None
        },
        **sides,
    }


def _plan(job: FeatureJob, opened: OpenBags, seconds: float) -> regions.SlidePlan:
    """The slide with the lattice of its features, for its LR tiles.

    Raises:
      SlideError: it is another slide than the features', or of another resolution than the config.
    """
    high, geometry = opened.bags["hr"], job.settings.geometry
    slide = job.open()
    try:
        lattice.check_resolution(slide, geometry.lr_mpp, "LR", upsample=job.settings.upsample)
        size = tuple(int(side) for side in slide.dimensions)
        if high.dimensions is not None and tuple(high.dimensions) != size:
            raise SlideError(
                f"{job.bags['hr'].path} has features of a slide of {high.dimensions[0]} x "
                f"{high.dimensions[1]} px, {job.path} has {size[0]} x {size[1]}: they are of "
                "different slides"
            )
        mpp = slide.mpp * opened.parents.lr_side / geometry.patch_px
        if not 1 - _LOOSE < mpp / geometry.lr_mpp < 1 + _LOOSE:
            raise SlideError(
                f"{job.bags['hr'].path}: LR patches of its grid have {mpp:.3g} um/px, but "
                f"geometry.lr_mpp is {geometry.lr_mpp:g}: set geometry.hr_mpp and lr_mpp to those "
                "of the features"
            )
        found = tissue.find(slide, job.settings.tissue_rule)
        picture = likeness.fingerprint(found.thumbnail, found.mask)
    except BaseException:
        slide.close()
        raise
    parents = opened.parents
    cells = lattice.from_cells(parents.lr_xy, child_side=high.side, child_mask=parents.child_mask)
    return regions.SlidePlan(slide, None, cells, picture, seconds)
