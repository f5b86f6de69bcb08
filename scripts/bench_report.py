"""How long the report of a cohort of 1,000 slides takes, and how large it gets.

Predictions of three models on the simulated cohort (`cohort_simulation`: 800 patients, five folds),
30 slides left out; slide pages of shards with 700 and 2,500 LR tiles, of 10,000 HR patches each;
and a page of 100,000 patches, opened in Chromium where there is one.

  python scripts/bench_report.py --output /tmp/report [--tissue FOLDER_OF_JPEG] [--skip figures]
"""

import argparse
import functools
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import cohort_simulation
import imagecodecs
import numpy as np
import pandas as pd
from PIL import Image

from lrmil_jax.data import schema, writer
from lrmil_jax.models import slide_views
from lrmil_jax.patches.shards import Shards
from lrmil_jax.report import (
    confusion,
    discrimination,
    fold_points,
    html,
    overview,
    patient_figures,
    results,
    run_page,
    slide_page,
)
from lrmil_jax.slides import synthetic
from lrmil_jax.tasks import predictions
from lrmil_jax.tasks.classification import Classification

TITLES = {"teacher": "HR teacher", "no_distillation": "LR without distillation", "lrmil": "LRMIL"}
_SIGNAL = {"teacher": 2.2, "no_distillation": 0.8, "lrmil": 1.9}
_GEOMETRY = schema.Geometry(hr_mpp=0.5, lr_mpp=2.0, patch_px=256)


def timed(label: str, function: Callable, *arguments, **keywords):
    """Runs and prints how long it took."""
    start = time.perf_counter()
    result = function(*arguments, **keywords)
    print(f"{label}: {time.perf_counter() - start:.2f} s", flush=True)
    return result


def simulated_predictions(folds: int = 5) -> pd.DataFrame:
    """Test rows of all folds."""
    cohort = cohort_simulation.make_cohort(folds=folds)
    task = Classification(cohort_simulation.CLASSES)
    rng, parts = np.random.default_rng(0), []
    for fold in range(1, folds + 1):
        table = cohort.table[cohort.table[f"fold_{fold}"] == "test"].reset_index(drop=True)
        table = table.assign(case_id=table.patient_id)
        for model, signal in _SIGNAL.items():
            score = rng.normal(signal * (table.label - 0.5), 1)
            values = 1 / (1 + np.exp(np.stack([score, -score], 1)))
            rows = predictions.rows(task, model, table, values)
            parts.append(rows.assign(title=TITLES[model], patches=700.0, fold=fold,
                                     task="classification", split="test"))  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def figures(folder: Path) -> None:
    """All figures and the index."""
    tested = timed("simulated predictions", simulated_predictions)
    about = {"thresholds": {}, "patches": 700.0}
    rows = [
        results.model_row(model, tested[tested.model == model], [about | {"title": title}] * 5, {})
        for model, title in TITLES.items()
    ]
    save = {
        "fold_points.png": functools.partial(fold_points.save, folder / "fold_points.png", rows,
                                             tested),
        "roc.png": functools.partial(discrimination.save, folder / "roc.png", tested, TITLES,
                                     "lrmil"),
        "confusion.png": functools.partial(confusion.save, folder / "confusion.png", tested, {},
                                           TITLES),
    }  # fmt: skip
    pictures = [(name, timed(name, function)) for name, function in save.items()]
    calibration, sections = timed(
        "calibration, decisions, subgroups", patient_figures.save, folder, tested, {}, TITLES
    )
    left_out = [overview.LeftOut([f"slide_{number}" for number in range(30)], ["no tissue"] * 30)]
    parts = run_page.Parts(
        title="simulated cohort", main="lrmil", rows=rows, notes=[], cautions=[], attention=[],
        attention_note="",
        about=overview.section(rows=[("cohort", "simulated")], changed=[], splits=[["fold"]],
                               slides=left_out, others=[], damaged=0),
        pictures=pictures, calibration=calibration, sections=sections, costs=[], training=[],
        cards=[],
    )  # fmt: skip
    page = timed("index", run_page.render, parts, folder)
    html.save(folder / "index.html", page)
    size = (folder / "index.html").stat().st_size
    print(f"index.html: {size / 1e6:.2f} MB, of {len(tested) // len(TITLES)} test slides")


