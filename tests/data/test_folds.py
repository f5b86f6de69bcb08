"""Folds of whole sites as even as can be, and validation patients drawn where a split has none."""

import itertools

import numpy as np
import pandas as pd
import pytest

from lrmil_jax.data import folds, splits
from lrmil_jax.errors import DataError


def unevenness(counts, part, parts):
    """By the definition, with loops."""
    cost = 0.0
    for group in range(counts.shape[1]):
        total = counts[:, group].sum()
        for number in range(parts):
            held = sum(counts[unit, group] for unit in range(len(part)) if part[unit] == number)
            cost += (held - total / parts) ** 2 / total
    return cost


@pytest.mark.parametrize("seed", range(5))
def test_few_units_are_parted_as_evenly_as_any_choice_could(seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 30, (7, 2)).astype(float)
    counts[0] += 40  # one large site
    part = folds.even_parts(counts, 3, seed=0)
    best = min(unevenness(counts, one, 3) for one in itertools.product(range(3), repeat=7))
    assert unevenness(counts, part, 3) == pytest.approx(best)


def test_the_same_seed_gives_the_same_parts():
    counts = np.random.default_rng(0).integers(1, 9, (30, 3)).astype(float)
    first, again = (folds.even_parts(counts, 5, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def cohort(patients=400, sites=25, seed=0):
    """Patients of sites of very different sizes and class shares, some with two slides."""
    rng = np.random.default_rng(seed)
    share = rng.lognormal(0, 1.2, sites)
    site = rng.choice(sites, patients, p=share / share.sum())
    label = (rng.random(patients) < rng.beta(1, 4, sites)[site]).astype(int)
    slides = np.repeat(np.arange(patients), rng.integers(1, 3, patients))
    return pd.DataFrame(
        {
            "slide_id": [f"s{i:04d}" for i in range(len(slides))],
            "patient_id": [f"TCGA-{site[p]:02d}-{p:04d}" for p in slides],
            "site": [f"{site[p]:02d}" for p in slides],
            "label": label[slides],
        }
    )


def test_folds_of_whole_sites_hold_even_shares_of_every_class():
    table = cohort(seed=1)
    made = folds.make(table, table.label.to_numpy(), folds=5, seed=0, source="labels.csv")
    tested = pd.Series("", table.index)
    for number, column in enumerate(made.values()):
        assert (pd.Series(column).groupby(table.site).nunique() == 1).all()
        tested[column == "test"] = str(number)
    assert (tested != "").all()  # every patient is tested once
    patients = table.assign(part=tested).drop_duplicates("patient_id")
    counts = patients.groupby(["part", "label"]).size().unstack()
    assert (counts.max() - counts.min() <= 1).all()  # of about 68 and 12 in each part


def test_the_site_is_in_the_barcode_or_in_a_column():
    frame = cohort()[["slide_id", "patient_id"]].assign(hospital="north")
    assert folds.sites(frame, "tcga", "labels.csv").tolist() == cohort().site.tolist()
    assert set(folds.sites(frame, "hospital", "labels.csv")) == {"north"}
    with pytest.raises(DataError, match=r"no column clinic; .*data\.site names one"):
        folds.sites(frame, "clinic", "labels.csv")
    with pytest.raises(DataError, match=r"no hospital in line 2, which data\.site needs"):
        folds.sites(frame.assign(hospital=""), "hospital", "labels.csv")
    with pytest.raises(DataError, match="slide s0000 has no barcode of TCGA"):
        folds.sites(frame.assign(patient_id="p1"), "tcga", "labels.csv")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"site": "05"}, "slides of 1 site .05., which cannot be kept whole in 5 parts"),
        (
            {"patient_id": "p1"},
            "group of slides with alike targets has 1 patient, too few for 5 parts",
        ),
    ],
)
def test_sites_that_cannot_be_kept_whole(change, sentence):
    table = cohort().assign(**change)
    with pytest.raises(DataError, match=sentence):
        folds.make(table, table.label.to_numpy(), folds=5, seed=0, source="labels.csv")


def test_a_patient_of_two_sites_is_refused():
    table = cohort()
    table.loc[table.index[-1], "patient_id"] = table.patient_id[0]
    table.loc[table.index[-1], "site"] = "another"
    with pytest.raises(DataError, match="has slides of 2 sites; a patient is of one site"):
        folds.make(table, table.label.to_numpy(), folds=5, seed=0, source="labels.csv")


def test_validation_patients_are_drawn_whole_and_from_every_class():
    table = cohort(patients=100)
    train = np.arange(len(table)) < 100
    drawn = folds.draw_val(train, table.patient_id, table.label.to_numpy(), share=0.2, seed=1)
    assert not (drawn & ~train).any()
    patients = table[train].drop_duplicates("patient_id")
    took = patients.patient_id.isin(table.patient_id[drawn])
    for label, members in took.groupby(patients.label):
        assert members.sum() == max(1, round(0.2 * len(members))), label
    again = folds.draw_val(train, table.patient_id, table.label.to_numpy(), share=0.2, seed=1)
    np.testing.assert_array_equal(drawn, again)
    other = folds.draw_val(train, table.patient_id, table.label.to_numpy(), share=0.2, seed=2)
    assert (drawn != other).any()


def test_the_last_training_patient_of_a_class_stays_one():
    patients, groups = pd.Series(["a", "b", "c"]), np.array([0, 0, 1])
    drawn = folds.draw_val(np.ones(3, bool), patients, groups, share=0.9, seed=0)
    assert drawn.sum() == 1
    assert not drawn[2]


def test_patients_in_two_splits_are_told():
    table = pd.DataFrame({"patient_id": list("aab"), "fold_1": ["train", None, "test"]})
    assert splits.patients_in_two(table, "labels.csv") is None
    table["fold_2"] = ["train", "test", "test"]
    assert "patient a is in two splits of fold_2" in splits.patients_in_two(table, "labels.csv")
