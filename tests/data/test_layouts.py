"""Tables of other tools read as they are, official splits, and what is wrong with either."""

import json
import logging
import re
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lrmil_jax import config as configuration
from lrmil_jax.data import labels as label_csv
from lrmil_jax.data import splits
from lrmil_jax.data.layouts import Sources
from lrmil_jax.errors import DataError
from lrmil_jax.tasks.classification import Classification
from lrmil_jax.tasks.survival import Survival

CONFIG = """
sample_col: {unit}
extra_cols: []
task_col: BAP1_mutation
label_dict:
  0: wildtype
  1: mutant
metrics:
- macro-ovr-auc
"""


def reading(kind=Classification, **data):
    """As `cohorts.read_task` makes it."""
    data = {"label_column": "label", "classes": (), "time_column": "time",
            "event_column": "event", "bins": 2, **data}  # fmt: skip
    return label_csv.ReadTask(
        kind.asked(data),
        lambda frame, source, settled: kind.read(frame, data | dict(settled), source),
    )


@pytest.fixture
def folder(tmp_path):
    slides = tmp_path / "slides"
    slides.mkdir()
    for number in range(24):
        (slides / f"C{number // 2:02d}-{number % 2}.svs").write_bytes(b"slide")
    return tmp_path


def read(sources, task=None, **protocol):
    return label_csv.read_cohort(sources, task or reading(), splits.Protocol(**protocol))


def refused(sources, task=None, **protocol):
    with pytest.raises(DataError) as caught:
        read(sources, task, **protocol)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def patho_bench(folder, unit="case_id", **columns):
    """12 cases with two slides each, the first four of them tested in fold_0."""
    cases = np.arange(24) // 2
    frame = pd.DataFrame(
        {
            "case_id": [f"C{case:02d}" for case in cases],
            "slide_id": [f"C{case:02d}-{i % 2}" for i, case in enumerate(cases)],
            "BAP1_mutation": cases % 2,
            "fold_0": np.where(cases < 4, "test", "train"),
            "fold_1": np.where(cases >= 8, "test", "train"),
            **columns,
        }
    )
    frame.to_csv(folder / "k=all.tsv", sep="\t", index=False)
    (folder / "config.yaml").write_text(CONFIG.format(unit=unit))
    return Sources(folder / "k=all.tsv", folder / "slides")


def test_patho_bench_is_read_as_it_is(folder, caplog):
    with caplog.at_level(logging.INFO):
        cohort = read(patho_bench(folder), folds=2)
    table = cohort.table
    assert cohort.classes == ("wildtype", "mutant")  # by their numbers
    assert table.label.tolist() == [case % 2 for case in range(12) for _ in range(2)]
    assert (table.case_id == table.patient_id).all()
    assert set(table.patient_id[table.fold_1 == "test"]) == {f"C{case:02d}" for case in range(4)}
    assert set(table.patient_id[table.fold_2 == "test"]) == {
        f"C{case:02d}" for case in range(8, 12)
    }
    for column in ("fold_1", "fold_2"):  # a fifth of the training patients of each class
        val = table[table[column] == "val"].drop_duplicates("patient_id")
        assert sorted(val.label) == [0, 1]
    assert "no val split; 2 of its training patients choose" in caplog.text


def test_a_slide_level_task_of_patho_bench_is_measured_per_slide(folder):
    table = read(patho_bench(folder, unit="slide_id"), folds=1).table
    assert (table.case_id == table.slide_id).all()
    assert table.patient_id[0] == "C00"


def test_patho_bench_with_val_is_left_alone(folder):
    cases = np.arange(24) // 2
    given = np.select([cases < 2, cases < 4], ["test", "val"], "train")
    table = read(patho_bench(folder, fold_0=given), folds=1).table
    assert table.fold_1.tolist() == given.tolist()


def test_what_is_wrong_with_patho_bench(folder):
    sources = patho_bench(folder, BAP1_mutation=[2, *[0] * 23])
    assert "BAP1_mutation '2' in line 2 is no class of config.yaml's label_dict" in refused(
        sources, folds=1
    )
    sources = patho_bench(folder)
    (folder / "config.yaml").write_text("task_col: [")
    assert "config.yaml beside the split table cannot be read" in refused(sources, folds=1)
    (folder / "config.yaml").write_text("sample_col: case_id")
    assert "config.yaml has no task_col" in refused(sources, folds=1)
    (folder / "config.yaml").write_text(CONFIG.format(unit="case_id").replace("wildtype", "[1]"))
    assert "label_dict must pair numbers and names" in refused(sources, folds=1)


def stamp(folder, **columns):
    patients = [f"P{number}" for number in range(12)]
    clini = pd.DataFrame({"PATIENT": patients, "isMSIH": ["MSIH", "nonMSIH"] * 6, **columns})
    clini.to_csv(folder / "clini.csv", index=False)
    files = [f"cohort/C{number // 2:02d}-{number % 2}.h5" for number in range(24)]
    slides = pd.DataFrame({"FILENAME": files, "PATIENT": np.repeat(patients, 2)})
    slides.to_csv(folder / "slide.csv", index=False)
    return Sources(folder / "clini.csv", folder / "slides", folder / "slide.csv")


