"""Features of other tools that the config names, and the jobs of taking them over."""

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from lrmil_jax.data import regions, slide_files
from lrmil_jax.data.slide_jobs import SlideJob
from lrmil_jax.errors import DataError
from lrmil_jax.interchange import registry
from lrmil_jax.interchange.layout import Layout
from lrmil_jax.interchange.slides import BagFile, FeatureJob
from lrmil_jax.workspace import data_files, statuses

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class FeatureFolder:
    """Files of one resolution: their layout, and where each slide's is, by name."""

    layout: Layout
    folder: Path
    files: Mapping[str, Path]


def given(config: ConfigDict) -> bool:
    """Whether another tool's features take the place of slides."""
    return config.data.features is not None or config.data.features_lr is not None


def reads_slides(config: ConfigDict) -> bool:
    """Whether slides are read for more than their um/px: always without other features; beside HR
    features where slides and the encoder's weights are given too, for stage 1 and `predict`."""
    if not given(config):
        return True
    data = config.data
    slides = data.slides is not None and config.encoder.weights is not None
    return slides and data.features_lr is None


def named_folders(config: ConfigDict) -> dict[str, str]:
    """By resolution, "hr" and "lr", the folders that the config gives; one alone goes by "hr",
    whatever its patches are."""
    data = config.data
    if data.features is None and data.features_lr is not None:
        return {"hr": data.features_lr}
    folders = {"hr": data.features, "lr": data.features_lr}
    return {level: folder for level, folder in folders.items() if folder is not None}


def folders(config: ConfigDict) -> dict[str, FeatureFolder]:
    """By resolution, what the named folders hold; listed once a run.

    Raises:
      DataError: no folder, of no known layout, or two files of one slide.
    """
    form = config.data.features_format
    return {level: _listed(name, form) for level, name in named_folders(config).items()}


@functools.lru_cache(maxsize=8)
def _listed(folder: str, form: str) -> FeatureFolder:
    path = Path(folder)
    kind = registry.of_folder(path, form)
    files = kind.files(path)
    if not files:
        raise DataError(f"{folder} has no feature file of {kind.name}; see data.features_format")
    log.info("%s: %d slides, in the layout of %s", folder, len(files), kind.name)
    return FeatureFolder(kind, path, files)


def forget() -> None:
    """The next `folders` lists the files again; a run begins with this."""
    _listed.cache_clear()


def stand_ins(config: ConfigDict) -> Mapping[str, Path] | None:
    """The files that stand for slides, by name; None where slides are read."""
    return None if reads_slides(config) else next(iter(folders(config).values())).files


def check_names(config: ConfigDict, table: pd.DataFrame) -> None:
    """Refuses a CSV that names none of the files, and tells of files that it does not name.

    Raises:
      DataError: no slide of the CSV has a file.
    """
    for held in folders(config).values():
        found = {slide_id: slide_files.named(held.files, slide_id) for slide_id in table.slide_id}
        if not any(found.values()):
            raise DataError(
                f"none of the {len(table)} slides of the label CSV has a feature file in "
                f"{held.folder}: the CSV has {table.slide_id[0]!r}, the folder has "
                f"{next(iter(held.files))!r}; slide_id is the file's name without its suffix"
            )
        others = sorted(set(held.files.values()) - set(found.values()))
        if others:
            names = ", ".join(path.name for path in others[:5])
            log.warning(
                "%d feature files in %s are of no slide of the label CSV and are left out: %s%s",
                len(others), held.folder, names, " ..." if len(others) > 5 else "",
            )  # fmt: skip


def jobs(
    config: ConfigDict, table: pd.DataFrame, slide_jobs: Sequence[SlideJob]
) -> list[FeatureJob]:
    """The jobs of the cohort's table with the features of each slide."""
    held, tiles = folders(config), reads_slides(config)
    slides = _slide_files(config, table)
    return [
        FeatureJob(
            **vars(job),
            bags={
                level: BagFile(one.layout, one.folder, slide_files.named(one.files, job.slide_id))
                for level, one in held.items()
            },
            slide=job.path if tiles else slides.get(job.slide_id),
            with_tiles=tiles,
            with_parents=tiles or len(held) == 2,
        )
        for job in slide_jobs
    ]


def _slide_files(config: ConfigDict, table: pd.DataFrame) -> dict[str, Path | None]:
    """Slides from which um/px alone are read."""
    if reads_slides(config) or config.data.slides is None:
        return {}
    found = slide_files.find(data_files.slides(config))
    return {slide_id: slide_files.named(found, slide_id) for slide_id in table.slide_id}


def fail_odd_widths(workdir: Path, jobs: Sequence[FeatureJob]) -> dict[str, int]:
    """Fails the slides whose features are of another width than most, by resolution.

    Returns:
      The width of the others; {} if no slide is left.
    """
    widths = {}
    for level in jobs[0].bags:
        good = [job for job in jobs if statuses.read(workdir, job.slide_id)["status"] == "ok"]
        own = [statuses.read(workdir, job.slide_id)["width"][level] for job in good]
        if not own:
            return {}
        values, counts = np.unique(own, return_counts=True)
        widths[level] = int(values[counts.argmax()])
        for job, width in zip(good, own, strict=True):
            if width != widths[level]:
                regions.fail(
                    job,
                    f"{job.bags[level].path} has features of width {width}, those of most slides "
                    f"have {widths[level]}; extract all with one encoder",
                )
    statuses.forget()
    return widths


def facts(
    config: ConfigDict, workdir: Path, jobs: Sequence[FeatureJob], widths: Mapping[str, int]
) -> dict:
    """What makes these features one set, as `cohort.json` keeps it of an encoder."""
    first = next(iter(widths))
    good = [statuses.read(workdir, job.slide_id) for job in jobs]
    names = {
        level: sorted({one["encoder"][level] for one in good if one["status"] == "ok"} - {""})
        for level in widths
    }
    for level, several in names.items():
        if len(several) > 1:
            log.warning(
                "the %s features are of several encoders, as their files say: %s",
                level.upper(), ", ".join(several),
            )  # fmt: skip
    return {
        "name": " ".join(names[first]) or "unknown",
        "layout": {level: one.layout.name for level, one in folders(config).items()},
        "dtype": config.features.dtype,
        "width": widths[first],
        "lr_width": widths.get("lr", widths[first]),
        "layer_width": 0,
    }


def warn_of_resolution(config: ConfigDict, workdir: Path, jobs: Sequence[FeatureJob]) -> None:
    """Tells where patches are not of the um/px that the config has for them, as far as is known."""
    good = [statuses.read(workdir, job.slide_id) for job in jobs]
    geometry = config.geometry
    wanted = {"hr": (geometry.hr_mpp,), "lr": (geometry.lr_mpp,)}
    if len(named_folders(config)) == 1:  # which may be either
        wanted = {"hr": (geometry.hr_mpp, geometry.lr_mpp)}
    for level, folder in named_folders(config).items():
        known = [one["um_px"][level] for one in good if level in one.get("um_px", ())]
        middle = float(np.median(known)) if known else None
        if middle is not None and not any(0.8 < middle / one < 1.25 for one in wanted[level]):
            log.warning(
                "%s has patches of %.3g um/px (median), which is neither geometry.hr_mpp nor lr_mpp"
                if len(wanted[level]) == 2
                else "%s has patches of %.3g um/px (median), which is not geometry."
                f"{level}_mpp",
                folder, middle,
            )  # fmt: skip
