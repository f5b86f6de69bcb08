"""Captioned tiles from a CSV or from class folders: found, split, and one sentence a mistake."""

import unicodedata

import numpy as np
import pytest
from PIL import Image

from lrmil_jax.data.captions import CaptionedTiles
from lrmil_jax.errors import DataError


def write_tile(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(path)


def write_folder(folder, counts, captions=None):
    for name, count in counts.items():
        for number in range(count):
            write_tile(folder / name / f"{number:03d}.png")
    if captions is not None:
        (folder / "captions.csv").write_text(captions)
    return folder


def write_csv(folder, text, tiles=("a.png", "b.png", "c.png")):
    for name in tiles:
        write_tile(folder / name)
    (folder / "tiles.csv").write_text(text)
    return folder / "tiles.csv"


def said(tiles):
    """{class: its captions}."""
    return {
        name: [tiles.captions[i] for i in np.flatnonzero(tiles.groups == label)]
        for label, name in enumerate(tiles.classes)
    }


def test_folders_are_listed_by_class_and_name(tmp_path):
    write_folder(tmp_path, {"stroma": 2, "fat": 1})
    write_tile(tmp_path / "fat" / "scale_4" / "000.png")
    (tmp_path / "fat" / "notes.txt").write_text("no tile")
    (tmp_path / "synthetic.json").write_text("{}")
    (tmp_path / ".cache").mkdir()
    found = CaptionedTiles.from_folder(tmp_path)
    assert found.classes == ("fat", "stroma")
    assert [str(path.relative_to(tmp_path)) for path in found.paths] == [
        *("fat/000.png", "fat/scale_4/000.png", "stroma/000.png", "stroma/001.png")
    ]
    assert [found.groups[chosen].tolist() for chosen in found.choices] == [
        *([0] * 4, [0] * 4, [1] * 4, [1] * 4)
    ]
    assert found.patients == ()


def test_a_class_without_captions_is_called_by_its_name(tmp_path):
    found = CaptionedTiles.from_folder(write_folder(tmp_path, {"fat": 2, "lymph_node": 2}))
    spoken = said(found)
    assert "an H&E image of lymph node" in spoken["lymph_node"]
    assert all("fat" in caption for caption in spoken["fat"])
    assert len(set(found.captions)) == len(found.captions)


def test_captions_of_the_classes(tmp_path):
    """A sentence said twice counts once; one of two classes is there for each."""
    text = 'class,caption\nb,"Pink, wavy fibres"\na,White cells\nb,Tissue\na,Tissue\nb,Tissue\n'
    found = CaptionedTiles.from_folder(write_folder(tmp_path, {"a": 2, "b": 3}, text))
    assert said(found) == {"a": ["White cells", "Tissue"], "b": ["Pink, wavy fibres", "Tissue"]}
    assert [chosen.tolist() for chosen in found.choices] == [[0, 1]] * 2 + [[2, 3]] * 3


def write_patients(folder, patients):
    """{class: {patient: tiles}} as sub-folders of the classes."""
    for name, counts in patients.items():
        for patient, count in counts.items():
            for number in range(count):
                write_tile(folder / name / patient / f"{number:03d}.png")
    return folder


def test_sub_folders_of_every_class_are_its_patients(tmp_path):
    write_patients(tmp_path, {"fat": {"p1": 1, "p0": 1}, "stroma": {"p1": 1}})
    write_tile(tmp_path / "stroma" / "p2" / "block_3" / "000.png")
    found = CaptionedTiles.from_folder(tmp_path)
    assert found.patients == ("p0", "p1", "p1", "p2")
    assert found.patients_from == f"the sub-folders of the class folders in {tmp_path}"
    # One tile in its class folder: then sub-folders are something else.
    write_tile(tmp_path / "stroma" / "000.png")
    assert CaptionedTiles.from_folder(tmp_path).patients == ()


COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD"))


def test_a_patient_written_in_both_forms_of_letters_is_one(tmp_path):
    """In sub-folders, in patients.csv (whose tiles are found in either form too), in captions."""
    write_patients(tmp_path, {"fat": {DECOMPOSED: 1, COMPOSED: 1}, "b": {COMPOSED: 2}})
    found = CaptionedTiles.from_folder(tmp_path)
    assert found.patients == (COMPOSED,) * 4
    tiles = [path.relative_to(tmp_path).as_posix() for path in found.paths]
    rows = "".join(f"{unicodedata.normalize('NFD', tile)},{DECOMPOSED}\n" for tile in tiles)
    (tmp_path / "patients.csv").write_text(f"tile,patient_id\n{rows}")
    assert CaptionedTiles.from_folder(tmp_path).patients == (COMPOSED,) * 4
    rows = f"a.png,x,{COMPOSED}\na.png,y,{DECOMPOSED}\nb.png,x,{DECOMPOSED}\n"
    path = write_csv(tmp_path, f"path,caption,patient_id\n{rows}")
    assert CaptionedTiles.from_csv(path).patients == (COMPOSED, COMPOSED)


def test_patients_csv_wins_over_sub_folders(tmp_path):
    write_patients(tmp_path, {"fat": {"x": 2}, "stroma": {"x": 1, "y": 1}})
    rows = ["fat/x/000.png,p0", "fat/x/001.png, p1 ", "stroma/x/000.png,p1", "stroma/y/000.png,p0"]
    (tmp_path / "patients.csv").write_text("\n".join(["tile,patient_id", *rows]))
    found = CaptionedTiles.from_folder(tmp_path)
    assert found.patients == ("p0", "p1", "p1", "p0")
    assert found.patients_from == str(tmp_path / "patients.csv")
    (tmp_path / "patients.csv").write_text("\n".join(["tile,patient_id", *rows[1:]]))
    with pytest.raises(DataError, match=r"no patient of the tile fat/x/000\.png \(1 of 4"):
        CaptionedTiles.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("counts", "captions", "sentence"),
    [
        ({"fat": 5}, None, "1 class folders; at least 2"),
        ({"fat": 5, "stroma": 1}, None, "stroma has 1 tiles"),
        ({"a": 2, "b": 2}, "class,text\na,b\n", r"captions\.csv has no column caption"),
        ({"a": 2, "b": 2}, "class,caption\na,x\nb, \n", "line 3: the caption is empty"),
        ({"a": 2, "b": 2}, "class,caption\na,x\n", "no caption of the class b"),
        ({"a": 2, "b": 2}, "class,caption\na,x\nb,y\nc,z\n", "captions of c, which is no class"),
    ],
)
def test_folders_that_cannot_teach_are_refused(tmp_path, counts, captions, sentence):
    with pytest.raises(DataError, match=sentence):
        CaptionedTiles.from_folder(write_folder(tmp_path, counts, captions))


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"data\.tiles is .*no folder"):
        CaptionedTiles.from_folder(tmp_path / "nowhere")


