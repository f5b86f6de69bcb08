"""What a task is: everything that depends on what is to be said of a slide."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from jax import Array
from jaxtyping import Float, Integer

from lrmil_jax.errors import ConfigError
from lrmil_jax.evals import calibration, jackknife
from lrmil_jax.evals.calibration import Forecast
from lrmil_jax.evals.intervals import Bounds, Figure
from lrmil_jax.tasks import columns
from lrmil_jax.types import AnyArray, Number

# How the slides of a patient become one prediction: the mean of the values or of the outputs, or
# all slides in one bag.
POOLINGS = ("probability", "logit", "bag")
# Metrics of which less is better; of all others more is.
LESS_IS_BETTER = ("loss", "mae", "rmse", "brier")


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
    """What is to be said of a slide, from the label CSV to the figures of the report.

    A slide's target is T numbers, the columns `columns` of the cohort's table. A head has `width`
    outputs for a slide; `link` makes of them the V values that are predicted, averaged over a
    patient's slides and over the members of a model, and written under `values`.

    Fields of a task are what a model must keep to be used again: `facts` and `create` carry them.

    Attributes:
      pooling: of POOLINGS, `data.patient`.
    """

    pooling: str = dataclasses.field(default=POOLINGS[0], kw_only=True)

    name: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    metrics: ClassVar[tuple[str, ...]]  # in the order of tables
    headline: ClassVar[str]  # the metric that stands for a model, and by default chooses it
    titles: ClassVar[Mapping[str, str]]  # of metrics, for those who read tables
    ranges: ClassVar[Mapping[str, Bounds]]  # what figures by the jackknife cannot leave
    has_classes: ClassVar[bool] = False
    has_output_a_class: ClassVar[bool] = False  # a logit of a head for each of them
    has_follow_up: ClassVar[bool] = False  # targets are times to an event
    joint: ClassVar[bool] = False  # the loss of a slide depends on the others of its update
    calibrates: ClassVar[bool] = False  # `calibrated` asks for the outputs of a trained head
    has_temperature: ClassVar[bool] = False  # values are probabilities that it can make right
    mixes: ClassVar[bool] = False  # targets have a mean, which `loss` of either is linear in

    @classmethod
    @abc.abstractmethod
    def read(
        cls, frame: pd.DataFrame, data: Mapping[str, Any], source: str
    ) -> tuple["Task", pd.DataFrame]:
        """The task of a label CSV, and the targets of its rows.

        Args:
          frame: the CSV's rows, text as it stands there.
          data: `config.data`, which names the columns.
          source: of the CSV, for messages.

        Returns:
          The task, and a table of the `columns` in the order of the rows.

        Raises:
          DataError: a column is missing, or a value is none that the task can use; with its line.
        """

    @classmethod
    def asked(cls, data: Mapping[str, Any]) -> tuple[str, ...]:
        """The columns of a label CSV that `read` reads, by `config.data`."""
        return (data["label_column"],)

    def reading(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """`config.data` with which `read` asks another table for the outcomes of this very task."""
        return dict(data)

    @property
    @abc.abstractmethod
    def width(self) -> int:
        """W, outputs of a head."""

    @property
    @abc.abstractmethod
    def values(self) -> tuple[str, ...]:
        """Names of the V predicted values, columns of `predictions.csv`."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers; () where there are none."""
        return ()

    @property
    def parts(self) -> tuple[str, ...]:
        """What the V values are of, in a notebook's words; by default as `values`."""
        return self.values

    def facts(self) -> dict[str, Any]:
        """Name and fields, as JSON holds them; `tasks.of_facts` makes the task of them again."""
        return {"name": self.name, **dataclasses.asdict(self)}

    def fitted(self, targets: Float[np.ndarray, "S T"]) -> "Task":
        """The task with what it takes from the training slides' targets, such as a scale."""
        del targets
        return self

    def calibrated(
        self, logits: Float[np.ndarray, "S W"], targets: Float[np.ndarray, "S T"]
    ) -> "Task":
        """The task with what it takes from a trained head's outputs for the training slides."""
        del logits, targets
        return self

    @abc.abstractmethod
    def loss(self, logits: Float[AnyArray, "B W"], targets: Float[AnyArray, "B T"]) -> Array:
        """[B], what a head's outputs cost against the targets; of a `joint` task, of slides that
        depend on each other. A slide with targets of zeros is filling and changes no other's."""

    @abc.abstractmethod
    def distillation(
        self,
        student: Float[AnyArray, "B W"],
        teacher: Float[AnyArray, "B W"],
        *,
        temperature: Number,
    ) -> Array:
        """[B], L_bag: what a student's outputs cost against its teacher's, 0 where they agree."""

    @property
    def one_bag(self) -> bool:
        """Whether all slides of a patient are one bag."""
        return self.pooling == "bag"

    @abc.abstractmethod
    def link(self, logits: Float[AnyArray, "*n W"]) -> Float[AnyArray, "*n V"]:
        """The predicted values; NumPy in, NumPy out."""

    @abc.abstractmethod
    def unlink(self, values: Float[np.ndarray, "n V"]) -> Float[np.ndarray, "n W"]:
        """Outputs of a head of which `link` makes these values."""

    def ensembled(
        self, logits: Float[np.ndarray, "M n W"], weights: Sequence[float]
    ) -> Float[np.ndarray, "n W"]:
        """Outputs of which `link` makes the weighted mean of what it makes of several models'.

        Args:
          logits: of M models.
          weights: [M], above 0.
        """
        values = self.link(np.asarray(logits, np.float64))
        return self.unlink(np.average(values, axis=0, weights=weights))

    def pooled(
        self, values: Float[np.ndarray, "n V"], place: Integer[np.ndarray, " n"]
    ) -> Float[np.ndarray, "P V"]:
        """The values of patients: of those of their slides the mean, or `link` of the mean of the
        outputs (`pooling`). The slides of one bag have the same values.

        Args:
          values: of slides.
          place: the patient of each, from 0.
        """
        values = np.asarray(values, np.float64)
        if self.pooling == "logit":
            return self.link(_means(self.unlink(values), place))
        return _means(values, place)

    @abc.abstractmethod
    def groups(self, targets: Float[np.ndarray, "S T"]) -> Integer[np.ndarray, " S"]:
        """Which slides are alike, from 0: folds get as many of each, and classes are balanced."""

    def figures(
        self,
        targets: Float[np.ndarray, "P T"],
        values: Float[np.ndarray, "P V"],
        patients: Sequence[str] | np.ndarray,
    ) -> dict[str, Figure]:
        """Every one of `ranges` of a model on its patients; see `intervals.figures`. Where no
        closed form is known, by leaving out one patient after another."""
        return jackknife.figures(self.measure, targets, values, patients, self.ranges)

    @abc.abstractmethod
    def measure(
        self, targets: Float[np.ndarray, "P T"], values: Float[np.ndarray, "P V"]
    ) -> dict[str, float | None]:
        """Every one of `metrics`; None where it is undefined."""

    def forecasts(
        self, targets: Float[np.ndarray, "P T"], values: Float[np.ndarray, "P V"]
    ) -> dict[str, Forecast]:
        """What is predicted with a probability, by name; {} of a task that predicts none."""
        del targets, values
        return {}

    def calibration(
        self,
        targets: Float[np.ndarray, "P T"],
        values: Float[np.ndarray, "P V"],
        patients: np.ndarray,
    ) -> dict[str, dict]:
        """`calibration.summary` of every forecast; `patients` as for `figures`."""
        forecasts = self.forecasts(targets, values)
        return {name: calibration.summary(one, patients) for name, one in forecasts.items()}

    def tempered(
        self, values: Float[np.ndarray, "n V"], temperature: float
    ) -> Float[np.ndarray, "n V"]:
        """The values with the logits that give them divided by a temperature, of a task that
        `has_temperature`."""
        raise NotImplementedError(f"{self.name} has no temperature")

    def mean_loss(
        self, targets: Float[np.ndarray, "P T"], values: Float[np.ndarray, "P V"]
    ) -> float:
        """`loss` of `measure` alone, of a task that `has_temperature`."""
        raise NotImplementedError(f"{self.name} has no temperature")

    def truth(self, table: pd.DataFrame) -> pd.DataFrame:
        """The targets of the cohort's table as columns of `predictions.csv`, for people to read."""
        return table[list(self.columns)]

    def truth_in_words(self, table: pd.DataFrame) -> list[str]:
        """`truth` of each row, as titles say it: "label tumour"."""
        return [
            ", ".join(f"{name} {value}" for name, value in record.items())
            for record in self.truth(table).to_dict("records")
        ]

    def targets_of(self, rows: pd.DataFrame) -> Float[np.ndarray, "n T"]:
        """The targets that `truth` wrote.

        Raises:
          DataError: a column is missing, or has what is no target of this task.
        """
        text = rows[list(self.columns)].astype(str)
        return np.stack([columns.numbers(text, one, "predictions") for one in text], 1)

    @classmethod
    @abc.abstractmethod
    def of_columns(cls, rows: pd.DataFrame) -> "Task | None":
        """The task whose predictions these columns hold, or None if they are of another."""

    def said(self, values: Float[np.ndarray, "n V"]) -> dict[str, Any]:
        """The values as columns of `predictions.csv`, and what follows from them."""
        return dict(zip(self.values, np.asarray(values).T, strict=True))

    def missing(self, rows: pd.DataFrame) -> np.ndarray:
        """[n] rows without the targets that `truth` writes; all, if a column is not there."""
        names = [name for name in self.written if name in rows]
        if len(names) < len(self.written):
            return np.ones(len(rows), bool)
        return rows[names].map(lambda value: pd.isna(value) or value == "").any(axis=1).to_numpy()

    @property
    def written(self) -> tuple[str, ...]:
        """The columns of `truth`; by default those of the cohort's table."""
        return self.columns

    def summary(self, table: pd.DataFrame) -> str:
        """What the targets of some slides are like, for the log."""
        targets = self.targets(table)
        return ", ".join(f"mean {name} {value:.3g}" for name, value in
                         zip(self.columns, targets.mean(0), strict=True))  # fmt: skip

    @abc.abstractmethod
    def sentence(self, values: Float[np.ndarray, " V"]) -> str:
        """A prediction in a few words, for titles and log lines."""

    def targets(self, table: pd.DataFrame) -> Float[np.ndarray, "S T"]:
        """The targets of the cohort's table."""
        return table[list(self.columns)].to_numpy(np.float32)

    def select(self, wanted: str, *, balance: str) -> tuple[tuple[str, str], ...]:
        """What chooses a checkpoint, best first: (metric, "max" or "min").

        Args:
          wanted: `select` of a config block: "loss", a metric, or "headline".
          balance: `balance` of the block: where classes are balanced in training, they are in the
            loss that chooses too.

        Raises:
          ConfigError: this task has no such metric.
        """
        name = self.headline if wanted == "headline" else wanted
        loss = "balanced_loss" if self.has_classes and balance != "none" else "loss"
        by_loss = ((loss, "min"),)
        if name == "loss":
            return by_loss
        if name not in self.metrics:
            raise ConfigError(
                f"select={wanted!r} is no metric of the task {self.name}: use headline, loss or "
                f"{', '.join(one for one in self.metrics if one != 'loss')}"
            )
        return ((name, "min" if name in LESS_IS_BETTER else "max"), *by_loss)


def _means(values: Float[np.ndarray, "n k"], place: Integer[np.ndarray, " n"]) -> np.ndarray:
    sums = np.stack([np.bincount(place, column) for column in values.T], 1)
    return sums / np.bincount(place)[:, None]
