"""Peak memory of one process on a 100,000 x 100,000 px slide: open, tissue, lattice, patches.

Writes two slides of mostly glass with islands of tissue, one with a single level and one with a
pyramid, and measures each in a process of its own. The files are small: equal tiles share their
bytes.

  python scripts/bench_memory.py [--size_px 100000] [--cells 200]

Target: at most 1.5 GiB peak.
"""

import argparse
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from lrmil_jax.slides import lattice, open_slide, synthetic, tissue

TILE = 256
LEVELS = {"one_level": (1,), "pyramid": (1, 4, 16, 64)}


def islands(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Islands of tissue over about a quarter of the slide; u and v run from 0 to 1."""
    return np.sin(13 * u) * np.sin(11 * v) > 0.5


def write_slide(
    path: Path,
    *,
    size_px: int,
    levels: tuple[int, ...],
    mpp: float = 0.25,
    island: Callable[[np.ndarray, np.ndarray], np.ndarray] = islands,
) -> None:
    """A slide whose tissue tiles (where `island` says so) all point to a few tiles in the file."""
    field, _ = synthetic.tissue_image(np.random.default_rng(0), size_px=1024, positive=True)
    glass = np.full((TILE, TILE, 3), 244, np.uint8)
    tissue_tiles = [field[y : y + TILE, x : x + TILE] for y in (0, 256, 512) for x in (0, 256, 512)]
    data = [_jpeg(tile) for tile in (glass, *tissue_tiles)]
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for downsample in levels:
            per_cm = 1e4 / (mpp * downsample)
            writer.write(
                iter(data),
                shape=(TILE, len(data) * TILE, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="jpeg",
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                subfiletype=int(downsample > 1),
                metadata=None,
            )
    cells = -(-size_px // (levels[-1] * TILE))  # islands of whole tiles of the coarsest level
    for number, downsample in enumerate(levels):
        _enlarge(path, number, -(-size_px // downsample), cells, island)


def _jpeg(tile: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "JPEG", quality=90, subsampling=0)
    return buffer.getvalue()


def _enlarge(path: Path, number: int, size_px: int, cells: int, island: Callable) -> None:
    """Give page `number` its full size: a grid of pointers to the tiles that it holds. All levels
    have their tissue in the same ones of `cells` by `cells` places."""
    across = -(-size_px // TILE)
    v, u = np.mgrid[:across, :across] * cells // across / cells
    kind = (
        island(u, v).astype(int) * (1 + np.arange(across**2).reshape(across, across) % 9)
    ).ravel()
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tags = tiff.pages[number].tags
        offsets, counts = (np.array(tags[name].value) for name in ("TileOffsets", "TileByteCounts"))
        tags["TileOffsets"].overwrite([int(n) for n in offsets[kind]])
        tags["TileByteCounts"].overwrite([int(n) for n in counts[kind]])
        tags["ImageWidth"].overwrite(size_px)
        tags["ImageLength"].overwrite(size_px)


def measure(path: Path, cells: int) -> None:
    """What `prepare` does to a slide, apart from writing; prints seconds and peak memory."""
    start = time.perf_counter()
    with open_slide(path) as slide:
        found = tissue.detect(slide)
        seen = time.perf_counter()
        grid = lattice.build(slide, hr_mpp=0.5, lr_mpp=2.0, patch_px=256, tissue=found)
        tissue.overlay(found, grid)
        for index in np.linspace(0, len(grid) - 1, min(cells, len(grid))).astype(int):
            slide.read(grid.lr_xy[index], 4 * 256, grid.lr_side)
            slide.read(grid.lr_xy[index], 256, grid.lr_side)
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 2**20
    print(
        f"{path.stem:10s} {slide.dimensions[0]:,} px: tissue {seen - start:.1f} s, "
        f"{found.mask.mean():.0%}; {len(grid):,} cells, {cells} read in "
        f"{time.perf_counter() - seen:.1f} s; peak {peak:.2f} GiB   (target 1.5)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size_px", type=int, default=100_000)
    parser.add_argument("--cells", type=int, default=200, help="low-resolution cells to read")
    parser.add_argument("--measure", type=Path, help="measure this slide and end")
    args = parser.parse_args()
    if args.measure is not None:
        measure(args.measure, args.cells)
        return
    with tempfile.TemporaryDirectory(prefix="bench_memory_") as folder:
        for name, levels in LEVELS.items():
            path = Path(folder) / f"{name}.tif"
            write_slide(path, size_px=args.size_px, levels=levels)
            command = [sys.executable, __file__, "--measure", path, "--cells", str(args.cells)]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
