"""What the predictions of test patients show beside the result table: calibration, decision
curves and subgroups. The same for a run's report and for `python -m lrmil_jax.evals`."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from lrmil_jax import tasks
from lrmil_jax.evals import calibration
from lrmil_jax.report import decision_curve, reliability, subgroups
from lrmil_jax.tasks import evaluation
from lrmil_jax.tasks import subgroups as subgroup_figures

Pictures = list[tuple[str, str]]
Sections = list[tuple[str, list[list[str]]]]
_RELIABILITY = (
    f"Reliability: at most {calibration.BINS} bins of equally many test patients, all folds "
    "together, with 95 % intervals. ECE: mean distance from the diagonal; with few patients it is "
    "above 0 even where probabilities are right. Temperature: chosen on validation patients."
)
_DECISION = (
    "Net benefit: true positives less false positives weighed by the odds of the threshold, per "
    "test patient, mean over folds, with its 95 % interval."
)


def save(
    folder: Path,
    tested: pd.DataFrame,
    temperatures: reliability.Temperatures,
    titles: Mapping[str, str],
) -> tuple[Pictures, Sections]:
    """Writes `reliability.png`, `decision_curve.png` and `.csv`, and `subgroups.csv`, `.txt` and
    `.md`, as far as the task and the columns ask for them.

    Args:
      folder: where to.
      tested: test rows of all folds, with their `fold`.
      temperatures: see `reliability.save`.
      titles: of the models, by name.

    Returns:
      File and caption of each picture; heading and cells of each table.
    """
    task = tasks.of_columns(tested)
    pictures: Pictures = []
    sections: Sections = []
    if reliability.save(folder / "reliability.png", tested, temperatures, titles):
        pictures.append(("reliability.png", _RELIABILITY))
    folds = {
        model: [of_fold for _, of_fold in rows.groupby("fold")]
        for model, rows in tested.groupby("model", sort=False)
    }
    if len(task.classes) == 2:
        curves = {model: evaluation.net_benefit(task, rows) for model, rows in folds.items()}
        shown = decision_curve.save(folder, curves, titles)
        pictures.append(("decision_curve.png", f"{_DECISION} Positive: {task.classes[1]}."))
        sections.append(("Net benefit [95 %]", shown))
    rows = {model: subgroup_figures.table(task, of_model) for model, of_model in folds.items()}
    if any(rows.values()):
        title = task.titles.get(task.headline, task.headline)
        cells = subgroups.cells(rows, titles, task.headline, title)
        subgroups.save(folder, rows, cells)
        sections.append(("Subgroups of test patients", cells))
    return pictures, sections
