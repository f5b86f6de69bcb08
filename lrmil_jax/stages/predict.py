"""predict: any slide file to probabilities, attention and a heatmap, from LR pixels alone.

No label, no teacher and no HR pixel is needed. A cohort compiles once, and a slide whose
prediction is there is not done again.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lrmil_jax import files
from lrmil_jax.data import slide_files, slide_folder, splits
from lrmil_jax.errors import ConfigError, DataError
from lrmil_jax.models import model_folder, slide_list
from lrmil_jax.models.slide_model import SlideModel
from lrmil_jax.processes import Workers
from lrmil_jax.report.overlays import registry
from lrmil_jax.tasks import prediction_files, predictions
from lrmil_jax.workspace import twins

log = logging.getLogger(__name__)


def run(
    model: Path,
    workdir: Path,
    *,
    slide: Path | None,
    slides: Path | None,
    folder: Path | None = None,
    mpp: float | None = None,
    trust_mpp: bool = False,
    readers: Workers | None = None,
    formats: Sequence[str] = registry.DEFAULT,
    annotations: Path | None = None,
    annotation_classes: Sequence[str] = (),
) -> int:
    """Writes `predictions/<slide>/`, `predictions/predictions.csv` and, where the CSV names
    patients, `predictions/patient_predictions.csv`.

    Args:
      model: a model folder.
      workdir: where the output goes.
      slide: one slide file, or
      slides: a folder of slides or a CSV (`slide_id[,path][,mpp][,patient_id][,label]`, where
        `label` stands for whatever columns of `predictions.csv` hold the truth).
      folder: where slides of the CSV that have no path are looked for; None: beside the CSV.
      mpp: um/px of `slide`, if the file's own is not right.
      trust_mpp: um/px that are given win even where a file and its objective agree against them.
      readers: processes that read slides, as `SlideModel.predict_many` has them.
      formats: in which a slide's attention is written for viewers, of `report.overlays.registry`.
      annotations: a folder of QuPath's `<slide_id>.geojson`, or one of `slide`: nothing outside of
        what was drawn is tissue.
      annotation_classes: the classifications that count, () being all.

    Returns:
      How many slides failed; they are listed in the CSV with their reason.

    Raises:
      ConfigError: `folder` or `mpp` is given where it says nothing, or a format cannot be written.
      DataError: no slide is named, a folder is not there, a target is none of the model's task, or
        no slide has annotations.
      WeightsError: the model folder is not whole.
    """
    _check_options(slides, folder, mpp)
    formats = registry.checked(formats)
    loaded = model_folder.load(model)
    if slide is not None:
        table = slide_files.one_slide(slide, mpp)
    else:
        table = slide_files.read_list(slides, folder)
        _refuse_all_missing(table, slides, folder)
    truth = _targets(loaded, table)
    if annotation_classes and annotations is None:
        raise ConfigError("--annotation_classes is of --annotations, which is not given; give both")
    drawn = slide_files.drawn(
        annotations, annotation_classes, table.slide_id.tolist(), key="--annotations"
    )
    slide_files.warn_of_classes(drawn.values(), key="--annotation_classes")
    target = workdir / "predictions"
    _clear(target)
    done, failed = slide_list.predict(
        loaded,
        table,
        target,
        trust_mpp=trust_mpp,
        readers=readers,
        formats=formats,
        drawn=drawn,
    )
    rows = pd.DataFrame([slide_list.csv_row(loaded, record) for record in done] + failed)
    files.write_table(target / "predictions.csv", rows)
    if done and (table.patient_id != table.slide_id).any():
        patients = slide_list.by_patient(loaded, table, done)
        files.write_table(target / prediction_files.PATIENTS, patients)
    if slides is not None and slides.is_dir():
        listing = slide_files.list_folder(slides)
        slide_folder.write(target / "left_out.csv", slides, listing, listing.slides, str(slides))
    trained_on = _tell_trained_on(loaded.folder, done)
    _write_metrics(loaded, truth, done, target, trained_on)
    for record in done[:20]:
        log.info("%s", _line(record))
    log.info("predictions of %d slides in %s", len(done), target)
    return len(failed)


def _clear(folder: Path) -> None:
    """Removes what an earlier call wrote of its slides together: this one may write none of it."""
    files.remove_leftovers(folder)
    for name in (prediction_files.PATIENTS, "metrics.json", "left_out.csv"):
        (folder / name).unlink(missing_ok=True)


def _check_options(slides: Path | None, folder: Path | None, mpp: float | None) -> None:
    """Refuses what would be ignored, and a folder that is not there."""
    if slides is not None and mpp is not None:
        raise ConfigError(
            "--mpp is the um/px of --slide; with --slides give a CSV with a column mpp instead"
        )
    if folder is None:
        return
    if slides is None or slides.is_dir():
        what = "--slide names one file" if slides is None else f"--slides {slides} is a folder"
        raise ConfigError(
            f"--folder says where the slides of a CSV lie, but {what}; leave --folder away"
        )
    if not folder.is_dir():
        raise DataError(f"--folder {folder} is no folder; name the one that holds the slides")


def _refuse_all_missing(table: pd.DataFrame, source: Path, folder: Path | None) -> None:
    """Raises DataError where no slide that a CSV names is there: most likely they lie elsewhere."""
    if any(Path(path).exists() for path in table.path):
        return
    where = source.parent if folder is None else folder
    given = table.path[table.path != table.slide_id]  # a slide without a path has its name there
    if len(given):
        raise DataError(
            f"none of the {len(table)} slides of {source} is there: its column path leads to "
            f"{given.iloc[0]}; mend the column, whose paths count from {where}"
        )
    raise DataError(
        f"none of the {len(table)} slides of {source} is in {where}; name the folder in which "
        "they lie by --folder"
    )


def _tell_trained_on(model: Path, done: list[dict]) -> list[str]:
    """The slides that the model was trained on, by the bytes of their files; told if there are."""
    pairs = twins.trained_on(twins.read_seen(model), {one["slide_id"]: one for one in done})
    known = pairs.slide_id.drop_duplicates().tolist()
    if known:
        more = " ..." if len(known) > 3 else ""
        log.warning("%d of %d slides are of those that the model was trained on (%s%s): it knows "
                    "them better than new ones", len(known), len(done), ", ".join(known[:3]),
                    more)  # fmt: skip
    return known


def _targets(model: SlideModel, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the slides whose truth the CSV tells, in the columns of `predictions.csv`."""
    known = table[~model.task.missing(table)]
    if len(known):
        model.task.targets_of(known)  # a wrong one is told before hours of prediction
    return known


