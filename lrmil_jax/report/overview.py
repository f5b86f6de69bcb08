"""What a reader has to know before any figure: whose slides, which were left out and why, and where
intervals cannot be trusted."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from ml_collections import ConfigDict

from lrmil_jax import config as configuration
from lrmil_jax.data import failures
from lrmil_jax.data.labels import Cohort
from lrmil_jax.data.splits import SPLITS
from lrmil_jax.report import html
from lrmil_jax.workspace import cohorts, foreign, statuses

# Test patients of a class (events of a follow-up, patients of a number) below which intervals rest
# on too few: one patient moves the share of a class that is right by a tenth or more.
FEW = 10
_MUCH_LEFT_OUT = 0.05
_MOST_NAMED = 2000  # slides left out that the page names; all are in slides.csv


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """Slides, or files, that no figure is of.

    Attributes:
      names: of them.
      reasons: of each in a sentence, all of one cause.
    """

    names: list[str]
    reasons: list[str]


def slides_left_out(workdir: Path, slide_ids: Sequence[str]) -> list[LeftOut]:
    """Slides of the label table that could not be prepared, by reason, the most frequent first."""
    groups: dict[str, LeftOut] = {}
    for slide_id in slide_ids:
        status = statuses.read(workdir, slide_id)
        if status is not None and status["status"] != "ok":
            reason = status["reason"] or "no reason was noted"
            group = groups.setdefault(failures.cause(slide_id, reason), LeftOut([], []))
            group.names.append(slide_id)
            group.reasons.append(reason)
    return sorted(groups.values(), key=lambda group: -len(group.names))


def files_left_out(path: Path) -> list[LeftOut]:
    """Files of the slide folder that no slide of the table is, from `left_out.csv`, by reason."""
    if not path.is_file():
        return []
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    groups = [
        LeftOut(rows.path.tolist(), rows.reason.tolist()) for _, rows in table.groupby("reason")
    ]
    return sorted(groups, key=lambda group: -len(group.names))


def split_cells(cohort: Cohort, folds: int) -> list[list[str]]:
    """Slides, patients and what is asked of them, of every fold and split; the first line is the
    heading."""
    cells = [["fold", "split", "slides", "patients", "slides by outcome"]]
    for fold in range(1, folds + 1):
        for split in SPLITS:
            rows = cohort.slides(fold, split)
            count = str(rows.patient_id.nunique())
            summary = cohort.task.summary(rows) if len(rows) else "-"
            cells.append([str(fold), split, str(len(rows)), count, summary])
    return cells


def cautions(cohort: Cohort, folds: int, *, slides_left_out: int) -> list[str]:
    """Where figures or their intervals cannot be trusted, a sentence each.

    Args:
      cohort: less the slides that were left out.
      folds: of the run.
      slides_left_out: how many.
    """
    sentences = []
    listed = len(cohort.table) + slides_left_out
    if slides_left_out > _MUCH_LEFT_OUT * listed:
        sentences.append(
            f"{slides_left_out} of {listed} slides were left out, and every figure is of the "
            "others: see what was left out."
        )
    tested: dict[str, set[str]] = {}
    for fold in range(1, folds + 1):
        for split in SPLITS:
            members = _members(cohort, cohort.slides(fold, split))
            missing = [name for name, patients in members.items() if not patients]
            if missing:
                sentences.append(_missing(fold, split, missing))
            for name, patients in members.items() if split == "test" else ():
                tested.setdefault(name, set()).update(patients)
    if tested:
        name, patients = min(tested.items(), key=lambda item: len(item[1]))
        if 0 < len(patients) < FEW:
            share = f"one of them is {1 / len(patients):.2g} of all"
            sentences.append(
                f"Only {len(patients)} test patients{name}: with fewer than {FEW} an interval "
                f"cannot be trusted, as {share}."
            )
    return sentences


def _missing(fold: int, split: str, names: Sequence[str]) -> str:
    lacking = {
        "train": "which cannot be learned there",
        "val": "so it chooses no threshold, and its checkpoint badly",
        "test": "so figures that compare the two are undefined there",
    }
    return f"Fold {fold} has no {split} patients{' or'.join(names)}, {lacking[split]}."


def _members(cohort: Cohort, rows: pd.DataFrame) -> dict[str, set[str]]:
    """Patients of each kind that a figure needs some of, by what they are called."""
    task = cohort.task
    if task.has_classes:
        labels = task.groups(task.targets(rows)) if len(rows) else []
        by_class: dict[str, set[str]] = {f" of class {name}": set() for name in task.classes}
        for case, label in zip(rows.case_id, labels, strict=True):
            by_class[f" of class {task.classes[label]}"].add(case)
        return by_class
    if task.has_follow_up:
        return {" with an event": set(rows.case_id[rows.event > 0])}
    return {"": set(rows.case_id)}


def changed_keys(config: ConfigDict) -> list[tuple[str, str]]:
    """Keys of a config that differ from the defaults, and their values."""
    usual = configuration.flatten(configuration.default())
    given = configuration.flatten(config)
    return [(key, str(value)) for key, value in given.items()
            if key not in usual or usual[key] != value]  # fmt: skip


def facts(
    config: ConfigDict,
    cohort: Cohort,
    *,
    method: str,
    version: str,
    made: str,
    model_hash: str | None,
    encoder: Mapping[str, Any],
) -> list[tuple[str, str]]:
    """What the run is, as names and values.

    Args:
      config: of the run; cohort: less the slides that were left out.
      method: title of its model.
      version: of this package; made: date and time.
      model_hash: of the delivered model, None without one.
      encoder: its facts from `cohort.json`.
    """
    geometry, task = config.geometry, cohort.task
    classes = f": {', '.join(task.classes)}" if task.classes else ""
    patients = cohort.table.patient_id.nunique()
    rows = [
        ("method", f"{method} (config.method={config.method})"),
        ("question", f"{task.name.replace('_', ' ')}{classes}"),
        ("cohort", f"{len(cohort.table)} slides of {patients} patients, {cohorts.source(config)}"),
        ("folds", f"{config.folds}, by patient, seed {config.seed}"),
        ("patches", f"HR at {geometry.hr_mpp:g} um/px, LR at {geometry.lr_mpp:g} um/px, "
                    f"{geometry.patch_px} px a side"),
        ("encoder", _encoder(encoder)),
        ("model", model_hash or "none is delivered"),
        ("made", f"{made} by lrmil_jax {version}"),
    ]  # fmt: skip
    if not foreign.reads_slides(config):
        rows.insert(5, ("features", f"of another tool: {config.data.features}"))
    return rows


def _encoder(facts: Mapping[str, Any]) -> str:
    name, weights = str(facts.get("name", "of another tool")), facts.get("weights")
    return f"{name}, weights {str(weights)[:16]}…" if weights else name


def section(
    *,
    rows: Sequence[tuple[str, str]],
    changed: Sequence[tuple[str, str]],
    splits: Sequence[Sequence[str]],
    slides: Sequence[LeftOut],
    others: Sequence[LeftOut],
    damaged: int,
) -> str:
    """The part of the page that says what the run is.

    Args:
      rows: `facts`; changed: `changed_keys`; splits: `split_cells`.
      slides: `slides_left_out`; others: `files_left_out`.
      damaged: slides of which some patches could not be read.
    """
    keys = html.facts(changed) if changed else html.paragraph("All keys have their defaults.")
    return html.section(
        "What this is",
        html.facts(rows),
        html.details(f"Config keys that differ from the defaults ({len(changed)})", keys),
        html.heading("Patients and slides"),
        html.table(splits),
        html.heading("What was left out, and why"),
        _left_out("slide{} of the cohort", slides),
        _left_out("file{} of the slide folder", others),
        html.paragraph(f"{damaged} slides have patches that could not be read; the others of "
                       "these slides were used. slides.csv says how many.") if damaged else "",
    )  # fmt: skip


def _left_out(what: str, groups: Sequence[LeftOut]) -> str:
    total = sum(len(group.names) for group in groups)
    what = what.format("" if total == 1 else "s")
    if not total:
        return html.paragraph(f"No {what}.")
    cells = [["count", "reason, of the first"]]
    cells += [[str(len(group.names)), group.reasons[0]] for group in groups]
    listed = [pair for group in groups for pair in zip(group.names, group.reasons, strict=True)]
    names = html.table([["name", "reason"], *map(list, listed[:_MOST_NAMED])])
    more = len(listed) - _MOST_NAMED
    rest = html.paragraph(f"and {more} more, see slides.csv and left_out.csv") if more > 0 else ""
    return (
        html.paragraph(f"{total} {what}:")
        + html.table(cells)
        + html.details(f"The list of all {total}", names, rest)
    )
