"""The rule for intervals: by hand, and what it must be in the cases that are known."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logit

from lrmil_jax.errors import ConfigError
from lrmil_jax.evals import intervals, metrics
from lrmil_jax.evals.intervals import Figure


def figure(value, influence, patients=None, **options):
    influence = np.asarray(influence, float)
    names = [f"p{n}" for n in range(len(influence))] if patients is None else patients
    return Figure(value, influence, np.array(names), np.zeros(len(influence), int), **options)


def student(middle, variance, freedom):
    half = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    scale = middle * (1 - middle)
    return expit(logit(middle) + np.array([-half, half]) / scale)


def test_one_model_has_patients_alone():
    found = intervals.summarise([figure(0.8, [0.1, -0.1, 0.05, -0.05])])
    # Satterthwaite of one stratum of four patients: three degrees of freedom.
    assert found.interval == pytest.approx(student(0.8, 0.025, 3))
    assert (found.mean, found.sd, found.count) == (0.8, None, 1)


def test_strata_have_degrees_of_freedom_of_their_own():
    one = Figure(0.8, np.array([0.1, -0.1, 0.05, -0.05, 0.0]), np.array(list("abcde")),
                 np.array([0, 0, 1, 1, 1]))  # fmt: skip
    freedom = 0.025**2 / (0.02**2 / 1 + 0.005**2 / 2)
    assert intervals.summarise([one]).interval == pytest.approx(student(0.8, 0.025, freedom))


def test_a_patient_of_two_models_is_one_patient():
    """The same influences twice: as wide as one model's, not narrower by the root of 2."""
    one = figure(0.8, [0.1, -0.1, 0.05, -0.05])
    twice = intervals.summarise([one, one])
    assert twice.interval == pytest.approx(intervals.summarise([one]).interval)
    other = figure(0.8, [0.1, -0.1, 0.05, -0.05], ["q0", "q1", "q2", "q3"])
    assert np.ptp(intervals.summarise([one, other]).interval) < np.ptp(twice.interval)


def test_models_by_hand():
    """Shared patients on which two models agree: all of the figures' variance is the models'."""
    changes = [0.1, -0.1, 0.05, -0.05]
    found = intervals.summarise([figure(0.7, changes), figure(0.9, changes)])
    models = 0.02 / 2
    freedom = (0.025 + models) ** 2 / (0.025**2 / 3 + models**2 / 1)
    assert found.interval == pytest.approx(student(0.8, 0.025 + models, freedom))
    assert found.sd == pytest.approx(np.sqrt(0.02))
    assert (found.smallest, found.largest) == (0.7, 0.9)


def test_disjoint_patients_explain_what_figures_differ_by():
    """Two figures of disjoint patients, which differ by less than these explain: the variance of
    the mean is a quarter of both sums, and the patients' is not counted twice."""
    found = intervals.summarise([
        figure(0.78, [0.1, -0.1, 0.05, -0.05]),
        figure(0.82, [0.1, -0.1, 0.05, -0.05], list("abcd")),
    ])  # fmt: skip
    # s2 = .0008, the patients' part is 2 x .025 / 2.
    assert found.interval == pytest.approx(student(0.8, 0.0125, 7))


def test_disjoint_patients_are_students_interval_of_the_figures_where_they_explain_nothing():
    of = [figure(v, [0.0, 0.0], [f"{v}a", f"{v}b"]) for v in (0.7, 0.8, 0.9)]
    found = intervals.summarise(of)
    assert found.interval == pytest.approx(student(0.8, 0.01 / 3, 2))


def test_all_right_is_clopper_and_pearsons_bound():
    labels = np.arange(10) % 2
    measured = intervals.figures(labels, np.eye(2)[labels], np.arange(10))
    found = intervals.of_one(measured)
    assert measured["auc"].value == measured["accuracy"].value == 1.0
    assert found["auc"] == pytest.approx((0.025 ** (1 / 5), 1.0))  # five of a class
    assert found["accuracy"] == pytest.approx((0.025 ** (1 / 10), 1.0))
    wrong = intervals.of_one(intervals.figures(labels, np.eye(2)[1 - labels], np.arange(10)))
    assert wrong["auc"] == pytest.approx((0.0, 1 - 0.025 ** (1 / 5)))


def test_a_lone_patient_of_a_class_claims_nothing():
    labels = np.array([0, 0, 0, 1])
    score = np.array([0.1, 0.2, 0.7, 0.6])
    measured = intervals.figures(labels, np.stack([1 - score, score], 1), list("abcd"))
    assert measured["auc"].value == pytest.approx(2 / 3)
    assert intervals.of_one(measured)["auc"] is None
    low, high = intervals.summarise([measured["auc"]] * 2).interval
    assert low < 2 / 3 < high
    nobody = intervals.figures(np.zeros(3, int), np.full((3, 2), 0.5), list("abc"))["auc"]
    assert intervals.summarise([nobody]).mean is None
    assert intervals.summarise([nobody, measured["auc"]]).count == 1


def test_order_of_patients_and_models_does_not_matter():
    rng = np.random.default_rng(0)
    labels, score = rng.integers(0, 2, 30), rng.random(30)
    both, names = np.stack([1 - score, score], 1), np.array([f"n{n}" for n in range(30)])
    one = intervals.figures(labels, both, names)
    mixed = rng.permutation(30)
    other = intervals.figures(labels[mixed], both[mixed], names[mixed])
    for name in metrics.NAMES:
        np.testing.assert_allclose(one[name].influence, other[name].influence)
        assert one[name].value == pytest.approx(other[name].value)
    shuffled = intervals.difference(one["auc"], other["auc"])
    assert shuffled.value == 0
    assert np.abs(shuffled.influence).max() < 1e-12