def _line(record: dict) -> str:
    said = record["sentence"]
    phases = ", ".join(f"{name} {value:.2f} s" for name, value in record["seconds"].items())
    return f"{record['slide_id']}: {said}; {record['lr_patches']} patches; {phases}"


def _write_metrics(
    model: SlideModel,
    truth: pd.DataFrame,
    done: list[dict],
    folder: Path,
    trained_on: list[str],
) -> None:
    task, said = model.task, {record["slide_id"]: record for record in done}
    known = truth[truth.slide_id.isin(said)].reset_index(drop=True)
    if not len(known):
        return
    known["case_id"] = known.patient_id
    if task.has_classes:
        known["case_id"] = splits.cases(known.patient_id, known.label)
    values = [said[slide_id]["prediction"] for slide_id in known.slide_id]
    rows = known[["case_id", *task.written]].assign(
        **{name: [one[name] for one in values] for name in task.values}
    )
    found = predictions.measure(task, rows)
    facts = {"model_sha256": model_folder.identity(model.folder)}
    facts["slides_of_training"] = int(known.slide_id.isin(trained_on).sum())
    files.write_json(folder / "metrics.json", found | facts)
    title = task.titles.get(task.headline, task.headline)
    log.info("%s %s over %d patients", title, found["metrics"][task.headline], found["patients"])
