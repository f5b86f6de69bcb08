"""The cohort of a run: its slides, labels and folds, and how its slides are tiled."""

import dataclasses
import functools
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from ml_collections import ConfigDict

from lrmil_jax import cluster, files, storage, tasks
from lrmil_jax import config as configuration
from lrmil_jax.data import labels as label_csv
from lrmil_jax.data import schema, slide_files, slide_folder, splits, tables, writer
from lrmil_jax.data.features import SlideFeatures
from lrmil_jax.data.layouts import Sources
from lrmil_jax.data.schema import Geometry
from lrmil_jax.data.slide_jobs import SlideJob, TilingSettings
from lrmil_jax.errors import DataError, WorkdirError
from lrmil_jax.patches import PatchSource
from lrmil_jax.patches.beside import FromSlide
from lrmil_jax.patches.shards import Shards
from lrmil_jax.processes import Workers, map_jobs
from lrmil_jax.slides import lattice, synthetic
from lrmil_jax.slides.annotations import Annotations
from lrmil_jax.workspace import data_files, foreign, layout, provenance, statuses, twins

log = logging.getLogger(__name__)


def geometry(config: ConfigDict) -> Geometry:
    """Resolutions and patch side of the run."""
    return Geometry(**config.geometry)


def patch_side(config: ConfigDict, status: Mapping[str, Any], level: str) -> int | None:
    """Side of a patch in level-0 px of a slide; None if its features came from another tool that
    does not tell.

    Args:
      config: of the run.
      status: of the slide.
      level: "hr" or "lr".
    """
    if foreign.given(config):
        return status.get(f"{level}_side")
    tiling = geometry(config)
    child = lattice.side_of_child(status["mpp"], hr_mpp=tiling.hr_mpp, patch_px=tiling.patch_px)
    return child if level == "hr" else child * tiling.ratio


def tiling_settings(config: ConfigDict) -> TilingSettings:
    """What decides which pixels a region holds."""
    prepare = config.prepare
    return TilingSettings(
        geometry=geometry(config),
        reader=prepare.reader,
        tissue_mpp=prepare.tissue_mpp,
        tissue_threshold=prepare.tissue_threshold,
        tissue_close_um=prepare.tissue_close_um,
        ink=prepare.ink,
        min_tissue=prepare.min_tissue,
        with_hr=prepare.hr == "store" and not foreign.given(config),
        jpeg_quality=prepare.jpeg_quality,
        upsample=prepare.upsample,
    )


def take_one_split(config: ConfigDict) -> None:
    """Sets `folds` to 1, and tells so, where it was left at its default and the label table has the
    column of one split: a table that parts its patients once asks for one fold."""
    data, default = config.data, configuration.default().folds
    others = data.splits is not None or data.split_columns
    if data.labels is None or others or config.folds != default:
        return
    try:
        given = splits.given_columns(tables.read(data_files.labels(config)))
    except DataError:
        return  # told where the table is read for its slides
    if len(given) == 1:
        config.folds = 1
        log.warning("%s has the column %s alone, so one fold is trained (folds=1)", data.labels,
                    given[0])  # fmt: skip


def record_regions(config: ConfigDict, workdir: Path) -> None:
    """The regions' identity: whatever changes their pixels."""
    provenance.record(workdir, "regions", regions_identity(config))


def regions_identity(config: ConfigDict) -> dict[str, Any]:
    """What decides which pixels a region holds, as `cohort.json` keeps it. Without `upsample`:
    which slides are taken is not what their pixels are."""
    settings = dataclasses.asdict(tiling_settings(config))
    return {name: value for name, value in settings.items() if name != "upsample"}


def check_regions(config: ConfigDict, workdir: Path) -> None:
    """Refuses a config other than the one that made the regions, before anything is changed."""
    provenance.check(workdir, "regions", regions_identity(config))


def read(config: ConfigDict, workdir: Path) -> label_csv.Cohort:
    """The whole cohort of the label CSV (made now if it is synthetic), with its folds saved.

    Read once per run: every stage of every fold asks for it, and slide folders can be slow.
    """
    data = config.data
    labels = data_files.labels(config)
    made = labels.stat().st_mtime_ns if labels is not None and labels.exists() else 0
    run = (config.task, config.folds, config.seed, Path(workdir).absolute())
    run += (tuple(config.evaluate.subgroups),)
    parts = (data, config.synthetic, made, *run)
    key = "\n".join(str(part) for part in parts)
    if key not in _cohorts:
        _cohorts[key] = _read(config, workdir)
    return _cohorts[key]


def read_together(config: ConfigDict, workdir: Path) -> label_csv.Cohort:
    """`read` in every process of a run, first where it writes; shards wait for each other only
    where slides are drawn and folds are saved."""
    if cluster.is_shard() and config.data.labels is not None:
        return read(config, workdir)
    return cluster.first_then_rest("the cohort", lambda: read(config, workdir))


