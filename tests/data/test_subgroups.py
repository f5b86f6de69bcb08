"""Levels of a column: words as they are, many numbers in quarters, what is missing by name."""

import numpy as np
import pandas as pd
import pytest

from lrmil_jax.data import subgroups
from lrmil_jax.errors import DataError


def patients(count):
    return pd.Series([f"p{number}" for number in range(count)])


def test_words_and_few_numbers_are_levels():
    words = subgroups.levels(pd.Series(["a ", "b", None, ""]), patients(4))
    assert words.tolist() == ["a", "b", "missing", "missing"]
    grades = subgroups.levels(pd.Series(["1", "2", "3", "1"]), patients(4))
    assert grades.tolist() == ["1", "2", "3", "1"]
    mixed = subgroups.levels(pd.Series([*map(str, range(20)), "unknown"]), patients(21))
    assert mixed.nunique() == 21


def test_numbers_in_quarters():
    ages = pd.Series([*map(str, range(1, 41)), ""])
    found = subgroups.levels(ages, patients(41))
    assert found.value_counts().to_dict() == {
        "Q1: up to 10.75": 10, "Q2: above 10.75 to 20.5": 10, "Q3: above 20.5 to 30.25": 10,
        "Q4: above 30.25": 10, "missing": 1,
    }  # fmt: skip
    assert found[9] == "Q1: up to 10.75"
    assert sorted(found.unique())[0].startswith("Q1")


def test_a_patient_of_many_slides_counts_once_in_the_quarters():
    ages = pd.Series([str(age) for age in range(1, 41)])
    more = pd.concat([ages, pd.Series(["1"] * 100)], ignore_index=True)
    who = pd.concat([patients(40), pd.Series(["p0"] * 100)], ignore_index=True)
    found = subgroups.levels(more, who)
    assert found[:40].tolist() == subgroups.levels(ages, patients(40)).tolist()
    assert set(found[40:]) == {"Q1: up to 10.75"}


def test_quarters_of_numbers_that_are_mostly_equal():
    found = subgroups.levels(pd.Series(["0"] * 90 + [str(n) for n in range(10)]), patients(100))
    assert found.value_counts().to_dict() == {"Q1: up to 0": 91, "Q2: above 0": 9}


def test_columns_of_a_csv():
    frame = pd.DataFrame({"site": ["x", "y"], "age": ["1", "2"]}, index=[3, 5])
    made = subgroups.columns(frame, ("site",), patients(2), "labels.csv")
    assert made.to_dict("list") == {"subgroup_site": ["x", "y"]}
    assert made.index.tolist() == [3, 5]
    with pytest.raises(DataError, match=r"labels.csv has no column sex; its columns are site, age"):
        subgroups.columns(frame, ("site", "sex"), patients(2), "labels.csv")
    assert subgroups.columns(frame, (), patients(2), "x").shape == (2, 0)
    assert np.array_equal(subgroups.columns(frame, (), patients(2), "x").index, frame.index)
