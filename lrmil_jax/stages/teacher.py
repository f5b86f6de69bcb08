"""teacher: a MIL head on HR features, per fold; then its word on every slide of the fold's
training and validation patients, which is all that the student ever sees of it."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from lrmil_jax.data.features import FeatureStore
from lrmil_jax.stages import layout, models
from lrmil_jax.train import mil
from lrmil_jax.train.checkpoint import load_params, save_params
from lrmil_jax.train.logging import progress


def run(config: ConfigDict, workdir: Path, fold: int) -> None:
    """Writes `folds/<k>/teacher/model.safetensors` and `outputs/<slide>.safetensors`."""
    cohort = layout.prepared_cohort(config, workdir)
    folder = layout.stage_folder(workdir, "teacher", fold)
    store = hr_store(config, workdir, cohort.slides(fold, "train", "val").slide_id.tolist())
    if not (folder / "model.safetensors").is_file():
        mil.train_head(
            name=f"teacher, {layout.fold_title(fold)}",
            directory=folder / "training",
            block=config.teacher,
            loss=mil.SlideLoss(),
            data=fold_data(cohort, fold, store),
            classes=cohort.classes,
            seed=config.seed,
        ).save(folder / "model.safetensors")
    paths = [outputs_path(workdir, fold, slide_id) for slide_id in store.slide_ids]
    pending = [slide for slide, path in enumerate(paths) if not path.is_file()]
    if not pending:
        return
    classifier = models.teacher(workdir, fold)
    with progress("teacher's attention", len(paths), done=len(paths) - len(pending)) as bar:
        for slide in pending:
            logits, attention = classifier.predict(store.embedding(slide))
            save_params(paths[slide], {"logits": logits, "attention_logits": attention})
            bar.advance()


def outputs_path(workdir: Path, fold: int, slide_id: str) -> Path:
    """The file with the teacher's word on one slide."""
    return layout.stage_folder(workdir, "teacher", fold) / "outputs" / f"{slide_id}.safetensors"


def read_outputs(workdir: Path, fold: int, slide_id: str) -> dict[str, np.ndarray]:
    """The teacher's `logits` [C] and `attention_logits` [K] over the slide's HR patches."""
    return load_params(outputs_path(workdir, fold, slide_id))[0]


def hr_store(config: ConfigDict, workdir: Path, slide_ids) -> FeatureStore:
    """HR features of some slides, in this order."""
    return open_store(config, workdir, layout.features_folder(workdir, "hr"), slide_ids)


def open_store(config: ConfigDict, workdir: Path, folder: Path, slide_ids) -> FeatureStore:
    """Features below `folder` of some slides, in this order."""
    paths = [layout.shard(folder, slide_id) for slide_id in slide_ids]
    return FeatureStore(
        paths, slide_ids, lambda names: models.feature_parser(config, workdir, names)
    )


def fold_data(cohort, fold: int, store: FeatureStore, **extras) -> mil.BagData:
    """Labels and splits of a fold's training and validation slides, as bags."""
    table = cohort.slides(fold, "train", "val")
    split = table.split.to_numpy()
    return mil.BagData(
        store=store,
        labels=table.label.to_numpy(np.int32),
        cases=table.case_id.tolist(),
        train=np.flatnonzero(split == "train"),
        val=np.flatnonzero(split == "val"),
        **extras,
    )
