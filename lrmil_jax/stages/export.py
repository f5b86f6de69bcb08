"""export: the run's features in the files of another tool, and the run's folds and predictions
where that tool has files for them."""

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from lrmil_jax import files
from lrmil_jax.data.features import FeatureStore
from lrmil_jax.data.slide_jobs import file_identity
from lrmil_jax.errors import DataError, SlideError, WorkdirError
from lrmil_jax.interchange import clam_tables, registry
from lrmil_jax.interchange.bag import Bag
from lrmil_jax.interchange.layout import Layout
from lrmil_jax.methods import delivery
from lrmil_jax.progress import progress
from lrmil_jax.report import results
from lrmil_jax.workspace import (
    cohorts,
    feature_sets,
    foreign,
    layout,
    provenance,
    stage_files,
    statuses,
)

log = logging.getLogger(__name__)


def run(config: ConfigDict, workdir: Path) -> None:
    """Writes `export/<format>_<features>/`; a slide that is there already is left alone.

    Raises:
      DataError: features without coordinates, or the layout lacks something for every slide.
      WorkdirError: the features are not there yet.
    """
    kind, wanted = registry.create(config.export.format), config.export.features
    kind.check_export()
    target = layout.stage_folder(workdir, "export") / f"{config.export.format}_{wanted}"
    for part, folder in _sources(config, workdir).items():
        _export(config, workdir, kind, folder, target / part)
    if kind.name == "clam":
        _export_tables(config, workdir, target)
    log.info("export: %s", target)


def _sources(config: ConfigDict, workdir: Path) -> dict[str, Path]:
    """Folders of features, by the part of the export that they become."""
    wanted = config.export.features
    if wanted == "hr":
        return {"": stage_files.hr_folders(workdir, ())["embedding"]}
    if wanted == "lr" or not foreign.reads_slides(config):
        return {"": stage_files.plain_lr_folder(config, workdir)}
    return {
        f"fold_{layout.fold_name(fold)}": stage_files.student_folder(config, workdir, fold)
        for fold in delivery.trainings(config)
    }


def _export(config: ConfigDict, workdir: Path, kind: Layout, folder: Path, target: Path) -> None:
    """All slides of one folder of features.

    Raises:
      DataError: no slide could be written; else a slide that cannot is told of and left out.
    """
    slide_ids = cohorts.prepared(config, workdir).table.slide_id.tolist()
    missing = [name for name in slide_ids if not layout.shard(folder, name).is_file()]
    if missing:
        raise WorkdirError(
            f"{folder} has no features of slide {missing[0]} (and {len(missing) - 1} others); run "
            "the stages that make them first, or set export.features to what is there"
        )
    width = _width(config, workdir)
    store = feature_sets.open_store(config, workdir, folder, slide_ids, width=width)
    reasons = []
    with progress("export", len(slide_ids)) as bar:
        for place, slide_id in enumerate(slide_ids):
            try:
                _export_slide(config, workdir, kind, store, place, target)
            except SlideError as error:
                log.error("slide %s was not exported: %s", slide_id, error)
                reasons.append(str(error))
            bar.advance()
    if len(reasons) == len(slide_ids):
        raise DataError(f"no slide could be exported: {reasons[0]}")
    if reasons:
        raise DataError(
            f"{len(reasons)} of {len(slide_ids)} slides could not be exported, the others are in "
            f"{target}: {reasons[0]}"
        )


def _width(config: ConfigDict, workdir: Path) -> int:
    if _level(config) == "hr":
        return provenance.read(workdir)["encoder"]["width"]
    distilled = config.export.features == "distilled" and foreign.reads_slides(config)
    own = feature_sets.student_width(config, workdir)
    return own if distilled else feature_sets.lr_width(workdir)


def _export_slide(
    config: ConfigDict, workdir: Path, kind: Layout, store: FeatureStore, place: int, target: Path
) -> None:
    slide_id = store.slide_ids[place]
    bag = _facts(config, workdir, store, place)
    # Of the file that it was made from: features made anew since are exported anew.
    origin, record = file_identity(store.path(place)), target / ".made" / f"{slide_id}.json"
    made = json.loads(record.read_text()) if record.is_file() else None
    if made == origin and kind.target(target, slide_id, bag).is_file():
        return
    rows = store.rows(place)
    xy = rows.xy.astype(np.int64)
    kind.write(target, slide_id, dataclasses.replace(bag, xy=xy, features=lambda: rows.embedding))
    files.write_json(record, origin)


def _facts(config: ConfigDict, workdir: Path, store: FeatureStore, place: int) -> Bag:
    """What is known of the slide's bag, without reading it.

    Raises:
      SlideError: nothing tells where its patches lie, or how large they are.
    """
    slide_id, level = store.slide_ids[place], _level(config)
    status, encoder = statuses.read(workdir, slide_id), provenance.read(workdir)["encoder"]
    side, size = cohorts.patch_side(config, status, level), status.get("dimensions")
    if side is None:
        raise SlideError(
            f"the features of slide {slide_id} came without coordinates or without the size of a "
            "patch, and no other tool can do without them"
        )
    return Bag(
        shape=(int(store.sizes[place]), _width(config, workdir)),
        features=lambda: store.embedding(place),
        xy=None,
        side=side,
        step=side,
        px=status.get("px", {}).get(level, config.geometry.patch_px),
        mpp=status.get("mpp"),
        encoder=status.get("encoder", {}).get(level) or Path(encoder["name"]).stem,
        dimensions=None if size is None else (int(size[0]), int(size[1])),
    )


def _level(config: ConfigDict) -> str:
    one_folder = foreign.given(config) and len(foreign.named_folders(config)) == 1
    if one_folder and not foreign.reads_slides(config):
        return "hr"  # by which it goes, whatever its patches are
    return "hr" if config.export.features == "hr" else "lr"


def _export_tables(config: ConfigDict, workdir: Path, target: Path) -> None:
    """CLAM's dataset CSV and splits; its results too, of every model that has been evaluated."""
    cohort = cohorts.prepared(config, workdir)
    if cohort.task.columns != ("label",):
        log.info("CLAM's tables are of classes alone; features were exported without them")
        return
    clam_tables.write_splits(target, cohort.table, cohort.classes)
    folders = [layout.stage_folder(workdir, "evaluate", n + 1) for n in range(config.folds)]
    if not all((folder / "predictions.csv").is_file() for folder in folders):
        return
    tested = results.test_predictions(config, workdir)
    measured = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
    for model, rows in tested.groupby("model", sort=False):
        figures = [
            {
                f"{split}_{short}": part["metrics"].get(name)
                for split, part in (("test", fold[model]), ("val", fold[model]["validation"]))
                for name, short in (("auc", "auc"), ("accuracy", "acc"))
            }
            for fold in measured
        ]
        clam_tables.write_results(target / "results" / model, rows, cohort.classes, figures)
