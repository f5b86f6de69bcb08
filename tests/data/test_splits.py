"""The label CSV in both shapes, every mistake in it, and the making of folds."""

import dataclasses
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lrmil_jax.data import labels as label_csv
from lrmil_jax.data import slide_files, splits
from lrmil_jax.data.layouts import Sources
from lrmil_jax.errors import DataError
from lrmil_jax.tasks import Task
from lrmil_jax.tasks.classification import Classification

OPTIONS = {field.name for field in dataclasses.fields(splits.Protocol)}


def make_slides(folder, names, suffix=".svs"):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / f"{name}{suffix}").write_bytes(b"slide")
    return folder


def cohort_frame(patients=20, slides_per_patient=2):
    rows = [
        (f"s{patient:02d}-{slide}", f"p{patient:02d}", ("benign", "tumour")[patient % 2])
        for patient in range(patients)
        for slide in range(slides_per_patient)
    ]
    return pd.DataFrame(rows, columns=["slide_id", "patient_id", "label"])


@pytest.fixture
def given(tmp_path):
    """Writes a table (and its slides) and reads it as a cohort."""

    def read(frame=None, *, text=None, names=None, slides=True, kind=Classification, **options):
        data = {name: options.pop(name) for name in [*options] if name not in OPTIONS}
        labels = tmp_path / "labels.csv"
        if text is not None:
            labels.write_text(text, encoding="utf-8")
        else:
            frame.to_csv(labels, index=False)
        if names is None:
            names = [] if frame is None else frame.slide_id.dropna().unique()
        folder = make_slides(tmp_path / "slides", names) if slides else None
        protocol = splits.Protocol(**options)
        return label_csv.read_cohort(Sources(labels, folder), reading(kind, **data), protocol)

    return read


def reading(kind: type[Task] = Classification, **data):
    data = {"label_column": "label", "classes": (), **data}
    read = lambda frame, source, settled: kind.read(frame, data | dict(settled), source)  # noqa: E731
    return label_csv.ReadTask(kind.asked(data), read)


