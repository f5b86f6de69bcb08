"""One slide into its regions: tissue, lattice, and one record per LR patch, its HR children beside.

This module runs in worker processes, one slide each, so it imports no JAX, and its memory is
bounded by one region whatever the slide's size.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

import imagecodecs
import numpy as np
from jaxtyping import UInt8

from lrmil_jax import files, storage
from lrmil_jax.data import writer
from lrmil_jax.data.schema import Geometry, mosaic_features, region_features
from lrmil_jax.data.slide_jobs import SlideJob, TilingSettings
from lrmil_jax.errors import SlideError, TileError, WorkdirError
from lrmil_jax.slides import Slide, annotations, lattice, likeness, tissue


@dataclasses.dataclass
class SlidePlan:
    """An open slide with its tissue and lattice: all that is known before patches are read; no
    tissue where another tool has chosen the patches. By its picture a slide is known again under
    another name or compression (`slides.likeness`)."""

    slide: object
    tissue: tissue.Tissue | None
    lattice: lattice.Lattice
    picture: str
    seconds: float


def plan_slide(job: SlideJob, *, high_resolution: bool = True) -> SlidePlan:
    """Opens a slide and finds its LR patches, at low power alone.

    Args:
      job: the slide.
      high_resolution: HR patches will be read; without them a slide scanned at LR will do.

    Raises:
      SlideError: the slide cannot be opened, has no usable um/px, no tissue, or is too small.
    """
    start = time.perf_counter()
    slide = open_at(job, high_resolution=high_resolution)
    try:
        whole = tissue.detect(slide, job.settings.tissue_rule)
        found = annotations.inside(whole, slide, job.annotations)
        cells = lay_lattice(slide, found, job.settings)
    except BaseException:
        slide.close()
        raise
    picture = likeness.fingerprint(whole.thumbnail, whole.mask)
    return SlidePlan(slide, found, cells, picture, time.perf_counter() - start)


def open_at(job: SlideJob, *, high_resolution: bool = True) -> Slide:
    """Opens a slide that can give patches of the job's geometry; see `plan_slide`."""
    slide, settings = job.open(), job.settings
    name, mpp = (
        ("HR", settings.geometry.hr_mpp) if high_resolution else ("LR", settings.geometry.lr_mpp)
    )
    try:
        lattice.check_resolution(
            slide, mpp, name, upsample=settings.upsample, of_model=job.of_model
        )
    except BaseException:
        slide.close()
        raise
    return slide


def lay_lattice(slide: Slide, found: tissue.Tissue, settings: TilingSettings) -> lattice.Lattice:
    """The LR patches of a slide.

    Raises:
      SlideError: there are none.
    """
    geometry = settings.geometry
    return lattice.build(
        slide,
        hr_mpp=geometry.hr_mpp,
        lr_mpp=geometry.lr_mpp,
        patch_px=geometry.patch_px,
        tissue=found,
        min_tissue=settings.min_tissue,
    )


def identify_slide(job: SlideJob) -> dict:
    """By what a slide is known again, as a status has it; without `picture` where it cannot be
    opened, and without `source` where it is not there. Never raises for a bad slide."""
    if not storage.exists(job.path):
        return {"source": None}
    facts = {"source": job.source()}
    try:
        plan = plan_slide(job, high_resolution=False)
    except Exception:  # what is wrong with it is told where it is read
        return facts
    with plan.slide:
        return facts | {"picture": plan.picture}


def tile_slide(job: SlideJob) -> dict:
    """Writes one slide's regions, tissue mask and overlay; never raises for a bad slide.

    Returns:
      The status that is also kept in `<slide_id>.json`: counts, um/px, seconds per phase, regions
      that could not be decoded; or `status: "failed"` with the reason.

    Raises:
      WorkdirError: the disk is full or read-only, which concerns every slide.
    """
    return attempt(job, _tile)


def attempt(job: SlideJob, work: Callable[[SlideJob], dict]) -> dict:
    """What `work` finds out of a slide is kept as its status; a bad slide fails, and never raises.

    Raises:
      WorkdirError: the disk is full or read-only, which concerns every slide.
    """
    try:
        status = work(job)
    except WorkdirError:
        raise
    except SlideError as error:
        return fail(job, str(error))
    except Exception as error:  # one slide's surprise must not stop the others
        return fail(job, f"{type(error).__name__}: {error}")
    if not job.settings.with_hr:
        job.mosaics.unlink(missing_ok=True)
    return _keep_status(job, status)


def fail(job: SlideJob, reason: str) -> dict:
    """Notes that a slide cannot be used, and why; takes away what there is of it."""
    job.shard.unlink(missing_ok=True)
    job.mosaics.unlink(missing_ok=True)
    return _keep_status(job, {"status": "failed", "reason": reason})


def lost(job: SlideJob, reason: str) -> dict:
    """Notes that the process that read a slide was lost, and why; see `fail`."""
    return fail(job, f"{job.path}: {reason}")


def _keep_status(job: SlideJob, status: dict) -> dict:
    status |= {"slide_id": job.slide_id, "path": storage.shown(job.path)}
    status["source"] = job.source() if storage.exists(job.path) else None
    files.write_json(job.status_path, status)
    return status


def _tile(job: SlideJob) -> dict:
    return write_planned(job, plan_slide(job))


