"""What a method gives at every budget, beside its controls: what the runs of `study.budgets` say
together."""

import dataclasses
from collections.abc import Sequence

import pandas as pd

from lrmil_jax.evals.intervals import Summary
from lrmil_jax.methods.wise_fuse import GUIDED, RANDOM, UNPROMPTED
from lrmil_jax.report.table import EXHAUSTIVE, PHASES
from lrmil_jax.studies.measured import Measured, over_seeds, paired


def points(measured: Sequence[Measured]) -> list[dict]:
    """One row a line of the curve and budget, then the models that have none; over all seeds.

    A line is named as its variants are, less the budget at the end.

    Returns:
      Rows with `line`, `budget` (None without), `title`, `figure_<of intervals.Summary>`,
      `accuracy`, `recall` and its SD, `patches`, `seconds_encode`, `seconds_select`, `seconds`, and
      the paired differences `to_exhaustive_*` and `to_random_*`, the line's less the other's.
    """
    groups: dict[tuple, list[Measured]] = {}
    for one in measured:
        groups.setdefault((_line(one), one.record["budget"]), []).append(one)
    lines = list(dict.fromkeys(line for line, _ in groups))
    rows = [_point(line, budget, own, groups) for (line, budget), own in groups.items()]
    return sorted(rows, key=lambda row: (row["budget"] is None, lines.index(row["line"]),
                                         row["budget"] or 0))  # fmt: skip


def _line(one: Measured) -> str:
    budget = one.record["budget"]
    return one.model if budget is None else one.model.removesuffix(f" {budget:g}")


def _point(line: str, budget: float | int | None, own: list[Measured], groups: dict) -> dict:
    row = {"line": line, "budget": budget, "title": own[0].record["headline_title"]}
    row |= _named("figure", over_seeds(own))
    for name, other in (("exhaustive", (EXHAUSTIVE, None)), ("random", (RANDOM, budget))):
        if other in groups and other[0] != line:
            difference = paired(own, groups[other])
            if difference is not None:
                row |= _named(f"to_{name}", difference)
    frame = pd.DataFrame([one.record for one in own])
    phases = [name for phase in (*PHASES, "select") if (name := f"seconds_{phase}") in frame]
    if phases:
        frame["seconds"] = frame[phases].sum(axis=1, min_count=len(phases))
    for name in ("accuracy", "patches", "seconds_encode", "seconds_select", "seconds"):
        if name in frame and frame[name].notna().all():
            row[name] = float(frame[name].mean())
    if "lesion_recall" in frame and frame.lesion_recall.notna().all():
        row |= {"recall": frame.lesion_recall.mean(), "recall_sd": frame.lesion_recall.std()}
        row["recalls"] = dict(zip(frame.seed, frame.lesion_recall, strict=True))
    return row


def _named(stem: str, summary: Summary) -> dict:
    return {f"{stem}_{name}": value for name, value in dataclasses.asdict(summary).items()}


def notes(rows: Sequence[dict]) -> list[str]:
    """What prompts add to the recall of lesion area, seed by seed on the same slides."""
    known = {(row["line"], row["budget"]): row.get("recalls") for row in rows}
    told = []
    for (line, budget), recalls in known.items():
        other = known.get((UNPROMPTED, budget))
        if line == GUIDED.title and recalls and other and recalls.keys() == other.keys():
            gains = [recalls[seed] - other[seed] for seed in recalls]
            told.append(
                f"{budget:g}: {sum(gains) / len(gains):+.3f} "
                f"({sum(gain > 0 for gain in gains)} of {len(gains)} seeds)"
            )
    if not told:
        return []
    return [f"Recall of lesion area, {GUIDED.title} less {UNPROMPTED}: " + "; ".join(told) + "."]
