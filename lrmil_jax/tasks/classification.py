"""Two classes or more, of which a slide has one."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from jax import Array
from jaxtyping import Float, Integer

from lrmil_jax import arrays
from lrmil_jax.distill import slide as slide_losses
from lrmil_jax.errors import DataError
from lrmil_jax.evals import intervals, metrics
from lrmil_jax.evals.calibration import Forecast
from lrmil_jax.evals.intervals import Figure
from lrmil_jax.tasks import columns
from lrmil_jax.tasks.task import Task
from lrmil_jax.types import AnyArray, Number

_LEAST = 1e-12  # of a probability, before its logarithm


@dataclasses.dataclass(frozen=True)
class Classification(Task):
    """Cross-entropy of a softmax over the classes; figures as in `evals.metrics`.

    Attributes:
      names: of the classes, in the order of their numbers.
    """

    names: tuple[str, ...]

    name: ClassVar[str] = "classification"
    columns: ClassVar[tuple[str, ...]] = ("label",)
    metrics: ClassVar[tuple[str, ...]] = metrics.NAMES
    headline: ClassVar[str] = "auc"
    mixes: ClassVar[bool] = True
    titles: ClassVar[Mapping[str, str]] = {"auc": "AUC", "accuracy": "accuracy"}
    has_classes: ClassVar[bool] = True
    has_output_a_class: ClassVar[bool] = True
    has_temperature: ClassVar[bool] = True

    @classmethod
    def read(
        cls, frame: pd.DataFrame, data: Mapping[str, Any], source: str
    ) -> tuple["Classification", pd.DataFrame]:
        """See `Task`; `data.label_column` has a class a row, `data.classes` may order them."""
        column = data["label_column"]
        text = columns.text(frame, column, source, classes=tuple(data["classes"]))
        labels, names = encode(text, tuple(data["classes"]), Path(source), column)
        return cls(names), pd.DataFrame({"label": labels}, frame.index)

    def reading(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """See `Task`."""
        return {**data, "classes": self.names}

    @property
    def width(self) -> int:
        """One logit a class."""
        return len(self.names)

    @property
    def values(self) -> tuple[str, ...]:
        """Probabilities of the classes."""
        return tuple(f"{metrics.PROBABILITY_PREFIX}{name}" for name in self.names)

    @property
    def parts(self) -> tuple[str, ...]:
        """The classes."""
        return self.names

    @property
    def classes(self) -> tuple[str, ...]:
        """See `Task`."""
        return self.names

    def loss(self, logits: Float[AnyArray, "B C"], targets: Float[AnyArray, "B 1"]) -> Array:
        """Cross-entropy."""
        labels = jnp.asarray(targets)[:, 0].astype(jnp.int32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    def distillation(
        self,
        student: Float[AnyArray, "B C"],
        teacher: Float[AnyArray, "B C"],
        *,
        temperature: Number,
    ) -> Array:
        """`slide.bag_loss`."""
        return slide_losses.bag_loss(student, teacher, temperature=temperature)

    def link(self, logits: Float[AnyArray, "*n C"]) -> Float[AnyArray, "*n C"]:
        """Softmax."""
        return arrays.softmax(logits)

    def unlink(self, values: Float[np.ndarray, "n C"]) -> Float[np.ndarray, "n C"]:
        """Logarithms: a softmax takes any constant away."""
        return np.log(np.clip(values, _LEAST, 1))

    def groups(self, targets: Float[np.ndarray, "S 1"]) -> Integer[np.ndarray, " S"]:
        """The classes."""
        return targets[:, 0].astype(np.int64)

    def figures(
        self,
        targets: Float[np.ndarray, "P 1"],
        values: Float[np.ndarray, "P C"],
        patients: Sequence[str] | np.ndarray,
    ) -> dict[str, Figure]:
        """`intervals.figures`."""
        return intervals.figures(self.groups(targets), values, patients)

    def measure(
        self, targets: Float[np.ndarray, "P 1"], values: Float[np.ndarray, "P C"]
    ) -> dict[str, float | None]:
        """`metrics.compute`, and `metrics.balanced_loss`."""
        labels = self.groups(targets)
        balanced = metrics.balanced_loss(labels, values)
        return metrics.compute(labels, values) | {"balanced_loss": balanced}

    def forecasts(
        self, targets: Float[np.ndarray, "P 1"], values: Float[np.ndarray, "P C"]
    ) -> dict[str, Forecast]:
        """Of two classes the second; of more the most probable one, whichever it is."""
        labels = self.groups(targets)
        if len(self.names) == 2:
            return {self.names[1]: Forecast.of(values[:, 1], labels == 1)}
        right = values.argmax(1) == labels
        return {"most probable class": Forecast.of(values.max(1), right)}

    def tempered(
        self, values: Float[np.ndarray, "n C"], temperature: float
    ) -> Float[np.ndarray, "n C"]:
        """See `Task`; a probability of 0 counts as 1e-12."""
        logits = np.log(np.clip(np.asarray(values, np.float64), 1e-12, 1))
        return arrays.softmax(logits / temperature)

    def mean_loss(
        self, targets: Float[np.ndarray, "P 1"], values: Float[np.ndarray, "P C"]
    ) -> float:
        """Cross-entropy."""
        return float(metrics.cross_entropy(self.groups(targets), values).mean())

    def truth(self, table: pd.DataFrame) -> pd.DataFrame:
        """The class's name as `label`."""
        return pd.DataFrame({"label": [self.names[label] for label in table.label]}, table.index)

    def targets_of(self, rows: pd.DataFrame) -> Float[np.ndarray, "n 1"]:
        """See `Task`; the label is a class name, or its number."""
        known = {str(number): number for number in range(len(self.names))}
        known |= {name: number for number, name in enumerate(self.names)}
        numbers = rows.label.astype(str).map(known)
        if numbers.isna().any():
            odd = rows[numbers.isna()].iloc[0]
            whose = f"slide {odd.slide_id} has" if "slide_id" in rows else "there is"
            raise DataError(
                f"{whose} label {odd.label!r}, which is none of the model's classes "
                f"({', '.join(self.names)}); mend the CSV or leave its label out"
            )
        return numbers.to_numpy(np.float64)[:, None]

    @classmethod
    def of_columns(cls, rows: pd.DataFrame) -> "Classification | None":
        """See `Task`: `label` and one `prob_<class>` a class."""
        found = metrics.probability_columns(rows)
        if "label" not in rows or not found:
            return None
        return cls(tuple(name.removeprefix(metrics.PROBABILITY_PREFIX) for name in found))

    def said(self, values: Float[np.ndarray, "n C"]) -> dict[str, Any]:
        """Probabilities, and `predicted`, the most probable class."""
        best = np.asarray(values).argmax(1)
        return super().said(values) | {"predicted": [self.names[index] for index in best]}

    def summary(self, table: pd.DataFrame) -> str:
        """Slides of each class."""
        counts = np.bincount(table.label, minlength=len(self.names))
        return ", ".join(f"{name} {n}" for name, n in zip(self.names, counts, strict=True))

    def sentence(self, values: Float[np.ndarray, " C"]) -> str:
        """The most probable class."""
        best = int(np.argmax(values))
        return f"{self.names[best]} {values[best]:.2f}"


