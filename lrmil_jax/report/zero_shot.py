"""What descriptions alone say of tiles: tables, confusion matrix, the best tiles of each class."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lrmil_jax import files
from lrmil_jax.report import confusion, table

_SHOWN = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1_macro": "macro F1",
    "auc": "AUC",
}
_RIGHT, _WRONG, _UNKNOWN = "#2a7f3f", "#b3261e", "#9a9a9a"
_TILE = 1.05  # inches a tile, with its heading


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredTile:
    """A tile as drawn.

    Attributes:
      image: of any size.
      probability: of the class whose row it stands in.
      label: its class, -1 where that is not known.
    """

    image: UInt8[np.ndarray, "h w 3"]
    probability: float
    label: int


def cells(result: Mapping[str, Any]) -> list[list[str]]:
    """The metrics with their intervals, the first line being the heading.

    Args:
      result: `metrics.json` of the stage, of labelled tiles.
    """
    shown = [["metric", f"value [95 % over {result['interval_over']}]", "without skill"]]
    largest, present = result["largest_class"], int((_support(result) > 0).sum())
    without = {
        "accuracy": largest,
        "balanced_accuracy": 1 / present,
        "f1_macro": 2 * largest / (1 + largest) / present,  # its precision, and a recall of 1
        "auc": 0.5,
    }
    for name, title in _SHOWN.items():
        value = table.interval(result["metrics"][name], result["intervals"][name])
        shown.append([title, value, table.number(without[name])])
    return shown


def class_cells(result: Mapping[str, Any]) -> list[list[str]]:
    """How often each class was said, and how rightly; the first line is the heading."""
    if "confusion" not in result:
        rows = zip(result["classes"], map(str, result["predicted"]), strict=True)
        return [["class", "tiles said to be of it"], *map(list, rows)]
    confusion = np.array(result["confusion"])
    said, support, hits = confusion.sum(0), _support(result), confusion.diagonal()
    shown = [["class", "tiles", "said", "recall", "precision"]]
    for index, name in enumerate(result["classes"]):
        recall = table.number(hits[index] / support[index]) if support[index] else "-"
        precision = table.number(hits[index] / said[index]) if said[index] else "-"
        shown.append([name, str(support[index]), str(said[index]), recall, precision])
    return shown


def _support(result: Mapping[str, Any]) -> np.ndarray:
    return np.array(result["confusion"]).sum(1)


def notes(result: Mapping[str, Any]) -> list[str]:
    """What a reader of the tables has to know."""
    said = [f"{result['tiles']} tiles, {result['labelled']} of known class."]
    if result.get("unreadable"):
        said.append(f"{len(result['unreadable'])} tiles could not be read and were left out.")
    if result.get("interval_over") == "tiles":
        said.append(
            "Intervals take each tile as independent; where several are of one patient they are "
            "too narrow: name patients in patients.csv."
        )
    if "metrics" in result:
        said.append("Without skill: always the largest class; for the AUC a score that is blind.")
    reviewed = result.get("text", {}).get("reviewed_by")
    return [*said, f"Descriptions reviewed by: {reviewed}."] if reviewed else said


def save_table(folder: Path, result: Mapping[str, Any]) -> list[str]:
    """Writes `table.txt` and `table.md`.

    Returns:
      The lines of table.txt.
    """
    tables = [cells(result)] if "metrics" in result else []
    tables.append(class_cells(result))
    plain = [line for one in tables for line in (*table.aligned(one), "")] + notes(result)
    marked = [line for one in tables for line in (*table.markdown(one), "")] + notes(result)
    files.write_text(folder / "table.txt", "\n".join(plain) + "\n")
    files.write_text(folder / "table.md", "\n".join(marked) + "\n")
    return plain


def save_picture(
    path: Path, result: Mapping[str, Any], best: Sequence[Sequence[ScoredTile]]
) -> None:
    """Writes a PNG: the confusion matrix, where classes are known, and a row of tiles a class.

    Args:
      path: file to write.
      result: `metrics.json` of the stage.
      best: of each class, in order, the tiles that score highest.
    """
    classes, across = result["classes"], max(1, *map(len, best))
    known = "confusion" in result
    matrix = 1.6 + max(2.0, 0.5 * len(classes)) if known else 0.0
    tiles = 1.2 + _TILE * across
    height = max(matrix, 0.5 + _TILE * len(classes))
    figure = Figure(figsize=(matrix + tiles, height), layout="constrained")
    FigureCanvasAgg(figure)
    if known:
        left, right = figure.subfigures(1, 2, width_ratios=(matrix, tiles))
        axis = left.subplots()
        confusion.draw(axis, np.array(result["confusion"]), classes, truth="folder")
        axis.set_title("tiles, coloured by the row's share", fontsize=9)
    else:
        right = figure
    right.suptitle("highest scores of each class: probability", fontsize=9)
    axes = right.subplots(len(classes), across, squeeze=False)
    for index, (row, name) in enumerate(zip(axes, classes, strict=True)):
        for place, axis in enumerate(row):
            _draw_tile(axis, best[index][place : place + 1], index, classes)
        row[0].set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center")
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _draw_tile(axis: Axes, tile: Sequence[ScoredTile], index: int, classes: Sequence[str]) -> None:
    """One tile with a frame that says whether its class is this row's; an empty place if none."""
    axis.set_xticks([])
    axis.set_yticks([])
    if not tile:
        axis.set_frame_on(False)
        return
    label = tile[0].label
    axis.imshow(tile[0].image, interpolation="nearest")
    colour = _UNKNOWN if label < 0 else _RIGHT if label == index else _WRONG
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=2)
    axis.set_title(f"{tile[0].probability:.2f}", fontsize=7, pad=2)
    if label not in (-1, index):
        axis.set_xlabel(classes[label], fontsize=7, color=_WRONG, labelpad=1)
