"""Labelled slides and tiles of procedural tissue: for tests, quickstart and the miniature.

The task can be seen in fine form alone. Tumour and benign epithelium have the same amount of
nuclei, ink and colour; a tumour nucleus carries one large nucleolus where a benign one carries five
granules of the same total area and depth, and tumour nuclei vary more in size at the same mean
area. Positive slides hold a few small clumps of tumour inside their epithelium.
"""

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tifffile
from jaxtyping import Bool, Integer, UInt8
from PIL import Image

from lrmil_jax.errors import DataError
from lrmil_jax.files import atomic_path, write_json, write_text
from lrmil_jax.slides import outcomes
from lrmil_jax.slides.morphology import CAPTIONS
from lrmil_jax.slides.procedural import TISSUES, paint, random_map, slide_map

LABELS = ("benign", "tumour")
_COLUMNS = ("slide_id", "patient_id", "label", "path")
_FORMAT = 1  # of a cohort on disk; raise it when the same seed gives other slides


def tissue_image(
    rng: np.random.Generator, *, size_px: int, positive: bool, background: float | int = 0.0
) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
    """A slide's pixels at 0.5 um/px, and where its tumour is.

    Args:
      rng: the same generator state gives the same slide.
      size_px: side in pixels, at least 256; high-resolution patches are meant to be 64 px.
      positive: whether 5-10 % of the tissue is turned into tumour, in 1-3 clumps.
      background: share of the slide that is left as empty glass, from 0 to 0.9.
    """
    if size_px < 256 or not 0 <= background <= 0.9:
        raise ValueError(f"size_px {size_px} (>= 256) or background {background} (0 to 0.9)")
    # Streams of their own, so that the label does not change the stain of the same seed.
    map_rng, paint_rng = rng.spawn(2)
    tissue = slide_map(map_rng, size_px=size_px, positive=positive, background=background)
    return paint(paint_rng, tissue), tissue == TISSUES.index("tumour")


def write_slide(
    path: str | Path,
    image: UInt8[np.ndarray, "h w 3"],
    *,
    mpp: float | int,
    levels: Sequence[int] = (1, 4),
    tile: int = 256,
    quality: int = 90,
) -> None:
    """Write a pyramidal, tiled JPEG TIFF that tifffile and openslide open with its um/px.

    The file appears under its name when it is whole.

    Args:
      path: the file to write.
      image: level 0.
      mpp: um/px of level 0.
      levels: whole-number downsamples, starting with 1; (1,) for a single-level file.
      tile: tile side in pixels, a multiple of 16.
      quality: JPEG quality.
    """
    if not levels or levels[0] != 1:
        raise ValueError(f"levels {tuple(levels)} must start with 1")
    bigtiff = image.nbytes > 2**31
    with atomic_path(path) as part, tifffile.TiffWriter(part, bigtiff=bigtiff) as writer:
        for downsample in levels:
            per_cm = 1e4 / (mpp * downsample)
            writer.write(
                reduced(image, downsample),
                photometric="rgb",  # of the input; JPEG stores it as YCbCr
                subsampling=(1, 1),  # full colour: at low power nuclei are 4 px wide
                compression="jpeg",
                compressionargs={"level": quality},
                tile=(tile, tile),
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                subfiletype=int(downsample > 1),  # a reduced image: a level of the pyramid
                metadata=None,
            )


