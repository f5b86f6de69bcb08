"""What `check` learns of a slide before anything is written: whether it can be used, what it
costs, a picture of its tissue, and what somebody should look at.

Runs in worker processes, one slide each, so it imports no JAX.
"""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from lrmil_jax import files
from lrmil_jax.data import regions
from lrmil_jax.data.slide_jobs import SlideJob
from lrmil_jax.errors import SlideError
from lrmil_jax.slides import Lattice, Slide, Tissue, annotations, likeness, pyramid, tissue

_PICTURE_PX = 1600  # longest side of a picture
# Of a slide that somebody should look at.
_MUCH_INK, _LITTLE_TISSUE, _FEW_PATCHES = 0.15, 0.002, 4
_TINT = 25  # of 255, between the channels of glass
_LOOK = "look at its picture"


@dataclasses.dataclass(frozen=True)
class Remark:
    """What of a slide somebody should look at.

    Attributes:
      why: what is unusual.
      advice: what to do about it.
    """

    why: str
    advice: str


def inspect_slide(job: SlideJob, pictures: Path | None = None) -> dict:
    """What `check` tells of a slide; never raises for a bad slide.

    Args:
      job: the slide.
      pictures: folder for `<slide_id>.jpg`: the slide with tissue, ink and lattice; None: none.

    Returns:
      um/px, patches, `remarks`, by what the slide is known again, and the bytes and seconds of one
      region in its middle; or the reason why the slide cannot be used.
    """
    try:
        return _inspect(job, pictures)
    except SlideError as error:
        return {"slide_id": job.slide_id, "status": "failed", "reason": str(error)}
    except Exception as error:  # one slide's surprise must not hide the others' state
        reason = f"{type(error).__name__}: {error}"
        return {"slide_id": job.slide_id, "status": "failed", "reason": reason}


def _inspect(job: SlideJob, pictures: Path | None) -> dict:
    start, settings = time.perf_counter(), job.settings
    with regions.open_at(job) as slide:
        try:
            whole = found = tissue.detect(slide, settings.tissue_rule)
        except tissue.NoTissueError as error:
            _draw(pictures, job.slide_id, error.tissue, None)
            raise
        cells = None
        try:
            found = annotations.inside(whole, slide, job.annotations)
            cells = regions.lay_lattice(slide, found, settings)
        finally:
            _draw(pictures, job.slide_id, found, cells)
        planned = time.perf_counter() - start
        start = time.perf_counter()
        unreadable: list[dict] = []
        middle = len(cells.lr_xy) // 2
        example = regions.region(slide, cells, middle, settings, unreadable) or {}
        seconds = time.perf_counter() - start
        size = sum(len(example.get(name, b"")) for name in ("lr", "hr"))
        return {
            "slide_id": job.slide_id,
            "status": "ok",
            "reason": "",
            "mpp": slide.mpp,
            "mpp_source": slide.mpp_source,
            "objective": slide.objective,
            "dimensions": [int(side) for side in slide.dimensions],
            "bounds": slide.bounds,
            "lr_patches": len(cells.lr_xy),
            "hr_patches": int(cells.child_mask.sum()),
            "source": job.source(),
            "picture": likeness.fingerprint(whole.thumbnail, whole.mask),
            "remarks": list(remarks(slide, found, cells)),
            "seconds": planned + seconds * len(cells.lr_xy),
            "bytes": size * len(cells.lr_xy),
        }


def remarks(slide: Slide, found: Tissue, cells: Lattice) -> Iterator[Remark]:
    """What of a slide that can be used is still unusual."""
    for note in slide.notes:
        yield Remark(note, _LOOK)
    for fault in pyramid.faults(slide, found.thumbnail, found.downsample):
        yield Remark(fault, "write its pyramid anew (vips tiffsave --tile --pyramid), or leave "
                     "the slide out")  # fmt: skip
    if found.unreadable:
        yield Remark(f"{len(found.unreadable)} blocks cannot be decoded", "copy the file again")
    yield from _of_tissue(found)
    if len(cells) < _FEW_PATCHES:
        yield Remark(f"{len(cells)} LR patches only",
                     f"{_LOOK}; lower prepare.min_tissue if tissue is missed")  # fmt: skip


def _of_tissue(found: Tissue) -> Iterator[Remark]:
    findings, share = found.findings, float(found.mask.mean())
    glass = findings.glass
    if not glass.share:
        yield Remark("no bare glass was found in it, so its colour is assumed",
                     f"{_LOOK}; set prepare.tissue_threshold if glass is taken for "
                     "tissue")  # fmt: skip
    elif max(glass.centre) - min(glass.centre) > _TINT:
        yield Remark(f"its glass is coloured, RGB {glass.centre}",
                     "look whether other slides of its class have such glass: a model may learn "
                     "it")  # fmt: skip
    if glass.share and findings.threshold <= findings.weakest:
        yield Remark("some of what is called tissue is hardly more coloured than the glass",
                     f"{_LOOK}; set prepare.tissue_threshold above {findings.threshold:.0f} if "
                     "glass is taken for tissue")  # fmt: skip
    if findings.ink_share(found.mask) > _MUCH_INK:
        yield Remark(f"{findings.ink_share(found.mask):.0%} of what is coloured was taken for ink",
                     f"{_LOOK} (violet); if it is stain, set prepare.ink=False")  # fmt: skip
    if share < _LITTLE_TISSUE:
        yield Remark(f"{share:.2%} of it is tissue",
                     f"{_LOOK}; lower prepare.tissue_threshold (now {findings.threshold:.0f}) if "
                     "tissue is missed")  # fmt: skip


def _draw(pictures: Path | None, slide_id: str, found: Tissue, cells: Lattice | None) -> None:
    if pictures is None:
        return
    small = found.reduced(max(1, -(-max(found.mask.shape) // _PICTURE_PX)))
    with files.atomic_path(pictures / f"{slide_id}.jpg") as path, path.open("wb") as file:
        picture = Image.fromarray(np.ascontiguousarray(tissue.overlay(small, cells)))
        picture.save(file, "JPEG", quality=85)