def tiles(tissue: Path | None) -> list[bytes]:
    """PNG tiles of 256 px: cut from JPEGs of a folder, or procedural."""
    if tissue is None:
        rng = np.random.default_rng(0)
        pictures = [
            synthetic.tissue_image(rng, size_px=1024, positive=positive)[0]
            for positive in (False, True)
        ]
    else:
        paths = (path for path in sorted(tissue.rglob("*.jpg")) if Image.open(path).width >= 256)
        pictures = [np.asarray(Image.open(path).convert("RGB")) for path in paths][:12]
    cut = [
        np.ascontiguousarray(picture[y : y + 256, x : x + 256])
        for picture in pictures
        for y in range(0, picture.shape[0] - 255, 256)
        for x in range(0, picture.shape[1] - 255, 256)
    ]
    return [imagecodecs.png_encode(tile) for tile in cut]


def shard(path: Path, count: int, encoded: list[bytes]) -> Shards:
    """A slide of `count` LR patches in the shape of a disc."""
    grid = np.stack(np.meshgrid(np.arange(80), np.arange(80)), -1).reshape(-1, 2)
    nearest = np.argsort(np.square(grid - 40).sum(1), kind="stable")[:count]
    examples = (
        {"slide_id": path.stem, "index": number, "lr_xy": (xy * 1024).astype(np.int32),
         "lr_side": 1024, "child_mask": np.ones((4, 4), bool), "lr": encoded[number % len(encoded)]}
        for number, xy in enumerate(grid[np.sort(nearest)])
    )  # fmt: skip
    writer.write_records(path, schema.region_features(_GEOMETRY), examples)
    return Shards(path, _GEOMETRY, threads=2)


def page(shards: Shards, *, patches: int, hr_patches: int) -> slide_page.SlidePage:
    """What a page is made of."""
    made = slide_views.mosaic(shards, _GEOMETRY.patch_px, patches=patches)
    child = np.stack(np.meshgrid(np.arange(4), np.arange(4)), -1).reshape(-1, 2) * 256
    xy = (made.xy[:, None] + child).reshape(-1, 2)
    xy = np.resize(xy, (hr_patches, 2))
    weight = np.exp(np.random.default_rng(0).normal(size=hr_patches))
    return slide_page.SlidePage(
        name=f"slide_of_{hr_patches}", facts=[("patches", str(hr_patches))], verdict="tumour 0.61",
        is_wrong=True, picture=made.picture, origin=made.origin, downsample=made.downsample,
        mpp=0.5, xy=xy, side=256, attention=weight / weight.sum(),
    )  # fmt: skip


def pages(folder: Path, tissue: Path | None) -> None:
    """Slide pages of two sizes."""
    encoded = tiles(tissue)
    for count in (700, 2500):
        shards = shard(folder / f"{count}.array_record", count, encoded)
        whole = functools.partial(page, shards, patches=count, hr_patches=10_000)
        made = timed(f"picture of {count} LR patches", whole)
        text = timed("page of it with 10,000 patches", slide_page.render, made)
        timed("card of it", slide_page.card, made)
        html.save(folder / f"{count}.html", text)
        print(f"page: {len(text) / 1e6:.2f} MB")
    large = page(shards, patches=2500, hr_patches=100_000)
    path = folder / "large.html"
    html.save(path, timed("page with 100,000 patches", slide_page.render, large))
    print(f"page: {path.stat().st_size / 1e6:.2f} MB")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("no Chromium here: the page was not opened")
    else:
        milliseconds, console = opened(browser, path)
        print(f"drawn after {milliseconds} ms, console: {console or 'nothing'}")


def opened(browser: str, path: Path) -> tuple[int, list[str]]:
    """Milliseconds until the page was drawn, and what the browser's console said."""
    command = [browser, "--headless", "--no-sandbox", "--enable-logging=stderr", "--dump-dom",
               "--virtual-time-budget=3000", path.resolve().as_uri()]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    drawn = re.search(r'data-opened="(\d+)"', run.stdout)
    return int(drawn[1]) if drawn else -1, re.findall(r".*CONSOLE.*", run.stderr)


def main() -> None:
    """Prints seconds and bytes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tissue", type=Path, help="JPEGs that tiles are cut from")
    parser.add_argument("--skip", choices=("figures", "pages"), nargs="*", default=())
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    if "figures" not in given.skip:
        figures(given.output)
    if "pages" not in given.skip:
        pages(given.output, given.tissue)


if __name__ == "__main__":
    main()