def write_planned(job: SlideJob, plan: SlidePlan) -> dict:
    """Writes the regions of an open slide, and closes it.

    Returns:
      The slide's status, see `tile_slide`.

    Raises:
      SlideError: none of the patches could be decoded.
    """
    settings, start = job.settings, time.perf_counter()
    unreadable: list[dict] = [
        {"what": "thumbnail", "xy": [int(x), int(y)], "side": int(side)}
        for x, y, side in (plan.tissue.unreadable if plan.tissue is not None else ())
    ]
    with plan.slide as slide:
        if plan.tissue is not None:
            _write_pictures(job, plan)
        examples = (
            region(slide, plan.lattice, index, settings, unreadable)
            for index in range(len(plan.lattice.lr_xy))
        )
        regions, children = _write_regions(job, (one for one in examples if one is not None))
    if regions == 0 or (settings.with_hr and children == 0):
        raise SlideError(f"{job.path}: none of its patches could be decoded")
    return {
        "status": "ok",
        "reason": "",
        "mpp": slide.mpp,
        "mpp_source": slide.mpp_source,
        "objective": slide.objective,
        "reader": slide.reader,
        "dimensions": [int(side) for side in slide.dimensions],
        "bounds": slide.bounds,
        "notes": list(slide.notes),
        "lr_patches": regions,
        "hr_patches": children,
        "hr": settings.with_hr,
        "picture": plan.picture,
        "unreadable": unreadable,
        "seconds": {
            "open_tissue": round(plan.seconds, 4),
            "read_write": round(time.perf_counter() - start, 4),
        },
    }


def _write_regions(job: SlideJob, examples: Iterator[dict]) -> tuple[int, int]:
    """Writes tiles and mosaics side by side; the numbers of LR patches and of their children."""
    regions = children = 0
    geometry = job.settings.geometry
    with contextlib.ExitStack() as stack:
        # Left in the other order: where the tiles' file is, the mosaics' is whole.
        write_tile = stack.enter_context(writer.record_writer(job.shard, region_features(geometry)))
        write_mosaic = None
        if job.settings.with_hr:
            features = mosaic_features(geometry)
            write_mosaic = stack.enter_context(writer.record_writer(job.mosaics, features))
        for example in examples:
            example["slide_id"] = job.slide_id
            mosaic, tile = example.pop("hr", None), example.pop("lr")
            write_tile(example | {"lr": tile})
            if write_mosaic is not None:
                write_mosaic(example | {"hr": mosaic})
            regions += 1
            children += int(example["child_mask"].sum())
    return regions, children


def _write_pictures(job: SlideJob, plan: SlidePlan) -> None:
    pictures = {
        "mask": plan.tissue.mask.astype(np.uint8) * 255,
        "overlay": tissue.overlay(plan.tissue, plan.lattice),
    }
    for name, picture in pictures.items():
        with files.atomic_path(job.folder / "tissue" / f"{job.slide_id}-{name}.png") as path:
            path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(picture)))


def region(
    slide, cells: lattice.Lattice, index: int, settings: TilingSettings, unreadable: list[dict]
) -> dict | None:
    """One record; None when the LR tile itself cannot be decoded (listed in `unreadable`)."""
    geometry = settings.geometry
    xy = tuple(int(value) for value in cells.lr_xy[index])
    mask = cells.child_mask[index].copy()
    example = {}
    if settings.with_hr:
        mosaic = read_mosaic(
            slide,
            lr_xy=cells.lr_xy[index],
            lr_side=cells.lr_side,
            geometry=geometry,
            mask=mask,
            unreadable=unreadable,
        )
        example["hr"] = imagecodecs.jpeg8_encode(mosaic, level=settings.jpeg_quality)
    try:
        tile = slide.read(xy, geometry.patch_px, cells.lr_side)
    except TileError:
        unreadable.append({"what": "lr", "xy": list(xy), "side": cells.lr_side})
        return None
    return example | {
        "index": index,
        # Stored, not deflated: tissue shrinks by a third only, and a stored tile decodes four times
        # faster, which is most of what an example of stage 1 costs.
        "lr": imagecodecs.png_encode(tile, level=0),
        "lr_xy": cells.lr_xy[index].astype(np.int32),
        "lr_side": cells.lr_side,
        "child_mask": mask,
    }


def read_mosaic(
    slide,
    *,
    lr_xy: np.ndarray,
    lr_side: int,
    geometry: Geometry,
    mask: np.ndarray,
    unreadable: list[dict],
) -> np.ndarray:
    """The HR pixels of one LR patch, [r*px, r*px, 3], read as one block.

    A block that cannot be decoded is read child by child; a child that cannot is masked in `mask`
    (in place), listed in `unreadable` and left white.
    """
    px, ratio = geometry.patch_px, geometry.ratio
    x, y = (int(value) for value in lr_xy)
    try:
        return slide.read((x, y), px * ratio, lr_side)
    except TileError:
        mosaic = np.full((px * ratio, px * ratio, 3), 255, np.uint8)
    side = lr_side // ratio
    for row, column in np.argwhere(mask):
        child = (x + int(column) * side, y + int(row) * side)
        place = np.s_[row * px : (row + 1) * px, column * px : (column + 1) * px]
        try:
            mosaic[place] = slide.read(child, px, side)
        except TileError:
            mask[row, column] = False
            unreadable.append({"what": "hr", "xy": list(child), "side": side})
    return mosaic


def cut_mosaic(
    mosaic: UInt8[np.ndarray, "side side 3"], ratio: int
) -> UInt8[np.ndarray, "r r px px 3"]:
    """Cuts the block of an LR patch into its r x r children, [row, column, y, x, channel]."""
    px = mosaic.shape[0] // ratio
    return mosaic.reshape(ratio, px, ratio, px, 3).swapaxes(1, 2)