def test_stamps_tables_are_read_as_they_are(folder):
    cohort = read(stamp(folder), reading(label_column="isMSIH"))
    assert cohort.classes == ("MSIH", "nonMSIH")
    assert cohort.table.slide_id[:3].tolist() == ["C00-0", "C00-1", "C01-0"]
    assert cohort.table.patient_id[:3].tolist() == ["P0", "P0", "P1"]
    assert cohort.folds == 5


def test_stamps_patients_without_an_outcome_or_a_slide_are_left_out_and_told(folder, caplog):
    sources = stamp(folder, isMSIH=["NA", *["MSIH", "nonMSIH"] * 5, "MSIH"])
    slides = pd.read_csv(folder / "slide.csv")
    slides[slides.PATIENT != "P11"].to_csv(folder / "slide.csv", index=False)
    table = read(sources, reading(label_column="isMSIH")).table
    assert set(table.patient_id) == {f"P{number}" for number in range(1, 11)}
    assert "no isMSIH is given of 1 patients, who are left out: P0" in caplog.text
    assert "no slide is given of 1 patients, who are left out: P11" in caplog.text


def test_stamps_survival(folder):
    time, event = np.arange(12) + 1, np.arange(12) % 2
    task = reading(Survival, time_column="days", event_column="status")
    parts = [{"train_patients": [f"P{i}" for i in range(8)], "test_patients": ["P8", "P9"]}]
    table = read(stamp(folder, days=time, status=event), task, folds=1,
                 file=splits_json(folder, parts)).table  # fmt: skip
    assert table.fold_1[20:].isna().all()
    assert table.time.tolist() == np.repeat(time, 2).tolist()


def splits_json(folder, parts):
    path = folder / "splits.json"
    path.write_text(json.dumps({"splits": parts}))
    return path


def test_stamps_splits(folder):
    patients = [f"P{number}" for number in range(12)]
    parts = [
        {"train_patients": patients[4:], "test_patients": patients[:4]},
        {"train_patients": patients[:8], "test_patients": patients[8:]},
    ]
    table = read(stamp(folder), reading(label_column="isMSIH"), folds=2,
                 file=splits_json(folder, parts)).table  # fmt: skip
    assert set(table.patient_id[table.fold_1 == "test"]) == set(patients[:4])
    assert set(table.patient_id[table.fold_2 == "test"]) == set(patients[8:])
    assert table[table.fold_1 == "val"].patient_id.nunique() == 2


@pytest.mark.parametrize("forms", [("NFC", "NFD", "NFD"), ("NFD", "NFC", "NFD")], ids="-".join)
def test_stamps_tables_and_splits_in_either_form_of_letters(forms, folder):
    sources = stamp(folder)
    tables = (sources.labels, sources.slide_table, folder / "splits.json")
    names = [f"P{number}" for number in range(12)]
    splits_json(folder, [{"train_patients": names[4:], "test_patients": names[:4]}])
    for path, form in zip(tables, forms, strict=True):
        path.write_text(path.read_text().replace("P1", unicodedata.normalize(form, "Pü")))
    table = read(sources, reading(label_column="isMSIH"), folds=1, file=tables[2]).table
    assert table.patient_id.nunique() == 12
    assert set(table.patient_id[table.fold_1 == "test"]) == {"P0", "Pü", "P2", "P3"}


def test_splits_of_another_cohort_are_refused(folder):
    sources, task = stamp(folder), reading(label_column="isMSIH")
    parts = [{"train_patients": ["P1", "Q1", "Q2"], "test_patients": ["P2"]}]
    said = refused(sources, task, folds=1, file=splits_json(folder, parts))
    assert "split 1 names 2 patients that are not in" in said
    assert "Q1, Q2" in said
    parts = [{"train_patients": ["P1", "P2"], "test_patients": ["P2"]}]
    said = refused(sources, task, folds=1, file=splits_json(folder, parts))
    assert "split 1 has the patient P2 in two parts" in said
    (folder / "splits.json").write_text('{"folds": []}')
    said = refused(sources, task, folds=1, file=folder / "splits.json")
    assert "is not STAMP's splits.json" in said
    assert "does not exist" in refused(sources, task, folds=1, file=folder / "no.json")


