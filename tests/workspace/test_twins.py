"""Slides of a cohort that are one: found once, kept, and told by the splits of the day."""

import pandas as pd
import pytest

from lrmil_jax import files
from lrmil_jax.data import leaks
from lrmil_jax.data.labels import Cohort
from lrmil_jax.errors import DataError
from lrmil_jax.slides import likeness
from lrmil_jax.tasks.classification import Classification
from lrmil_jax.workspace import statuses, twins
from tests.slides.test_likeness import section


@pytest.fixture
def run(tmp_path):
    """Four slides, of which the first and the last show the same, in four splits."""
    for number, seed in enumerate((0, 1, 2, 0)):
        path = tmp_path / f"s{number}.svs"
        path.write_bytes(b"slide %d" % number)
        picture = likeness.fingerprint(*section(seed))
        files.write_json(
            tmp_path / "work/regions" / f"s{number}.json",
            {"source": {"size": 7, "sample": f"{number}", "mpp": None}, "picture": picture},
        )
    statuses.forget()
    table = pd.DataFrame(
        {
            "slide_id": [f"s{number}" for number in range(4)],
            "path": [str(tmp_path / f"s{number}.svs") for number in range(4)],
            "fold_1": ["train", "train", "val", "test"],
        }
    )
    return tmp_path / "work", Cohort(table, Classification(("a", "b")))


def check(run, how="refuse"):
    twins.check(*run, source="labels.csv", how=how)


def test_one_slide_in_two_splits_is_refused_or_warned_of(run, caplog):
    with pytest.raises(DataError, match=r"s0 and s3 show the same tissue .*in the train and"):
        check(run)
    check(run, "warn")
    assert "slides s0 and s3 show the same tissue" in caplog.text


def test_what_was_found_is_kept_until_the_slides_change(run, monkeypatch):
    workdir, cohort = run
    check(run, "warn")
    kept = (workdir / "twins.json").read_bytes()
    monkeypatch.setattr(leaks, "twins", lambda slides: pytest.fail("looked for again"))
    check(run, "warn")
    together = Cohort(cohort.table.assign(fold_1="train"), cohort.task)
    check((workdir, together))  # other splits, the same pairs
    assert (workdir / "twins.json").read_bytes() == kept
    monkeypatch.undo()
    less = Cohort(cohort.table[1:].reset_index(drop=True), cohort.task)
    check((workdir, less))
    assert (workdir / "twins.json").read_bytes() != kept


def test_slides_of_one_sample_but_other_bytes_are_two(run):
    slides = {f"s{number}": leaks.Identity(7, "same") for number in (1, 2)}
    paths = dict(zip(run[1].table.slide_id, run[1].table.path, strict=True))
    assert twins.find(slides, paths).empty
    assert twins.find(slides, {"s1": paths["s1"], "s2": paths["s1"]}).kind.tolist() == ["same file"]


def test_slides_of_an_earlier_version_are_compared_by_their_bytes(run, caplog):
    workdir, _ = run
    path = workdir / "regions/s0.json"
    files.write_json(path, {"source": {"size": 7, "sample": "0", "mpp": None}})
    statuses.forget()
    check(run)
    assert "1 slides were prepared by an earlier version" in caplog.text


def test_what_a_model_has_seen_travels_without_names(run):
    workdir, cohort = run
    path = twins.write_seen(workdir, cohort, 1)
    assert path.parent == workdir / "folds/1"
    assert "s0" not in path.read_text()
    model = workdir / "model"
    for member in ("fold_1", "fold_2"):  # what both have seen is one
        files.write_text(model / member / twins.SEEN, path.read_text())
    seen = twins.read_seen(model)
    assert [one.sample for one in seen] == ["0", "1", "2"]
    assert twins.read_seen(workdir / "nowhere") == []
