"""`python -m lrmil_jax.evals predictions.csv`: every figure again, from the predictions alone;
`... compare A/predictions.csv B/predictions.csv`: two models on the same patients."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import rich.box
import rich.console
import rich.table

from lrmil_jax import files, progress, tasks
from lrmil_jax.arguments import Parser
from lrmil_jax.data import subgroups
from lrmil_jax.errors import ConfigError, DataError, UserError
from lrmil_jax.report import patient_figures, table
from lrmil_jax.tasks import comparison, evaluation, prediction_files, predictions

_PROGRAM = "python -m lrmil_jax.evals"


def parse(arguments: Sequence[str], prog: str = _PROGRAM) -> argparse.Namespace:
    """The command line of a program of this name.

    Raises:
      ConfigError: an unknown flag, a value out of range, or a file that is not named.
    """
    compare = list(arguments[:1]) == ["compare"]
    parser = _comparing(prog) if compare else _evaluating(prog)
    given = parser.parse_args(arguments[1:] if compare else arguments)
    if not compare and not 0 < given.sensitivity <= 1:
        raise ConfigError(f"--sensitivity is {given.sensitivity:g}, but it lies in (0, 1]")
    if compare and given.bootstrap < 0:
        raise ConfigError(f"--bootstrap is {given.bootstrap}, but it is a number of draws")
    given.compare = compare
    return given


def _evaluating(prog: str) -> Parser:
    parser = Parser(
        prog=prog,
        description="Figures, calibration, decision curves and subgroups from predictions.csv; "
        "validation.csv beside it, if it is there, chooses thresholds and temperature. "
        "`compare A B` compares two models.",
    )
    parser.add_argument("files", nargs="+", type=Path, help="predictions.csv, of one fold or each")
    parser.add_argument("--output", type=Path, help="folder; by default `evaluation` beside it")
    parser.add_argument("--sensitivity", type=float, default=0.95, help="wanted of a threshold")
    parser.add_argument("--subgroups", default="", help="columns of the files: site,sex")
    return parser


def _comparing(prog: str) -> Parser:
    parser = Parser(
        prog=f"{prog} compare",
        description="The first model's figures less the second's on the same patients, by DeLong's "
        "variance and its kin, and by the paired bootstrap.",
    )
    parser.add_argument("files", nargs=2, type=Path, metavar="predictions.csv")
    parser.add_argument("--model", help="model of the first file; by default every model of both")
    parser.add_argument("--other", help="model of the second file; by default the same")
    parser.add_argument("--bootstrap", type=int, default=1000, help="draws; 0 leaves it out")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser


def main(arguments: Sequence[str] | None = None, prog: str = _PROGRAM) -> int:
    """Prints and writes what `parse`'s files say; 1 if it cannot, which stderr explains."""
    # In a file lines are as long as they are; a terminal folds them.
    width = None if sys.stdout.isatty() else 200
    console = rich.console.Console(markup=False, emoji=False, highlight=False, width=width)
    try:
        given = parse(sys.argv[1:] if arguments is None else arguments, prog)
        (_compare if given.compare else _evaluate)(given, console)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _evaluate(given: argparse.Namespace, console: rich.console.Console) -> None:
    named = tuple(name.strip() for name in given.subgroups.split(",") if name.strip())
    test, validation = read(given.files, named)
    task = tasks.of_columns(test)
    folder = given.output or given.files[0].parent / "evaluation"
    evaluated = figures(test, validation, sensitivity=given.sensitivity)
    temperatures = {
        (int(fold), model): measured["calibration"].get("temperature")
        for fold, models in evaluated["folds"].items()
        for model, measured in models.items()
    }
    titles = dict(zip(test.model, test.title, strict=True)) if "title" in test else {}
    _, sections = patient_figures.save(folder, test, temperatures, titles)
    files.write_json(folder / "evaluation.json", evaluated)
    console.print(_metric_table(task, evaluated["over_folds"], titles))
    console.print(_calibration_table(evaluated["folds"], titles))
    for title, cells in sections:
        console.print(_shown(title, cells))
    note = predictions.pool_note(test)
    notes = [note] if note else []
    if validation is None:
        notes.append("Without validation.csv no threshold and no temperature is chosen.")
    for line in [*notes, f"Written to {folder}"]:
        console.print(line)


