"""Rows of predictions.csv: who is drawn together, and thresholds from one side to the other."""

import numpy as np
import pandas as pd
import pytest

from lrmil_jax.evals import intervals, metrics
from lrmil_jax.tasks import predictions
from lrmil_jax.tasks.classification import Classification

TASK = Classification(("a", "b"))


def frame(count=24, seed=0, **columns):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    score = np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0, 1)
    names = [f"p{number:02d}" for number in range(count)]
    made = pd.DataFrame({"slide_id": names, "case_id": names, "fold": 1})
    made = made.assign(label=np.where(labels, "b", "a"), prob_a=1 - score, prob_b=score)
    return made.assign(**columns)


def test_measured_by_patient():
    slides = frame()
    two = pd.concat([slides, slides.assign(slide_id=slides.slide_id + "-2")])
    got = predictions.measure(TASK, two)
    assert got["patients"] == 24
    assert got == predictions.measure(TASK, slides)
    assert got["metrics"].keys() == got["intervals"].keys() == set(metrics.NAMES)


def test_pools_are_drawn_where_there_are_enough():
    slides = frame()
    alone = predictions.figures(TASK, slides)["auc"]
    assert alone.patients.tolist() == slides.case_id.tolist()
    pools = [f"pool {number // 2:02d}" for number in range(24)]
    drawn = predictions.figures(TASK, frame(pool=pools))["auc"]
    assert drawn.patients.tolist() == sorted(set(pools))
    assert drawn.value == alone.value
    few = predictions.figures(TASK, frame(pool=[f"pool {number % 9}" for number in range(24)]))[
        "auc"
    ]
    assert few.patients.tolist() == slides.case_id.tolist()


def test_pools_are_told():
    assert predictions.pool_note(frame()) is None
    assert predictions.pool_note(frame(pool=np.nan)) is None
    assert predictions.pool_note(frame(pool=[f"of slide {n}" for n in range(24)])) is None
    assert predictions.pool_note(frame(pool="test")).endswith("the intervals are too narrow.")
    many = frame(pool=[f"pool {number // 2}" for number in range(24)])
    assert predictions.pool_note(many).endswith("intervals are over pools, not patients.")
    both = pd.concat([many, frame(pool="test", fold=2)])
    assert predictions.pool_note(both).endswith("the intervals are too narrow.")


def test_copies_of_patients_in_pools_do_not_narrow_the_interval():
    """Ten copies of each of 24 patients, those of one patient in one pool."""
    slides = frame()
    copies = pd.concat([slides.assign(case_id=slides.case_id + f"-{n}", pool=slides.case_id)
                        for n in range(10)])  # fmt: skip
    one, ten = (predictions.measure(TASK, each)["intervals"] for each in (slides, copies))
    for name in ("accuracy", "loss"):
        assert ten[name] == pytest.approx(one[name])
    assert np.ptp(ten["auc"]) == pytest.approx(np.ptp(one["auc"]), rel=0.15)


def test_thresholds_are_chosen_on_validation_and_used_on_the_test():
    validation, test = frame(seed=1), frame(seed=2)
    got = predictions.operating_points(TASK, validation, test, sensitivity=0.9)
    assert got.keys() == {"youden", "sensitivity"}
    reached = got["sensitivity"]["validation"]["sensitivity"]
    assert reached == pytest.approx(11 / 12)  # the least of twelve that is at least 0.9
    point = got["youden"]
    called = test.prob_b >= point["threshold"]
    assert point["accuracy"] == np.mean(called == (test.label == "b"))
    assert point["threshold"] == point["validation"]["threshold"]
    three = [one.assign(prob_c=0.0) for one in (validation, test)]
    assert (
        predictions.operating_points(Classification(("a", "b", "c")), *three, sensitivity=0.9) == {}
    )


def test_figures_are_those_of_summaries():
    slides = frame()
    got = intervals.summarise([predictions.figures(TASK, slides)["auc"]])
    assert got.interval == predictions.measure(TASK, slides)["intervals"]["auc"]