def test_rows_of_one_patient_are_drawn_together():
    labels, score = np.arange(40) % 2, np.linspace(0.2, 0.9, 40)[np.argsort(np.arange(40) % 7)]
    both = np.stack([1 - score, score], 1)
    alone = intervals.of_one(intervals.figures(labels, both, np.arange(40)))
    grouped = intervals.of_one(intervals.figures(labels, both, np.arange(40) // 4))
    assert grouped["loss"] != alone["loss"]
    tenfold = intervals.figures(np.repeat(labels, 10), np.repeat(both, 10, 0),
                                np.repeat(np.arange(40), 10))  # fmt: skip
    for name in ("accuracy", "loss"):
        assert intervals.of_one(tenfold)[name] == pytest.approx(alone[name])


def test_mean_of_folds_as_one_figure():
    folds = [figure(0.7, [0.2, -0.2], ["a", "b"]), figure(0.9, [0.1, -0.1], ["b", "c"]),
             figure(None, [0.0], ["z"])]  # fmt: skip
    found = intervals.mean(folds)
    assert found.value == pytest.approx(0.8)
    assert found.patients.tolist() == ["a", "b", "c"]
    np.testing.assert_allclose(found.influence, [0.1, -0.05, -0.05])
    assert intervals.mean(folds[2:]).value is None


def test_differences():
    one, other = figure(0.9, [0.1, -0.1]), figure(0.7, [0.1, -0.05])
    found = intervals.difference(one, other)
    assert found.value == pytest.approx(0.2)
    np.testing.assert_allclose(found.influence, [0, -0.05])
    half = stats.t.ppf(0.975, 1) * 0.05
    assert intervals.summarise([found]).interval == pytest.approx((0.2 - half, 0.2 + half))
    assert intervals.difference(one, figure(0.7, [0, 0], ["a", "b"])) is None
    assert intervals.difference(one, figure(None, [0, 0])).value is None
    many = [figure(v, [0.0, 0.0], range=intervals.DIFFERENCE) for v in (0.1, -0.1, 0.3, 0.0)]
    found = intervals.summarise(many)
    assert (found.above_zero, found.count) == (2, 4)


def test_the_difference_of_two_faultless_models_is_not_certain():
    zero = intervals.difference(figure(1.0, [0.0, 0.0]), figure(1.0, [0.0, 0.0]))
    assert intervals.summarise([zero]).mean == 0
    assert intervals.summarise([zero]).interval is None
    assert intervals.summarise([zero, zero]).interval is None
    same = intervals.difference(figure(0.8, [0.1, -0.1]), figure(0.8, [0.1, -0.1]))
    assert intervals.summarise([same, same]).interval == (0, 0)


def test_a_difference_of_other_patients_is_newcombes():
    """His example: 56 of 70 less 48 of 80, of which each has an interval by Wilson's score."""
    sides = [
        intervals.Summary(hits / count, None, float(low), float(high), None, None, 0, 1)
        for hits, count in ((56, 70), (48, 80))
        for low, high in [stats.binomtest(hits, count).proportion_ci(method="wilson")]
    ]
    gap, bounds = intervals.apart(*sides)
    assert gap == pytest.approx(0.2)
    assert bounds == pytest.approx((0.0524, 0.3339), abs=5e-5)
    unknown = intervals.summarise([figure(0.8, [np.nan, 0.1])])
    assert intervals.apart(sides[0], unknown) == (pytest.approx(0.0), None)
    assert intervals.apart(sides[0], intervals.summarise([])) == (None, None)


def test_p_is_below_a_twentieth_where_the_interval_leaves_0():
    changes = np.array([0.1, -0.1, 0.05, -0.05])
    freedom, sd = 3, np.sqrt((changes**2).sum())
    for value in (0.3, stats.t.ppf(0.975, freedom) * sd, 0.7):
        gap = figure(value, changes, range=intervals.DIFFERENCE)
        wanted = 2 * stats.t.sf(value / sd, freedom)
        assert intervals.p_value([gap]) == pytest.approx(wanted)
    assert intervals.p_value([figure(0.3, [np.nan, 0.1])]) is None
    assert intervals.p_value([figure(0.0, [0.0, 0.0])]) is None
    assert intervals.p_value([figure(None, [0.0])]) is None


def test_a_mean_over_rows_counts_a_patient_once():
    values, who = np.array([1.0, 0.0, 0.5, np.nan]), np.array(["b", "a", "b", "c"])
    found = intervals.over_rows(values, who)
    assert (found.value, found.patients.tolist()) == (0.5, ["a", "b"])
    np.testing.assert_allclose(found.influence, np.sqrt(2) * np.array([-0.5, 0.5]) / 3)
    assert intervals.over_rows(np.array([np.nan]), np.array(["a"])).value is None


def test_perfect_agreement_is_not_certain():
    perfect = figure(1.0, [0.0, 0.0, 0.0], range=intervals.DIFFERENCE)
    assert intervals.summarise([perfect]).interval is None


def test_ranges_are_kept():
    wide = figure(0.99, [0.4, -0.4])
    low, high = intervals.summarise([wide]).interval
    assert 0 <= low < 0.99 < high <= 1
    low, high = intervals.summarise([figure(0.1, [0.4, -0.4], range=(0.0, np.inf))]).interval
    assert 0 <= low < 0.1 < high
    difference = figure(0.9, [0.4, -0.4], range=intervals.DIFFERENCE)
    assert intervals.summarise([difference]).high == 1


def test_level_widens_and_is_checked():
    one = figure(0.8, [0.1, -0.1, 0.05, -0.05])
    wide, usual = intervals.summarise([one], level=0.99), intervals.summarise([one])
    assert wide.low < usual.low < usual.high < wide.high
    with pytest.raises(ConfigError):
        intervals.summarise([one], level=1.0)
