"""`prepare` by one process against `--shard` processes side by side, and the command that joins.

Rounds alternate: one process and the shards, then the other way round. Each begins with an empty
working directory and has the time of its own start in it.

  python scripts/bench_shards.py [--slides 24] [--size_px 8192] [--shards 2] [--rounds 2]
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_storage import make_cohort

ROOT = Path(__file__).parents[1]


def seconds(folder: Path, *parts: str) -> float:
    """Wall time of `prepare` by one process for each of these flags, side by side."""
    command = [
        sys.executable, "-m", "lrmil_jax.main", "--config=tcga_nsclc", "--stages=prepare",
        f"--workdir={folder / 'run'}", f"--config.data.labels={folder / 'cohort/labels.csv'}",
        f"--config.data.slides={folder / 'cohort/slides'}", '--config.data.classes=("a","b")',
        "--config.data.leaks=warn", "--config.folds=1", "--config.prepare.workers=1",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    running = [
        subprocess.Popen(
            [*command, *part.split()],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for part in parts
    ]
    logs = [one.communicate()[0] for one in running]
    for one, log in zip(running, logs, strict=True):
        if one.returncode:
            sys.exit(log)
    return time.perf_counter() - start


def measure(folder: Path, *, shards: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, by round."""
    taken: dict[str, list[float]] = {"one process": [], "shards": [], "joining": []}

    def alone() -> None:
        taken["one process"].append(seconds(folder, ""))

    def parted() -> None:
        taken["shards"].append(
            seconds(folder, *(f"--shard {n}/{shards}" for n in range(1, shards + 1)))
        )
        taken["joining"].append(seconds(folder, ""))

    for turn in range(rounds):
        for way in (alone, parted) if turn % 2 == 0 else (parted, alone):
            shutil.rmtree(folder / "run", ignore_errors=True)
            way()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slides", type=int, default=24, help="a multiple of 6")
    parser.add_argument("--size_px", type=int, default=8192, help="side of a slide")
    parser.add_argument("--shards", type=int, default=2, help="side by side; at most the cores")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench_shards_"))
    try:
        make_cohort(folder / "cohort", slides=args.slides, size_px=args.size_px)
        taken = measure(folder, shards=args.shards, rounds=args.rounds)
    finally:
        shutil.rmtree(folder)
    medians = {name: statistics.median(each) for name, each in taken.items()}
    for name, each in taken.items():
        rounds = ", ".join(f"{one:.1f}" for one in each)
        print(f"{name:12} {medians[name]:7.1f} s, median of {rounds}")
    speedup = medians["one process"] / medians["shards"]
    print(f"{args.shards} shards: {speedup:.2f} times as fast as one process, without joining")


if __name__ == "__main__":
    main()
