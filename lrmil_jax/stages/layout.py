"""Where everything lies in a working directory, and whose it is."""

import contextlib
import dataclasses
import fcntl
import importlib.metadata
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from ml_collections import ConfigDict

from lrmil_jax import config as configuration
from lrmil_jax import files
from lrmil_jax.data import labels as label_csv
from lrmil_jax.data import splits, writer
from lrmil_jax.data.regions import SlideJob, TilingSettings
from lrmil_jax.data.schema import SCHEMA_VERSION, Geometry
from lrmil_jax.errors import DataError, WorkdirError
from lrmil_jax.slides import synthetic
from lrmil_jax.train.logging import progress

SOFTWARE = ("lrmil_jax", "jax", "flax", "optax", "grain", "tiffslide", "numpy")


def geometry(config: ConfigDict) -> Geometry:
    """Resolutions and patch side of the run."""
    return Geometry(**config.geometry)


def regions_folder(workdir: Path) -> Path:
    """Where `prepare` puts regions and each slide's status."""
    return workdir / "regions"


def features_folder(workdir: Path, name: str, fold: int | None = None) -> Path:
    """Features of one encoder on one resolution; those of a fold's encoder lie with the fold."""
    return (workdir if fold is None else fold_folder(workdir, fold)) / "features" / name


def fold_folder(workdir: Path, fold: int) -> Path:
    """All that belongs to one fold, counted from 1, or to the final model."""
    return workdir / "folds" / fold_name(fold)


def fold_name(fold: int) -> str:
    """A fold's number, or `final`."""
    return "final" if fold == splits.FINAL else str(fold)


def fold_title(fold: int) -> str:
    """What progress and messages call it."""
    return "final model" if fold == splits.FINAL else f"fold {fold}"


def stage_folder(workdir: Path, stage: str, fold: int | None = None) -> Path:
    """The output of one stage, of one fold where it runs per fold."""
    return (workdir if fold is None else fold_folder(workdir, fold)) / stage


def shard(folder: Path, slide_id: str) -> Path:
    """The ArrayRecord file of one slide."""
    return folder / f"{slide_id}.array_record"


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the working directory for this run; the lock goes with the process, however it ends.

    Raises:
      WorkdirError: another run holds it, or it cannot be written to.
    """
    with files.disk_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        file = open(workdir / ".lock", "a+")  # noqa: SIM115 - held until the run ends
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WorkdirError(
                f"another run is at work in {workdir}; wait for it or choose another --workdir"
            ) from error
        except OSError as error:
            raise WorkdirError(
                f"{workdir} cannot be locked ({error.strerror}), so two runs could spoil each "
                "other; choose a --workdir on a disk that has file locks"
            ) from error
        yield


def read_claims(workdir: Path) -> dict[str, Any]:
    """Who made which part of the cohort, from `cohort.json`.

    Raises:
      WorkdirError: it is of another schema.
    """
    path = workdir / "cohort.json"
    record = json.loads(path.read_text()) if path.is_file() else {"schema": SCHEMA_VERSION}
    if record.get("schema") != SCHEMA_VERSION:
        raise WorkdirError(
            f"{workdir} was made with schema {record.get('schema')}, this version writes schema "
            f"{SCHEMA_VERSION}; use another --workdir, or the version that made it"
        )
    return record


def check_claim(workdir: Path, section: str, identity: dict[str, Any]) -> dict[str, Any]:
    """Checks that nobody else made a part of the cohort, and returns all that is known of it.

    Raises:
      WorkdirError: it was made by another config, encoder or schema; both sides are named.
    """
    record = read_claims(workdir)
    identity = json.loads(json.dumps(identity))  # tuples become lists, as they are on disk
    known = record.get(section)
    if known is not None and known != identity:
        flat_known, flat_new = configuration.flatten(known), configuration.flatten(identity)
        differing = [
            key for key in sorted(flat_known | flat_new) if flat_known.get(key) != flat_new.get(key)
        ]
        key = differing[0]
        raise WorkdirError(
            f"{workdir} was made by another config: {section} has {key}={flat_known.get(key)!r}, "
            f"this run has {flat_new.get(key)!r}; use another --workdir, or delete this one"
        )
    return record


def claim(workdir: Path, section: str, identity: dict[str, Any]) -> None:
    """Writes who made a part of the cohort into `cohort.json`, if it is new.

    Raises:
      WorkdirError: it was made by another config, encoder or schema; both sides are named.
    """
    record = check_claim(workdir, section, identity)
    if section not in record:
        record[section] = json.loads(json.dumps(identity))
        record["software"] = {name: _version(name) for name in SOFTWARE}
        files.write_json(workdir / "cohort.json", record)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def tiling_settings(config: ConfigDict) -> TilingSettings:
    """What decides which pixels a region holds."""
    prepare = config.prepare
    return TilingSettings(
        geometry=geometry(config),
        reader=prepare.reader,
        tissue_mpp=prepare.tissue_mpp,
        min_tissue=prepare.min_tissue,
        with_hr=prepare.hr == "store",
        jpeg_quality=prepare.jpeg_quality,
    )


def claim_regions(config: ConfigDict, workdir: Path) -> None:
    """The regions' identity: whatever changes their pixels."""
    claim(workdir, "regions", dataclasses.asdict(tiling_settings(config)))


