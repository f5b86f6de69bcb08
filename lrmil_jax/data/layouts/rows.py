"""What a layout reads, and what it gives."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd


@dataclasses.dataclass(frozen=True)
class Sources:
    """A label table and what belongs to it.

    Attributes:
      labels: the table.
      slides: the folder of slides, if there is one.
      slide_table: STAMP's table of slides, which says whose they are.
      stand_ins: files that stand for the slides, by name, such as another tool's features; a slide
        without one fails on its own.
    """

    labels: Path
    slides: Path | None = None
    slide_table: Path | None = None
    stand_ins: Mapping[str, Path] | None = None


@dataclasses.dataclass(frozen=True)
class Rows:
    """A row a slide.

    Attributes:
      frame: `slide_id`, `patient_id`, columns of targets and splits, and perhaps path, mpp, pool;
        `measured_as` where something else than the patient is predicted and measured as one.
      data: keys of `config.data` that the table itself settles, where the user left them alone.
      draws_val: its splits know no validation patients, so some of the training ones are taken.
    """

    frame: pd.DataFrame
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    draws_val: bool = False