def message(given, *arguments, **options):
    with pytest.raises(DataError) as caught:
        given(*arguments, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_pools_are_kept_where_the_csv_has_them(given):
    assert "pool" not in given(cohort_frame()).table
    frame = cohort_frame().assign(pool=" test ")
    frame.loc[0, "pool"] = None
    pools = given(frame).table.pool
    assert pools.isna().tolist() == [True] + [False] * (len(frame) - 1)
    assert set(pools.dropna()) == {"test"}


def test_columns_classes_and_paths(given, tmp_path):
    frame = cohort_frame()
    cohort = given(frame)
    assert cohort.classes == ("benign", "tumour")
    assert cohort.folds == 5
    table = cohort.table
    assert table.slide_id.tolist() == frame.slide_id.tolist()
    assert table.label.tolist() == [0, 0, 1, 1] * 10
    assert table.path[0] == str(tmp_path / "slides" / "s00-0.svs")
    assert table.mpp.isna().all()
    assert (table.case_id == table.patient_id).all()


def test_the_order_of_the_classes_is_the_users(given):
    cohort = given(cohort_frame(), classes=("tumour", "benign"))
    assert cohort.classes == ("tumour", "benign")
    assert cohort.table.label.tolist()[:4] == [1, 1, 0, 0]


def test_paths_and_um_per_px_of_the_csv(given, tmp_path):
    frame = cohort_frame()
    frame["path"] = [f"deep/{name}.bin" if i == 0 else "" for i, name in enumerate(frame.slide_id)]
    frame["mpp"] = [0.25, *[np.nan] * (len(frame) - 1)]
    (tmp_path / "slides" / "deep").mkdir(parents=True)
    (tmp_path / "slides" / "deep" / "s00-0.bin").write_bytes(b"slide")
    table = given(frame).table
    assert table.path[0] == str(tmp_path / "slides" / "deep" / "s00-0.bin")
    assert table.mpp[0] == 0.25
    assert table.mpp[1:].isna().all()


def test_slide_ids_may_hold_dots_and_suffixes_and_spaces_around_them(given, tmp_path):
    frame = cohort_frame()
    frame["slide_id"] = "TCGA-" + frame.slide_id + ".0a1b"
    plain = given(frame).table
    assert plain.path[3] == str(tmp_path / "slides" / "TCGA-s01-1.0a1b.svs")
    padded = frame.assign(slide_id=" " + frame.slide_id + " ", label=frame.label + " ")
    assert given(padded, names=[]).table.path.tolist() == plain.path.tolist()
    with_suffix = frame.assign(slide_id=frame.slide_id + ".svs")
    assert given(with_suffix, names=[]).table.path.tolist() == plain.path.tolist()


def test_folds_group_patients_and_stratify_classes(given):
    frame = cohort_frame(patients=60, slides_per_patient=3)
    frame["label"] = ["rare" if int(p[1:]) % 4 == 0 else "common" for p in frame.patient_id]
    table = given(frame).table
    tested = []
    for fold in range(1, 6):
        column = table[f"fold_{fold}"]
        patients = {s: set(table.patient_id[column == s]) for s in splits.SPLITS}
        assert not patients["train"] & patients["val"]
        assert not patients["train"] & patients["test"]
        assert not patients["val"] & patients["test"]
        assert len(set.union(*patients.values())) == 60
        assert len(patients["test"]) == len(patients["val"]) == 12
        for split in splits.SPLITS:
            share = (table.label[column == split] == 1).mean()
            assert share == pytest.approx(0.25, abs=0.09)
        tested += sorted(patients["test"])
    assert len(tested) == len(set(tested)) == 60  # every patient is tested exactly once


@pytest.mark.parametrize(("folds", "shares"), [(1, (12, 4, 4)), (2, (12, 4, 4)), (4, (10, 5, 5))])
def test_sizes_of_splits_by_number_of_folds(given, folds, shares):
    table = given(cohort_frame(slides_per_patient=1), folds=folds).table
    for fold in range(1, folds + 1):
        counts = table[f"fold_{fold}"].value_counts()
        for split, share in zip(splits.SPLITS, shares, strict=True):
            assert abs(counts[split] - share) <= 1


def test_folds_depend_on_the_seed_alone(given):
    frame = cohort_frame()
    first, again, other = (given(frame, seed=seed).table for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(first, again)
    assert (first.fold_1 != other.fold_1).any()


def test_saved_folds_win_for_the_same_cohort_only(given, tmp_path):
    frame = cohort_frame()
    first = given(frame, seed=3).table
    saved = tmp_path / "folds.csv"
    first.sample(frac=1, random_state=0).to_csv(saved, index=False)
    kept = given(frame, seed=4, saved=saved).table
    pd.testing.assert_frame_equal(kept, first)
    fewer = given(frame[frame.patient_id != "p00"], seed=4, saved=saved).table
    fresh = given(frame[frame.patient_id != "p00"], seed=4).table
    pd.testing.assert_frame_equal(fewer, fresh)
    three = given(frame, seed=4, folds=3, saved=saved).table
    assert [c for c in three if c.startswith("fold_")] == ["fold_1", "fold_2", "fold_3"]


def test_folds_of_the_csv_are_used_as_they_are(given):
    frame = cohort_frame(patients=10)
    patient = frame.patient_id.str[1:].astype(int)
    frame["fold_2"] = np.select([patient < 2, patient < 4], ["test", "val"], "train")
    frame["fold_10"] = np.select([patient < 2, patient < 4], ["val", " test"], "train ")
    frame.loc[patient == 9, "fold_2"] = ""
    table = given(frame, folds=2).table
    assert table.fold_1.fillna("").tolist() == frame.fold_2.tolist()
    assert table.fold_2.tolist() == frame.fold_10.str.strip().tolist()
    cohort = label_csv.Cohort(table, Classification(("benign", "tumour")))
    assert cohort.slides(1, "test").slide_id.tolist() == ["s00-0", "s00-1", "s01-0", "s01-1"]
    assert len(cohort.slides(1, *splits.SPLITS)) == 18
    assert given(frame, folds=1).folds == 1
    assert "2 fold columns, but folds=3" in message(given, frame, folds=3)


def test_patients_with_slides_of_two_labels_are_two_cases_in_one_split(given):
    frame = cohort_frame()
    frame.loc[frame.slide_id == "s00-1", "label"] = "tumour"
    table = given(frame).table
    assert table.case_id.tolist()[:4] == ["p00/0", "p00/1", "p01", "p01"]
    for fold in range(1, 6):
        assert table[f"fold_{fold}"][:2].nunique() == 1


def test_the_references_csv_of_patients(given, tmp_path):
    text = "P_ID,subtype,fold_1\n" + "".join(
        f"P{i},{i % 2},{('test', 'val', 'train')[min(i // 2, 2)]}\n" for i in range(1, 13)
    )
    names = [f"P{i}-01Z-00-DX1.uuid" for i in range(1, 13)] + ["P3_second", "P12"]
    names.remove("P12-01Z-00-DX1.uuid")
    cohort = given(text=text, names=names, classes=("a", "b"), label_column="subtype", folds=1)
    table = cohort.table
    # P1 is not the patient of P10's slide, and P3 has two.
    assert table.slide_id[table.patient_id == "P1"].tolist() == ["P1-01Z-00-DX1.uuid"]
    assert len(table[table.patient_id == "P3"]) == 2
    assert table.slide_id[table.patient_id == "P12"].tolist() == ["P12"]
    assert table.label[table.patient_id == "P3"].tolist() == [1, 1]
    assert table.fold_1[table.patient_id == "P4"].tolist() == ["train"]
    lost = message(
        given, text=text + "P99,1,train\n", classes=("a", "b"), label_column="subtype", folds=1
    )
    assert "1 patients without a slide" in lost
    assert "P99" in lost
    alone = message(given, text=text, slides=False, label_column="subtype")
    assert "data.slides must name the slide folder" in alone


def test_class_numbers_beyond_the_classes_are_refused(given):
    frame = cohort_frame()
    frame["label"] = ["0", "3"] * 20
    assert "goes up to 3" in message(given, frame, classes=("a", "b"))


def test_unknown_slides_are_counted_and_named(given, tmp_path):
    frame = cohort_frame()
    text = message(given, frame, names=frame.slide_id[:-2])
    assert "2 slides that are not there: s19-0, s19-1" in text
    assert str(tmp_path / "slides") in text


def test_a_dotted_id_is_never_another_slide(given):
    frame = cohort_frame()
    lost = frame.assign(slide_id=[f"{n}.b" if n == "s03-1" else n for n in frame.slide_id])
    assert "s03-1.b" in message(given, lost, names=frame.slide_id)


def test_one_file_is_not_two_slides(given):
    frame = cohort_frame()
    frame["path"] = [f"{'s00-0' if n == 's07-1' else n}.svs" for n in frame.slide_id]
    text = message(given, frame)
    assert "s00-0.svs" in text
    assert "more than once" in text


def test_a_missing_path_is_named(given):
    frame = cohort_frame()
    frame["path"] = "nowhere/" + frame.slide_id
    assert "nowhere/s00-0" in message(given, frame)


def test_duplicate_slides_are_refused(given):
    frame = cohort_frame()
    text = message(given, pd.concat([frame, frame[:2]]))
    assert "lists slide s00-0, s00-1 more than once" in text


def test_two_files_of_one_name_ask_for_the_path_column(given, tmp_path):
    frame = cohort_frame()
    make_slides(tmp_path / "slides", ["s00-0"], suffix=".tif")
    text = message(given, frame)
    assert "two slide files are called s00-0" in text
    assert "path" in text
    frame["path"] = ["s00-0.tif", *[""] * (len(frame) - 1)]
    assert given(frame).table.path[0] == str(tmp_path / "slides" / "s00-0.tif")


@pytest.mark.parametrize("column", ["slide_id", "patient_id", "label"])
def test_a_missing_column_is_named_with_those_there(given, column):
    frame = cohort_frame().drop(columns=column)
    text = message(given, frame, names=["x"])
    assert f"no column {column}" in text
    assert frame.columns[0] in text
    assert ("data.label_column" in text) == (column == "label")


@pytest.mark.parametrize("column", ["slide_id", "patient_id", "label"])
def test_an_empty_cell_is_named_by_its_line(given, column):
    frame = cohort_frame()
    frame.loc[2, column] = None
    assert f"no {column} in line 4" in message(given, frame)
    spaces = frame.to_csv(index=False).replace(",,", ",  ,")
    assert "in line 4" in message(given, text=spaces)


def test_missing_and_single_classes_are_refused(given):
    frame = cohort_frame()
    assert "no slide of class mixed" in message(given, frame, classes=("benign", "mixed", "tumour"))
    assert "only class benign" in message(given, frame.assign(label="benign"))
    assert "'tumour' is not among data.classes (benign, other)" in message(
        given, frame, classes=("benign", "other")
    )


def test_too_few_patients_for_the_folds(given):
    frame = cohort_frame(patients=8)
    sentence = message(given, frame)
    assert "class benign has 4 patients, too few for 5 parts, one a fold" in sentence
    assert "ask for --config.folds=4, or name the splits yourself" in sentence
    assert given(frame, folds=4).folds == 4
    frame = cohort_frame(patients=6)  # three a class: one split has five parts, three folds three
    sentence = message(given, frame, folds=1)
    assert "too few for 5 parts, of which one is tested; ask for --config.folds=3" in sentence
    assert given(frame, folds=3).folds == 3
    sentence = message(given, cohort_frame(patients=4), folds=1)
    assert "--config.folds" not in sentence
    assert "add patients of it (5 are needed)" in sentence


def test_a_patient_in_two_splits_is_refused(given):
    frame = cohort_frame(patients=10)
    frame["fold_1"] = ["test"] * 4 + ["val"] * 4 + ["train"] * 12
    given(frame, folds=1)
    frame.loc[0, "fold_1"] = "train"
    text = message(given, frame, folds=1)
    assert "patient p00 is in two splits of fold_1" in text


@pytest.mark.parametrize("split", splits.SPLITS)
def test_an_empty_split_is_refused(given, split):
    frame = cohort_frame(patients=10)
    frame["fold_1"] = ["test"] * 4 + ["val"] * 4 + ["train"] * 12
    other = "val" if split == "train" else "train"
    frame["fold_1"] = frame.fold_1.replace(split, other)
    assert f"fold_1 has no slide in its {split} split" in message(given, frame, folds=1)


def test_training_without_a_class_and_unknown_splits_are_refused(given):
    frame = cohort_frame(patients=10)
    frame["fold_1"] = ["test"] * 4 + ["val"] * 4 + ["train"] * 12
    less = frame[(frame.fold_1 != "train") | (frame.label == "benign")]
    assert "train split of fold_1 has no slide of class tumour" in message(given, less, folds=1)
    frame["fold_1"] = frame.fold_1.replace("val", "valid")
    assert "fold_1 has 'valid'; a split is train, val or test" in message(given, frame, folds=1)


@pytest.mark.parametrize("value", ["half", "0,5"])
def test_um_per_px_must_be_a_number(given, value):
    frame = cohort_frame()
    frame["mpp"] = ["0.5"] * len(frame)
    frame.loc[3, "mpp"] = value
    text = message(given, frame)
    assert f"mpp '{value}' in line 5 is no number" in text


@pytest.mark.parametrize("slide_id", ["../s00-0", "a/b", "s*"])
def test_slide_ids_must_be_file_names(given, slide_id):
    frame = cohort_frame()
    frame.loc[0, "slide_id"] = slide_id
    assert repr(slide_id) in message(given, frame, names=[])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read"),
        (b"slide_id,patient_id,label\n", "has no rows"),
        (b'slide_id,patient_id,label\na,b,c,d,e\nf\n"', "cannot be read"),
        (b"slide;patient_id;label\na;b;c\n", "no column slide_id.*rename 'slide' to slide_id"),
        (b"\xff\xfe\x00\x01\xd8", "cannot be read"),
    ],
)
def test_files_that_are_no_csv(tmp_path, content, said):
    labels = tmp_path / "labels.csv"
    labels.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        label_csv.read_cohort(Sources(labels, tmp_path), reading())
    assert str(labels) in str(caught.value)


