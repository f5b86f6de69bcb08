"""Scores, budgets and choices, by hand and by their properties."""

import subprocess
import sys

import numpy as np
import pytest

from lrmil_jax.errors import ConfigError, DataError
from lrmil_jax.selection import score

SCORES = np.array(
    [
        [0.90, 0.10],
        [0.80, 0.20],
        [0.70, 0.60],
        [0.60, 0.55],
        [0.10, 0.50],
    ],
    np.float32,
)


def test_class_scores_are_cosines():
    patches = np.array([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]], np.float32)
    classes = np.array([[10.0, 0.0], [-1.0, -1.0]], np.float32)
    expected = [[0.6, -7 / 5 / 2**0.5], [0.0, -(0.5**0.5)], [0.0, 0.0]]
    scores = score.class_scores(patches, classes)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_a_patch_scores_the_same_in_any_company():
    rng = np.random.default_rng(0)
    patches, classes = rng.normal(size=(1001, 512)), rng.normal(size=(5, 512))
    patches = patches.astype(np.float32)
    patches[700] = patches[3]
    whole = score.class_scores(patches, classes.astype(np.float32))
    np.testing.assert_array_equal(whole[700], whole[3])
    for start, stop in ((3, 4), (0, 17), (500, 1001)):
        part = score.class_scores(patches[start:stop], classes.astype(np.float32))
        np.testing.assert_array_equal(part, whole[start:stop])


@pytest.mark.parametrize(
    ("total", "rho", "size"),
    [
        (30, 0.1, 3),  # 0.1 * 30 > 3 as floats
        (100, 0.07, 7),
        (100, 0.29, 29),
        (31, 0.1, 4),
        (10, 0.25, 3),
        (7, 1, 7),
        (7, 1.0, 7),
        (5, 1e-9, 1),
        (1, 0.5, 1),
        (0, 0.5, 0),
        (30, np.float32(0.1), 3),
        (30, np.float64(0.1), 3),
    ],
)
def test_budget_of_a_share(total, rho, size):
    assert score.budget(total, rho=rho) == size


def test_budget_is_exact_for_every_percentage():
    for percent in range(1, 101):
        for total in (1, 30, 99, 700, 12345):
            exact = -(-(percent * total) // 100)
            assert score.budget(total, rho=percent / 100) == exact


@pytest.mark.parametrize(("total", "count", "size"), [(10, 4, 4), (3, 4, 3), (10, 1, 1)])
def test_budget_of_a_number(total, count, size):
    assert score.budget(total, count=count) == size


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({}, "set one of the two"),
        ({"rho": 0.1, "count": 3}, "set one of the two"),
        ({"rho": 0.0}, "rho, is 0.0"),
        ({"rho": 1.01}, "rho, is 1.01"),
        ({"rho": float("nan")}, "rho, is nan"),
        ({"count": 0}, "is 0: give at least 1"),
    ],
)
def test_budgets_that_cannot_be(kwargs, said):
    with pytest.raises(ConfigError, match=said):
        score.budget(10, **kwargs)


@pytest.mark.parametrize(
    ("rule", "orders"),
    [
        ("max", [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]),
        # Class 0 takes 0, class 1 takes 2, class 0 takes 1, class 1 takes 3, class 0 takes 4.
        ("per_class", [[0], [0, 2], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]),
    ],
)
def test_select_by_hand(rule, orders):
    for size, expected in enumerate(orders, 1):
        chosen = score.select(SCORES, size, rule=rule)
        assert chosen.tolist() == expected
        assert chosen.dtype == np.int32
    assert score.select(SCORES, 0, rule=rule).tolist() == []


def test_per_class_takes_the_next_best_when_its_best_is_gone():
    # Both classes like patch 1 most; the second then takes its own second.
    scores = np.array([[0.1, 0.2], [0.9, 0.9], [0.5, 0.3], [0.4, 0.8]], np.float32)
    assert score.select(scores, 2, rule="per_class").tolist() == [1, 3]
    assert score.select(scores, 3, rule="per_class").tolist() == [1, 2, 3]


def test_per_class_gives_every_class_its_share():
    rng = np.random.default_rng(0)
    scores = rng.random((60, 3)).astype(np.float32)
    scores[:, 0] += 5  # this class would take all by the maximum
    best = {int(p) for c in (1, 2) for p in np.argsort(-scores[:, c])[:4]}
    assert best <= set(score.select(scores, 12, rule="per_class").tolist())
    assert not best <= set(score.select(scores, 12).tolist())


