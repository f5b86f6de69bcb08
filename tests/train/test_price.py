"""The estimate of a training's seconds, by a clock that stands still but when told."""

import logging

import pytest

from lrmil_jax.train.price import Price


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def told(caplog, validations, *, steps, **options) -> list[str]:
    """The lines of a training whose validations are (seconds since the last one, after update)."""
    clock = Clock()
    price = Price("sweep", clock=clock, **options)
    with caplog.at_level(logging.INFO, logger="lrmil_jax"):
        for seconds, step in validations:
            clock.now += seconds
            price.validated(step, steps)
    return caplog.messages


def test_the_second_validation_tells_what_is_left(caplog):
    # 30 s with compilation, then 10 updates in 4 s: 80 updates more are 32 s.
    lines = told(caplog, [(30, 10), (4, 20), (9, 30)], steps=100, models=3)
    assert lines == ["sweep: about 32 s left, if no model stops early"]


def test_models_of_later_programs_cost_what_these_cost(caplog):
    # This program comes to 30 + 9 * 4 = 66 s, 22 s a model; five more are 110 s.
    (line,) = told(caplog, [(30, 10), (4, 20)], steps=100, models=3, later=5)
    assert line.endswith("about 32 s left, if no model stops early; "
                         "about 142 s with 5 more after these")  # fmt: skip


def test_a_training_that_goes_on_counts_its_whole_length_for_later_models(caplog):
    # Resumed after update 50: 6 s to the first validation, 4 s an interval of 10 updates.
    (line,) = told(caplog, [(6, 60), (4, 70)], steps=100, models=1, later=1)
    assert "about 12 s left" in line
    assert "about 54 s with 1 more" in line  # 12 + 6 + 9 * 4


@pytest.mark.parametrize("validations", [[(30, 10)], [(30, 10), (4, 20)]])
def test_nothing_is_told_of_a_training_that_is_over(caplog, validations):
    assert told(caplog, validations, steps=validations[-1][1], models=1) == []
