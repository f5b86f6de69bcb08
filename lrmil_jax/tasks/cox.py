"""Time to an event by proportional hazards: the order of patients, whatever the time's own law."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from lrmil_jax import arrays
from lrmil_jax.tasks.survival import Survival
from lrmil_jax.types import AnyArray, Number


@dataclasses.dataclass(frozen=True)
class Cox(Survival):
    """Cox's partial likelihood: a head has one output, the logarithm of a slide's relative risk.

    The loss of an event is that of its risk among all who were still followed then, so it looks at
    all slides of an update at once (`train.joint`): the more there are (`bags`), the nearer it is
    to the likelihood of the cohort. A censored slide costs nothing itself, but is at risk until its
    time, which lowers its output; an update without an event teaches nothing. Adding a number to
    all outputs changes nothing: their level is what rounding makes of it, and the baseline takes
    it back from survival. Ties by Efron.
    Source: Cox, "Regression Models and Life-Tables", JRSS B 1972; Efron, "The Efficiency of Cox's
    Likelihood Function for Censored Data", JASA 1977; risk sets of batches: Kvamme, Borgan and
    Scheel, "Time-to-Event Prediction with Neural Networks and Cox Regression", JMLR 2019, section
    3.2.

    Beside the risk, the probabilities of being without the event at `bins` times are predicted,
    `exp(-H(t) exp(risk))`, with Breslow's cumulative hazard H of the training slides.

    Attributes:
      bins: times at which survival is told: `edges`, as for `Survival`, and `until`.
      until: the last time of an event among the training slides.
      baseline: [bins] H at those times: of the model's own risks once it is trained, before that
        as if all risks were equal.
    """

    until: float = 0.0
    baseline: tuple[float, ...] = ()

    name: ClassVar[str] = "cox"
    joint: ClassVar[bool] = True
    calibrates: ClassVar[bool] = True
    risk_column: ClassVar[str] = "log_risk"
    titles: ClassVar[Mapping[str, str]] = Survival.titles

    @property
    def width(self) -> int:
        """One output."""
        return 1

    @property
    def values(self) -> tuple[str, ...]:
        """The logarithm of the risk, and the probabilities of being without the event."""
        return ("log_risk", *super().values)

    def fitted(self, targets: Float[np.ndarray, "S 2"]) -> "Cox":
        """With the times at which survival is told, and the hazard if all risks were equal.

        Raises:
          DataError: there are fewer different event times than `bins`.
        """
        until = float(targets[targets[:, 1] > 0, 0].max(initial=0.0))
        task = dataclasses.replace(super().fitted(targets), until=until)
        return task.calibrated(np.zeros((len(targets), 1), np.float32), targets)

    def calibrated(
        self, logits: Float[np.ndarray, "S 1"], targets: Float[np.ndarray, "S 2"]
    ) -> "Cox":
        """With the hazard of the training slides by the risks that a trained head gives them."""
        times = np.array([*self.edges, self.until])
        time, event = np.asarray(targets[:, 0], np.float64), targets[:, 1] > 0
        hazard = cumulative_hazard(np.asarray(logits[:, 0], np.float64), time, event, times)
        return dataclasses.replace(self, baseline=tuple(hazard.tolist()))

    def loss(self, logits: Float[AnyArray, "B 1"], targets: Float[AnyArray, "B 2"]) -> Array:
        """`partial_likelihood` of slides that are each other's risk set."""
        logits, targets = jnp.asarray(logits), jnp.asarray(targets)
        return partial_likelihood(logits[:, 0], targets[:, 0], targets[:, 1] > 0)

    def distillation(
        self,
        student: Float[AnyArray, "B 1"],
        teacher: Float[AnyArray, "B 1"],
        *,
        temperature: Number,
    ) -> Array:
        """Squared difference of the log risks; the temperature plays no part. Their common level,
        of which the labels know nothing, is the teacher's."""
        del temperature
        return jnp.square(student - jnp.asarray(teacher))[:, 0]

    def link(self, logits: Float[AnyArray, "*n 1"]) -> Float[AnyArray, "*n V"]:
        """The log risk, and survival at the times."""
        xp = arrays.namespace(logits)
        logits = xp.asarray(logits)
        # Beyond this the exponential has no place in float32; survival is 0 long before.
        baseline = xp.asarray(self.baseline, logits.dtype).reshape((1,) * (logits.ndim - 1) + (-1,))
        hazard = baseline * xp.exp(xp.minimum(logits, 80.0))
        return xp.concatenate([logits, xp.exp(-hazard)], -1)

    def unlink(self, values: Float[np.ndarray, "n V"]) -> Float[np.ndarray, "n 1"]:
        """The logarithm of the risk, which is among the values."""
        return values[:, :1]

    def through(self, values: Float[np.ndarray, "n V"]) -> Float[np.ndarray, "n j"]:
        return values[:, 1:]

    def risk(self, values: Float[np.ndarray, "n V"]) -> Float[np.ndarray, " n"]:
        """The logarithm of the relative risk."""
        return np.asarray(values, np.float64)[:, 0]

    def mean_loss(
        self, targets: Float[np.ndarray, "P 2"], values: Float[np.ndarray, "P V"]
    ) -> float | None:
        """`partial_likelihood` over these patients, a share for each of them."""
        time, event = np.asarray(targets[:, 0], np.float64), targets[:, 1] > 0
        return float(partial_likelihood(self.risk(values), time, event).mean())

    def sentence(self, values: Float[np.ndarray, " V"]) -> str:
        """The log risk, and survival at the last time."""
        return f"log risk {values[0]:.2f}, {values[-1]:.0%} without the event at the end"


