"""`prepare` from an S3 server on loopback against `prepare` from the local disk, in one run.

Rounds alternate; the staging folder is empty at the start of each, so every slide is fetched, but
for "fetched before", where a second preparation finds what the first has fetched. The ratio is of
medians. "one by one" is S3 without fetching ahead.

  python scripts/bench_storage.py [--slides 6] [--size_px 8192] [--rounds 3]

Needs the extra storage, and moto: pip install 'moto[s3,server]'.
"""

import argparse
import contextlib
import logging
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from bench_tiling import make_slide

from lrmil_jax import config as configuration
from lrmil_jax.stages import prepare
from lrmil_jax.workspace import cohorts, data_files


def serve(port: multiprocessing.Queue) -> None:
    """An S3 server, in a process of its own."""
    from moto.server import ThreadedMotoServer

    logging.disable(logging.WARNING)
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    port.put(server.get_host_and_port()[1])
    time.sleep(10**6)


@contextlib.contextmanager
def bucket_of(folder: Path) -> Iterator[None]:
    """s3://cohort with the files of a folder, where AWS_ENDPOINT_URL leads."""
    import s3fs

    context = multiprocessing.get_context("spawn")
    port = context.Queue()
    process = context.Process(target=serve, args=(port,), daemon=True)
    process.start()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port.get()}",
        "AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench",
    }  # fmt: skip
    bucket = s3fs.S3FileSystem()
    bucket.mkdir("cohort")
    bucket.put(f"{folder}/", "cohort/", recursive=True)
    try:
        yield
    finally:
        process.kill()


def make_cohort(folder: Path, *, slides: int, size_px: int) -> None:
    """`labels.csv` and copies of one slide, each its own bytes."""
    (folder / "slides").mkdir(parents=True)
    first = folder / "slides/s0.tif"
    make_slide(first, size_px=size_px, mpp=0.5)
    for number in range(1, slides):
        with open(shutil.copy(first, folder / f"slides/s{number}.tif"), "ab") as file:
            file.write(bytes([number]))
    rows = [
        f"s{n},p{n},{'ab'[n % 2]},{('train', 'val', 'test')[n // 2 % 3]}" for n in range(slides)
    ]
    (folder / "labels.csv").write_text("\n".join(["slide_id,patient_id,label,fold_1", *rows]))


def seconds(
    source: str, folder: Path, *, ahead: bool = True, fetched: bool = False
) -> tuple[float, float]:
    """Wall and CPU time of one preparation into an empty working directory, from an empty staging
    folder or with all `fetched`; `ahead` or without fetching ahead."""
    for name in ("run",) if fetched else ("run", "staging"):
        shutil.rmtree(folder / name, ignore_errors=True)
    config = configuration.default()
    config.update_from_flattened_dict(
        {"data.labels": f"{source}/labels.csv", "data.slides": f"{source}/slides",
         "data.staging": str(folder / "staging"), "data.leaks": "warn", "folds": 1,
         "prepare.workers": 1, "prepare.seconds_per_slide": 0.0}
    )  # fmt: skip
    cohorts.forget()
    usual = data_files.ahead
    data_files.ahead = usual if ahead else lambda config, paths: usual(config, [])
    start = time.perf_counter(), time.process_time()
    try:
        prepare.run(config, folder / "run")
    finally:
        data_files.ahead = usual
    return time.perf_counter() - start[0], time.process_time() - start[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slides", type=int, default=6, help="a multiple of 6")
    parser.add_argument("--size_px", type=int, default=8192, help="side of a slide")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # the slides are one slide
    folder = Path(tempfile.mkdtemp(prefix="bench_storage_"))
    try:
        make_cohort(folder / "cohort", slides=args.slides, size_px=args.size_px)
        with bucket_of(folder / "cohort"):
            measure(folder, slides=args.slides, rounds=args.rounds)
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, *, slides: int, rounds: int) -> None:
    """Rounds of all ways, each in another order, and their medians."""
    local, bucket = str(folder / "cohort"), "s3://cohort"
    ways = {
        "local": lambda: seconds(local, folder),
        "S3": lambda: seconds(bucket, folder),
        "S3, fetched before": lambda: (
            seconds(bucket, folder), seconds(bucket, folder, fetched=True)
        )[1],
        "S3, one by one": lambda: seconds(bucket, folder, ahead=False),
    }  # fmt: skip
    taken = {name: [] for name in ways}
    seconds(local, folder)  # warm: imports, page cache
    for turn in range(rounds):
        first = turn % len(ways)
        for name in [*list(ways)[first:], *list(ways)[:first]]:
            taken[name].append(ways[name]())
    size = sum(path.stat().st_size for path in (folder / "cohort/slides").iterdir())
    print(f"{slides} slides, {size / 1e6:.0f} MB, median of {rounds} rounds: wall, CPU")
    medians = {name: np.median(each, axis=0) for name, each in taken.items()}
    for name, (wall, spent) in medians.items():
        shares = "  ".join(f"{share:.3f}" for share in (wall, spent) / medians["local"])
        print(f"{name:18} {wall:7.2f} s {spent:7.2f} s; of local {shares}")


if __name__ == "__main__":
    main()
