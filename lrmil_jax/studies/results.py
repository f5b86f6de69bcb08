"""What a study measured: tidy rows of every run, and each model's figures over the seeds."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from lrmil_jax import config as configuration
from lrmil_jax import files, methods
from lrmil_jax.methods import Method
from lrmil_jax.report import comparison, table
from lrmil_jax.report import curve as curve_report
from lrmil_jax.studies import curve
from lrmil_jax.studies.measured import Measured, measure, over_seeds, paired
from lrmil_jax.studies.plan import BASE, Run
from lrmil_jax.tasks.task import LESS_IS_BETTER


def save(folder: Path, runs: Sequence[Run], *, side_by_side: bool) -> None:
    """Writes `results.csv` (tidy), the table as CSV, Markdown and text, and the plots."""
    measured = [one for run in runs for one in measure(run)]
    files.write_table(folder / "results.csv", pd.DataFrame([one.record for one in measured]))
    method = methods.of(runs[0].config)
    rows = summarise(measured, method.main.title)
    closed = gap_closed(measured, method)
    best = winner(measured, method) if swept(runs) else None
    told = notes(measured, method, closed)
    if best is not None:
        told.append(_told(best))
    if side_by_side:
        told.append("Seconds are those of a machine on which other seeds ran at the same time.")
    comparison.save_table(folder, rows, told)
    comparison.save_plot(folder / "comparison.png", rows)
    summary = {"rows": rows, "gap_closed": closed, "winner": best}
    files.write_json(folder / "summary.json", summary)
    points = curve.points(measured)
    if len({point["budget"] for point in points} - {None}) > 1:
        curve_report.save(folder, points, told + curve.notes(points))
        return
    effects = effect_rows(runs, measured)
    if effects:
        comparison.save_effects(folder / "effects.png", effects)


def notes(measured: Sequence[Measured], method: Method, closed: float | None) -> list[str]:
    """What a reader of the table has to know."""
    patients = {one.record["seed"]: one.record["patients"] for one in measured}
    tested = ", ".join(map(str, patients.values()))
    title = measured[0].record["headline_title"]
    over = "seeds" if len(patients) > 1 else "folds of the one seed"
    told = [
        f"{title} of {len(patients)} seeds ({tested} test patients), each the mean of its folds; "
        f"SD over {over}; 95 % intervals of the mean are over {over} and patients, and a patient "
        "tested more than once is one; differences are paired: same seeds, same patients."
    ]
    told += dict.fromkeys(one.note for one in measured if one.note is not None)
    if closed is not None:
        low, high = method.gap
        told.append(
            f"{method.main.title} closes {100 * closed:.0f} % of the gap between {low.title} and "
            f"the {high.title}."
        )
    return told


def summarise(measured: Sequence[Measured], reference: str) -> list[dict]:
    """One row a model in the order of appearance: its headline over seeds, and by how much the
    model named `reference` is ahead of it, paired."""
    rows, base = [], [one for one in measured if one.model == reference]
    for model in dict.fromkeys(one.model for one in measured):
        own = [one for one in measured if one.model == model]
        row = {"model": model, "reference": reference, "title": own[0].record["headline_title"]}
        row |= {f"figure_{k}": v for k, v in dataclasses.asdict(over_seeds(own)).items()}
        gain = None if model == reference else paired(base, own)
        if gain is not None:
            row |= {f"gain_{k}": v for k, v in dataclasses.asdict(gain).items()}
        frame = pd.DataFrame([one.record for one in own])
        told = ("patches", "seconds_", "attention_", "lesion_recall")
        wanted = [name for name in frame if name.startswith(told)]
        wanted += [name for name in ("accuracy", "val_figure") if name in frame]
        means = frame[wanted].astype(float).mean()
        row |= {name: None if np.isnan(value) else float(value) for name, value in means.items()}
        rows.append(row)
    return rows


def gap_closed(measured: Sequence[Measured], method: Method) -> float | None:
    """Share of the gap between the method's two other models that its main one closes, of the means
    over seeds; None where there is no gap."""
    if method.gap is None:
        return None
    means = []
    for model in (*method.gap, method.main):
        values = [one.figure for one in measured if one.model == model.title]
        if not values or None in values:
            return None
        means.append(float(np.mean(values)))
    low, high, main = means
    return (main - low) / (high - low) if high > low else None


def swept(runs: Sequence[Run]) -> bool:
    """Whether settings were tried from which one is to be chosen."""
    return any(run.points for run in runs)


def winner(measured: Sequence[Measured], method: Method) -> dict | None:
    """The settings whose mean over seeds is best on validation patients, the config's own among
    them; None where validation tells none.

    Returns:
      `model`, `changes`, `among` (how many settings), `val_figure`, `title`, and of the test the
      `figure_*` of `intervals.Summary`, and `as_it_is`, the same mean of the config itself.
    """
    groups: dict[str, list[Measured]] = {}
    for one in measured:
        if one.record["name"] == method.main.name and one.record["val_figure"] is not None:
            groups.setdefault(one.model, []).append(one)
    if not groups:
        return None
    chosen_by = {
        name: float(np.mean([one.record["val_figure"] for one in own]))
        for name, own in groups.items()
    }
    less_is_better = groups[next(iter(groups))][0].record["headline"] in LESS_IS_BETTER
    name = (min if less_is_better else max)(chosen_by, key=chosen_by.get)
    own, plain = groups[name], groups.get(method.main.title)
    return {
        "model": name,
        "changes": own[0].record["changes"],
        "among": len(groups),
        "val_figure": chosen_by[name],
        "title": own[0].record["headline_title"],
        **{f"figure_{key}": value for key, value in dataclasses.asdict(over_seeds(own)).items()},
        "as_it_is": None if plain is None else over_seeds(plain).mean,
    }


def _told(best: dict) -> str:
    flags = " ".join(f"--config.{one}" for one in best["changes"].split()) or "none"
    bounds = table.mean_and_spread(
        best["figure_mean"], best["figure_sd"], (best["figure_low"], best["figure_high"])
    )
    return (
        f"Best of {best['among']} settings on validation patients: {best['model']} "
        f"({best['title']} {best['val_figure']:.3f} there, which flatters the best of many); on "
        f"test patients {bounds}, the config as it is {table.number(best['as_it_is'])}. Its flags: "
        f"{flags}"
    )


def effect_rows(runs: Sequence[Run], measured: Sequence[Measured]) -> list[dict]:
    """One row for each model whose settings differ in a single key, and for the config itself under
    every such key: `factor`, `value`, `seed`, test and validation figure."""
    base = next(run for run in runs if run.variant == BASE)
    flat, main = configuration.flatten(base.config), methods.of(base.config).main
    own = [one.record["changes"] for one in measured if one.record["name"] == main.name]
    alone = [changes for changes in own if len(changes.split()) == 1]
    factors = dict.fromkeys(changes.partition("=")[0] for changes in alone)
    rows = []
    for one in measured:
        single = one.record["changes"].split() if one.record["changes"] else []
        if one.model == main.title:
            told = [(key, flat[key], True) for key in factors]
        elif len(single) == 1 and one.record["name"] == main.name:
            key, _, value = single[0].partition("=")
            told = [(key, value, False)]
        else:
            continue
        kept = ("seed", "figure", "val_figure", "headline_title")
        figures = {name: one.record[name] for name in kept}
        rows += [
            {"factor": key, "value": str(value).replace(" ", ""), "default": default} | figures
            for key, value, default in told
        ]
    return rows
