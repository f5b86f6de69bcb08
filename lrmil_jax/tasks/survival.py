"""Time to an event, some of it only known to be longer than a patient was followed."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax import Array
from jaxtyping import Float, Integer

from lrmil_jax import arrays
from lrmil_jax.data import tables
from lrmil_jax.distill import slide as slide_losses
from lrmil_jax.errors import DataError
from lrmil_jax.evals import jackknife, survival
from lrmil_jax.evals.calibration import Forecast
from lrmil_jax.evals.intervals import SHARE, Figure
from lrmil_jax.tasks import columns
from lrmil_jax.tasks.regression import strata
from lrmil_jax.tasks.task import Task
from lrmil_jax.types import AnyArray, Number

_LEAST = 1e-12  # of a probability that others are divided by


@dataclasses.dataclass(frozen=True)
class Survival(Task):
    """Negative log likelihood of hazards in a few intervals of time.

    Logit j is that of the hazard of interval j, the probability of the event in it for whoever came
    so far; predicted are the probabilities of coming through each interval.
    Source: Zadeh and Schmid, "Bias in Cross-Entropy-Based Training of Deep Survival Networks",
    TPAMI 2020; intervals by quantiles of the event times, as in Chen et al. (MCAT), ICCV 2021.

    Attributes:
      bins: intervals.
      edges: [bins - 1] times between them, from the training slides; () before.
    """

    bins: int = 4
    edges: tuple[float, ...] = ()

    name: ClassVar[str] = "survival"
    columns: ClassVar[tuple[str, ...]] = ("time", "event")
    metrics: ClassVar[tuple[str, ...]] = ("c_index", "td_auc")
    headline: ClassVar[str] = "c_index"
    has_follow_up: ClassVar[bool] = True
    risk_column: ClassVar[str] = "risk"  # of `predictions.csv`
    titles: ClassVar[Mapping[str, str]] = {"c_index": "C-index", "td_auc": "time-dependent AUC"}

    @classmethod
    def read(
        cls, frame: pd.DataFrame, data: Mapping[str, Any], source: str
    ) -> tuple["Survival", pd.DataFrame]:
        """See `Task`; `data.time_column` is above 0, `data.event_column` 1, or 0 for censored."""
        time = columns.numbers(frame, data["time_column"], source)
        event = columns.numbers(frame, data["event_column"], source)
        _refuse(time <= 0, f"{data['time_column']} must be above 0", frame, source)
        _refuse(~np.isin(event, (0, 1)), f"{data['event_column']} must be 0 or 1", frame, source)
        if not event.any():
            raise DataError(f"{source} has no event at all in {data['event_column']}")
        table = pd.DataFrame({"time": time, "event": event.astype(np.int32)}, frame.index)
        return cls(data["bins"]), table

    @classmethod
    def asked(cls, data: Mapping[str, Any]) -> tuple[str, ...]:
        """See `Task`."""
        return data["time_column"], data["event_column"]

    @property
    def width(self) -> int:
        """One logit an interval."""
        return self.bins

    @property
    def values(self) -> tuple[str, ...]:
        """Probabilities of coming through the intervals."""
        return tuple(f"survival_{number}" for number in range(1, self.bins + 1))

    def fitted(self, targets: Float[np.ndarray, "S 2"]) -> "Survival":
        """With edges at equal shares of the observed events, every one another time.

        Raises:
          DataError: there are fewer different event times than intervals.
        """
        times = targets[targets[:, 1] > 0, 0].astype(np.float64)
        edges = np.quantile(times, np.linspace(0, 1, self.bins + 1)[1:-1]) if len(times) else ()
        if len(np.unique(edges)) < self.bins - 1 or len(np.unique(times)) < self.bins:
            raise DataError(
                f"the training slides have events at {len(np.unique(times))} different times, too "
                f"few for {self.bins} intervals: ask for fewer (data.bins)"
            )
        return dataclasses.replace(self, edges=tuple(edges.tolist()))

    def loss(self, logits: Float[AnyArray, "B j"], targets: Float[AnyArray, "B 2"]) -> Array:
        """An event in interval k: came through those before, and the hazard of k; a censored one:
        came through all up to k."""
        logits, targets = jnp.asarray(logits), jnp.asarray(targets)
        edges = jnp.asarray(self.edges, jnp.float32)
        last = (targets[:, :1] > edges[None]).sum(-1)
        event = targets[:, 1]
        place = jnp.arange(self.bins)[None]
        through = (place < last[:, None]) | ((place == last[:, None]) & (event[:, None] == 0))
        came = (jax.nn.log_sigmoid(-logits) * through).sum(-1)
        hit = (jax.nn.log_sigmoid(logits) * (place == last[:, None])).sum(-1) * event
        return -(came + hit)

    def distillation(
        self,
        student: Float[AnyArray, "B j"],
        teacher: Float[AnyArray, "B j"],
        *,
        temperature: Number,
    ) -> Array:
        """`T^2 KL` between both sides' tempered hazards, summed over intervals, each weighted by
        the teacher's probability of coming so far."""
        teacher = jnp.asarray(teacher)
        alive = jnp.exp(jnp.cumsum(jax.nn.log_sigmoid(-teacher), -1))
        alive = jnp.concatenate([jnp.ones_like(alive[:, :1]), alive[:, :-1]], -1)
        cost = slide_losses.bernoulli_loss(student, teacher, temperature=temperature)
        return (alive * cost).sum(-1)

    def link(self, logits: Float[AnyArray, "*n j"]) -> Float[AnyArray, "*n j"]:
        """Probabilities of coming through the intervals."""
        xp = arrays.namespace(logits)
        return xp.cumprod(arrays.sigmoid(-xp.asarray(logits)), -1)

    def unlink(self, values: Float[np.ndarray, "n j"]) -> Float[np.ndarray, "n j"]:
        """Logits of the hazards."""
        before = np.concatenate([np.ones_like(values[:, :1]), values[:, :-1]], 1)
        return arrays.logit(1 - values / np.maximum(before, _LEAST))

    def groups(self, targets: Float[np.ndarray, "S 2"]) -> Integer[np.ndarray, " S"]:
        """Events by the quarter of their time, and the censored."""
        found, event = np.zeros(len(targets), np.int64), targets[:, 1] > 0
        found[event] = 1 + strata(targets[event, 0])
        return np.unique(found, return_inverse=True)[1]

    def figures(
        self,
        targets: Float[np.ndarray, "P 2"],
        values: Float[np.ndarray, "P j"],
        patients: Sequence[str] | np.ndarray,
    ) -> dict[str, Figure]:
        """`survival.concordance` and `survival.time_dependent_auc`."""

        def others(targets: np.ndarray, values: np.ndarray) -> dict[str, float | None]:
            time, event = _split(targets)
            return {"td_auc": survival.time_dependent_auc(time, event, self.risk(values))}

        found = jackknife.figures(others, targets, values, patients, {"td_auc": SHARE})
        time, event = _split(targets)
        first = survival.concordance_figure(time, event, self.risk(values), np.asarray(patients))
        return {"c_index": first} | found

    def measure(
        self, targets: Float[np.ndarray, "P 2"], values: Float[np.ndarray, "P j"]
    ) -> dict[str, float | None]:
        """See `Task`; with `loss` where the intervals are known."""
        time, event = _split(targets)
        found = {
            "c_index": survival.concordance(time, event, self.risk(values)),
            "td_auc": survival.time_dependent_auc(time, event, self.risk(values)),
        }
        loss = self.mean_loss(targets, values)
        return found if loss is None else found | {"loss": loss}

    def through(self, values: Float[np.ndarray, "n V"]) -> Float[np.ndarray, "n j"]:
        """Probabilities of coming through the intervals, among the predicted values."""
        return values

    def risk(self, values: Float[np.ndarray, "n V"]) -> Float[np.ndarray, " n"]:
        """By which patients are ordered: intervals that one is expected not to come through."""
        return values.shape[1] - np.asarray(values, np.float64).sum(1)

    def mean_loss(
        self, targets: Float[np.ndarray, "P 2"], values: Float[np.ndarray, "P V"]
    ) -> float | None:
        """The loss of patients' predictions; None where the intervals are not known."""
        if not self.edges:
            return None
        through = np.concatenate([np.ones((len(values), 1)), values], 1).clip(1e-12, 1)
        last = np.searchsorted(self.edges, targets[:, 0], "left")
        rows, event = np.arange(len(values)), targets[:, 1] > 0
        before, after = through[rows, last], through[rows, last + 1]
        likelihood = np.where(event, before - after, after)
        return float(-np.log(np.clip(likelihood, 1e-12, 1)).mean())

    def forecasts(
        self, targets: Float[np.ndarray, "P 2"], values: Float[np.ndarray, "P j"]
    ) -> dict[str, Forecast]:
        """The event by the end of each interval but the last, which has none, weighted by
        `survival.status_weights`; their Brier scores are Graf's."""
        time, event = _split(targets)
        through = self.through(np.asarray(values, np.float64))
        return {
            f"event by {edge:.4g}": Forecast(
                1 - through[:, number],
                event & (time <= edge),
                survival.status_weights(time, event, edge),
            )
            for number, edge in enumerate(self.edges)
        }

    @classmethod
    def of_columns(cls, rows: pd.DataFrame) -> "Survival | None":
        """See `Task`; without edges where folds differ in them."""
        bins = sum(str(name).startswith("survival_") for name in rows)
        if not bins or not {"time", "event", cls.risk_column} <= set(rows):
            return None
        ends = [f"until_{number}" for number in range(1, bins)]
        there = set(ends) <= set(rows) and (rows[ends].nunique(dropna=False) == 1).all()
        return cls(bins, tuple(rows[ends].iloc[0].astype(float)) if there else ())

    def said(self, values: Float[np.ndarray, "n j"]) -> dict[str, Any]:
        """Survival, `until_<j>`, the times at which the intervals end, and `risk`, by which
        patients are ordered."""
        ends = {f"until_{number}": edge for number, edge in enumerate(self.edges, 1)}
        columns = {name: np.full(len(values), edge) for name, edge in ends.items()}
        return super().said(values) | columns | {"risk": self.risk(np.asarray(values))}

    def sentence(self, values: Float[np.ndarray, " j"]) -> str:
        """The risk."""
        return f"risk {self.risk(values[None])[0]:.2f}"


def _split(targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(targets[:, 0], np.float64), targets[:, 1] > 0


def _refuse(wrong: np.ndarray, why: str, frame: pd.DataFrame, source: str) -> None:
    if wrong.any():
        number = tables.line(frame, np.flatnonzero(wrong)[0])
        raise DataError(f"{source}: {why}; line {number} has another")
