"""Several findings, each present in a slide or not."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from jax import Array
from jaxtyping import Float, Integer

from lrmil_jax import arrays
from lrmil_jax.data import tables
from lrmil_jax.distill import slide as slide_losses
from lrmil_jax.errors import DataError
from lrmil_jax.evals import metrics
from lrmil_jax.evals.calibration import Forecast
from lrmil_jax.evals.intervals import SHARE, Bounds
from lrmil_jax.tasks import columns
from lrmil_jax.tasks.task import Task
from lrmil_jax.types import AnyArray, Number

_PREFIX = "finding_"


@dataclasses.dataclass(frozen=True)
class MultiLabel(Task):
    """Mean over the findings of their cross-entropy.

    Attributes:
      names: of the findings, columns of the label CSV.
    """

    names: tuple[str, ...]

    name: ClassVar[str] = "multi_label"
    metrics: ClassVar[tuple[str, ...]] = (
        *("auc", "average_precision", "accuracy", "f1_macro", "brier", "loss"),
    )
    headline: ClassVar[str] = "auc"
    mixes: ClassVar[bool] = True
    has_temperature: ClassVar[bool] = True
    titles: ClassVar[Mapping[str, str]] = {"auc": "mean AUC", "f1_macro": "mean F1"}
    ranges: ClassVar[Mapping[str, Bounds]] = {
        "auc": SHARE,
        "average_precision": SHARE,
        "accuracy": SHARE,
        "f1_macro": SHARE,
        "brier": (0.0, float("inf")),
        "loss": (0.0, float("inf")),
    }

    @property
    def columns(self) -> tuple[str, ...]:
        """One 0 or 1 a finding."""
        return tuple(f"{_PREFIX}{name}" for name in self.names)

    @classmethod
    def read(
        cls, frame: pd.DataFrame, data: Mapping[str, Any], source: str
    ) -> tuple["MultiLabel", pd.DataFrame]:
        """See `Task`; `data.label_column` names the findings' columns, "a,b,c", each 0 or 1."""
        names = cls.asked(data)
        task, found = cls(names), {}
        for name, column in zip(names, task.columns, strict=True):
            found[column] = columns.numbers(frame, name, source)
            wrong = np.flatnonzero(~np.isin(found[column], (0, 1)))
            if len(wrong):
                number = tables.line(frame, wrong[0])
                raise DataError(f"{source}: {name} must be 0 or 1; line {number} has another")
        return task, pd.DataFrame(found, frame.index).astype(np.int32)

    @classmethod
    def asked(cls, data: Mapping[str, Any]) -> tuple[str, ...]:
        """See `Task`."""
        return tuple(name.strip() for name in data["label_column"].split(",") if name.strip())

    def reading(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """See `Task`."""
        return {**data, "label_column": ",".join(self.names)}

    @property
    def width(self) -> int:
        """One logit a finding."""
        return len(self.names)

    @property
    def values(self) -> tuple[str, ...]:
        """Probabilities of the findings."""
        return tuple(f"p_{name}" for name in self.names)

    @property
    def parts(self) -> tuple[str, ...]:
        """The findings."""
        return self.names

    def loss(self, logits: Float[AnyArray, "B f"], targets: Float[AnyArray, "B f"]) -> Array:
        """Binary cross-entropy, mean over the findings."""
        return optax.sigmoid_binary_cross_entropy(jnp.asarray(logits), jnp.asarray(targets)).mean(
            -1
        )

    def distillation(
        self,
        student: Float[AnyArray, "B f"],
        teacher: Float[AnyArray, "B f"],
        *,
        temperature: Number,
    ) -> Array:
        """`T^2 KL` between both sides' tempered probabilities, mean over the findings."""
        return slide_losses.bernoulli_loss(student, teacher, temperature=temperature).mean(-1)

    def link(self, logits: Float[AnyArray, "*n f"]) -> Float[AnyArray, "*n f"]:
        """Sigmoid."""
        return arrays.sigmoid(logits)

    def unlink(self, values: Float[np.ndarray, "n f"]) -> Float[np.ndarray, "n f"]:
        """Logits."""
        return arrays.logit(values)

    def groups(self, targets: Float[np.ndarray, "S f"]) -> Integer[np.ndarray, " S"]:
        """Slides of equal findings; combinations of fewer than ten slides are one group."""
        _, place, counts = np.unique(targets, axis=0, return_inverse=True, return_counts=True)
        rare = counts[place.ravel()] < 10
        return np.unique(np.where(rare, -1, place.ravel()), return_inverse=True)[1]

    def measure(
        self, targets: Float[np.ndarray, "P f"], values: Float[np.ndarray, "P f"]
    ) -> dict[str, float | None]:
        """See `Task`; a finding is called from a probability of .5 on."""
        true, called = targets > 0.5, values >= 0.5
        mixed = [c for c in range(self.width) if 0 < true[:, c].sum() < len(true)]
        aucs, precisions = (
            [score(true[:, c], values[:, c]) for c in mixed]
            for score in (metrics.auc, metrics.average_precision)
        )
        hits = 2 * (true & called).sum(0) / np.maximum(true.sum(0) + called.sum(0), 1)
        return {
            "auc": float(np.mean(aucs)) if aucs else None,
            "average_precision": float(np.mean(precisions)) if precisions else None,
            "accuracy": float((true == called).mean()),
            "f1_macro": float(hits.mean()),
            "brier": float(np.square(values - true).mean()),
            "loss": self.mean_loss(targets, values),
        }

    def forecasts(
        self, targets: Float[np.ndarray, "P f"], values: Float[np.ndarray, "P f"]
    ) -> dict[str, Forecast]:
        """Every finding."""
        return {
            name: Forecast.of(values[:, column], targets[:, column] > 0.5)
            for column, name in enumerate(self.names)
        }

    def tempered(
        self, values: Float[np.ndarray, "n f"], temperature: float
    ) -> Float[np.ndarray, "n f"]:
        """See `Task`; one temperature for all findings, and no probability beyond 1e-12."""
        values = np.clip(np.asarray(values, np.float64), 1e-12, 1 - 1e-12)
        return arrays.sigmoid((np.log(values) - np.log1p(-values)) / temperature)

    def mean_loss(
        self, targets: Float[np.ndarray, "P f"], values: Float[np.ndarray, "P f"]
    ) -> float:
        """Binary cross-entropy, mean over the findings."""
        of_truth = np.where(targets > 0.5, values, 1 - values).clip(1e-12, 1)
        return float(-np.log(of_truth).mean())

    @classmethod
    def of_columns(cls, rows: pd.DataFrame) -> "MultiLabel | None":
        """See `Task`."""
        names = [name.removeprefix(_PREFIX) for name in rows if str(name).startswith(_PREFIX)]
        return cls(tuple(names)) if names and {f"p_{name}" for name in names} <= set(rows) else None

    def sentence(self, values: Float[np.ndarray, " f"]) -> str:
        """The findings that are called."""
        said = [f"{name} {p:.2f}" for name, p in zip(self.names, values, strict=True) if p >= 0.5]
        return ", ".join(said) or "no finding"