def encode(
    column: pd.Series, classes: tuple[str, ...], path: Path, label_column: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Numbers of the classes that a column of the label CSV names, and the names in order.

    Args:
      column: text, none missing.
      classes: `data.classes`; empty takes the column's own, sorted.
      path: of the CSV; label_column: its column, both for messages.

    Raises:
      DataError: an unknown class, or fewer than two classes with a slide.
    """
    values = column
    if not classes:
        _refuse_spellings(values, path, label_column)
    names = classes or tuple(sorted(values.unique()))
    # The reference's CSVs number the classes: a number is an index into data.classes.
    if classes and not set(values) <= set(names) and values.str.fullmatch(r"\d+").all():
        if values.astype(int).max() >= len(names):
            raise DataError(
                f"{path}: {label_column} goes up to {values.astype(int).max()}, "
                f"but data.classes names only {len(names)} classes"
            )
        values = values.astype(int).map(lambda index: names[index])
    unknown = sorted(set(values) - set(names))
    if unknown:
        alike = [name for name in names if name.casefold() == unknown[0].casefold()]
        hint = f"; write it {alike[0]}, as there" if alike else ""
        raise DataError(
            f"{path}: {label_column} {unknown[0]!r} is not among data.classes ({', '.join(names)})"
            f"{hint}"
        )
    absent = [name for name in names if name not in set(values)]
    if absent or len(names) < 2:
        detail = f"no slide of class {', '.join(absent)}" if absent else f"only class {names[0]}"
        raise DataError(f"{path} has {detail}; a classifier needs slides of at least two classes")
    return values.map({name: index for index, name in enumerate(names)}).to_numpy(np.int32), names


def _refuse_spellings(values: pd.Series, path: Path, column: str) -> None:
    """Refuses one class written in two ways, such as 1 and 1.0, or Tumour and tumour."""
    seen: dict[object, str] = {}
    for name in sorted(values.unique()):
        number = pd.to_numeric(name, errors="coerce")
        same = name.casefold() if pd.isna(number) else float(number)
        if same in seen:
            raise DataError(
                f"{path}: {column} has both {seen[same]!r} and {name!r}, one class in two "
                "spellings; write it one way, or name both in data.classes if they are two"
            )
        seen[same] = name