def test_what_is_wrong_with_stamps_tables(folder):
    sources, task = stamp(folder), reading(label_column="isMSIH")
    assert "data.slide_table must name the slide table" in refused(
        Sources(sources.labels, sources.slides), task
    )
    slides = pd.read_csv(folder / "slide.csv")
    pd.concat([slides, slides[:1]]).to_csv(folder / "slide.csv", index=False)
    assert "lists FILENAME cohort/C00-0.h5 more than once" in refused(sources, task)
    slides.assign(PATIENT="Q").to_csv(folder / "slide.csv", index=False)
    assert "no patient of" in refused(sources, task)
    clini = pd.read_csv(folder / "clini.csv")
    pd.concat([clini, clini[:1]]).to_csv(folder / "clini.csv", index=False)
    assert "lists patient P0 more than once" in refused(sources, task)
    book = Sources(folder / "clini.xls", sources.slides, sources.slide_table)
    assert "is a spreadsheet; save it as CSV" in refused(book, task)


def plain(folder, **columns):
    cases = np.arange(24) // 2
    frame = pd.DataFrame(
        {
            "slide_id": [f"C{case:02d}-{i % 2}" for i, case in enumerate(cases)],
            "patient_id": [f"C{case:02d}" for case in cases],
            "label": np.where(cases % 2, "tumour", "benign"),
            "split": np.select([cases < 2, cases < 4], ["test", "val"], "train"),
            **columns,
        }
    )
    frame.to_csv(folder / "labels.csv", index=False)
    return Sources(folder / "labels.csv", folder / "slides")


def test_an_official_split_is_a_column(folder):
    sources = plain(folder, second=["test"] * 4 + ["val"] * 4 + ["train"] * 16)
    table = read(sources, folds=1).table
    assert (table.fold_1 == "test").sum() == (table.fold_1 == "val").sum() == 4
    both = read(sources, folds=2, columns=("split", "second")).table
    assert both.fold_2.tolist() == pd.read_csv(sources.labels).second.tolist()
    assert "1 fold columns, but folds=5" in refused(sources)
    assert "no column third" in refused(sources, folds=1, columns=("third",))
    assert "data.site=patient_id asks for others" in refused(sources, folds=1, site="patient_id")


def test_a_fold_without_validation_patients(folder):
    sources = plain(folder, split=["test"] * 8 + ["train"] * 16)
    assert "split has no slide in its val split" in (said := refused(sources, folds=1))
    assert "data.val_share=0.2" in said
    table = read(sources, folds=1, val_share=0.25).table
    assert table[table.fold_1 == "val"].patient_id.nunique() == 2


def test_folds_of_sites_are_saved_and_not_taken_for_others(folder):
    sources = plain(folder)
    frame = pd.read_csv(sources.labels).drop(columns="split")
    frame.assign(hospital=[f"h{i // 4}" for i in range(24)]).to_csv(sources.labels, index=False)
    by_site = read(sources, folds=3, site="hospital", saved=folder / "folds.csv").table
    assert (by_site.groupby("site").fold_1.nunique() == 1).all()
    by_site.assign(seed=0).to_csv(folder / "folds.csv", index=False)
    again = read(sources, folds=3, site="hospital", saved=folder / "folds.csv").table
    assert again.fold_1.tolist() == by_site.fold_1.tolist()
    by_patient = read(sources, folds=3, saved=folder / "folds.csv").table
    assert "site" not in by_patient
    assert by_patient.fold_1.tolist() == read(sources, folds=3).table.fold_1.tolist()


def test_a_patient_in_two_splits_may_be_a_warning(folder, caplog):
    sources = plain(folder, split=["test"] * 3 + ["val"] * 5 + ["train"] * 16)
    said = refused(sources, folds=1)
    assert "patient C01 is in two splits of fold_1" in said
    assert "data.leaks=warn" in said
    assert len(read(sources, folds=1, leaks="warn").table) == 24
    assert "patient C01 is in two splits of fold_1" in caplog.text


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        (["NA", *["a", "b"] * 11, "a"], "label 'NA' in line 2 stands for no value"),
        (["None", *["a", "b"] * 11, "a"], "label 'None' in line 2 stands for no value"),
        (["1.0", *["1", "0"] * 11, "1"], "label has both '1' and '1.0', one class in two"),
        (["Tumour", *["tumour", "b"] * 11, "b"], "label has both 'Tumour' and 'tumour', one class"),
    ],
)
def test_labels_of_a_wrong_kind(folder, label, sentence):
    assert sentence in refused(plain(folder, label=label), folds=1)


def test_a_class_may_be_called_none(folder):
    sources = plain(folder, label=["None", "None", "some", "some"] * 6)
    assert read(sources, reading(classes=("None", "some")), folds=1).classes == ("None", "some")


def test_the_documented_commands_name_keys_and_configs_that_are_there():
    root = Path(__file__).parents[2]
    text = (root / "docs/protocols.md").read_text(encoding="utf-8")
    given = re.findall(r"--config\.([a-z_.]+)=\"?(?:(\([^)]*\))|([^\s`\"]+))", text)
    assert len(given) > 10
    for key, words, word in given:
        configuration.replaced(configuration.default(), {key: words or word})
    for path in re.findall(r"--config (configs/\S+\.py)", text):
        assert (root / path).is_file()