def test_missing_csv_and_missing_folder(given, tmp_path):
    with pytest.raises(DataError, match=r"nothing\.csv does not exist"):
        label_csv.read_cohort(Sources(tmp_path / "nothing.csv", tmp_path), reading())
    with pytest.raises(DataError, match="cannot be read"):
        label_csv.read_cohort(Sources(tmp_path, tmp_path), reading())
    labels = tmp_path / "labels.csv"
    cohort_frame().to_csv(labels, index=False)
    with pytest.raises(DataError, match=r"data\.slides is .*which is no folder"):
        label_csv.read_cohort(Sources(labels, tmp_path / "nowhere"), reading())


def test_excel_writes_a_byte_order_mark(given):
    frame = cohort_frame()
    text = "\ufeff" + frame.to_csv(index=False)
    assert len(given(text=text, names=frame.slide_id).table) == len(frame)


def test_without_failed_slides_the_folds_must_still_hold(given):
    frame = cohort_frame(patients=10)
    frame["fold_1"] = ["test"] * 4 + ["val"] * 4 + ["train"] * 12
    cohort = given(frame, folds=1)
    assert cohort.without(set()) is cohort
    assert len(cohort.without({"s00-0"}).table) == 19
    with pytest.raises(DataError, match=r"less the slides that failed.*no slide in its test split"):
        cohort.without(set(frame.slide_id[:4]))


