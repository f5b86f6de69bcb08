"""Classes in an order, such as grades."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float

from lrmil_jax import arrays
from lrmil_jax.distill import slide as slide_losses
from lrmil_jax.evals import metrics
from lrmil_jax.evals.intervals import SHARE, Bounds
from lrmil_jax.tasks.classification import Classification
from lrmil_jax.tasks.task import Task
from lrmil_jax.types import AnyArray, Number


@dataclasses.dataclass(frozen=True)
class Ordinal(Classification):
    """One logit for each step from a class to the next: the probability of being above it.

    The probability of each class is the difference of neighbouring steps; steps are brought into
    order by a running minimum, so that no class has less than 0.
    Source: Frank and Hall, "A Simple Approach to Ordinal Classification", ECML 2001; all steps
    share the bag's representation, as in Niu et al., CVPR 2016.
    """

    name: ClassVar[str] = "ordinal"
    metrics: ClassVar[tuple[str, ...]] = (
        *("kappa", "accuracy", "balanced_accuracy", "mae", "brier", "loss"),
    )
    headline: ClassVar[str] = "kappa"
    mixes: ClassVar[bool] = False  # between two grades lie others
    has_output_a_class: ClassVar[bool] = False
    titles: ClassVar[Mapping[str, str]] = {
        "kappa": "quadratic kappa", "accuracy": "accuracy", "mae": "steps off",
    }  # fmt: skip
    ranges: ClassVar[Mapping[str, Bounds]] = {
        "kappa": (-1.0, 1.0),
        "accuracy": SHARE,
        "balanced_accuracy": SHARE,
        "mae": (0.0, float("inf")),
        "brier": (0.0, float("inf")),
        "loss": (0.0, float("inf")),
    }

    @property
    def width(self) -> int:
        """One logit a step."""
        return len(self.names) - 1

    def loss(self, logits: Float[AnyArray, "B s"], targets: Float[AnyArray, "B 1"]) -> Array:
        """Mean over the steps of the cross-entropy of being above each."""
        above = (jnp.asarray(targets) > jnp.arange(self.width)[None]).astype(jnp.float32)
        return optax.sigmoid_binary_cross_entropy(jnp.asarray(logits), above).mean(-1)

    def distillation(
        self,
        student: Float[AnyArray, "B s"],
        teacher: Float[AnyArray, "B s"],
        *,
        temperature: Number,
    ) -> Array:
        """`T^2 KL` between both sides' tempered steps, mean over them."""
        return slide_losses.bernoulli_loss(student, teacher, temperature=temperature).mean(-1)

    def link(self, logits: Float[AnyArray, "*n s"]) -> Float[AnyArray, "*n C"]:
        """Probabilities of the classes."""
        xp = arrays.namespace(logits)
        above = arrays.sigmoid(logits)
        lower = [above[..., :1]]
        for step in range(1, self.width):
            lower.append(xp.minimum(lower[-1], above[..., step : step + 1]))
        above = xp.concatenate(lower, -1)
        one = xp.ones_like(above[..., :1])
        return xp.concatenate([one, above], -1) - xp.concatenate([above, 0 * one], -1)

    def unlink(self, values: Float[np.ndarray, "n C"]) -> Float[np.ndarray, "n s"]:
        """Of the probability of being above each step."""
        return arrays.logit(np.cumsum(values[:, ::-1], 1)[:, ::-1][:, 1:])

    figures = Task.figures  # the closed forms of classes are of other metrics

    def measure(
        self, targets: Float[np.ndarray, "P 1"], values: Float[np.ndarray, "P C"]
    ) -> dict[str, float | None]:
        """See `Task`; a class is predicted as the middle of its distribution, the median."""
        labels = self.groups(targets)
        predicted = _median(values)
        right = labels == predicted
        return {
            "kappa": quadratic_kappa(labels, predicted, len(self.names)),
            "accuracy": float(right.mean()),
            "balanced_accuracy": float(np.mean([right[labels == c].mean() for c in set(labels)])),
            "mae": float(np.abs(labels - predicted).mean()),
            "brier": float(metrics.squared_error(labels, values).mean()),
            "loss": self.mean_loss(targets, values),
            "balanced_loss": metrics.balanced_loss(labels, values),
        }

    @classmethod
    def of_columns(cls, rows) -> "Ordinal | None":
        """See `Task`: those of classes in an order have `grade` beside."""
        return super().of_columns(rows) if "grade" in rows else None

    def said(self, values: Float[np.ndarray, "n C"]) -> dict[str, Any]:
        """Probabilities; `predicted`, the middle class of each distribution, and its `grade`."""
        grades = _median(np.asarray(values))
        columns = dict(zip(self.values, np.asarray(values).T, strict=True))
        return columns | {"predicted": [self.names[one] for one in grades], "grade": grades}

    def sentence(self, values: Float[np.ndarray, " C"]) -> str:
        """The predicted class."""
        grade = int(_median(np.asarray(values)[None])[0])
        return f"{self.names[grade]} {values[grade]:.2f}"


def _median(values: Float[np.ndarray, "n C"]) -> np.ndarray:
    return (np.cumsum(values, 1) < 0.5 - 1e-9).sum(1).clip(0, values.shape[1] - 1)


def quadratic_kappa(labels: np.ndarray, predicted: np.ndarray, classes: int) -> float | None:
    """Cohen's kappa with squared distances as weights; None where chance leaves no distance.

    Source: Cohen, "Weighted kappa", Psychological Bulletin 70 (1968).
    """
    seen = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, -1)
    apart = np.square(np.arange(classes)[:, None] - np.arange(classes)[None])
    chance = (apart * np.outer(seen.sum(1), seen.sum(0))).sum() / len(labels)
    return float(1 - (apart * seen).sum() / chance) if chance else None
