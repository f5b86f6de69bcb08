"""check: before a long run, every slide opened and every problem told at once."""

import functools
import logging
import shutil
import time
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from lrmil_jax import encoders, files, graph, methods, processes
from lrmil_jax.data import failures, leaks, slide_files, splits
from lrmil_jax.data import labels as label_csv
from lrmil_jax.data.inspection import inspect_slide
from lrmil_jax.errors import UserError
from lrmil_jax.interchange import slides as slides_of_features
from lrmil_jax.methods import delivery
from lrmil_jax.models import tower_pair, trained
from lrmil_jax.report import remarks
from lrmil_jax.train.encode import BatchEncoder, Encoder
from lrmil_jax.workspace import (
    cohorts,
    data_files,
    foreign,
    lesion_masks,
    pretrain_tiles,
    twins,
)

log = logging.getLogger(__name__)

_SHOWN = 20  # slides that have a line each in the log
# Columns of `check/slides.csv`.
_TOLD = (
    *("slide_id", "mpp", "mpp_source", "objective", "width_px", "height_px"),
    *("lr_patches", "hr_patches"),
)
_CPU_BATCH = 8  # images; more of them make a CPU no faster, and an estimate must not take minutes


def run(config: ConfigDict, workdir: Path) -> int:
    """Logs what a run would work on and cost; writes nothing but the folds, the files of the slide
    folder that are left out, and `check/`: a picture of each slide and which to look at.

    Returns:
      The number of problems found.
    """
    problems: list[str] = []
    method, stages = methods.of(config), [graph.STAGES[n] for n in graph.stage_names(config)]
    if graph.STAGES["prepare"] not in stages:  # no slides
        for stage in stages:
            _attempt(problems, lambda stage=stage: graph.check(config, workdir, stage, ()))
        return _tell(problems)
    cohort = _attempt(problems, lambda: cohorts.read(config, workdir))
    _attempt(problems, lambda: trained.preflight(config))
    module = _attempt(problems, lambda: encoders.create(config.encoder.name))
    if module is not None:
        _attempt(problems, lambda: method.preflight(config, module))
    _attempt(problems, lambda: lesion_masks.masks_folder(config, workdir))
    if cohort is not None and config.data.labels is not None:
        _attempt(problems, lambda: pretrain_tiles.preflight(config, cohort))
    if cohort is not None:
        for stage in stages:
            _attempt(
                problems, lambda stage=stage: graph.check(config, workdir, stage, cohort.classes)
            )
        _attempt(problems, lambda: method.check_cohort(config, workdir, cohort))
    encoder = blocks = None
    if foreign.reads_slides(config):
        encoder = _attempt(problems, lambda: _encoder(config, workdir))
    if encoder is not None:
        blocks = _attempt(problems, lambda: method.layers(config, encoder.module))
    _attempt(problems, lambda: _check_regions(config, workdir))
    if cohort is not None:
        _log_folds(cohort)
        table = cohort.table
    else:
        table = _listed_slides(config, problems)
    good = _inspect(config, workdir, table, problems) if len(table) else []
    if cohort is not None and not foreign.given(config):
        _attempt(problems, lambda: _refuse_twins(config, cohort, good))
        known = {slide["slide_id"]: slide for slide in good}
        problems += lesion_masks.problems(config, workdir, table, cohort.classes, known)
    if good and encoder is not None and blocks is not None and not foreign.given(config):
        problems += _log_cost(config, workdir, good, encoder, blocks)
    return _tell(problems)


def _tell(problems: list[str]) -> int:
    problems = list(dict.fromkeys(problems))  # two checks may find the same
    for problem in problems:
        log.error("problem: %s", problem)
    log.info("%d problem%s found", len(problems), "" if len(problems) == 1 else "s")
    return len(problems)


def _listed_slides(config: ConfigDict, problems: list[str]) -> pd.DataFrame:
    """The slides that a CSV with mistakes lists and that are there; its other mistakes too."""
    labels = _attempt([], lambda: data_files.labels(config))
    if labels is None or not labels.is_file():
        return pd.DataFrame()
    if foreign.given(config):
        return pd.DataFrame()  # whose files are found by the CSV's own names
    sources = cohorts.label_sources(config)
    problems += label_csv.problems(sources, cohorts.read_task(config))
    listed = _attempt(
        [], lambda: slide_files.read_list(sources.labels, sources.slides, strict=False)
    )
    return pd.DataFrame() if listed is None else listed


def _inspect(
    config: ConfigDict, workdir: Path, table: pd.DataFrame, problems: list[str]
) -> list[dict]:
    """What is known of every slide that can be used; the others join the problems."""
    jobs = _attempt(problems, lambda: cohorts.slide_jobs(config, workdir, table))
    if not jobs:
        return []
    folder = workdir / "check"
    with data_files.ahead(config, [job.path for job in jobs]) as ahead:
        slides = processes.map_jobs(
            slides_of_features.inspect_slide
            if foreign.given(config)
            else functools.partial(inspect_slide, pictures=folder),
            jobs,
            workers=config.prepare.workers,
            label="check",
            lost=lambda job, reason: {
                "slide_id": job.slide_id, "status": "failed", "reason": f"{job.path}: {reason}"
            },
            finished=lambda job: ahead.finished(job.path),
            **cohorts.slide_limits(config),
        )  # fmt: skip
    if not foreign.given(config):
        remarks.save(folder, slides)
        _attempt(problems, lambda: cohorts.write_left_out(config, workdir, table))
    problems += failures.sentences(slide for slide in slides if slide["reason"])
    good = [slide for slide in slides if slide["status"] == "ok"]
    (folder / "slides.csv").unlink(missing_ok=True)  # of an earlier check
    if good and not foreign.given(config):
        table = pd.DataFrame(good)
        table[["width_px", "height_px"]] = table.dimensions.tolist()
        files.write_table(folder / "slides.csv", table[list(_TOLD)])
    if good:
        _log_slides(good)
    return good