def partial_likelihood(
    risk: Float[AnyArray, " n"], time: Float[AnyArray, " n"], event: Bool[AnyArray, " n"]
) -> Float[AnyArray, " n"]:
    """Negative logarithm of Cox's partial likelihood, each event's share of it, 0 for the censored.

    Of events at the same time, the l-th of d, counted from 0, finds `l / d` of the d no longer at
    risk: Efron 1977. NumPy in, NumPy out.

    Args:
      risk: log relative risks.
      time: of the event, or until which a patient was followed.
      event: observed.
    """
    xp = arrays.namespace(risk, time, event)
    at_risk = time[None] >= time[:, None]
    tied = (time[None] == time[:, None]) & event[None]
    before = xp.tril(tied, -1).sum(1) / xp.maximum(tied.sum(1), 1)
    peak = xp.where(at_risk, risk[None], -xp.inf).max(1)
    if xp is jnp:
        peak = jax.lax.stop_gradient(peak)
    weight = xp.exp(xp.where(at_risk, risk[None] - peak[:, None], -xp.inf))
    total = (weight * (1.0 - tied * before[:, None])).sum(1)
    return xp.where(event, xp.log(xp.where(event, total, 1.0)) + peak - risk, 0.0)


def cumulative_hazard(
    risk: Float[np.ndarray, " n"],
    time: Float[np.ndarray, " n"],
    event: Bool[np.ndarray, " n"],
    at: Float[np.ndarray, " T"],
) -> Float[np.ndarray, " T"]:
    """Breslow's estimate for a patient of log risk 0: at every event so far, one over the sum of
    the risks of those still followed.

    Source: Breslow, discussion of Cox, JRSS B 1972.
    """
    order = np.argsort(time)
    time, event = time[order], event[order]
    # Sums from the last patient on; those of one time are at risk together.
    left = np.cumsum(np.exp(risk[order])[::-1])[::-1]
    steps = event / left[np.searchsorted(time, time, "left")]
    total = np.concatenate([[0.0], np.cumsum(steps)])
    return total[np.searchsorted(time, at, "right")]