def write_cohort(
    folder: str | Path,
    *,
    seed: int,
    slides: int,
    size_px: int = 1024,
    mpp: float | int = 0.5,
    background: float | int = 0.0,
    slides_per_patient: int = 1,
    levels: Sequence[int] = (1, 4),
    run: Callable[[Callable[[dict], None], list[dict]], object] | None = None,
) -> Path:
    """Write a labelled cohort, half of it positive; what is there already is kept.

    The folder gets `slides/<slide_id>.tif`, `masks/<slide_id>.png` (tumour white) and `labels.csv`
    with slide_id, patient_id, label ("benign" or "tumour"), path (inside `slides`) and what other
    tasks ask for (`outcomes.of_slides`).

    Args:
      folder: where to write.
      seed: slide i depends on (seed, i) alone.
      slides: number of slides.
      size_px: side of a slide.
      mpp: um/px written into the files; the tissue is drawn for 0.5.
      background: see `tissue_image`.
      slides_per_patient: consecutive slides of one label that share a patient.
      levels: see `write_slide`.
      run: calls a function of each of a list of jobs, perhaps in processes; default: in turn.

    Returns:
      The path of labels.csv.

    Raises:
      DataError: the folder holds a cohort made with other arguments.
    """
    folder = Path(folder)
    recipe = {
        "format": _FORMAT,
        "seed": seed,
        "slides": slides,
        "size_px": size_px,
        "mpp": mpp,
        "background": background,
        "slides_per_patient": slides_per_patient,
        "levels": list(levels),
    }
    _record_recipe(folder, recipe)
    for name in ("slides", "masks"):
        (folder / name).mkdir(exist_ok=True)
    patients = np.arange(slides) // slides_per_patient
    jobs = []
    for i, patient in enumerate(patients.tolist()):
        slide_id = f"slide_{i:04d}"
        if not (folder / "slides" / f"{slide_id}.tif").exists():
            jobs.append({"folder": folder, "slide_id": slide_id, "seed": [seed, i],
                         "positive": patient % 2 == 1, "size_px": size_px, "mpp": mpp,
                         "background": background, "levels": levels})  # fmt: skip
    if run is not None:
        run(_write_one, jobs)
    else:
        for job in jobs:
            _write_one(job)
    labels = folder / "labels.csv"
    # Every run asks for its cohort: the masks are not read again for a table that is there.
    if jobs or not _has_outcomes(labels):
        _write_labels(labels, patients, seed=seed)
    return labels


def _has_outcomes(labels: Path) -> bool:
    if not labels.is_file():
        return False
    with labels.open(encoding="utf-8") as file:
        return file.readline().rstrip("\n").split(",") == [*_COLUMNS, *outcomes.NAMES]


def _write_labels(labels: Path, patients: Integer[np.ndarray, " S"], *, seed: int) -> None:
    ids = [f"slide_{i:04d}" for i in range(len(patients))]
    burden = outcomes.burden(labels.parent / "masks" / f"{slide_id}.png" for slide_id in ids)
    columns = outcomes.of_slides(patients % 2 == 1, burden, patients, seed=seed)
    rows = [
        (slide_id, f"patient_{patient:04d}", LABELS[patient % 2], f"{slide_id}.tif", *outcome)
        for slide_id, patient, *outcome in zip(
            ids, patients, *(columns[name] for name in outcomes.NAMES), strict=True
        )
    ]
    _write_csv(labels, [(*_COLUMNS, *outcomes.NAMES), *rows])


def _write_one(job: dict) -> None:
    """One slide of a cohort with its mask; the slide comes last, so that one that is there has its
    mask."""
    image, lesion = tissue_image(
        np.random.default_rng(job["seed"]),
        size_px=job["size_px"],
        positive=job["positive"],
        background=job["background"],
    )
    folder, slide_id = job["folder"], job["slide_id"]
    _write_png(folder / "masks" / f"{slide_id}.png", lesion.astype(np.uint8) * 255)
    write_slide(folder / "slides" / f"{slide_id}.tif", image, mpp=job["mpp"], levels=job["levels"])


