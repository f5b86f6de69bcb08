"""sweep: students that differ in settings of stage 2, those of one shape in one program."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from lrmil_jax import cluster, points
from lrmil_jax import config as configuration
from lrmil_jax.progress import progress
from lrmil_jax.tasks import prediction_files, predictions
from lrmil_jax.train import mil
from lrmil_jax.train.bag_model import BagModel, BagModels
from lrmil_jax.train.many_heads import HeadJob, train_heads
from lrmil_jax.workspace import cohorts, feature_sets, layout, teaching

log = logging.getLogger(__name__)

# Settings in which the heads of one program may differ; all others have programs of their own.
_WITHIN = (*mil.SlideLoss.KEYS, "learning_rate", "seed")


def run(config: ConfigDict, workdir: Path, fold: int) -> None:
    """Writes `folds/<k>/sweep/predictions.csv` and `validation.csv`, a model a point of
    `sweep.points`."""
    folder = layout.stage_folder(workdir, "sweep", fold)
    blocks = _blocks(config)
    _tell(config, workdir, fold, blocks)
    cohort = cohorts.prepared(config, workdir)
    slide_ids = cohort.slides(fold, "train", "val").slide_id.tolist()
    store = feature_sets.student_store(config, workdir, fold, slide_ids)
    guides = tuple(dict.fromkeys(one.guide for one in blocks.values()))
    said = teaching.outputs(config, workdir, fold, store, guides)
    data = feature_sets.fold_data(cohort, fold, store, **said)
    models: dict[str, BagModel] = {}
    for number, names in enumerate(_alike(blocks)):
        own = {name: blocks[name] for name in names}
        trained = train_heads(
            name=f"sweep, {layout.fold_title(fold)}",
            directory=folder / "training" / f"block_{number}",
            block=own[names[0]],
            jobs={f"point_{place}": _job(config, one, data, guides)
                  for place, one in enumerate(own.values())},
            later=len(blocks) - len(models) - len(own),
        )  # fmt: skip
        models |= dict(zip(names, trained.values(), strict=True))
    cluster.first_only("predictions", _write, config, workdir, fold, models)


def _write(config: ConfigDict, workdir: Path, fold: int, models: Mapping[str, BagModel]) -> None:
    folder = layout.stage_folder(workdir, "sweep", fold)
    prediction_files.write(folder, *_predictions(config, workdir, fold, models))


def _blocks(config: ConfigDict) -> dict[str, ConfigDict]:
    """The `student` block of every point."""
    parsed = points.parse(config.sweep.points, key="sweep.points")
    return {
        name: configuration.replaced(config, changes).student for name, changes in parsed.items()
    }


def _alike(blocks: Mapping[str, ConfigDict]) -> list[list[str]]:
    """Names of points that differ in nothing but what heads of one program may differ in."""
    alike: dict[str, list[str]] = {}
    for name, block in blocks.items():
        rest = {key: value for key, value in block.items() if key not in _WITHIN}
        alike.setdefault(json.dumps(rest, sort_keys=True, default=str), []).append(name)
    return list(alike.values())


def _job(config: ConfigDict, block: ConfigDict, data: mil.BagData, guides) -> HeadJob:
    return HeadJob(
        data=data,
        seed=configuration.seed_of(config, block),
        loss=mil.SlideLoss.of(block, guides),
        learning_rate=block.learning_rate,
    )


def _tell(config: ConfigDict, workdir: Path, fold: int, blocks: Mapping[str, ConfigDict]) -> None:
    """What is about to be trained, and what one student alone has cost."""
    mark = layout.stage_folder(workdir, "student", fold) / "stage.json"
    seconds = json.loads(mark.read_text(encoding="utf-8"))["seconds"]
    log.info(
        "%d points, %d shape(s) of heads; the student alone took %.0f s, start to end",
        len(blocks), len(_alike(blocks)), seconds,
    )  # fmt: skip


def _predictions(
    config: ConfigDict, workdir: Path, fold: int, models: Mapping[str, BagModel]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of test and of validation slides under every model."""
    cohort = cohorts.prepared(config, workdir)
    table = cohort.slides(fold, "val", "test")
    store = feature_sets.student_store(config, workdir, fold, table.slide_id.tolist())
    kinds: dict[tuple, list[str]] = {}
    for name, model in models.items():
        kinds.setdefault(model.kind, []).append(name)
    frames = {}
    with progress("points of the sweep", len(kinds) * len(store.slide_ids)) as bar:
        for names in kinds.values():
            alike = BagModels([models[name] for name in names])
            each, told = [], alike.on(store, table.case_id.tolist())
            for place in range(len(store.slide_ids)):
                each.append(told.slide(place)[0])
                bar.advance()
            for name, logits in zip(names, np.stack(each, 1), strict=True):
                task = models[name].task
                frames[name] = predictions.rows(task, name, table, task.link(logits))
    test = (table.split == "test").to_numpy()
    return prediction_files.sides(
        [frames[name] for name in models], test, task=cohort.task.name, fold=fold
    )
