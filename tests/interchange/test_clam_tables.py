"""CLAM's tables, written as it writes them and read back."""

import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lrmil_jax.data import clam_splits, labels, splits
from lrmil_jax.data.layouts import Sources
from lrmil_jax.errors import DataError
from lrmil_jax.interchange import clam_tables
from lrmil_jax.tasks import predictions
from lrmil_jax.tasks.classification import Classification

TABLE = pd.DataFrame(
    {
        "slide_id": [f"s{n}" for n in range(6)],
        "patient_id": ["p0", "p1", "p2", "p3", "p4", "p4"],
        "label": [0, 1, 0, 1, 0, 0],
        "fold_1": ["train", "train", "val", "val", "test", "test"],
        "fold_2": ["test", "test", "train", "train", "val", "val"],
    }
)
CLASSES = ("benign", "tumour")


def test_splits_in_both_forms(tmp_path):
    clam_tables.write_splits(tmp_path, TABLE, CLASSES)
    text = (tmp_path / "splits/splits_0.csv").read_text()
    assert text == ",train,val,test\n0,s0,s2,s4\n1,s1,s3,s5\n"
    held = pd.read_csv(tmp_path / "splits/splits_1_bool.csv", index_col=0)
    assert held.dtypes.tolist() == [bool] * 3
    assert held.index[held.test].tolist() == ["s0", "s1"]
    counts = pd.read_csv(tmp_path / "splits/splits_0_descriptor.csv", index_col=0)
    assert counts.loc["benign"].tolist() == [1, 1, 2]
    dataset = pd.read_csv(tmp_path / "dataset.csv")
    assert dataset.columns.tolist() == ["case_id", "slide_id", "label"]
    assert dataset.label.tolist()[:2] == ["benign", "tumour"]
    wanted = TABLE[["slide_id", "fold_1", "fold_2"]].set_index("slide_id").sort_index()
    for form in ("lists", "bools"):
        found = clam_splits.read(tmp_path / "splits").set_index("slide_id").sort_index()
        pd.testing.assert_frame_equal(found, wanted, check_names=False, obj=form)
        for path in tmp_path.glob("splits/splits_?.csv"):
            path.unlink()  # the second time the booleans alone are there


@pytest.mark.parametrize("kept", ["splits_?.csv", "splits_?_bool.csv"])
def test_splits_in_either_form_of_letters(kept, tmp_path):
    """The label table's names have composed letters, whatever it is written in."""
    composed, decomposed = (unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD"))
    clam_tables.write_splits(tmp_path, TABLE.replace("s4", decomposed), CLASSES)
    for path in set(tmp_path.glob("splits/*")) - set(tmp_path.glob(f"splits/{kept}")):
        path.unlink()
    frame = TABLE[["slide_id", "patient_id"]].replace("s4", composed)
    table = clam_splits.with_splits(frame, tmp_path / "splits", tmp_path / "labels.csv")
    assert table.fold_1.tolist() == TABLE.fold_1.tolist()


def test_folds_of_a_label_csv_come_from_clam(tmp_path):
    clam_tables.write_splits(tmp_path, TABLE, CLASSES)
    task = Classification(CLASSES)

    def read(frame, source, settled):
        return task.read(frame, {"label_column": "label", "classes": CLASSES}, source)

    cohort = labels.read_cohort(
        Sources(tmp_path / "dataset.csv", stand_ins={}),  # CLAM's own, with case_id
        labels.ReadTask(("label",), read),
        splits.Protocol(folds=2, file=tmp_path / "splits"),
    )
    for name in ("slide_id", "patient_id", "fold_1", "fold_2"):
        assert cohort.table[name].tolist() == TABLE[name].tolist()


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ({}, "has no splits_<k>.csv"),
        ({"splits_1.csv": ",train,val,test\n0,a,b,c\n"}, "k = 1; they count from 0"),
        ({"splits_0.csv": ",train,val\n0,a,b\n"}, "has no column test"),
        ({"splits_0.csv": ",train,val,test\n0,a,b,a\n"}, "slide a in more than one place"),
    ],
)
def test_splits_that_are_none(tmp_path, texts, sentence):
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=sentence):
        clam_splits.read(tmp_path)


def test_splits_of_another_cohort(tmp_path):
    clam_tables.write_splits(tmp_path, TABLE, CLASSES)
    with pytest.raises(DataError, match=r"name 2 slides that are not in labels.csv: s4, s5"):
        clam_splits.with_splits(TABLE[:4], tmp_path / "splits", Path("labels.csv"))


def test_results_are_measured_as_ours(tmp_path):
    rng = np.random.default_rng(0)
    positive = rng.random(6)
    rows = [
        predictions.rows(
            Classification(CLASSES), "lrmil", TABLE.assign(case_id=TABLE.patient_id),
            np.stack([1 - positive, positive], 1),
        ).assign(fold=fold) for fold in (1, 2)
    ]  # fmt: skip
    tested = pd.concat(rows, ignore_index=True)
    figures = [{"test_auc": 0.5, "val_auc": None, "test_acc": 1.0, "val_acc": 0.5}] * 2
    clam_tables.write_results(tmp_path, tested, CLASSES, figures)
    first = pd.read_csv(tmp_path / "fold_0.csv")
    assert first.columns.tolist() == ["slide_id", "Y", "Y_hat", "p_0", "p_1"]
    assert first.Y.tolist() == TABLE.label.tolist()
    summary = pd.read_csv(tmp_path / "summary.csv")
    assert summary.columns.tolist() == ["folds", "test_auc", "val_auc", "test_acc", "val_acc"]
    found = clam_tables.read_results(tmp_path, TABLE, CLASSES)
    task = Classification.of_columns(found)
    ours, theirs = (predictions.measure(task, frame[frame.fold == 1]) for frame in (tested, found))
    assert ours == theirs


def test_results_of_other_classes(tmp_path):
    (tmp_path / "fold_0.csv").write_text("slide_id,Y,Y_hat,p_0,p_1,p_2\ns0,0,0,1,0,0\n")
    with pytest.raises(DataError, match="of 2 classes CLAM's have"):
        clam_tables.read_results(tmp_path, TABLE, CLASSES)
    (tmp_path / "fold_0.csv").write_text("slide_id,Y,Y_hat,p_0,p_1\nother,0,0,1,0\n")
    with pytest.raises(DataError, match="slide other, whose patient"):
        clam_tables.read_results(tmp_path, TABLE, CLASSES)


def test_the_documented_way_to_figures_of_clam(tmp_path, capsys):
    """The example of docs/interchange.md, on results that are there."""
    text = (Path(__file__).parents[2] / "docs/interchange.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    assert "clam/results" in code
    positive = np.array([0.1, 0.9, 0.4, 0.8, 0.2, 0.3])
    table = TABLE.assign(case_id=TABLE.patient_id)
    values = np.stack([1 - positive, positive], 1)
    rows = predictions.rows(Classification(CLASSES), "any", table, values).assign(fold=1)
    clam_tables.write_splits(tmp_path / "clam", TABLE, CLASSES)
    clam_tables.write_results(tmp_path / "clam/results", rows, CLASSES, [{}])
    exec(code.replace('"clam/', f'"{tmp_path}/clam/'), {})
    assert capsys.readouterr().out == "1 1.0\n"
