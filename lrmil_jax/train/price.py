"""What a training of several models costs in seconds, told while it is still early."""

import logging
import time
from collections.abc import Callable

_log = logging.getLogger(__name__)


class Price:
    """Tells once, at the second validation, how long a training and those after it will take.

    Until the first validation programs are compiled; what lies between it and the second is what
    each further validation will cost, with the updates before it.

    Args:
      name: of the training, for the line.
      models: that it trains.
      later: models of the same kind of work that other programs will train after it.
      clock: gives seconds.
    """

    def __init__(
        self, name: str, *, models: int, later: int = 0, clock: Callable[[], float] = time.monotonic
    ):
        self._name, self._models, self._later, self._clock = name, models, later, clock
        self._start = clock()
        self._first: tuple[int, float] | None = None
        self._told = False

    def validated(self, step: int, steps: int) -> None:
        """Counts a validation after update `step` of `steps`; the second one is told."""
        if self._told or step == steps:
            return
        if self._first is None:
            self._first = step, self._clock()
            return
        self._told = True
        before, since = self._first
        pace = (self._clock() - since) / (step - before)
        left = pace * (steps - step)
        line = f"{self._name}: about {left:,.0f} s left, if no model stops early"
        if self._later:
            # Not what has passed: a training that goes on after a kill began earlier.
            each = (since - self._start + pace * (steps - (step - before))) / self._models
            whole = left + each * self._later
            line += f"; about {whole:,.0f} s with {self._later} more after these"
        _log.info("%s", line)