_cohorts: dict[str, label_csv.Cohort] = {}
_without_leaks: set[tuple[Path, int]] = set()


def forget() -> None:
    """The next `read` reads the files again, statuses too; a run begins with this."""
    storage.forget()
    _cohorts.clear()
    _without_leaks.clear()
    foreign.forget()
    statuses.forget()


def _read(config: ConfigDict, workdir: Path) -> label_csv.Cohort:
    data = config.data
    if data.labels is None:
        labels = _synthetic_cohort(config, workdir / "synthetic")
        sources = Sources(labels, labels.parent / "slides")
    elif not data_files.labels(config).is_file():
        raise DataError(f"data.labels names {data.labels}, which does not exist")
    else:
        sources = label_sources(config)
    saved = workdir / "folds.csv"
    before = _text(saved)
    protocol = splits.Protocol(
        folds=config.folds,
        seed=config.seed,
        columns=tuple(data.split_columns),
        file=_path(data.splits),
        site=data.site,
        val_share=data.val_share,
        leaks=data.leaks,
        saved=saved,
    )
    cohort = label_csv.read_cohort(
        sources, read_task(config), protocol, tuple(config.evaluate.subgroups)
    )
    if foreign.given(config):
        foreign.check_names(config, cohort.table)
    names = ["slide_id", "patient_id", *(["site"] if "site" in cohort.table else [])]
    folds = [name for name in cohort.table if name.startswith("fold_")]
    kept = cohort.table[[*names, *cohort.task.columns, *folds]]
    text = kept.assign(seed=config.seed).to_csv(index=False, lineterminator="\n")
    if not cluster.is_shard():
        files.write_text(saved, text)
    elif not cluster.first_says("the folds", lambda: _save(saved, text, before)):
        return _read(config, workdir)
    return cohort


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _save(path: Path, text: str, before: str | None) -> bool:
    """Writes a file; False, and nothing is done, where another shard has made another one of it
    since it was read."""
    if _text(path) not in (before, text):
        return False
    files.write_text(path, text)
    return True


def label_sources(config: ConfigDict, labels: Path | None = None) -> Sources:
    """The label table that the config names, or another one, and what belongs to it."""
    stand_ins = foreign.stand_ins(config) if labels is None else None
    return Sources(
        labels or data_files.labels(config),
        data_files.slides(config),
        data_files.slide_table(config),
        stand_ins,
    )


def _path(name: str | None) -> Path | None:
    return Path(name) if name else None


def read_task(config: ConfigDict) -> label_csv.ReadTask:
    """How the config's task and its targets are read from the rows of the label table."""
    kind, data = tasks.kind(config.task), dict(config.data)

    def read(frame: pd.DataFrame, source: str, settled: Mapping[str, Any]):
        unset = {name: value for name, value in settled.items()
                 if data[name] == configuration.default().data[name]}  # fmt: skip
        task, targets = kind.read(frame, data | unset, source)
        return dataclasses.replace(task, pooling=config.data.patient), targets

    return label_csv.ReadTask(kind.asked(data), read)


def _synthetic_cohort(config: ConfigDict, folder: Path) -> Path:
    options = config.synthetic
    # A process takes as long to start as a few of the smallest slides to paint.
    many = options.slides * options.size_px**2 > 32 * 1024**2
    workers = config.prepare.workers if many else 1
    return synthetic.write_cohort(
        folder,
        seed=config.seed,
        slides=options.slides,
        size_px=options.size_px,
        run=functools.partial(map_jobs, workers=workers, label="synthetic slides"),
    )


def prepared(config: ConfigDict, workdir: Path) -> label_csv.Cohort:
    """The cohort less the slides that could not be prepared.

    Raises:
      WorkdirError: a slide has not been prepared yet.
      DataError: a slide is in two splits under two names (`twins.check`).
    """
    cohort = read(config, workdir)
    failed = set()
    for slide_id in cohort.table.slide_id:
        status = statuses.read(workdir, slide_id)
        if status is None:
            raise WorkdirError(
                f"slide {slide_id} is not prepared in {workdir}; run --stages prepare first"
            )
        if status["status"] != "ok":
            failed.add(slide_id)
    kept = cohort.without(failed)
    checked = Path(workdir).absolute(), id(cohort)
    if checked not in _without_leaks:
        twins.check(workdir, kept, source=source(config), how=config.data.leaks)
        _without_leaks.add(checked)
    return kept


def source(config: ConfigDict) -> str:
    """What messages call the label table."""
    return str(config.data.labels or "the synthetic cohort")


