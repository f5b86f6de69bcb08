"""Seconds to prepare a slide that is stored in strips of one row, beside the same in tiles.

Both are LZW files of one level, as export functions of viewers and conversion tools write them, and
are prepared by the pipeline's own worker function, in a process each.

  python scripts/bench_strips.py [--width 36000] [--height 10000]

Target: strips / tiles <= 4.
"""

import argparse
import concurrent.futures
import multiprocessing
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile

from lrmil_jax.data.regions import tile_slide
from lrmil_jax.data.schema import Geometry
from lrmil_jax.data.slide_jobs import SlideJob, TilingSettings

LAYOUTS = {"tiles": {"tile": (256, 256)}, "strips": {"rowsperstrip": 1}}
GEOMETRY = Geometry(hr_mpp=0.5, lr_mpp=2.0, patch_px=256)


def make_image(width: int, height: int) -> np.ndarray:
    """A block of coloured noise, as compressible as tissue, with a white rim of a sixth."""
    grains = np.random.default_rng(0).integers(0, 40, (128, width // 8 + 1, 3), dtype=np.uint8)
    band = (200, 120, 190) - np.kron(grains, np.ones((8, 8, 1), np.uint8))[:, :width]
    image = np.full((height, width, 3), 245, np.uint8)
    left, top = width // 6, height // 6
    for y in range(top, height - top, len(band)):
        rows = min(len(band), height - top - y)
        image[y : y + rows, left : width - left] = band[:rows, left : width - left]
    return image


def prepare(path: Path, folder: Path) -> float:
    """Seconds of the pipeline's own preparation."""
    start = time.perf_counter()
    status = tile_slide(SlideJob("s", path, None, folder, TilingSettings(geometry=GEOMETRY)))
    if status["status"] != "ok":
        raise SystemExit(status["reason"])
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=36000)
    parser.add_argument("--height", type=int, default=10000)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench_strips_"))
    image, seconds = make_image(args.width, args.height), {}
    try:
        for name, layout in LAYOUTS.items():
            path = folder / f"{name}.tif"
            options = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
            options |= {"compression": "lzw", "photometric": "rgb", "metadata": None}
            tifffile.imwrite(path, image, bigtiff=True, **options, **layout)
            context = multiprocessing.get_context("spawn")
            with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
                pool.submit(time.sleep, 0).result()
                seconds[name] = pool.submit(prepare, path, folder / name).result()
            print(f"{name:7s} {seconds[name]:8.1f} s", flush=True)
        print(f"strips / tiles {seconds['strips'] / seconds['tiles']:.2f}   (target 4)")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
