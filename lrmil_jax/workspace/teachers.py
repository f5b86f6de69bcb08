"""Other runs on the same slides whose teachers teach beside this run's own (`distill.teachers`)."""

import dataclasses
import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from ml_collections import ConfigDict

from lrmil_jax.errors import ConfigError, DataError, WorkdirError
from lrmil_jax.train.bag_model import BagModel
from lrmil_jax.workspace import cohorts, foreign, layout, provenance, stage_files, statuses

_KEY = "distill.teachers"
# Of the regions' identity, what changes no place of a patch.
_NO_PLACE = ("reader", "with_hr", "jpeg_quality")
# Of an encoder's facts, how its features were computed and stored, not what they are.
_NO_ENCODER = ("dtype", "compute_dtype", "imported")


@dataclasses.dataclass(frozen=True)
class OtherRun:
    """Another working directory, and how much its teacher counts beside this run's, which counts
    1."""

    folder: Path
    weight: float


@dataclasses.dataclass(frozen=True)
class OtherEncoder:
    """The HR encoder of other runs, with the sum of their weights.

    Attributes:
      workdir: of the first of these runs, whose features are read.
      targets: the folder with its HR embeddings, one record an LR patch.
      width: of its embeddings.
      weight: above 0.
    """

    workdir: Path
    targets: Path
    width: int
    weight: float


def named(config: ConfigDict) -> tuple[OtherRun, ...]:
    """The runs that the config names.

    Raises:
      ConfigError: they are no pairs of a folder and a weight above 0, or one is there twice.
    """
    runs: dict[Path, OtherRun] = {}
    for one in _pairs(config.distill.teachers):
        place = one.folder.resolve()
        if not (math.isfinite(one.weight) and one.weight > 0):
            raise ConfigError(
                f"{_KEY} gives {one.folder} the weight {one.weight:g}, but a weight must be above "
                "0; leave out a teacher that is not to count"
            )
        if place in runs:
            raise ConfigError(
                f"{_KEY} names {one.folder} twice; name it once, with the sum of both weights"
            )
        runs[place] = one
    return tuple(runs.values())


def _pairs(given: Any) -> list[OtherRun]:
    runs = []
    for one in (given,) if isinstance(given, str) else given:
        pair = one if isinstance(one, tuple | list) and len(one) == 2 else (None, None)
        number = isinstance(pair[1], int | float) and not isinstance(pair[1], bool)
        if not (isinstance(pair[0], str) and pair[0] and number):
            raise ConfigError(
                f"config.{_KEY} is {given!r}, but it must be a tuple of pairs of a folder and a "
                "weight, like (('runs/other', 1.0),)"
            )
        runs.append(OtherRun(Path(pair[0]), float(pair[1])))
    return runs


def check(config: ConfigDict, workdir: Path, folds: Collection[int]) -> None:
    """Refuses other runs whose teachers cannot teach here.

    Args:
      config, workdir: of this run, whose cohort is known.
      folds: that are trained here; the others' teachers of them must be finished.

    Raises:
      ConfigError: a run is this one, or its task or classes are others.
      WorkdirError: it is not finished, or its patches lie elsewhere.
      DataError: its slides, labels or folds are others.
    """
    for run in named(config):
        if run.folder.resolve() == Path(workdir).resolve():
            raise ConfigError(
                f"{_KEY} names {run.folder}, which is this run itself; its own teacher counts 1 "
                "anyway, so leave it out"
            )
        _refuse_unfinished(run, folds)
        _refuse_other_task(config, workdir, run, min(folds))
        _refuse_other_lattice(config, workdir, run)
        _refuse_other_folds(run, _folds(workdir), _folds(run.folder), config.folds)
        _refuse_other_files(config, workdir, run)


def _mark(folder: Path, fold: int) -> dict[str, Any]:
    path = layout.stage_folder(folder, "teacher", fold) / "stage.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _refuse_unfinished(run: OtherRun, folds: Collection[int]) -> None:
    files = (run.folder / name for name in ("config.json", "cohort.json", "folds.csv"))
    missing = [layout.fold_title(fold) for fold in folds
               if not _mark(run.folder, fold).get("complete")]  # fmt: skip
    if not all(path.is_file() for path in files):
        missing = ["any fold"]
    if missing:
        raise WorkdirError(
            f"{run.folder}, which {_KEY} names, is no finished run: it has no teacher of "
            f"{missing[0]}; run it there with the same folds, at least --stages "
            "pretrain,prepare,encode_hr,teacher, or leave it out"
        )


def _refuse_other_task(config: ConfigDict, workdir: Path, run: OtherRun, fold: int) -> None:
    own = cohorts.read(config, workdir).task
    other = BagModel.load(stage_files.head(run.folder, "teacher", fold)).task
    if (other.name, other.values) != (own.name, own.values):
        raise ConfigError(
            f"{run.folder}, which {_KEY} names, predicts {other.name} of {', '.join(other.values)},"
            f" this run {own.name} of {', '.join(own.values)}; a teacher must have the same task "
            "and classes, in the same order"
        )


