"""One number a slide, such as a score or an expression."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax import Array
from jaxtyping import Float, Integer

from lrmil_jax.evals import intervals, jackknife
from lrmil_jax.evals.intervals import ANYTHING, Bounds
from lrmil_jax.tasks import columns
from lrmil_jax.tasks.task import Task
from lrmil_jax.types import AnyArray, Number

_STRATA = 4  # of equal size, by the number, so that folds are alike


@dataclasses.dataclass(frozen=True)
class Regression(Task):
    """Squared error on the scale of the training slides.

    A student learns from its teacher by the same error; the temperature plays no part.

    Attributes:
      mean, sd: of the training slides' numbers.
    """

    mean: float = 0.0
    sd: float = 1.0

    name: ClassVar[str] = "regression"
    columns: ClassVar[tuple[str, ...]] = ("number",)
    metrics: ClassVar[tuple[str, ...]] = ("pearson", "spearman", "r2", "mae", "rmse", "loss")
    headline: ClassVar[str] = "pearson"
    mixes: ClassVar[bool] = True
    titles: ClassVar[Mapping[str, str]] = {
        "pearson": "Pearson r", "spearman": "Spearman rho", "r2": "R2", "mae": "MAE",
    }  # fmt: skip
    ranges: ClassVar[Mapping[str, Bounds]] = {
        "pearson": (-1.0, 1.0), "spearman": (-1.0, 1.0), "r2": (-float("inf"), 1.0),
        "mae": (0.0, float("inf")), "rmse": (0.0, float("inf")), "loss": (0.0, float("inf")),
    }  # fmt: skip

    @classmethod
    def read(
        cls, frame: pd.DataFrame, data: Mapping[str, Any], source: str
    ) -> tuple["Regression", pd.DataFrame]:
        """See `Task`; `data.label_column` has the number."""
        found = columns.numbers(frame, data["label_column"], source)
        return cls(), pd.DataFrame({"number": found}, frame.index)

    @property
    def width(self) -> int:
        """One output."""
        return 1

    @property
    def values(self) -> tuple[str, ...]:
        """The number."""
        return ("predicted_number",)

    def fitted(self, targets: Float[np.ndarray, "S 1"]) -> "Regression":
        """With the mean and SD of the targets; an SD of 0 counts as 1."""
        sd = float(targets.std())
        return dataclasses.replace(self, mean=float(targets.mean()), sd=sd if sd > 0 else 1.0)

    def loss(self, logits: Float[AnyArray, "B 1"], targets: Float[AnyArray, "B 1"]) -> Array:
        """Squared error over the variance of the training slides' numbers."""
        return jnp.square(logits - (jnp.asarray(targets) - self.mean) / self.sd)[:, 0]

    def distillation(
        self,
        student: Float[AnyArray, "B 1"],
        teacher: Float[AnyArray, "B 1"],
        *,
        temperature: Number,
    ) -> Array:
        """Squared difference, on the same scale."""
        del temperature
        return jnp.square(student - jnp.asarray(teacher))[:, 0]

    def link(self, logits: Float[AnyArray, "*n 1"]) -> Float[AnyArray, "*n 1"]:
        """On the scale of the CSV."""
        return logits * self.sd + self.mean

    def unlink(self, values: Float[np.ndarray, "n 1"]) -> Float[np.ndarray, "n 1"]:
        """On the scale of the training slides."""
        return (values - self.mean) / self.sd

    def groups(self, targets: Float[np.ndarray, "S 1"]) -> Integer[np.ndarray, " S"]:
        """Quarters by the number."""
        return strata(targets[:, 0])

    def measure(
        self, targets: Float[np.ndarray, "P 1"], values: Float[np.ndarray, "P 1"]
    ) -> dict[str, float | None]:
        """See `Task`."""
        from scipy.stats import rankdata  # late: it takes over a second

        true, said = (np.asarray(one, np.float64)[:, 0] for one in (targets, values))
        error, spread = said - true, true.var() if len(true) > 1 else 0.0
        return {
            "pearson": correlation(true, said),
            "spearman": correlation(rankdata(true), rankdata(said)),
            "r2": float(1 - np.mean(error**2) / spread) if spread > 0 else None,
            "mae": float(np.abs(error).mean()),
            "rmse": float(np.sqrt(np.mean(error**2))),
            "loss": float(np.mean(error**2) / self.sd**2),
        }

    def calibration(
        self,
        targets: Float[np.ndarray, "P 1"],
        values: Float[np.ndarray, "P 1"],
        patients: np.ndarray,
    ) -> dict[str, dict]:
        """The straight line of least squares from the predicted to the true number: with a slope
        below 1 predictions are spread too widely, and with an intercept of 0 and a slope of 1 they
        are right in the mean."""
        ranges = {"slope": ANYTHING, "intercept": ANYTHING}
        figures = jackknife.figures(_line, targets, values, patients, ranges)
        line = {name: figure.value for name, figure in figures.items()}
        bounds = intervals.of_one(figures)
        return {"number": line | {f"{name}_interval": bounds[name] for name in bounds}}

    @classmethod
    def of_columns(cls, rows: pd.DataFrame) -> "Regression | None":
        """See `Task`."""
        return cls() if {"number", "predicted_number"} <= set(rows) else None

    def sentence(self, values: Float[np.ndarray, " 1"]) -> str:
        """The number."""
        return f"{values[0]:.3g}"


def _line(targets: np.ndarray, values: np.ndarray) -> dict[str, float | None]:
    true, predicted = targets[:, 0], values[:, 0]
    spread = predicted.var() if len(predicted) > 1 else 0.0
    if spread == 0:
        return {"slope": None, "intercept": None}
    slope = float(((predicted - predicted.mean()) * (true - true.mean())).mean() / spread)
    return {"slope": slope, "intercept": float(true.mean() - slope * predicted.mean())}


def strata(values: Float[np.ndarray, " S"]) -> Integer[np.ndarray, " S"]:
    """Which quarter each value is in, by rank; equal values share theirs."""
    edges = np.quantile(values, np.linspace(0, 1, _STRATA + 1)[1:-1])
    return np.searchsorted(np.unique(edges), values, side="right")


def correlation(one: Float[np.ndarray, " P"], other: Float[np.ndarray, " P"]) -> float | None:
    """Pearson's; None where one of the two does not vary."""
    one, other = one - one.mean(), other - other.mean()
    size = np.sqrt((one**2).sum() * (other**2).sum())
    return float((one * other).sum() / size) if size > 0 else None
