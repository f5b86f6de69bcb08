"""Colour statistics of slides, kept beside the regions, and the colour-only baseline on them."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from ml_collections import ConfigDict

from lrmil_jax import files
from lrmil_jax.data.labels import Cohort
from lrmil_jax.data.slide_jobs import SlideJob
from lrmil_jax.data.splits import SPLITS
from lrmil_jax.evals import colour
from lrmil_jax.progress import progress
from lrmil_jax.workspace import cohorts, statuses


def predictions(
    config: ConfigDict, workdir: Path, fold: int, cohort: Cohort
) -> tuple[Float[np.ndarray, "S C"], dict[str, float]]:
    """What colour alone says of the fold's validation and test slides, in the cohort's order.

    The classifier is trained on the training slides and chosen on the validation slides.

    Returns:
      Class probabilities; and for `metrics.json` the median number of LR `patches` of a test slide
      and the chosen inverse regularisation, `strength`.
    """
    table = cohort.slides(fold, *SPLITS)
    values, split = statistics(config, workdir, table), table.split.to_numpy()
    labels, train, val = table.label.to_numpy(), split == "train", split == "val"
    classifier = colour.fit(
        values[train],
        labels[train],
        val_values=values[val],
        val_labels=labels[val],
        num_classes=len(cohort.classes),
    )
    tested = table.slide_id[split == "test"]
    patches = [statuses.read(workdir, slide_id)["lr_patches"] for slide_id in tested]
    facts = {"patches": float(np.median(patches)), "strength": classifier.strength}
    return classifier.predict(values[~train]), facts


def statistics(config: ConfigDict, workdir: Path, table: pd.DataFrame) -> Float[np.ndarray, "S 6"]:
    """`colour.statistics` of each slide of the table over its LR patches.

    They are read from `regions/colour/<slide_id>.json` where that was made of these regions; a
    slide that was prepared anew is looked at again.
    """
    jobs = cohorts.slide_jobs(config, workdir, table)
    known = [_known(workdir, job) for job in jobs]
    pending = [place for place, values in enumerate(known) if values is None]
    if pending:
        with progress("colour of slides", len(jobs), done=len(jobs) - len(pending)) as bar:
            for place in pending:
                known[place] = colour.statistics(_tiles(config, workdir, jobs[place])).tolist()
                made_of = _made_of(workdir, jobs[place])
                content = made_of | dict(zip(colour.NAMES, known[place], strict=True))
                files.write_json(_path(jobs[place]), content)
                bar.advance()
    return np.array(known, np.float64)


def _path(job: SlideJob) -> Path:
    return job.folder / "colour" / f"{job.slide_id}.json"


def _known(workdir: Path, job: SlideJob) -> list[float] | None:
    path = _path(job)
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    if _made_of(workdir, job).items() <= record.items():
        return [record[name] for name in colour.NAMES]
    return None


def _made_of(workdir: Path, job: SlideJob) -> dict:
    """What the statistics depend on: the slide, and which of its patches could be read."""
    status = statuses.read(workdir, job.slide_id)
    return {name: status[name] for name in ("slide_id", "source", "lr_patches")}


def _tiles(config: ConfigDict, workdir: Path, job: SlideJob) -> Iterator[np.ndarray]:
    for tiles in cohorts.patch_source(config, workdir, job, high=False):
        yield from tiles