def write_tiles(
    folder: str | Path,
    *,
    seed: int,
    per_class: int,
    tile_px: int = 64,
    classes: Sequence[str] = TISSUES,
    scales: Sequence[int] = (1,),
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write labelled tiles with captions, kept apart from every slide of a cohort.

    Tiles are cut from many small fields, each with its own stain; at least 70 % of a tile is of
    its class. They are `<class>/<number>.png`, those of another scale than 1
    `<class>/scale_<scale>/<number>.png`; `captions.csv` has the columns class and caption. What is
    there already is kept.

    Args:
      folder: where to write.
      seed: a field depends on (seed, class, scale, field number) alone, by a stream apart from
        cohorts.
      per_class: tiles of each class, at each scale.
      tile_px: side of a tile in pixels.
      classes: names out of stroma, lymphoid, fat, benign, tumour.
      scales: 1 shows 0.5 um/px; s shows a field s times as wide, reduced as a slide's levels are.
      progress: called with (done, total) after each tile.

    Returns:
      The folder.

    Raises:
      DataError: unknown classes or scales, or the folder holds tiles made with other arguments.
    """
    _check_tiles(classes, scales)
    folder = Path(folder)
    recipe = {"format": _FORMAT, "seed": seed, "per_class": per_class, "tile_px": tile_px}
    _record_recipe(folder, recipe | {"classes": list(classes), "scales": list(scales)})
    total = per_class * len(classes) * len(scales)
    done = 0
    for name in classes:
        for scale in scales:
            target = folder / name if scale == 1 else folder / name / f"scale_{scale}"
            target.mkdir(parents=True, exist_ok=True)
            tiles = _tiles(seed, TISSUES.index(name), tile_px, scale)
            for number, tile in enumerate(itertools.islice(tiles, per_class)):
                path = target / f"{number:05d}.png"
                if not path.exists():
                    _write_png(path, tile)
                if progress is not None:
                    progress(done + number + 1, total)
            done += per_class
    rows = [(name, caption) for name in classes for caption in CAPTIONS[name]]
    _write_csv(folder / "captions.csv", [("class", "caption"), *rows])
    return folder


def _check_tiles(classes: Sequence[str], scales: Sequence[int]) -> None:
    unknown = sorted(set(classes) - set(TISSUES))
    if unknown:
        raise DataError(f"tile classes {unknown} are unknown; use {', '.join(TISSUES)}.")
    if (
        not scales
        or len(set(scales)) < len(scales)
        or not all(1 <= scale <= 16 for scale in scales)
    ):
        raise DataError(
            f"tile scales {tuple(scales)} cannot be; use different whole numbers from 1 to 16, "
            "such as (1, 4)."
        )


def _tiles(seed: int, kind: int, tile_px: int, scale: int) -> Iterator[UInt8[np.ndarray, "t t 3"]]:
    """Tiles of one kind without end, field after field."""
    # A wide field has more room in a tile; few tiles of each keep as many stains.
    across = 4 if scale == 1 else 2
    for field in itertools.count():
        entropy = [seed, 2**31 + kind, field]
        rng = np.random.default_rng(entropy if scale == 1 else [*entropy, scale])
        yield from _field_tiles(rng, kind, tile_px, across=across, scale=scale)


def _field_tiles(
    rng: np.random.Generator, kind: int, tile_px: int, *, across: int, scale: int
) -> list[UInt8[np.ndarray, "t t 3"]]:
    """The tiles of one field that are mostly of `kind`; a field is `across` tiles wide."""
    side = tile_px * scale
    tissue = random_map(rng, size_px=across * side, main=kind)
    image = paint(rng, tissue)
    tiles = []
    for y in range(0, across * side, side):
        for x in range(0, across * side, side):
            window = slice(y, y + side), slice(x, x + side)
            if np.mean(tissue[window] == kind) >= 0.7:
                tiles.append(reduced(image[window], scale))
    return tiles


def reduced(image: UInt8[np.ndarray, "h w 3"], downsample: int) -> UInt8[np.ndarray, "_ _ 3"]:
    """The image at a coarser level: means of whole squares, as `write_slide` makes its levels."""
    return image if downsample == 1 else np.asarray(Image.fromarray(image).reduce(downsample))


def _record_recipe(folder: Path, recipe: dict) -> None:
    """Note how the folder was made, or check that it was made so."""
    file = folder / "synthetic.json"
    if file.exists():
        recorded = json.loads(file.read_text())
        if recorded != recipe:
            raise DataError(
                f"{folder} holds synthetic data made with {recorded}, not {recipe}; use another "
                "folder or delete this one."
            )
        return
    write_json(file, recipe)


def _write_csv(path: Path, rows: Sequence[tuple[str, ...]]) -> None:
    table = io.StringIO(newline="")
    csv.writer(table, lineterminator="\n").writerows(rows)
    write_text(path, table.getvalue())


def _write_png(path: Path, pixels: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    _write(path, buffer.getvalue())


def _write(path: Path, data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