def _refuse_other_lattice(config: ConfigDict, workdir: Path, run: OtherRun) -> None:
    own = cohorts.regions_identity(config)
    other = provenance.read(run.folder).get("regions", {})
    own, other = _flat(own), _flat(other)
    for key in own:
        if key not in _NO_PLACE and own[key] != other.get(key):
            raise WorkdirError(
                f"{run.folder}, which {_KEY} names, has patches with {key}={other.get(key)!r}, "
                f"this run with {own[key]!r}; its teacher must look at the same patches"
            )


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The regions' identity without its part `geometry`, whose keys stand beside the others."""
    whole = json.loads(json.dumps(identity))
    return whole.pop("geometry", {}) | whole


def _folds(folder: Path) -> pd.DataFrame:
    table = pd.read_csv(folder / "folds.csv", dtype=str, keep_default_na=False)
    return table.set_index("slide_id").drop(columns=["seed", "site"], errors="ignore")


def _refuse_other_folds(run: OtherRun, own: pd.DataFrame, other: pd.DataFrame, folds: int) -> None:
    where = f"{run.folder}, which {_KEY} names,"
    odd = sorted(own.index.symmetric_difference(other.index))
    if odd:
        has = "does not have" if odd[0] in own.index else "has beside those of this run"
        raise DataError(
            f"{where} is of other slides: {odd[0]} is one that it {has}; give it the same label "
            "table"
        )
    other = other.loc[own.index]
    for column in (f"fold_{fold}" for fold in range(1, folds + 1)):
        if column not in other:
            raise DataError(f"{where} has no {column}; give both runs the same folds")
        seen = (own[column] == "test") & (other[column] != "test")
        if seen.any():
            slide_id = own.index[seen][0]
            raise DataError(
                f"{where} has other folds, so it would leak: slide {slide_id} is in its "
                f"{other[column][slide_id]} of {column}, and tested here; give both runs the same "
                "folds, as columns of the label table (another seed makes others)"
            )
    for column in own:
        differing = own[column] != other.get(column, "")
        if differing.any():
            slide_id = own.index[differing][0]
            raise DataError(
                f"{where} has another {column} of slide {slide_id}: "
                f"{other.get(column, {}).get(slide_id)!r} there, {own[column][slide_id]!r} here; "
                "give both runs the same label table and folds"
            )


def _refuse_other_files(config: ConfigDict, workdir: Path, run: OtherRun) -> None:
    """Of the slides that are prepared here."""
    flat = json.loads((run.folder / "config.json").read_text(encoding="utf-8"))
    told = ["lr_patches", "hr_patches"]
    if not foreign.given(config) and flat.get("data.features") is None:
        told.insert(0, "source")
    for slide_id in cohorts.read(config, workdir).table.slide_id:
        own = statuses.read(workdir, slide_id)
        if own is None or own["status"] != "ok":
            continue
        other = statuses.read(run.folder, slide_id) or {"status": "missing"}
        if other["status"] != "ok":
            raise DataError(
                f"slide {slide_id} is {other['status']} in {run.folder}, which {_KEY} names; mend "
                "it there, or leave the slide out here"
            )
        for key in told:
            if own.get(key) != other.get(key):
                what = "is another file" if key == "source" else f"has another number of {key}"
                raise DataError(
                    f"slide {slide_id} {what} in {run.folder}, which {_KEY} names; its teacher "
                    "must look at the same patches of the same slides"
                )


def inputs(config: ConfigDict, folds: Sequence[int]) -> list[dict[str, Any]]:
    """What a stage takes of the other runs, for its fingerprint.

    Args:
      config: of this run.
      folds: whose teachers it learns from.

    Raises:
      ConfigError, WorkdirError: see `named` and `check`.
    """
    told = []
    for run in named(config):
        _refuse_unfinished(run, folds)
        marks = [_mark(run.folder, fold)["fingerprint"] for fold in folds]
        encoder = provenance.read(run.folder).get("encoder")
        told.append({"weight": run.weight, "encoder": encoder, "teachers": marks})
    return told


def encoders(config: ConfigDict, workdir: Path) -> tuple[float, tuple[OtherEncoder, ...]]:
    """What this run's HR encoder weighs in L_attn, and the encoders of the others beside it: a run
    with the same encoder adds its weight to that, as it has the same HR embeddings.

    Raises:
      WorkdirError: a run does not keep its HR embeddings LR patch by LR patch.
    """
    own, found = _encoder(workdir), {}
    weight = 1.0
    for run in named(config):
        facts = _encoder(run.folder)
        if facts == own:
            weight += run.weight
            continue
        key = json.dumps(facts, sort_keys=True)
        if key in found:
            found[key] = dataclasses.replace(found[key], weight=found[key].weight + run.weight)
        else:
            targets = _targets(run.folder)
            found[key] = OtherEncoder(run.folder, targets, facts["width"], run.weight)
    return weight, tuple(found.values())


def _encoder(folder: Path) -> dict[str, Any]:
    facts = provenance.read(folder)["encoder"]
    return {key: value for key, value in facts.items() if key not in _NO_ENCODER}


def _targets(folder: Path) -> Path:
    """Those of most slides: whichever blocks they have, the embeddings in them are the same."""
    found = sorted(layout.features_folder(folder, "hr_targets").parent.glob("hr_targets*"))
    if not found:
        raise WorkdirError(
            f"{folder}, which {_KEY} names, keeps no HR embeddings LR patch by LR patch, which "
            "stage 1 reads; run it with method=lrmil, or set distill.lambda_attn=0 to learn from "
            "its teacher in stage 2 alone"
        )
    return max(found, key=lambda one: len([*one.glob("*.array_record")]))
