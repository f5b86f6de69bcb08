"""Learning curves: each term of each training on an axis of its own."""

import json
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lrmil_jax.report import comparison

_TRAIN, _VALIDATION = "#9a9a9a", "#1f5fa8"
_NOT_TERMS = ("grad_norm", "learning_rate", "balanced_loss")
# Of a validation's many figures one that says how training went: the first of these that it has.
_FIGURES = ("c_index", "pearson", "auc", "kappa", "accuracy", "agreement")
_ACROSS = 5

# Of each term the curves: whether of training, steps, values; a curve a fold.
Curves = list[tuple[bool, list[float | int], list[float | int]]]
Terms = dict[str, Curves]


def read(workdir: Path) -> dict[str, Terms]:
    """What the trainings of a run logged, by stage and term."""
    logs = sorted(workdir.glob("pretrain/training/metrics.jsonl"))
    logs += sorted((workdir / "folds").glob("*/*/training/metrics.jsonl"))
    stages: dict[str, Terms] = {}
    for file in logs:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        terms = stages.setdefault(file.parent.parent.name, {})
        for name in dict.fromkeys(name for line in lines for name in line if "/" in name):
            kind, _, term = name.partition("/")
            points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
            if points:
                terms.setdefault(term, []).append(
                    (kind == "train", *map(list, zip(*points, strict=True)))
                )
    return {stage: shown for stage, terms in stages.items() if (shown := _shown(terms))}


def _shown(terms: Terms) -> Terms:
    """Terms of the loss and one figure of the validation, the whole loss first."""
    figure = next((name for name in _FIGURES if name in terms), None)
    names = [
        name
        for name, kinds in terms.items()
        if name not in _NOT_TERMS and (any(train for train, *_ in kinds) or name == figure)
    ]
    names.sort(key=lambda name: name != "loss")
    return {name: terms[name] for name in names}


def save(folder: Path, workdir: Path) -> list[tuple[str, str]]:
    """Draws `training.png`, a line of panels a stage.

    Returns:
      File and caption; [] where nothing was trained.
    """
    stages = read(workdir)
    if not stages:
        return []
    lines = [-(-len(terms) // _ACROSS) for terms in stages.values()]
    down, first = sum(lines), 0
    high = 1.75 * down  # places in inches, as a layout engine would draw all panels once more
    figure = Figure(figsize=(2.15 * _ACROSS, high))
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        down, _ACROSS, left=0.045, right=0.99, bottom=0.3 / high, top=1 - 0.3 / high,
        wspace=0.34, hspace=0.5,
    )  # fmt: skip
    for (stage, terms), count in zip(stages.items(), lines, strict=True):
        for place, (term, kinds) in enumerate(terms.items()):
            row, column = divmod(place, _ACROSS)
            axis = figure.add_subplot(grid[first + row, column])
            _draw(axis, f"{stage}: {term.replace('_', ' ')}", kinds)
        first += count
    comparison.save_figure(figure, folder / "training.png")
    caption = (
        "Learning curves, each term on its own axis over the steps of its training: training "
        "(grey) and validation (blue), a line a fold."
    )
    return [("training.png", caption)]


def _draw(axis: Axes, title: str, curves: Curves) -> None:
    for is_training, steps, values in curves:
        colour = _TRAIN if is_training else _VALIDATION
        axis.plot(steps, values, color=colour, lw=1, marker="." if len(steps) < 4 else None)
    axis.set_title(title, fontsize=8)
    _log_if_wide(axis, [value for *_, values in curves for value in values])
    axis.tick_params(labelsize=7)
    axis.locator_params(axis="x", nbins=4)


def _log_if_wide(axis: Axes, values: list[float | int]) -> None:
    """A logarithmic axis where values span more than a factor of 30."""
    if min(values) > 0 and max(values) > 30 * min(values):
        axis.set_yscale("log")
