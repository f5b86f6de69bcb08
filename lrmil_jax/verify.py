"""`python -m lrmil_jax.verify MODEL PREDICTION_FOLDER`: whether a prediction is what the model says
of the slide, computed again from the file. One sentence a difference; exit status 0 or 1.

Tolerances: values of the prediction 0.001, as bfloat16, another device or another batch may change
them; attention 2 % of its largest value; patches exactly.
"""

import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lrmil_jax.arguments import Parser
from lrmil_jax.data import tables
from lrmil_jax.data.slide_jobs import drawn_identity, file_identity
from lrmil_jax.errors import DataError, UserError
from lrmil_jax.models import model_folder, slide_list
from lrmil_jax.models.result import SlideResult
from lrmil_jax.models.slide_model import SlideModel
from lrmil_jax.patches import beside
from lrmil_jax.processes import Workers
from lrmil_jax.progress import setup_logging

log = logging.getLogger("lrmil_jax")

VALUE_TOLERANCE = 1e-3
ATTENTION_TOLERANCE = 0.02  # of the largest
SECONDS_PER_SLIDE = 3600.0  # in a process of its own, as `prepare.seconds_per_slide`


def main(arguments: Sequence[str] | None = None, prog: str = "python -m lrmil_jax.verify") -> int:
    """Exit status 0 if the prediction is found again, else 1."""
    setup_logging()
    parser = Parser(prog, description=__doc__)
    parser.add_argument("model", type=Path, help="a model folder")
    parser.add_argument("prediction", type=Path, help="predictions/SLIDE of a work directory")
    parser.add_argument("--slide", type=Path, help="the slide's file, if it has moved")
    try:
        given = parser.parse_args(arguments)
        found = verify(given.model, given.prediction, given.slide, seconds=SECONDS_PER_SLIDE)
    except UserError as error:
        log.error("%s", error)
        return 1
    for sentence in found:
        log.error("%s", sentence)
    if not found:
        log.info("%s: the model predicts the same again, within %g of each value", given.prediction,
                 VALUE_TOLERANCE)  # fmt: skip
    return min(len(found), 1)


def verify(
    model: Path, folder: Path, slide: Path | None = None, *, seconds: float | int = 0.0
) -> list[str]:
    """What differs when a prediction is computed again, a sentence each.

    Args:
      model: a model folder.
      folder: of one slide's prediction.
      slide: its file; None: where the prediction says that it was.
      seconds: that reading it may take, in a process beside this one; 0 reads it here.

    Raises:
      DataError: there is no prediction, or no slide.
      SlideError: the slide cannot be read.
      WeightsError: the model folder is not whole.
    """
    record = _read(folder)
    path = Path(record["path"]) if slide is None else slide
    if not path.is_file():
        raise DataError(f"{folder} is of the slide {path}, which is not there; give it by --slide")
    with beside.slide_readers(1, seconds=seconds, apart=seconds > 0) as readers:
        readers.begin()
        loaded = model_folder.load(model)
        result = _again(loaded, folder, record, path, readers)
    source, differences = record["source"], []
    identity = model_folder.identity(loaded.folder)
    if source["model"] != identity:
        differences.append(f"{folder} was made by the model {source['model'][:16]}..., {model} is "
                           f"{identity[:16]}...")  # fmt: skip
    changed = [key for key, value in file_identity(path).items() if source.get(key) != value]
    if changed:
        differences.append(f"{path} is not the file that was predicted ({', '.join(changed)} "
                           "differ)")  # fmt: skip
    drawn = slide_list.annotations_of(record)
    if drawn is not None and drawn_identity(drawn)["annotations"] != source.get("annotations"):
        differences.append(f"{drawn.path} is not what was drawn when {folder} was predicted")
    differences += _values(folder, record["prediction"], result.prediction)
    return [*differences, *_attention(folder, result)]


def _again(
    model: SlideModel, folder: Path, record: Mapping[str, Any], path: Path, readers: Workers
) -> SlideResult:
    """The slide's result; with the patient's other slides, whose predictions lie beside it, where
    they are one bag."""
    others = [record]
    if "bag" in record["source"]:
        found = [_read(one.parent) for one in sorted(folder.parent.glob("*/prediction.json"))]
        others = [one for one in found if one["source"].get("bag") == record["source"]["bag"]]
    is_own = [one["path"] == record["path"] for one in others]
    paths = [path if own else one["path"] for own, one in zip(is_own, others, strict=True)]
    sizes = [one["source"]["mpp"] for one in others]
    bag = ["one bag"] * len(paths)
    drawn = map(slide_list.annotations_of, others)
    results = list(model.predict_many(paths, sizes, bag, readers=readers, annotations=drawn))
    result = results[is_own.index(True)]
    if isinstance(result, UserError):
        raise result
    return result


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "prediction.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["path"], record["source"]["model"], record["source"]["mpp"], record["prediction"]
        slide_list.annotations_of(record)
    except FileNotFoundError as error:
        raise DataError(f"{folder} has no prediction.json; give predictions/SLIDE") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no prediction that can be read ({error!r})") from error
    return record


def _values(folder: Path, told: Mapping[str, Any], again: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted(told.keys() | again.keys()):
        old, new = told.get(name), again.get(name)
        if isinstance(old, float | int) and isinstance(new, float | int):
            if not abs(old - new) <= VALUE_TOLERANCE:
                yield f"{folder}: {name} is {old:.6g} and {new:.6g} when computed again"
        elif old != new:
            yield f"{folder}: {name} is {old!r} and {new!r} when computed again"


def _attention(folder: Path, result: SlideResult) -> Iterator[str]:
    path = folder / "attention.csv"
    table = tables.read(path, what="the table of attention").apply(tables.as_values)
    tables.require_columns(table, ("x", "y", "side", "attention"), path, what="the table")
    again = pd.DataFrame({"x": result.xy[:, 0], "y": result.xy[:, 1], "side": result.side})
    if not np.array_equal(table[["x", "y", "side"]], again):
        yield f"{path} has {len(table)} patches, and other ones ({len(again)}) when computed again"
        return
    off = np.abs(table.attention.to_numpy(np.float64) - result.attention)
    worst = int(off.argmax())
    if not off[worst] <= ATTENTION_TOLERANCE * result.attention.max():
        yield (
            f"{path}: attention of the patch in line {tables.line(table, worst)} is "
            f"{table.attention[worst]:.6g} and {result.attention[worst]:.6g} when computed again"
        )


if __name__ == "__main__":
    sys.exit(main())
