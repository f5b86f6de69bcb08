"""import_features: another tool's features of every slide into files like this package's, so that
nothing after it knows where they came from."""

from pathlib import Path

from ml_collections import ConfigDict

from lrmil_jax import cluster, processes
from lrmil_jax.data import features
from lrmil_jax.errors import DataError
from lrmil_jax.interchange.slides import FeatureJob
from lrmil_jax.interchange.take_over import TakeOver, take_over
from lrmil_jax.models import trained
from lrmil_jax.workspace import (
    cohorts,
    feature_sets,
    foreign,
    layout,
    provenance,
    stage_files,
    statuses,
)


def run(config: ConfigDict, workdir: Path) -> None:
    """Writes `features/hr`, `features/lr_undistilled`, or both; for stage 1 `features/hr_targets`.

    Raises:
      DataError: HR features are not as wide as the encoder that stage 1 distils.
    """
    cohort = cohorts.prepared(config, workdir)
    identity = trained.encoder_facts(config, workdir)
    jobs = cohorts.slide_jobs(config, workdir, cohort.table)
    _refuse_other_encoder(config, workdir, identity, jobs[0])
    provenance.record(workdir, "encoder", identity)
    folders = _folders(config, workdir)
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    own = cluster.mine(jobs)
    tasks = [_task(config, folders, job) for job in own if not _is_done(folders, job)]
    if tasks:
        reasons = processes.map_jobs(
            take_over,
            tasks,
            workers=config.prepare.workers,
            label="import_features",
            lost=lambda task, reason: f"{task.job.path}: {reason}",
            **cohorts.slide_limits(config),
        )
        for task, reason in zip(tasks, reasons, strict=True):
            if reason:
                statuses.mark(workdir, task.job, status="failed", reason=reason)
    statuses.meet("import_features")
    cluster.first_only("their views", _write_views, config, workdir, folders)


def _write_views(config: ConfigDict, workdir: Path, folders: dict[str, Path]) -> None:
    cohorts.write_slides_csv(config, workdir)
    slide_ids = cohorts.prepared(config, workdir).table.slide_id.tolist()
    for name, folder in folders.items():
        width = feature_sets.lr_width(workdir) if name == "lr" else None
        record = feature_sets.record(config, workdir, width=width)
        features.write_view(folder, slide_ids, record)


def _folders(config: ConfigDict, workdir: Path) -> dict[str, Path]:
    """By resolution where features go, and under "targets" those of stage 1."""
    places = {
        "hr": stage_files.hr_folders(workdir, ())["embedding"],
        "lr": stage_files.undistilled_folder(workdir),
    }
    folders = {level: places[level] for level in foreign.named_folders(config)}
    if foreign.reads_slides(config):
        folders["targets"] = stage_files.targets_folder(workdir, ())
    return folders


def _is_done(folders: dict[str, Path], job: FeatureJob) -> bool:
    # `prepare` removes the features of a slide that it makes anew.
    return all(layout.shard(folder, job.slide_id).is_file() for folder in folders.values())


def _task(config: ConfigDict, folders: dict[str, Path], job: FeatureJob) -> TakeOver:
    paths = {name: layout.shard(folder, job.slide_id) for name, folder in folders.items()}
    return TakeOver(
        job=job,
        targets=paths.pop("targets", None),
        files=paths,
        dtype=config.features.dtype,
        block=config.features.rows,
    )


def _refuse_other_encoder(
    config: ConfigDict, workdir: Path, identity: dict, job: FeatureJob
) -> None:
    width = statuses.read(workdir, job.slide_id)["width"].get("hr")
    if foreign.reads_slides(config) and width != identity["width"]:
        raise DataError(
            f"the features in {config.data.features} have width {width}, encoder.name="
            f"{config.encoder.name} gives {identity['width']}: stage 1 starts from the encoder "
            "that made the features, so name that one"
        )