def test_csv_of_captions(tmp_path):
    """Several rows a tile, one caption for two tiles, and a tile by its whole path."""
    other = tmp_path / "elsewhere.png"
    write_tile(other)
    rows = ("path,caption,patient_id", "b.png,Fat,p1", "a.png,Stroma,p0", "b.png,White cells ,p1")
    text = "\n".join([*rows, f"{other},Fat,p0"])
    found = CaptionedTiles.from_csv(write_csv(tmp_path / "csv", text))
    spoken = {
        path.name: (sorted(found.captions[i] for i in chosen), patient)
        for path, chosen, patient in zip(found.paths, found.choices, found.patients, strict=True)
    }
    assert spoken == {
        "a.png": (["Stroma"], "p0"),
        "b.png": (["Fat", "White cells"], "p1"),
        "elsewhere.png": (["Fat"], "p0"),
    }
    assert found.groups.tolist() == [0, 1, 2]
    assert found.classes == ()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("path,text\na.png,x\n", "no column caption"),
        ("caption\nx\n", "no column path"),
        ("path,caption\na.png,Fat\nb.png,\n", "line 3: the caption is empty"),
        ("path,caption\na.png,Fat\nb.png\n", "line 3: the caption is empty"),
        ("path,caption\na.png,Fat\n,Stroma\n", "line 3: the path is empty"),
        ("path,caption,patient_id\na.png,Fat,p\nb.png,Stroma,\n", "the patient_id is empty"),
        ("path,caption\na.png,Fat\nb.png,Fat\n", "1 different captions; at least 2"),
        ("path,caption\na.png,Fat\na.png,Pale\n", "names 1 tiles; at least 2"),
        ("path,caption\na.png,Fat\nz.png,Stroma\n", r"z\.png does not exist \(1 of 2"),
        ("path,caption,patient_id\na.png,Fat,p\na.png,Pale,q\nb.png,x,p\n", "of two patients"),
        ("", "cannot be read as CSV"),
        ('path,caption\n"a.png,x\n', "cannot be read as CSV"),
    ],
)
def test_csvs_that_cannot_teach_are_refused(tmp_path, text, sentence):
    with pytest.raises(DataError, match=sentence):
        CaptionedTiles.from_csv(write_csv(tmp_path, text))


