"""Slides that are one, told where two should be strangers."""

import dataclasses

import pandas as pd
import pytest

from lrmil_jax.data import leaks
from lrmil_jax.errors import DataError
from lrmil_jax.slides import likeness
from tests.slides.test_likeness import section

A, B = (likeness.fingerprint(*section(seed)) for seed in (0, 1))


def identity(size, picture=None):
    return leaks.Identity(size, f"sample {size}", picture)


def test_twins_by_bytes_and_by_what_they_show():
    slides = [identity(1, A), identity(2, B), identity(1, A), identity(3, A), identity(4)]
    found = leaks.twins(slides)
    assert [(one.first, one.second, one.kind) for one in found] == [
        (0, 2, leaks.SAME_FILE), (0, 3, leaks.SAME_TISSUE), (2, 3, leaks.SAME_TISSUE),
    ]  # fmt: skip
    assert found[0].likeness == found[1].likeness == 1
    assert leaks.twins(slides[:2]) == leaks.twins([]) == []


def test_twins_in_two_cohorts():
    seen, new = [identity(1, A), identity(2)], [identity(5, B), identity(6, A), identity(2, B)]
    found = {(one.first, one.second): one.kind for one in leaks.twins(new, seen)}
    assert found == {(1, 0): leaks.SAME_TISSUE, (2, 1): leaks.SAME_FILE}
    assert leaks.twins(new, []) == []


def table(*rows):
    names = ["slide_id", "fold_1", "fold_2"]
    return pd.DataFrame(rows, columns=names)


def pairs(*rows):
    return pd.DataFrame(rows, columns=["slide_id", "other", "kind", "likeness"])


def test_pairs_matter_where_a_fold_parts_them():
    cohort = table(("a", "train", "train"), ("b", "train", "test"), ("c", "val", "val"),
                   ("d", None, "train"))  # fmt: skip
    alike = leaks.SAME_TISSUE
    assert leaks.across_splits(pairs(), cohort, "labels.csv") is None
    assert leaks.across_splits(pairs(("a", "d", alike, 0.9)), cohort, "labels.csv") is None
    assert leaks.across_splits(pairs(("a", "gone", alike, 0.9)), cohort, "labels.csv") is None
    said = leaks.across_splits(
        pairs(("a", "b", alike, 0.934), ("a", "c", leaks.SAME_FILE, 1.0)), cohort, "labels.csv"
    )
    assert "labels.csv: slides a and b show the same tissue (likeness 0.93), in the train" in said
    assert "and the test split of fold_2 (and 1 more such pairs)" in said
    said = leaks.across_splits(pairs(("a", "c", leaks.SAME_FILE, 1.0)), cohort, "labels.csv")
    assert "slides a and c are the same file, in the train and the val split of fold_1;" in said


def test_slides_that_a_model_has_seen():
    none = pd.DataFrame([], columns=["slide_id", "kind", "likeness"])
    assert leaks.across_cohorts(none, "new.csv") is None
    rows = [{"slide_id": "x", "kind": leaks.SAME_FILE, "likeness": 1.0},
            {"slide_id": "y", "kind": leaks.SAME_TISSUE, "likeness": 0.9}]  # fmt: skip
    said = leaks.across_cohorts(pd.DataFrame(rows), "new.csv")
    assert "new.csv: slide x is a file that the model was trained on (and 1 more" in said
    said = leaks.across_cohorts(pd.DataFrame(rows[1:]), "new.csv")
    assert "slide y shows the tissue (likeness 0.90) of a slide that the model" in said


def test_what_is_told_is_refused_or_warned_of(caplog):
    leaks.tell(None, "refuse")
    with pytest.raises(DataError, match=r"something; data\.leaks=warn goes on"):
        leaks.tell("something", "refuse")
    assert not caplog.text
    leaks.tell("something", "warn")
    assert "something" in caplog.text


def test_files_of_one_sample_are_read_whole(tmp_path):
    for name, content in {"a": b"same", "b": b"same", "c": b"else"}.items():
        (tmp_path / name).write_bytes(content)
    assert leaks.same_bytes(tmp_path / "a", tmp_path / "b")
    assert not leaks.same_bytes(tmp_path / "a", tmp_path / "c")
    assert leaks.same_bytes(tmp_path / "a", tmp_path / "gone")


def test_an_identity_survives_json():
    one = identity(3, A)
    assert leaks.Identity(**dataclasses.asdict(one)) == one
    status = {"source": {"size": 3, "sample": "sample 3", "mpp": None}, "picture": A}
    assert leaks.identity(status) == one
    assert leaks.identity({"source": status["source"]}).picture is None
