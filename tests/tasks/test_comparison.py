"""Comparisons of two models: DeLong's published example, and who must not be compared."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lrmil_jax.errors import DataError
from lrmil_jax.tasks import comparison
from tests.tasks import simulated

# DeLong, DeLong and Clarke-Pearson (1988), the 43 patients with all three tests: albumin, total
# protein, K-G score, and 1 for those whom surgery did not help.
OVARIAN = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0
1.6 5.6 5 1   3.8 5.7 5 1  3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1
4.3 7.0 4 1   3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1
3.0 4.7 8 0   4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1
3.2 5.1 5 1   2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1
3.5 6.2 5 1   2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1
3.6 6.6 5 1
"""


def ovarian(test):
    """Rows of one of the tests as a model, the higher the better the outlook."""
    table = np.array(OVARIAN.split(), float).reshape(-1, 4)
    column = {"albumin": table[:, 0], "protein": table[:, 1], "K-G": 10 - table[:, 2]}[test]
    names = [f"p{number:02d}" for number in range(len(table))]
    rows = pd.DataFrame({"slide_id": names, "patient_id": names, "case_id": names, "model": test})
    rows = rows.assign(label=np.where(table[:, 3] == 1, "yes", "no"), fold=1)
    return rows.assign(prob_no=1 - column / 10, prob_yes=column / 10)


@pytest.mark.parametrize(
    ("test", "areas", "published"),
    [
        # Difference, standard error and chi-square as PROC LOGISTIC's manual prints them.
        ("albumin", (0.7366, 0.7258), (0.0108, 0.0953, 0.0127, 0.9102)),
        ("protein", (0.6478, 0.7258), (-0.0780, 0.1046, 0.5554, 0.4561)),
    ],
)
def test_delongs_example(test, areas, published):
    found = comparison.paired(ovarian(test), ovarian("K-G"), names=(test, "K-G"), draws=0)
    auc, delong = found["metrics"]["auc"], found["delong"]
    assert (auc["one"], auc["other"]) == pytest.approx(areas, abs=5e-5)
    told = (delong["difference"], delong["se"], delong["z"] ** 2, delong["p"])
    assert told == pytest.approx(published, abs=5e-5)
    assert found["patients"] == 43
    assert auc["bootstrap"] is None


def test_delongs_variance_is_the_plain_loop_over_pairs():
    one, other = ovarian("albumin"), ovarian("K-G")
    positive = one.label == "yes"
    parts = []
    for rows in (one, other):
        cases, controls = rows.prob_yes[positive], rows.prob_yes[~positive]
        wins = np.array([[(a > b) + 0.5 * (a == b) for b in controls] for a in cases])
        parts.append((wins.mean(1), wins.mean(0)))
    variance = sum(np.var(a - b, ddof=1) / len(a) for a, b in zip(*parts, strict=True))
    found = comparison.paired(one, other, names=("a", "b"), draws=0)["delong"]
    assert found["se"] == pytest.approx(np.sqrt(variance))
    assert found["p"] == pytest.approx(2 * stats.norm.sf(abs(found["z"])))


def test_bootstrap_and_influence_agree_on_accuracy():
    rows = simulated.rows("binary", patients=150, models=("good", "poor"), noise=0.6)
    one, other = (rows[rows.model == model] for model in ("good", "poor"))
    found = comparison.paired(one, other, names=("good", "poor"), draws=120)
    metric = found["metrics"]["auc"]
    assert metric["difference"] == pytest.approx(metric["one"] - metric["other"])
    low, high = metric["interval"]
    drawn = metric["bootstrap"]
    assert drawn["draws"] == 120
    assert np.ptp(drawn["interval"]) == pytest.approx(high - low, rel=0.35)
    assert "delong" in found


def test_folds_are_one_study():
    rows = pd.concat([simulated.rows("survival", fold=fold, patients=30, models=("a", "b"))
                      for fold in (1, 2)])  # fmt: skip
    one, other = (rows[rows.model == model] for model in "ab")
    found = comparison.paired(one, other, names=("a", "b"), draws=20)
    assert (found["folds"], found["patients"]) == (2, 60)
    assert "delong" not in found
    metric = found["metrics"]["c_index"]
    assert metric["interval"][0] < metric["difference"] < metric["interval"][1]


def refused(one, other, message):
    with pytest.raises(DataError, match=message):
        comparison.paired(one, other, names=("A", "B"), draws=0)


def test_only_the_same_patients_can_be_compared():
    rows = simulated.rows("binary")
    first = rows.case_id.iloc[0]
    refused(rows, rows[rows.case_id != first], f"1 are in one of the two alone, such as {first} in")
    flipped = np.where(rows.label == "null", "benign", "null")
    flipped = np.where(rows.case_id == first, flipped, rows.label)
    refused(rows, rows.assign(label=flipped), f"patient {first} of fold 1 has one outcome in A")
    refused(rows, rows.assign(fold=2), r"A has the folds \[1\] and B the folds \[2\]")
    refused(rows, simulated.rows("survival"), "only models of one task can be compared")
    more = rows.assign(prob_third=0.0)
    refused(rows, more, "only models of one task can be compared")