def _log_slides(slides: list[dict]) -> None:
    """A line each, or of many slides one."""
    if len(slides) <= _SHOWN:
        for slide in slides:
            log.info("%s", _sentence(slide))
        return
    table = pd.DataFrame(slides)
    mpp, patches = table.mpp.dropna(), table.lr_patches
    log.info(
        "%d slides: %s, %d to %d LR patches (median %d)",
        len(slides),
        f"{mpp.min():.4f} to {mpp.max():.4f} um/px" if len(mpp) else "um/px unknown",
        patches.min(), patches.max(), patches.median(),
    )  # fmt: skip
    without = [slide for slide in slides if slide.get("why_no_parents")]
    if without:
        log.info(
            "%d of them without exact LR parents, %s: %s",
            len(without), without[0]["slide_id"], without[0]["why_no_parents"],
        )  # fmt: skip


def _sentence(slide: dict) -> str:
    patches = f"{slide['lr_patches']} LR and {slide['hr_patches']} HR patches"
    size = "um/px unknown" if slide["mpp"] is None else f"{slide['mpp']:.4f} um/px"
    if slide.get("dimensions") and slide["mpp_source"]:
        width, height = slide["dimensions"]
        size += f" ({slide['mpp_source']}), {width} x {height} px"
    why = slide.get("why_no_parents")
    return f"{slide['slide_id']}: {size}, {patches}" + (
        f" without exact LR parents: {why}" if why else ""
    )


def _refuse_twins(config: ConfigDict, cohort: label_csv.Cohort, good: list[dict]) -> None:
    """As a run does once its slides are prepared."""
    slides = {slide["slide_id"]: leaks.identity(slide) for slide in good}
    paths = dict(zip(cohort.table.slide_id, cohort.table.path, strict=True))
    sentence = leaks.across_splits(twins.find(slides, paths), cohort.table, cohorts.source(config))
    leaks.tell(sentence, config.data.leaks)


def _attempt(problems: list[str], function):
    """The function's value; None and one more problem if the user has to mend something."""
    try:
        return function()
    except UserError as error:
        problems.append(str(error))
        return None


def _encoder(config: ConfigDict, workdir: Path) -> Encoder:
    """The encoder with its weights, or as it starts where they are trained here."""
    if config.encoder.weights is not None:
        return trained.hr_encoder(config, workdir)
    return tower_pair.image_tower(config)


def _check_regions(config: ConfigDict, workdir: Path) -> None:
    if (workdir / "cohort.json").is_file():
        cohorts.record_regions(config, workdir)


def _log_folds(cohort: label_csv.Cohort) -> None:
    for fold in range(1, cohort.folds + 1):
        for split in splits.SPLITS:
            table = cohort.slides(fold, split)
            log.info(
                "fold %d %s: %d slides of %d patients (%s)",
                fold, split, len(table), table.patient_id.nunique(), cohort.task.summary(table),
            )  # fmt: skip


def _log_cost(
    config: ConfigDict,
    workdir: Path,
    slides: list[dict],
    encoder: Encoder,
    blocks: tuple[int, ...],
) -> list[str]:
    """Disk and time to expect: from one region a slide, and one batch through the encoder."""
    lr = sum(slide["lr_patches"] for slide in slides)
    hr = sum(slide["hr_patches"] for slide in slides)
    width = encoder.module.embedding_width
    regions = sum(slide["bytes"] for slide in slides)
    method, models = methods.of(config), len(delivery.trainings(config))
    rows = method.stored_rows(config, hr=hr, lr=lr, layers=len(blocks), models=models)
    features = 2 * width * rows
    need, free = (regions + features) / 2**30, _free_gib(workdir)
    rate = _images_per_second(config, encoder)
    workers = config.prepare.workers or processes.usable_cores()
    prepare = sum(slide["seconds"] for slide in slides) / workers
    log.info("%d slides, %d LR and %d HR patches", len(slides), lr, hr)
    log.info("disk: %.2f GiB needed, %.1f GiB free in %s", need, free, workdir)
    log.info("time: prepare about %s; %s at %.1f images/s: %s", _duration(prepare), encoder.name,
             rate, method.encoding_time(config, hr=hr, lr=lr, duration=lambda patches:
                                        _duration(patches / rate)))  # fmt: skip
    if need > free:
        return [
            f"{need:.1f} GiB are needed in {workdir} and {free:.1f} GiB are free; "
            "set prepare.hr=skip, or choose another --workdir"
        ]
    return []


def _free_gib(workdir: Path) -> float:
    existing = next(path for path in (workdir, *workdir.parents) if path.exists())
    return shutil.disk_usage(existing).free / 2**30


def _images_per_second(config: ConfigDict, encoder: Encoder) -> float:
    batch, px = config.encoder.batch, config.geometry.patch_px
    if jax.default_backend() == "cpu":
        batch = min(batch, _CPU_BATCH)
    encode = BatchEncoder(encoder, batch=batch)
    images = np.zeros((batch, px, px, 3), np.uint8)
    encode([images])
    start = time.perf_counter()
    encode([images])
    return batch / (time.perf_counter() - start)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