def test_slides_to_predict_from_a_folder_or_a_csv(tmp_path):
    folder = make_slides(tmp_path / "slides", ["b", "a.x"])
    found = slide_files.read_list(folder)
    assert found.slide_id.tolist() == ["a.x", "b"]
    assert found.patient_id.tolist() == ["a.x", "b"]
    assert "label" not in found
    table = tmp_path / "slides" / "list.csv"
    table.write_text("slide_id,label,mpp\nb,tumour,0.25\na.x,,\n")
    listed = slide_files.read_list(table)
    assert listed.label.fillna("").tolist() == ["tumour", ""]
    assert listed.mpp.tolist()[0] == 0.25
    assert listed.path.tolist()[1] == str(folder / "a.x.svs")


def test_slide_lists_that_cannot_be_used(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no slide file"):
        slide_files.read_list(tmp_path / "empty")
    with pytest.raises(DataError) as caught:
        slide_files.read_list(tmp_path / "nothing.csv")
    assert "--slides" in str(caught.value)
    assert "data.labels" not in str(caught.value)


def test_saved_folds_of_another_seed_are_not_taken(given, tmp_path):
    first = given(cohort_frame(), folds=3, seed=0).table
    saved = tmp_path / "saved.csv"
    first.assign(seed=0).to_csv(saved, index=False)
    same = given(cohort_frame(), folds=3, seed=0, saved=saved).table
    other = given(cohort_frame(), folds=3, seed=5, saved=saved).table
    assert same.fold_1.tolist() == first.fold_1.tolist()
    assert other.fold_1.tolist() == given(cohort_frame(), folds=3, seed=5).table.fold_1.tolist()
    assert other.fold_1.tolist() != first.fold_1.tolist()


def test_tiles_of_tested_patients_are_refused():
    """By the patient's name or a slide's; the first of the CSV is named, with a fold."""
    frame = cohort_frame().assign(fold_1="train", fold_2="train")
    frame.loc[frame.patient_id == "p04", "fold_2"] = "test"
    frame.loc[frame.patient_id == "p05", "fold_2"] = "test"
    frame.loc[frame.patient_id == "p06", "fold_1"] = "test"
    names = {"tiles": "patients.csv", "labels": "labels.csv"}
    splits.refuse_test_patients({"p00", "s01-1", "somebody"}, frame, **names)
    with pytest.raises(DataError) as caught:
        splits.refuse_test_patients({"p00", "p06", "s05-1"}, frame, **names)
    said = str(caught.value)
    assert "the patient p05, who is tested in fold 2 of labels.csv" in said
    assert "every patient is tested in one of the 2 folds" in said
    assert "2 such patients are named by patients.csv: remove" in said
    with pytest.raises(DataError) as caught:
        splits.refuse_test_patients({"p06"}, frame.drop(columns="fold_2"), **names)
    assert "fold 1 of labels.csv; 1 such patient is named by patients.csv" in str(caught.value)


def test_tested_patients_are_refused_in_either_form_of_letters():
    """macOS writes decomposed letters."""
    forms = [unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD")]
    frame = cohort_frame().assign(fold_1="train")
    frame.loc[frame.patient_id == "p04", "fold_1"] = "test"
    for table in (frame.replace("p04", form) for form in forms):
        for name in forms:
            with pytest.raises(DataError, match="some of the patient M"):
                splits.refuse_test_patients([name], table, tiles="patients.csv", labels="l.csv")


NAMES = ("Müller #1", "a&b, c", "d'e (x)+y", "ö.ä-ü")


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")], ids="-".join)
@pytest.mark.parametrize("column", ["slide_id", "path"])
def test_names_of_files_may_have_signs_and_either_form_of_letters(forms, column, given):
    """macOS writes decomposed letters: on disk, in the CSV, or in its path column."""
    names = [f"{NAMES[place % 4]} {place}" for place in range(20)]
    in_csv, on_disk = ([unicodedata.normalize(form, name) for name in names] for form in forms)
    assert in_csv[0] != on_disk[0]
    frame = cohort_frame(patients=20, slides_per_patient=1)
    if column == "path":
        frame["path"] = [f"{name}.svs" for name in in_csv]
    else:
        frame["slide_id"] = in_csv
    table = given(frame, names=on_disk).table
    assert column == "path" or table.slide_id.tolist() == names
    assert all(Path(path).is_file() for path in table.path)


def test_one_name_in_both_forms_is_two_rows_of_one_slide(given):
    frame = cohort_frame(patients=20, slides_per_patient=1)
    frame.loc[:1, "slide_id"] = [unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD")]
    assert "lists slide Müller more than once" in message(given, frame)


@pytest.mark.parametrize("sign", ["/", "*", "?", "[", "\x07"])
def test_a_sign_that_files_cannot_have_is_named(sign, given):
    frame = cohort_frame().assign(slide_id=lambda table: table.slide_id + sign)
    assert f"has {sign!r} in it" in message(given, frame, slides=False)
