"""Attention against lesion masks: a 4 x 4 grid by hand, scikit-learn, and what must not matter."""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from lrmil_jax.evals import intervals, localisation

SIDE = 100
GRID = np.stack(np.meshgrid(np.arange(4), np.arange(4)), -1).reshape(-1, 2) * SIDE


def grid_mask(scale=1):
    """A lesion of 10 x 15 pixels of 10 px in the corner, and one pixel in the last patch."""
    mask = np.zeros((40, 40), bool)
    mask[:15, :10] = mask[39, 39] = True
    return mask.repeat(scale, 0).repeat(scale, 1)


def grid_shares():
    """Patches 0 (full), 4 (half, below it) and 15 (a hundredth)."""
    expected = np.zeros(16)
    expected[[0, 4, 15]] = 1.0, 0.5, 0.01
    return expected


def random_slide(seed, patches=40, lesion=6, levels=9):
    """Attention with ties and lesion shares of a slide; some shares are small."""
    rng = np.random.default_rng(seed)
    share = np.zeros(patches)
    share[rng.choice(patches, lesion, replace=False)] = rng.uniform(0.02, 1, lesion)
    return rng.integers(1, levels, patches) + 2.0 * share.round(1), share


def test_shares_of_the_grid_by_hand():
    got = localisation.lesion_share(grid_mask(), (400, 400), GRID, SIDE)
    np.testing.assert_array_equal(got, grid_shares())


@pytest.mark.parametrize("scale", [2, 3, 10])
def test_a_finer_mask_gives_the_same_shares(scale):
    got = localisation.lesion_share(grid_mask(scale), (400, 400), GRID, SIDE)
    np.testing.assert_array_equal(got, grid_shares())


@pytest.mark.parametrize("dimensions", [(70, 91), (64, 77)])
@pytest.mark.parametrize("factors", [(7, 10), (14, 5)])
def test_shares_against_counting_pixels(dimensions, factors):
    """Patches and mask pixels that do not fit each other, the mask's pixels not even square."""
    width, height = dimensions[0] * factors[0], dimensions[1] * factors[1]
    rng = np.random.default_rng(0)
    mask = rng.random((dimensions[1], dimensions[0])) < 0.3
    every_pixel = mask.repeat(factors[1], 0).repeat(factors[0], 1)
    xy = rng.integers(0, 900, (50, 2))
    got = localisation.lesion_share(mask, (width, height), xy, 123)
    windows = [every_pixel[y : y + 123, x : x + 123] for x, y in xy]
    expected = [window.mean() if window.size else 0.0 for window in windows]
    np.testing.assert_allclose(got, expected, atol=2e-6)


def test_a_patch_over_the_edge_counts_with_what_lies_on_the_slide():
    mask = np.zeros((250, 250), bool)
    mask[200:, 200:] = mask[:, 150:200] = True
    xy = np.array([[200, 200], [100, 200], [200, 0], [300, 300]])
    got = localisation.lesion_share(mask, (250, 250), xy, SIDE)
    np.testing.assert_array_equal(got, [1.0, 0.5, 0.0, 0.0])


def test_auc_of_the_grid_by_hand():
    attention = np.ones(16)
    # Patch 15 is neither; of the 13 clear ones, patch 1 is above patch 4 and patch 2 ties with it.
    attention[[0, 4, 1, 2, 15]] = 5.0, 2.0, 3.0, 2.0, 9.0
    got = localisation.attention_auc(attention, grid_shares(), lesion_share=0.1)
    assert got == pytest.approx((13 + 11.5) / 26)
    # With the last patch, which all patches are below, as lesion.
    got = localisation.attention_auc(attention, grid_shares(), lesion_share=0.01)
    assert got == pytest.approx((13 + 11.5 + 13) / 39)


def test_dice_of_the_grid_by_hand():
    attention = np.ones(16)
    attention[[0, 1]] = 9.0, 8.0
    relative = 16 / (14 + 17)  # of every other patch
    values = {9 * relative: 2 * 1 / (1 + 1.51), 8 * relative: 2 * 1 / (2 + 1.51),
              relative: 2 * 1.51 / (16 + 1.51), 9.1 * relative: 0.0}  # fmt: skip
    for threshold, expected in values.items():
        got = localisation.dice(attention, grid_shares(), threshold * (1 - 1e-12))
        assert got == pytest.approx(expected)
    # Best are patches 0 and 4: 2 x 1.5 / (2 + 1.51).
    assert localisation.highest_dice(grid_shares()) == pytest.approx(3 / 3.51)


@pytest.mark.parametrize("seed", range(8))
def test_auc_against_scikit_learn(seed):
    attention, share = random_slide(seed)
    kept = (share == 0) | (share >= 0.3)
    expected = sk.roc_auc_score(share[kept] >= 0.3, attention[kept])
    got = localisation.attention_auc(attention, share, lesion_share=0.3)
    assert got == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-6, 0.5, 1e4])
def test_the_scale_of_attention_changes_nothing(scale):
    attention, share = random_slide(3)
    scaled = attention * scale
    for lesion_share in (0.05, 0.5):
        first = localisation.attention_auc(attention, share, lesion_share=lesion_share)
        assert localisation.attention_auc(scaled, share, lesion_share=lesion_share) == first
    assert localisation.dice(scaled, share, 1.01) == localisation.dice(attention, share, 1.01)
    np.testing.assert_allclose(localisation.relative(scaled).mean(), 1)