def slide_jobs(config: ConfigDict, workdir: Path, table: pd.DataFrame) -> list[SlideJob]:
    """One job a slide of the cohort's table.

    Raises:
      DataError: `data.annotations` cannot be used (`slide_files.drawn`).
    """
    settings, drawn = tiling_settings(config), annotations(config, table)
    jobs = [
        SlideJob(
            slide_id=row.slide_id,
            path=Path(os.path.abspath(row.path)),
            mpp=slide_files.given_mpp(row),
            folder=layout.regions_folder(workdir),
            settings=settings,
            trust_mpp=config.data.trust_mpp,
            annotations=drawn.get(row.slide_id),
        )
        for row in table.itertuples()
    ]
    return list(foreign.jobs(config, table, jobs)) if foreign.given(config) else jobs


def annotations(config: ConfigDict, table: pd.DataFrame) -> dict[str, Annotations]:
    """What `data.annotations` has of each slide of a table, by `slide_id`."""
    data = config.data
    return slide_files.drawn(
        _path(data.annotations),
        data.annotation_classes,
        table.slide_id.tolist(),
        key="data.annotations",
    )


def slide_limits(config: ConfigDict) -> dict[str, Any]:
    """How `processes` guard against slides whose reader crashes or hangs; synthetic slides, which
    do neither, are read in this process where there is one worker."""
    seconds = config.prepare.seconds_per_slide
    return {"seconds": seconds, "apart": seconds > 0 and config.data.labels is not None}


def patch_source(
    config: ConfigDict,
    workdir: Path,
    job: SlideJob,
    *,
    high: bool,
    chosen: Sequence[int] | None = None,
    encoded: SlideFeatures | None = None,
    readers: Workers | None = None,
) -> PatchSource:
    """Patches of a prepared slide: from its shards or, where these have no HR, from its file.

    Args:
      config, workdir: of the run.
      job: the slide.
      high: HR children instead of LR tiles.
      chosen: LR patches that are wanted; None is all.
      encoded: features of other patches that are there already.
      readers: who reads slide files (`beside.slide_readers`); None where none will be read.
    """
    stored = statuses.read(workdir, job.slide_id)["hr"]
    if high and not stored:
        origin = FromSlide(job, readers)
    else:
        origin = Shards(job.shard, geometry(config), threads=config.encoder.threads)
    return PatchSource(str(job.path), origin, high=high, chosen=chosen, encoded=encoded)


def write_slides_csv(config: ConfigDict, workdir: Path) -> None:
    """One row a slide: patient, um/px and where it came from, counts, seconds, status, reason."""
    rows = []
    for row in read(config, workdir).table.itertuples():
        status = statuses.read(workdir, row.slide_id)
        seconds = status.get("seconds", {})
        rows.append(
            {
                "slide_id": row.slide_id,
                "patient_id": row.patient_id,
                "status": status["status"],
                "reason": status["reason"],
                "mpp": status.get("mpp"),
                "mpp_source": status.get("mpp_source"),
                "objective": status.get("objective"),
                "reader": status.get("reader"),
                "lr_patches": status.get("lr_patches", 0),
                "hr_patches": status.get("hr_patches", 0),
                "unreadable": len(status.get("unreadable", [])),
                "seconds_open_tissue": seconds.get("open_tissue"),
                "seconds_read_write": seconds.get("read_write"),
                "path": storage.shown(Path(row.path)),
            }
        )
    files.write_table(workdir / "slides.csv", pd.DataFrame(rows))


def write_left_out(config: ConfigDict, workdir: Path, table: pd.DataFrame) -> None:
    """Writes `left_out.csv`: every file of the slide folder that no slide of the table is."""
    if config.data.labels is None or config.data.slides is None:
        return
    folder = data_files.slides(config)
    listing = slide_files.list_folder(folder)
    used = (Path(path) for path in table.path)
    slide_folder.write(workdir / "left_out.csv", folder, listing, used, source(config))


def write_view(config: ConfigDict, workdir: Path, jobs: list[SlideJob]) -> None:
    """Makes the TFDS views of the prepared slides' regions as they are now, if there are any."""
    if not foreign.reads_slides(config):
        return
    known = [(job, statuses.read(workdir, job.slide_id)) for job in jobs]
    done = [(job, status) for job, status in known if status["status"] == "ok"]
    if not done:
        return
    folder, shape = layout.regions_folder(workdir), geometry(config)
    counts = {job.shard: status["lr_patches"] for job, status in done}
    writer.write_tfds_view(folder, schema.region_features(shape), counts)
    stored = {job.mosaics: status["lr_patches"] for job, status in done if status["hr"]}
    if stored:
        writer.write_tfds_view(folder / "hr", schema.mosaic_features(shape), stored)
    else:
        writer.remove_tfds_view(folder / "hr")