def check_regions(config: ConfigDict, workdir: Path) -> None:
    """Refuses a config other than the one that made the regions, before anything is changed."""
    check_claim(workdir, "regions", dataclasses.asdict(tiling_settings(config)))


def read_cohort(config: ConfigDict, workdir: Path) -> label_csv.Cohort:
    """The whole cohort of the label CSV (made now if it is synthetic), with its folds saved.

    Read once per run: every stage of every fold asks for it, and slide folders can be slow.
    """
    data = config.data
    made = Path(data.labels).stat().st_mtime_ns if data.labels and Path(data.labels).exists() else 0
    parts = (data, config.synthetic, config.folds, config.seed, made, Path(workdir).absolute())
    key = "\n".join(str(part) for part in parts)
    if key not in _cohorts:
        _cohorts[key] = _read_cohort(config, workdir)
    return _cohorts[key]


_cohorts: dict[str, label_csv.Cohort] = {}


def forget_cohorts() -> None:
    """The next `read_cohort` reads the files again; a run begins with this."""
    _cohorts.clear()


def _read_cohort(config: ConfigDict, workdir: Path) -> label_csv.Cohort:
    data = config.data
    labels, slides = data.labels, data.slides
    if labels is None:
        labels = _synthetic_cohort(config, workdir / "synthetic")
        slides = labels.parent / "slides"
    elif not Path(labels).is_file():
        raise DataError(f"data.labels names {labels}, which does not exist")
    saved = workdir / "folds.csv"
    cohort = label_csv.read_cohort(
        Path(labels),
        Path(slides) if slides else None,
        classes=tuple(data.classes),
        label_column=data.label_column,
        folds=config.folds,
        seed=config.seed,
        saved_folds=saved,
    )
    folds = [name for name in cohort.table if name.startswith("fold_")]
    kept = cohort.table[["slide_id", "patient_id", "label", *folds]]
    writer.write_table(saved, kept.assign(seed=config.seed))
    return cohort


def _synthetic_cohort(config: ConfigDict, folder: Path) -> Path:
    options = config.synthetic
    with contextlib.ExitStack() as stack:
        report = None
        if not (folder / "labels.csv").is_file():
            bar = stack.enter_context(progress("synthetic slides", options.slides))
            report = lambda done, total: bar.advance()  # noqa: E731
        return synthetic.write_cohort(
            folder,
            seed=config.seed,
            slides=options.slides,
            size_px=options.size_px,
            progress=report,
        )


def prepared_cohort(config: ConfigDict, workdir: Path) -> label_csv.Cohort:
    """The cohort less the slides that could not be prepared.

    Raises:
      WorkdirError: a slide has not been prepared yet.
    """
    cohort = read_cohort(config, workdir)
    failed = set()
    for slide_id in cohort.table.slide_id:
        status = read_status(workdir, slide_id)
        if status is None:
            raise WorkdirError(
                f"slide {slide_id} is not prepared in {workdir}; run --stages prepare first"
            )
        if status["status"] != "ok":
            failed.add(slide_id)
    return cohort.without(failed)


def read_status(workdir: Path, slide_id: str) -> dict | None:
    """What `prepare` noted of a slide, or None."""
    path = regions_folder(workdir) / f"{slide_id}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def slide_jobs(config: ConfigDict, workdir: Path, table: pd.DataFrame) -> list[SlideJob]:
    """One job a slide of the cohort's table."""
    settings = tiling_settings(config)
    return [
        SlideJob(
            slide_id=row.slide_id,
            path=Path(os.path.abspath(row.path)),
            mpp=label_csv.given_mpp(row),
            folder=regions_folder(workdir),
            settings=settings,
        )
        for row in table.itertuples()
    ]