def test_classes_that_guide_the_choice():
    classes = ("normal", "tumour", "other")
    assert score.guiding(classes, ()).tolist() == [0, 1, 2]
    assert score.guiding(classes, ["tumour"]).tolist() == [1]
    assert score.guiding(classes, ("other", "normal")).tolist() == [2, 0]
    with pytest.raises(ConfigError, match="'tumor', which is no class of the slides: use normal"):
        score.guiding(classes, ("tumor",))


@pytest.mark.parametrize("rule", score.RULES)
def test_ties_go_to_the_lower_index(rule):
    flat = np.zeros((40, 3), np.float32)
    assert score.select(flat, 7, rule=rule).tolist() == list(range(7))


def _slow_choice(scores, size, rule):
    chosen = []
    while len(chosen) < size:
        column = scores.max(1) if rule == "max" else scores[:, len(chosen) % scores.shape[1]]
        rest = [p for p in range(len(scores)) if p not in chosen]
        chosen.append(max(rest, key=lambda p: (column[p], -p)))
    return sorted(chosen)


@pytest.mark.parametrize("rule", score.RULES)
def test_select_against_a_plain_loop(rule):
    rng = np.random.default_rng(1)
    for _ in range(20):
        scores = rng.integers(0, 6, (25, 4)).astype(np.float32)  # many ties
        before = set()
        for size in range(26):
            chosen = score.select(scores, size, rule=rule).tolist()
            assert chosen == _slow_choice(scores, size, rule)
            assert before < set(chosen) or not size
            before = set(chosen)


@pytest.mark.parametrize("rule", score.RULES)
def test_the_order_of_patches_does_not_matter(rule):
    scores = np.random.default_rng(2).random((50, 3)).astype(np.float32)
    order = np.random.default_rng(3).permutation(50)
    shuffled = score.select(scores[order], 9, rule=rule)
    assert sorted(order[shuffled]) == score.select(scores, 9, rule=rule).tolist()


def test_choices_that_cannot_be():
    with pytest.raises(ConfigError, match="rule of selection 'mean': use max or per_class"):
        score.select(SCORES, 2, rule="mean")
    for size in (6, -1):
        with pytest.raises(ConfigError, match=f"{size} patches cannot be chosen out of 5"):
            score.select(SCORES, size)
        with pytest.raises(ConfigError, match=f"{size} patches cannot be chosen out of 5"):
            score.select_random(5, size, seed=0, slide_id="a")
    broken = SCORES.copy()
    broken[1, 0] = np.nan
    with pytest.raises(DataError, match="1 of 5 patches have the score NaN"):
        score.select(broken, 2)


def test_random_choice_is_the_slides_own():
    names = [f"slide.{i}" for i in range(20)]
    drawn = {name: score.select_random(100, 10, seed=4, slide_id=name) for name in names}
    for name in reversed(names):
        again = score.select_random(100, 10, seed=4, slide_id=name)
        np.testing.assert_array_equal(again, drawn[name])
        assert again.dtype == np.int32
        assert len(set(again.tolist())) == 10
        assert again.tolist() == sorted(again)
    assert len({tuple(chosen) for chosen in drawn.values()}) == 20
    other = score.select_random(100, 10, seed=5, slide_id=names[0])
    assert other.tolist() != drawn[names[0]].tolist()
    more = score.select_random(100, 30, seed=4, slide_id=names[0])
    assert set(drawn[names[0]].tolist()) < set(more.tolist())
    assert score.select_random(4, 4, seed=0, slide_id="a").tolist() == [0, 1, 2, 3]


def test_random_choice_is_uniform():
    counts = np.zeros(20)
    for i in range(2000):
        counts[score.select_random(20, 5, seed=0, slide_id=str(i))] += 1
    # 500 each; the SD of a count is 19.
    assert np.abs(counts - 500).max() < 90


def test_random_choice_is_the_same_in_another_process():
    code = (
        "from lrmil_jax.selection import score;"
        "print(score.select_random(1000, 5, seed=1, slide_id='TCGA-é').tolist())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = score.select_random(1000, 5, seed=1, slide_id="TCGA-é").tolist()
    assert found.stdout.strip() == str(here)


def test_lesion_recall():
    share = np.array([0.0, 0.5, 1.0, 0.1, 0.0])
    assert score.lesion_recall(share, np.array([2, 3])) == pytest.approx(1.1 / 1.6)
    assert score.lesion_recall(share, np.array([1, 2, 3], np.int32)) == 1.0
    assert score.lesion_recall(share, np.array([0, 4])) == 0.0
    assert score.lesion_recall(share, np.array([], np.int32)) == 0.0
    assert score.lesion_recall(np.zeros(5), np.array([1])) is None


def test_lesion_recall_is_never_above_one():
    share = np.random.default_rng(0).random(1000)
    share[::3] = 0
    assert score.lesion_recall(share, np.flatnonzero(share)) == 1.0