def test_a_missing_csv_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"data\.captions is .*no file"):
        CaptionedTiles.from_csv(tmp_path / "nowhere.csv")


def parts(tiles, **options):
    train, val = tiles.split(**{"share": 0.1, "seed": 0, **options})
    assert sorted([*train, *val]) == list(range(len(tiles.paths)))
    return train, val


def test_splits_hold_the_same_share_of_each_class(tmp_path):
    found = CaptionedTiles.from_folder(write_folder(tmp_path, {"a": 20, "b": 40, "c": 3}))
    _, val = parts(found)
    labels = np.array([found.groups[chosen[0]] for chosen in found.choices])
    assert np.bincount(labels[val]).tolist() == [2, 4, 1]
    np.testing.assert_array_equal(parts(found)[1], val)
    assert (parts(found, seed=1)[1] != val).any()
    # In random order: a batch of one class alone would have no negatives.
    assert (np.diff(labels[parts(found, share=0.5)[1]]) < 0).any()


def test_splits_go_by_patient_where_patients_are_known(tmp_path):
    rows = [f"{i}.png,caption {i},p{i // 4}" for i in range(20)]
    text = "path,caption,patient_id\n" + "\n".join(rows)
    path = write_csv(tmp_path, text, [f"{i}.png" for i in range(20)])
    found = CaptionedTiles.from_csv(path)
    held = set()
    for seed in range(24):
        train, val = parts(found, share=0.3, seed=seed)
        patients = [{found.patients[i] for i in part} for part in (train, val)]
        assert patients[0] & patients[1] == set()
        assert len(patients[1]) == 2  # 8 of 20 tiles are the first share above 0.3
        held |= patients[1]
    assert len(held) == 5
    with pytest.raises(DataError, match="all captioned tiles are of the patient p0"):
        CaptionedTiles.from_csv(
            write_csv(tmp_path, "path,caption,patient_id\n0.png,a,p0\n1.png,b,p0\n")
        ).split(share=0.1, seed=0)


def test_one_patient_always_stays_for_training(tmp_path):
    text = "path,caption,patient_id\na.png,x,p\nb.png,y,q\nc.png,z,q\n"
    found = CaptionedTiles.from_csv(write_csv(tmp_path, text))
    for seed in range(6):
        train, val = parts(found, share=0.5, seed=seed)
        assert min(len(train), len(val)) >= 1


def test_splits_of_captions_alone(tmp_path):
    text = "path,caption\na.png,x\nb.png,y\nc.png,z\n"
    _, val = parts(CaptionedTiles.from_csv(write_csv(tmp_path, text)))
    assert len(val) == 1


def test_every_class_is_on_both_sides_of_a_split_by_patient(tmp_path):
    """Patients of one class or two, of unequal sizes: none is parted, and no class is missing."""
    patients = {
        "common": {f"p{i}": 1 + i % 3 for i in range(12)},
        "rare": {"p3": 2, "q1": 1, "q2": 4},
    }
    found = CaptionedTiles.from_folder(write_patients(tmp_path, patients))
    labels = np.array([found.groups[chosen[0]] for chosen in found.choices])
    for seed in range(10):
        train, val = parts(found, share=0.2, seed=seed)
        assert {found.patients[i] for i in train} & {found.patients[i] for i in val} == set()
        assert set(labels[train]) == set(labels[val]) == {0, 1}
        # 4.8 of 24 tiles are wanted, and a patient has at most 5.
        assert 0.2 <= (labels[val] == 0).sum() / 24 < 0.2 + 5 / 24
    np.testing.assert_array_equal(parts(found, seed=3)[1], parts(found, seed=3)[1])


@pytest.mark.parametrize(
    ("patients", "sentence"),
    [
        (
            {"a": {"p": 2}, "b": {"p": 2, "q": 2}},
            r"of the class a are of the patient p, as named by the sub-folders of .*; at least 2",
        ),
        # Whoever is held out, a class is missing on one side.
        (
            {"a": {"p": 1, "q": 1}, "b": {"q": 1, "r": 1}, "c": {"p": 1, "r": 1}},
            "leaves tiles of every class on both sides; add tiles of more patients",
        ),
    ],
)
def test_patients_that_cannot_be_parted_are_refused(tmp_path, patients, sentence):
    found = CaptionedTiles.from_folder(write_patients(tmp_path, patients))
    with pytest.raises(DataError, match=sentence):
        found.split(share=0.1, seed=0)
