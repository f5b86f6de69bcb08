"""Tiles per second of slide preparation against a bare openslide read + JPEG encode.

Both walk over the same area: the high-resolution tiles of every low-resolution cell. "bare" reads
them one by one with openslide and encodes each as JPEG: no tissue, no resampling, no low-resolution
tile, and nothing is written. "prepare" is the whole preparation of the slide by the pipeline's own
worker function. Rounds alternate in one run, and ratios are of medians. Then the same slides by one
process and by two.

  python scripts/bench_tiling.py [--slide FILE] [--mpp 0.5] [--rounds 3]

Needs the openslide extra. Targets: prepare / bare >= 0.8, two processes / one >= 1.7.
"""

import argparse
import concurrent.futures
import io
import multiprocessing
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import openslide

from lrmil_jax.data.regions import tile_slide
from lrmil_jax.data.schema import Geometry
from lrmil_jax.data.slide_jobs import SlideJob, TilingSettings
from lrmil_jax.slides import lattice, open_slide, synthetic, tissue

GEOMETRY = Geometry(hr_mpp=0.5, lr_mpp=2.0, patch_px=256)


def make_slide(path: Path, *, size_px: int, mpp: float) -> None:
    """A pyramid of procedural tissue; one 2,048 px field, repeated."""
    field, _ = synthetic.tissue_image(np.random.default_rng(0), size_px=2048, positive=True)
    repeats = -(-size_px // 2048)
    image = np.tile(field, (repeats, repeats, 1))[:size_px, :size_px]
    synthetic.write_slide(path, image, mpp=mpp, levels=(1, 4, 16))


def tiles_of(path: Path) -> tuple[np.ndarray, int]:
    """(x, y) of the tiles of all cells, and their side in level-0 pixels."""
    with open_slide(path) as slide:
        cells = lattice.build(
            slide,
            hr_mpp=GEOMETRY.hr_mpp,
            lr_mpp=GEOMETRY.lr_mpp,
            patch_px=GEOMETRY.patch_px,
            tissue=tissue.detect(slide),
        )
    return cells.child_xy.reshape(-1, 2), cells.child_side


def bare(path: Path, tiles: np.ndarray, side: int) -> float:
    """Seconds of openslide + JPEG."""
    start = time.perf_counter()
    with openslide.OpenSlide(path) as slide:
        for x, y in tiles:
            tile = slide.read_region((int(x), int(y)), 0, (side, side)).convert("RGB")
            tile.save(io.BytesIO(), "JPEG", quality=90)
    return time.perf_counter() - start


def job_for(path: Path, folder: Path, number: int = 0) -> SlideJob:
    settings = TilingSettings(geometry=GEOMETRY)
    return SlideJob(f"slide_{number}", path, None, folder, settings)


def prepare(path: Path, folder: Path) -> float:
    """Seconds of the pipeline's own preparation."""
    start = time.perf_counter()
    status = tile_slide(job_for(path, folder))
    seconds = time.perf_counter() - start
    if status["status"] != "ok":
        raise SystemExit(status["reason"])
    return seconds


def in_processes(path: Path, folder: Path, *, workers: int, slides: int) -> float:
    """Seconds for `slides` preparations over `workers` processes, without starting them."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        warm = [pool.submit(time.sleep, 1.0) for _ in range(workers)]
        list(pool.map(tile_slide, [job_for(path, folder, n) for n in range(workers)]))
        [future.result() for future in warm]
        start = time.perf_counter()
        list(pool.map(tile_slide, [job_for(path, folder, n) for n in range(slides)]))
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slide", type=Path, help="a slide; by default one is made")
    parser.add_argument("--size_px", type=int, default=8192, help="side of the slide that is made")
    parser.add_argument("--mpp", type=float, default=0.5, help="um/px of the slide that is made")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench_tiling_"))
    try:
        path = args.slide
        if path is None:
            path = folder / "slide.tif"
            make_slide(path, size_px=args.size_px, mpp=args.mpp)
        measure(path, folder / "regions", rounds=args.rounds)
    finally:
        shutil.rmtree(folder)


def measure(path: Path, folder: Path, *, rounds: int) -> None:
    folder.mkdir()
    tiles, side = tiles_of(path)
    prepare(path, folder)  # warm: imports, page cache
    seconds = {"bare": [], "prepare": []}
    for _ in range(rounds):
        seconds["bare"].append(bare(path, tiles, side))
        seconds["prepare"].append(prepare(path, folder))
    rate = {name: len(tiles) / statistics.median(s) for name, s in seconds.items()}
    print(f"{path.name}: {len(tiles)} tiles of {side} px, median of {rounds} rounds")
    print(f"bare openslide + JPEG   {rate['bare']:8.1f} tiles/s")
    print(f"prepare                 {rate['prepare']:8.1f} tiles/s")
    print(f"prepare / bare          {rate['prepare'] / rate['bare']:8.2f}   (target 0.8)")
    slides = 4
    one, two = (in_processes(path, folder, workers=w, slides=slides) for w in (1, 2))
    print(f"one process             {slides * len(tiles) / one:8.1f} tiles/s")
    print(f"two processes           {slides * len(tiles) / two:8.1f} tiles/s")
    print(f"two / one               {one / two:8.2f}   (target 1.7)")


if __name__ == "__main__":
    main()
