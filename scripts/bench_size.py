"""Past one cohort: a whole run on as many slides as are asked for, with sizes like TCGA's.

Features of LR bags (log-normal, median 700, 95th percentile 2,500, width 384, float16) are written
as npz files, and the command line runs `mil_lr` on them: prepare, import_features, baseline,
evaluate, report. Of each stage it tells seconds, and of the whole the highest resident memory of
the process and its open files, looked at twice a second.

    python scripts/bench_size.py --slides 10000 --output /scratch/size       # 10 GB of files
    python scripts/bench_size.py --slides 200 --output /tmp/size --width 64  # a first look
"""

import argparse
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

MEDIAN, SPREAD, LONGEST = 700, 0.774, 12_000  # the spread that gives the 95th percentile
STAGE = re.compile(r"\[\d+/\d+\] (.*)")


def write_features(folder: Path, *, slides: int, width: int, seed: int = 0) -> Path:
    """npz files and their label CSV; positive slides have a shifted share of their patches."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.normal(np.log(MEDIAN), SPREAD, slides)).clip(16, LONGEST).astype(int)
    labels = rng.random(slides) < 0.3
    pool = rng.standard_normal((65_536, width)).astype(np.float16)
    features = folder / "features"
    features.mkdir(parents=True, exist_ok=True)
    for slide, (size, positive) in enumerate(zip(sizes, labels, strict=True)):
        path = features / f"slide_{slide:06d}.npz"
        if path.is_file():
            continue
        rows = pool[(rng.integers(65_536) + np.arange(size)) % 65_536].copy()
        if positive:
            rows[rng.random(size) < 0.05, 0] += 3
        places = np.stack(np.divmod(np.arange(size), 64), -1)[:, ::-1] * 1024
        np.savez(path, features=rows, coords=places, side=1024, mpp=0.5)
    table = pd.DataFrame({
        "slide_id": [f"slide_{slide:06d}" for slide in range(slides)],
        "patient_id": [f"patient_{slide * 4 // 5:06d}" for slide in range(slides)],
    })  # fmt: skip
    # A patient has one label: that of the first of his or her slides.
    first = pd.Series(labels).groupby(table.patient_id).transform("first")
    table["label"] = np.where(first, "tumour", "benign")
    table.to_csv(folder / "labels.csv", index=False)
    return features


def watched(command: list[str]) -> dict:
    """Runs a command; seconds of its stages by their log lines, peak memory and open files."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    watch, start = psutil.Process(process.pid), time.monotonic()
    found = {"stages": [], "rss": 0, "files": 0, "log": []}

    def look():
        while process.poll() is None:
            try:
                found["rss"] = max(found["rss"], watch.memory_info().rss)
                found["files"] = max(found["files"], watch.num_fds())
            except psutil.Error:
                return
            time.sleep(0.5)

    thread = threading.Thread(target=look)
    thread.start()
    for line in process.stderr:
        found["log"].append(line)
        match = STAGE.search(line)
        if match:
            found["stages"].append((match[1], time.monotonic() - start))
    process.wait()
    thread.join()
    found["stages"].append(("the end", time.monotonic() - start))
    found["status"] = process.returncode
    return found


def main() -> None:
    """Writes the features, runs, and tells."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slides", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--folds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--resident-gib", type=float, help="features above it are streamed")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    start = time.monotonic()
    features = write_features(arguments.output, slides=arguments.slides, width=arguments.width)
    print(f"features of {arguments.slides} slides: {time.monotonic() - start:.0f} s")
    command = [
        sys.executable, "-m", "lrmil_jax.main", "--config", "tcga_nsclc",
        "--workdir", str(arguments.output / "run"), "--config.method=mil_lr",
        f"--config.data.labels={arguments.output / 'labels.csv'}",
        f"--config.data.features={features}", f"--config.folds={arguments.folds}",
        "--config.data.classes=('benign','tumour')",
        f"--config.student.epochs={arguments.epochs}",
    ]  # fmt: skip
    if arguments.resident_gib is not None:
        command.append(f"--config.student.resident_gib={arguments.resident_gib}")
    for name in ("first run", "everything done already"):
        found = watched(command)
        print(f"{name}: exit status {found['status']}")
        if found["status"]:
            raise SystemExit("".join(found["log"][-5:]))
        for (stage, begun), (_, ended) in zip(found["stages"], found["stages"][1:], strict=False):
            print(f"  {stage:30s} begun after {begun:7.1f} s, took {ended - begun:7.1f} s")
        print(f"  highest memory {found['rss'] / 2**30:.2f} GiB, open files {found['files']}")


if __name__ == "__main__":
    main()
