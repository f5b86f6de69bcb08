"""What is kept of one slide's prediction: a record, tables, and pictures.

Drawn in processes of its own, so it imports no JAX.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lrmil_jax import files
from lrmil_jax.errors import UserError, WorkdirError
from lrmil_jax.report import heatmap
from lrmil_jax.report.overlays import registry


@dataclasses.dataclass(frozen=True)
class SlidePrediction:
    """A slide's result with where and under which title it is kept.

    Attributes:
      folder: of the slide.
      slide_id: its name.
      result: a `models.result.SlideResult`.
      record: what `prediction.json` holds.
      formats: of `overlays.registry`, which are written.
    """

    folder: Path
    slide_id: str
    result: Any
    record: dict
    formats: tuple[str, ...] = registry.DEFAULT


def save(prediction: SlidePrediction) -> dict:
    """Writes all of it, and gives the record; or a row with `status` "failed" and the reason: one
    slide's surprise must not stop the others.

    Raises:
      WorkdirError: the disk is full or read-only, which concerns every slide.
    """
    try:
        _save(prediction)
    except WorkdirError:
        raise
    except UserError as error:
        return _failed(prediction, str(error))
    except Exception as error:
        return _failed(prediction, f"{type(error).__name__}: {error}")
    return prediction.record


def _failed(prediction: SlidePrediction, reason: str) -> dict:
    return {"slide_id": prediction.slide_id, "status": "failed", "reason": reason}


def _save(prediction: SlidePrediction) -> None:
    result = prediction.result
    title = f"{prediction.slide_id}: {result.sentence}"
    facts = {"model_sha256": prediction.record["source"]["model"]}
    save_attention(prediction.folder, prediction.slide_id, result, title, facts, prediction.formats)
    if result.guidance is not None:
        _save_regions(prediction.folder, result, title, facts)
    # Last: where it is, all is.
    files.write_json(prediction.folder / "prediction.json", prediction.record)


def save_attention(
    folder: Path,
    slide_id: str,
    result: Any,
    title: str,
    facts: Mapping[str, str],
    formats: Sequence[str] = registry.DEFAULT,
) -> None:
    """Attention of every patch as CSV, as heatmap and in `formats`, each naming the model of
    `facts`."""
    files.write_table(folder / "attention.csv", result.to_frame().assign(**facts))
    overlay = result.overlay(slide_id, facts)
    for name, path in registry.paths(folder, formats).items():
        registry.write(name, path, overlay)
    heatmap.save(
        folder / "heatmap.png",
        result.picture,
        result.picture_downsample,
        result.xy,
        result.side,
        result.attention,
        title=title,
        facts=facts,
    )


def _save_regions(folder: Path, result: Any, title: str, facts: Mapping[str, str]) -> None:
    """What led the choice of regions: every LR patch's scores, and which description fits."""
    guide = result.guidance
    table = pd.DataFrame({"x": guide.xy[:, 0], "y": guide.xy[:, 1], "side": guide.side})
    for index, name in enumerate(guide.classes):
        table[f"score_{name}"] = guide.scores[:, index]
    table["chosen"] = np.isin(np.arange(len(table)), guide.chosen)
    table["sentence"] = ""
    table.loc[guide.chosen, "sentence"] = guide.sentences
    files.write_table(folder / "regions.csv", table.assign(**facts))
    heatmap.save(
        folder / "regions.png",
        result.picture,
        result.picture_downsample,
        guide.xy,
        guide.side,
        guide.likeness,
        title=f"{title}, {len(guide.chosen)} of {len(guide.xy)} regions read at high power",
        label=guide.label,
        outlined=guide.chosen,
        facts=facts,
    )
