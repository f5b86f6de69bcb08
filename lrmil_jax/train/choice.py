"""Which parameters of a training are its best, by the metrics of validation."""

import dataclasses
import math
from collections.abc import Mapping

from lrmil_jax.errors import ConfigError
from lrmil_jax.train.checkpoint import TrainProgress


def judged(
    done: TrainProgress,
    metrics: Mapping[str, float | None] | None,
    *,
    step: int,
    select: tuple[tuple[str, str], ...],
    name: str,
) -> TrainProgress:
    """What is remembered after an evaluation; its `best_step` is `step` if that is the best so far.

    Args:
      done: before it.
      metrics: of the evaluation; None where nothing is validated, and the newest is the best.
      step: of the parameters.
      select: see `TrainSettings`.
      name: of the training, for messages.

    Raises:
      ConfigError: `metrics` has not what chooses.
    """
    validated = metrics is not None
    metrics = {
        key: None if value is None or not math.isfinite(value) else float(value)
        for key, value in (metrics or {}).items()
    }
    missing = [key for key, _ in select if key not in metrics]
    if validated and missing:
        raise ConfigError(
            f"the best model of {name!r} is to be chosen by {missing[0]!r}, but "
            f"validation gives only {sorted(metrics)}."
        )
    values = [metrics.get(key) for key, _ in select]
    if not better(values, done.best_values, select):
        return dataclasses.replace(done, bad_evaluations=done.bad_evaluations + 1)
    return TrainProgress(
        best_values=values, best_step=step, best_metrics=metrics, bests=done.bests + 1
    )


def better(
    values: list[float | None], best: list[float | None], select: tuple[tuple[str, str], ...]
) -> bool:
    """The first metric that differs decides. An undefined value never beats a defined one; where
    all are undefined the newest is kept."""
    if not best or set(values) == {None}:
        return set(best) <= {None}
    for value, before, (_, direction) in zip(values, best, select, strict=True):
        if value != before:
            if value is None or before is None:
                return before is None
            return value > before if direction == "max" else value < before
    return False