def test_uniform_attention_is_1_everywhere_and_says_nothing():
    attention, share = np.full(16, 1 / 16), grid_shares()
    np.testing.assert_array_equal(localisation.relative(attention), 1)
    assert localisation.attention_auc(attention, share, lesion_share=0.1) == 0.5
    assert localisation.dice(attention, share, 1.0) == pytest.approx(2 * 1.51 / 17.51)


@pytest.mark.parametrize("seed", range(5))
def test_perfect_attention_has_auc_1_and_no_attention_has_a_higher_dice(seed):
    attention, share = random_slide(seed)
    assert localisation.attention_auc(share, share, lesion_share=0.05) == 1.0
    best = localisation.best_threshold([share], [share])
    most = localisation.dice(share, share, best)
    assert most == pytest.approx(localisation.highest_dice(share))
    for threshold in localisation.relative(attention):
        assert localisation.dice(attention, share, threshold) <= most + 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_the_best_threshold_is_the_best_of_all(seed):
    slides = [random_slide(10 * seed + n, patches=10 + 7 * n) for n in range(4)]
    attentions, shares = zip(*slides, strict=True)

    def mean_dice(threshold):
        return np.mean([localisation.dice(a, s, threshold) for a, s in slides])

    got = localisation.best_threshold(attentions, shares)
    candidates = np.unique(np.concatenate([localisation.relative(a) for a in attentions]))
    assert got in candidates
    assert mean_dice(got) == pytest.approx(max(mean_dice(value) for value in candidates))


def test_undefined_is_none():
    attention = np.ones(4)
    assert localisation.attention_auc(attention, np.ones(4), lesion_share=0.1) is None
    assert localisation.attention_auc(attention, np.zeros(4), lesion_share=0.1) is None
    small = np.array([0.0, 0.05, 0.0, 0.0])
    assert localisation.attention_auc(attention, small, lesion_share=0.1) is None
    assert localisation.best_threshold([], []) is None


def scored(**columns):
    count = len(columns["case_id"])
    return pd.DataFrame({"slide_id": [f"s{n}" for n in range(count)]} | columns)


def test_summary_by_hand():
    slides = scored(
        case_id=["a", "a", "b", "c"],
        auc=[0.6, 0.8, np.nan, 1.0],
        dice=[0.1, 0.2, 0.3, 0.4],
        highest_dice=[0.5, 0.5, 0.7, 0.7],
    )
    got = localisation.summary([slides])
    assert (got["slides"], got["patients"]) == (4, 3)
    assert got["auc"] == pytest.approx(0.8)
    assert got["auc_sd"] == pytest.approx(0.2)
    assert got["dice"] == pytest.approx(0.25)
    assert got["highest_dice"] == pytest.approx(0.6)
    # Patients a and c are 0.2 below and above in sum, of three slides; b defines no AUC.
    figure = intervals.over_rows(slides.auc.to_numpy(), slides.case_id.to_numpy(str))
    assert figure.patients.tolist() == ["a", "c"]
    np.testing.assert_allclose(figure.influence, np.sqrt(2) * np.array([-0.2, 0.2]) / 3)
    assert got["auc_interval"] == intervals.summarise([figure]).interval


def test_folds_are_averaged_and_their_patients_counted_once():
    one = scored(case_id=["a", "b"], auc=[0.6, 0.8], dice=[0.1, 0.3], highest_dice=[0.5, 0.5])
    two = scored(case_id=["a"], auc=[0.9], dice=[np.nan], highest_dice=[0.8])
    got = localisation.summary([one, two])
    assert (got["slides"], got["patients"]) == (2, 2)
    assert got["auc"] == pytest.approx(0.8)
    assert got["dice"] == pytest.approx(0.2)
    assert got["highest_dice"] == pytest.approx(0.65)
    again = localisation.summary([one, one])
    assert again["auc_interval"] == pytest.approx(localisation.summary([one])["auc_interval"])


def test_summary_without_slides_or_scores():
    none = scored(case_id=[], auc=[], dice=[], highest_dice=[])
    got = localisation.summary([none])
    assert got["slides"] == got["patients"] == 0
    assert [got[name] for name in ("auc", "auc_sd", "auc_interval", "dice")] == [None] * 4
    one = scored(case_id=["a"], auc=[0.5], dice=[np.nan], highest_dice=[1.0])
    got = localisation.summary([one])
    assert got["auc"] == 0.5
    assert got["auc_interval"] is None  # one patient tells nothing of others
    assert got["auc_sd"] is got["dice"] is got["dice_interval"] is None


def test_copies_of_slides_are_no_more_patients():
    rng = np.random.default_rng(1)
    cases = np.array([f"p{n}" for n in rng.integers(0, 12, 40)])
    values = rng.random(40)
    bounds = [
        intervals.summarise([intervals.over_rows(v, c)]).interval
        for v, c in ((values, cases), (np.repeat(values, 20), np.repeat(cases, 20)))
    ]
    assert bounds[0] == pytest.approx(bounds[1])