def read(
    paths: Sequence[Path], named: tuple[str, ...] = ()
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Test and validation rows of several files, one a fold or one of all.

    Args:
      paths: files as `prediction_files` writes them.
      named: columns of theirs to make subgroups of.

    Raises:
      DataError: see `prediction_files.read`, or a model is there twice in one fold.
    """
    pairs = [prediction_files.read_with_validation(path) for path in paths]
    test = pd.concat([one for one, _ in pairs], ignore_index=True)
    twice = test[test.duplicated(["fold", "model", "slide_id"])] if "slide_id" in test else test[:0]
    if len(twice):
        row = twice.iloc[0]
        raise DataError(
            f"slide {row.slide_id} is there twice under the model {row.model} in fold {row.fold}; "
            "give every fold once"
        )
    if named:
        text = test.astype(object).where(test.notna(), "").astype(str)
        source = ", ".join(map(str, paths))
        test = test.assign(**subgroups.columns(text, named, test.case_id, source))
    validations = [other for _, other in pairs]
    whole = all(other is not None for other in validations)
    return test, pd.concat(validations, ignore_index=True) if whole else None


def figures(
    test: pd.DataFrame, validation: pd.DataFrame | None, *, sensitivity: float
) -> dict[str, dict]:
    """`folds`: of each fold and model what `evaluation.evaluate` gives, as `metrics.json` has it;
    `over_folds`: of each model what `evaluation.over_folds` gives."""
    folds: dict[str, dict] = {}
    groups = test.groupby(["fold", "model"], sort=False)
    with progress.progress("figures", len(groups)) as bar:
        for (fold, model), rows in groups:
            task, chosen = tasks.of_columns(rows), _chosen(validation, int(fold), model)
            measured = evaluation.evaluate(task, rows, chosen, sensitivity=sensitivity)
            folds.setdefault(str(fold), {})[model] = measured
            bar.advance()
    task = tasks.of_columns(test)
    models = test.groupby("model", sort=False)
    return {
        "folds": folds,
        "over_folds": {model: evaluation.over_folds(task, rows) for model, rows in models},
    }


def _chosen(validation: pd.DataFrame | None, fold: int, model: str) -> pd.DataFrame | None:
    """The validation rows of one model in one fold.

    Raises:
      DataError: there are validation rows, but none of these.
    """
    if validation is None:
        return None
    rows = validation[(validation.fold == fold) & (validation.model == model)]
    if rows.empty:
        raise DataError(
            f"validation.csv has no rows of the model {model} in fold {fold}; move it away to go "
            "without"
        )
    return rows


def _metric_table(
    task: tasks.Task, over_folds: dict[str, dict], titles: Mapping[str, str]
) -> rich.table.Table:
    cells = [["metric", *(titles.get(model, model) for model in over_folds)]]
    cells += [
        [task.titles.get(name, name.replace("_", " ")),
         *(table.mean_and_spread(row[name], row[f"{name}_sd"], row[f"{name}_interval"])
           for row in over_folds.values())]
        for name in task.metrics
    ]  # fmt: skip
    return _shown("Test patients: mean ± SD over folds [95 % interval]", cells)


def _calibration_table(folds: dict[str, dict], titles: Mapping[str, str]) -> rich.table.Table:
    """Means over folds of what calibration says of each model."""
    cells = [["model", "probability of", "ECE", "ECE by chance", "bias", "Brier", "temperature",
              "ECE at it"]]  # fmt: skip
    models = dict.fromkeys(model for of_fold in folds.values() for model in of_fold)
    for model in models:
        each = [of_fold[model]["calibration"] for of_fold in folds.values() if model in of_fold]
        temperature = _mean([one.get("temperature") for one in each])
        for place, name in enumerate(each[0]["as_predicted"]):
            # Survival's intervals end elsewhere in every fold.
            summaries = [list(one["as_predicted"].values())[place] for one in each]
            tempered = [list(one["tempered"].values())[place]["ece"] if "tempered" in one else None
                        for one in each]  # fmt: skip
            keys = ("ece", "ece_if_calibrated", "bias", "brier")
            means = [_mean([one.get(key) for one in summaries]) for key in keys]
            shown = [table.cell(value) for value in (*means, temperature, _mean(tempered))]
            cells.append([titles.get(model, model), name, *shown])
    return _shown("Calibration (mean over folds)", cells)


def _mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else float(np.mean(values))


def _shown(title: str, cells: Sequence[Sequence[str]]) -> rich.table.Table:
    shown = rich.table.Table(title=title, title_justify="left", box=rich.box.SIMPLE_HEAD)
    for name in cells[0]:
        shown.add_column(name, overflow="fold")
    for line in cells[1:]:
        shown.add_row(*line)
    return shown


def _compare(given: argparse.Namespace, console: rich.console.Console) -> None:
    one, other = (prediction_files.read_with_validation(path)[0] for path in given.files)
    pairs = _pairs(one, other, given)
    compared = {}
    for first, second in pairs:
        names = tuple(
            f"{model} of {path}" for model, path in zip((first, second), given.files, strict=True)
        )
        label = first if first == second else f"{first} - {second}"
        compared[label] = comparison.paired(
            one[one.model == first],
            other[other.model == second],
            names=names,
            draws=given.bootstrap,
        )
        console.print(_comparison_table(tasks.of_columns(one), label, compared[label]))
    if given.output is not None:
        files.write_json(given.output, compared)
        console.print(f"Written to {given.output}")


def _pairs(
    one: pd.DataFrame, other: pd.DataFrame, given: argparse.Namespace
) -> list[tuple[str, str]]:
    """The models to compare.

    Raises:
      ConfigError: a model is not there, or a model would be compared with itself.
    """
    models = [rows.model.unique().tolist() for rows in (one, other)]
    if given.model is None and given.other is None:
        pairs = [(model, model) for model in models[0] if model in models[1]]
        if len(models[0]) == len(models[1]) == 1:
            pairs = [(models[0][0], models[1][0])]
    else:
        first = given.model or given.other
        pairs = [(first, given.other or first)]
    for pair in pairs:
        for model, there, path in zip(pair, models, given.files, strict=True):
            if model not in there:
                raise ConfigError(f"{path} has no model {model}; it has {', '.join(there)}")
    same = given.files[0].resolve() == given.files[1].resolve()
    if not pairs or (same and any(first == second for first, second in pairs)):
        raise ConfigError(
            f"name the models to compare by --model and --other: {given.files[0]} has "
            f"{', '.join(models[0])}, {given.files[1]} has {', '.join(models[1])}"
        )
    return pairs


def _comparison_table(task: tasks.Task, label: str, compared: dict) -> rich.table.Table:
    cells = [["metric", "first", "second", "difference [95 %]", "p", "bootstrap [95 %]", "p"]]
    for name, one in compared["metrics"].items():
        line = [task.titles.get(name, name.replace("_", " "))]
        line += [table.number(one["one"]), table.number(one["other"])]
        if one["difference"] is None:
            cells.append([*line, "undefined", "-", "-", "-"])
            continue
        gap = table.difference(one["difference"], one["interval"] or (None, None))
        drawn = one["bootstrap"]
        bounds = "-" if drawn is None else "[{:+.3f}, {:+.3f}]".format(*drawn["interval"])
        cells.append([*line, gap, table.cell(one["p"], 4), bounds,
                      table.cell(None if drawn is None else drawn["p"], 4)])  # fmt: skip
    folds = "1 fold" if compared["folds"] == 1 else f"{compared['folds']} folds"
    title = f"{label}: {compared['patients']} patients, {folds}"
    delong = compared.get("delong")
    if delong is not None:
        title += f"; DeLong: z {delong['z']:.2f}, p {delong['p']:.4f}"
    return _shown(title, cells)


if __name__ == "__main__":
    progress.setup_logging()
    sys.exit(main())
