"""Another tool's features taken over: megabytes a second beside the disk's own, and memory.

TRIDENT's files (one row a chunk, or in one piece with --contiguous) are read, checked, brought to
float16 and onto a lattice, and written as ArrayRecord. Beside it, in turns, the same bytes are only
read, and half as many written and synced: nothing that converts can be faster. Memory is the
peak of the process, after a few files and after all of them.

    python scripts/bench_features.py --files 40 --patches 10000 --width 1024
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from lrmil_jax.data.schema import Geometry
from lrmil_jax.data.slide_jobs import TilingSettings
from lrmil_jax.interchange import registry
from lrmil_jax.interchange.slides import BagFile, FeatureJob
from lrmil_jax.interchange.take_over import TakeOver, take_over

SIDE = 512
FEW = 5


def write_file(path: Path, patches: int, width: int, *, contiguous: bool, seed: int) -> None:
    """One file as TRIDENT writes it; values differ between files."""
    columns = int(np.ceil(np.sqrt(patches)))
    v, u = np.divmod(np.arange(patches), columns)
    values = np.random.default_rng(seed).standard_normal((patches, width), dtype=np.float32)
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=values, chunks=None if contiguous else (1, width))
        coords = file.create_dataset("coords", data=np.stack([u, v], 1).astype(np.int64) * SIDE)
        coords.attrs.update(
            {"patch_size": 256, "patch_size_level0": SIDE, "level0_magnification": 40,
             "target_magnification": 20, "overlap": 0}
        )  # fmt: skip


def task_of(path: Path, folder: Path, target: Path) -> TakeOver:
    """The job that `import_features` gives to a process."""
    layout = registry.of_folder(folder)
    geometry = Geometry(hr_mpp=0.5, lr_mpp=2.0, patch_px=256)
    job = FeatureJob(
        path.stem,
        path,
        None,
        target,
        TilingSettings(geometry),
        {"hr": BagFile(layout, folder, path)},
    )
    files = {"hr": target / f"{path.stem}.array_record"}
    return TakeOver(job, files, None, "float16", 1024)


def disk(path: Path, target: Path) -> None:
    """The file's bytes read, and half of them written and synced."""
    content = path.read_bytes()
    with open(target / "raw", "wb") as file:
        file.write(content[: len(content) // 2])
        file.flush()
        os.fsync(file.fileno())


def forget_pages(path: Path) -> None:
    """So that both read from the disk, not from memory."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def peak_mib() -> float:
    """Of this process, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Makes one file after the other, takes it over, and removes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=40)
    parser.add_argument("--patches", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--contiguous", action="store_true")
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to be measured")
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {"disk": [], "import": []}
    cpu: dict[str, list[float]] = {"disk": [], "import": []}
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder, target = Path(scratch) / "features", Path(scratch) / "out"
        folder.mkdir()
        target.mkdir()
        for number in range(options.files):
            path = folder / f"s{number}.h5"
            write_file(path, options.patches, options.width, contiguous=options.contiguous,
                       seed=number)  # fmt: skip
            os.sync()
            work = {
                "disk": lambda path=path: disk(path, target),
                "import": lambda path=path: take_over(task_of(path, folder, target)),
            }
            for name in sorted(work, reverse=bool(number % 2)):
                forget_pages(path)
                start, busy = time.perf_counter(), time.process_time()
                reason = work[name]()
                seconds[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - busy)
                if reason:
                    raise SystemExit(reason)
            path.unlink()
            if number + 1 == FEW:
                few = peak_mib()
    megabytes = options.patches * options.width * 4 / 1e6
    for name, values in seconds.items():
        middle = float(np.median(values))
        rate, busy = megabytes / middle, float(np.median(cpu[name]))
        print(f"{name:8s} {1000 * middle:7.0f} ms a file of {megabytes:.0f} MB, "
              f"{rate:6.0f} MB/s, {busy:.2f} s of one core")  # fmt: skip
    ratio = np.median(np.array(seconds["import"]) / np.array(seconds["disk"]))
    print(f"import takes {ratio:.2f} times as long as reading and writing alone (median of pairs)")
    print(
        f"peak memory {few:.0f} MiB after {FEW} files, {peak_mib():.0f} MiB after {options.files}"
    )


if __name__ == "__main__":
    main()
