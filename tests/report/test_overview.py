"""What a reader is told before any figure."""

import json

import pandas as pd

from lrmil_jax.data.labels import Cohort
from lrmil_jax.report import overview
from lrmil_jax.tasks.classification import Classification
from lrmil_jax.tasks.regression import Regression
from lrmil_jax.workspace import statuses


def cohort(labels, splits, task=None):
    names = [f"s{number}" for number in range(len(labels))]
    table = pd.DataFrame({"slide_id": names, "patient_id": names, "case_id": names,
                          "label": labels, "number": 1.0, "fold_1": splits})  # fmt: skip
    return Cohort(table, task or Classification(("benign", "tumour")))


def test_counts_of_every_split():
    cells = overview.split_cells(cohort([0, 1, 0, 1, 1], ["train"] * 2 + ["val"] + ["test"] * 2), 1)
    assert cells[1:] == [
        ["1", "train", "2", "2", "benign 1, tumour 1"],
        ["1", "val", "1", "1", "benign 1, tumour 0"],
        ["1", "test", "2", "2", "benign 0, tumour 2"],
    ]


def test_cautions_name_missing_classes_few_patients_and_many_left_out():
    made = cohort([0, 1, 0, 1, 1], ["train"] * 2 + ["val"] + ["test"] * 2)
    sentences = overview.cautions(made, 1, slides_left_out=7)
    assert sentences[0].startswith("7 of 12 slides were left out")
    assert "Fold 1 has no val patients of class tumour, so it chooses no threshold" in sentences[1]
    assert "Fold 1 has no test patients of class benign" in sentences[2]
    few = cohort([0, 1] * 13, (["train"] * 4 + ["val"] * 4 + ["test"] * 18))
    (sentence,) = overview.cautions(few, 1, slides_left_out=0)
    assert "Only 9 test patients of class benign" in sentence
    assert "one of them is 0.11 of all" in sentence
    enough = cohort([0, 1] * 20, (["train"] * 4 + ["val"] * 4 + ["test"] * 32))
    assert overview.cautions(enough, 1, slides_left_out=1) == []


def test_other_tasks_need_patients_alone():
    made = cohort([0] * 9, ["train"] * 3 + ["val"] * 3 + ["test"] * 3, Regression())
    (sentence,) = overview.cautions(made, 1, slides_left_out=0)
    assert "Only 3 test patients: with fewer" in sentence


def test_what_was_left_out_and_why(tmp_path):
    (tmp_path / "regions").mkdir()
    reasons = {"a": "no tissue in /x/a.svs", "b": "no tissue in /x/b.svs", "c": "no um/px", "d": ""}
    for name, reason in reasons.items():
        status = {"status": "failed" if reason else "ok", "reason": reason}
        (tmp_path / "regions" / f"{name}.json").write_text(json.dumps(status))
    statuses.forget()
    groups = overview.slides_left_out(tmp_path, [*reasons, "not_prepared"])
    assert groups == [
        overview.LeftOut(["a", "b"], ["no tissue in /x/a.svs", "no tissue in /x/b.svs"]),
        overview.LeftOut(["c"], ["no um/px"]),
    ]
    (tmp_path / "left_out.csv").write_text("path,reason\nx.zip,an archive\ny.zip,an archive\n")
    others = overview.files_left_out(tmp_path / "left_out.csv")
    assert others == [overview.LeftOut(["x.zip", "y.zip"], ["an archive", "an archive"])]
    page = overview.section(rows=[("a", "b")], changed=[], splits=[["fold"]], slides=groups,
                            others=others, damaged=2)  # fmt: skip
    assert "3 slides of the cohort:" in page
    assert ">y.zip</td>" in page
    assert ">no tissue in /x/b.svs</td>" in page
    assert "2 slides have patches that could not be read" in page
