"""Lesion masks: what is read as lesion, what is refused, and the models scored against them."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lrmil_jax import config as configuration
from lrmil_jax import files
from lrmil_jax.data.features import FeatureStore
from lrmil_jax.errors import DataError
from lrmil_jax.workspace import cohorts, layout, lesion_masks, lesions

CLASSES = ("benign", "tumour")
LESION = np.zeros((8, 16), bool)
LESION[2:6, 4:8] = True


@pytest.fixture
def cohort(tmp_path):
    """A config with a folder of masks, and slides of 1,600 x 800 px that are prepared."""
    config = configuration.default()
    config.geometry.update(hr_mpp=0.5, lr_mpp=2.0, patch_px=100)
    config.data.labels, config.data.masks = "labels.csv", str(tmp_path / "masks")
    (tmp_path / "masks").mkdir()
    table = pd.DataFrame({"slide_id": ["n", "a", "b"], "case_id": ["n", "a", "b"],
                          "label": [0, 1, 1]})  # fmt: skip
    for slide_id in table.slide_id:
        status = {"status": "ok", "dimensions": [1600, 800], "mpp": 0.5}
        files.write_json(layout.regions_folder(tmp_path) / f"{slide_id}.json", status)
    return config, tmp_path, table


def save_mask(folder, slide_id, mask=LESION):
    Image.fromarray(mask).save(folder / "masks" / f"{slide_id}.png")


class Store(FeatureStore):
    """Features that know nothing but where their patches lie."""

    def __init__(self, **places):
        self._known = {name: np.array(values, np.int32) for name, values in places.items()}

    def places(self, slide):
        return self._known


# 4 x 2 patches of 400 px.
LOW = Store(xy=[(400 * x, 400 * y) for y in range(2) for x in range(4)])


@pytest.mark.parametrize(
    "pixels",
    [
        LESION,
        LESION.astype(np.uint8),
        LESION.astype(np.uint8) * 255,
        LESION.astype(np.uint16) * 255,
        np.stack([LESION * np.uint8(200)] * 3, -1),
        np.stack([LESION * np.uint8(200)] * 3 + [np.full(LESION.shape, 255, np.uint8)], -1),
    ],
)
def test_all_that_is_not_black_is_lesion(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "m.png")
    np.testing.assert_array_equal(lesion_masks.read_mask(tmp_path / "m.png", (1600, 800)), LESION)


@pytest.mark.parametrize(("width", "height"), [(1600, 800), (1620, 800), (1500, 800), (16, 8)])
def test_cropped_to_whole_tiles_is_the_same_shape(tmp_path, width, height):
    """8 x 16 px are too few to tell 1,500 px from 1,600."""
    Image.fromarray(LESION).save(tmp_path / "m.png")
    assert lesion_masks.read_mask(tmp_path / "m.png", (width, height)).shape == (8, 16)


@pytest.mark.parametrize("dimensions", [(800, 1600), (1300, 800), (2000, 800)])
def test_a_mask_of_another_shape_is_refused(tmp_path, dimensions):
    Image.fromarray(LESION).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=f"16 x 8 px, the slide {dimensions[0]} x {dimensions[1]}"):
        lesion_masks.read_mask(tmp_path / "m.png", dimensions)
    large = LESION.repeat(50, 0).repeat(50, 1)
    Image.fromarray(large).save(tmp_path / "large.png")
    lesion_masks.read_mask(tmp_path / "large.png", (1560, 800))
    with pytest.raises(DataError, match="same ratio"):
        lesion_masks.read_mask(tmp_path / "large.png", (1500, 800))


def test_a_mask_of_the_scanned_area_alone_is_put_in_its_place(tmp_path):
    Image.fromarray(np.uint8(LESION) * 255).save(tmp_path / "m.png")
    placed = lesion_masks.read_mask(tmp_path / "m.png", (2400, 2000), (400, 600, 1600, 800))
    assert placed.shape == (20, 24)
    np.testing.assert_array_equal(placed[6:14, 4:20], LESION)
    assert placed.sum() == LESION.sum()


def test_a_broken_mask_is_refused(tmp_path):
    noise = np.random.default_rng(0).random((80, 160)) < 0.5
    Image.fromarray(noise).save(tmp_path / "m.png")
    content = (tmp_path / "m.png").read_bytes()
    for broken in (b"", b"no picture", content[:60], content[:-200]):
        (tmp_path / "m.png").write_bytes(broken)
        with pytest.raises(DataError, match=r"lesion mask .*m\.png cannot be read"):
            lesion_masks.read_mask(tmp_path / "m.png", (1600, 800))


def test_a_mask_that_is_too_large_is_refused(tmp_path, monkeypatch):
    Image.fromarray(LESION).save(tmp_path / "m.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match="at most about"):
        lesion_masks.read_mask(tmp_path / "m.png", (1600, 800))


def test_slides_with_lesion_are_found(cohort):
    config, workdir, table = cohort
    save_mask(workdir, "a")
    save_mask(workdir, "b", np.zeros_like(LESION))
    found = lesions.find(config, workdir, table, CLASSES, LOW)
    assert list(found) == [1]  # n needs no mask, b's shows no lesion
    expected = np.zeros(8)
    expected[[1, 5]] = 0.5  # 400 x 200 px in each
    np.testing.assert_array_equal(found[1].share, expected)
    assert cohorts.patch_side(config, {"mpp": 0.5}, "lr") == 400


def test_a_first_class_slide_may_have_lesion_all_the_same(cohort):
    config, workdir, table = cohort
    for slide_id in ("n", "a", "b"):
        save_mask(workdir, slide_id)
    assert list(lesions.find(config, workdir, table, CLASSES, LOW)) == [0, 1, 2]


def test_a_positive_slide_without_mask_is_refused(cohort):
    config, workdir, table = cohort
    save_mask(workdir, "a")
    with pytest.raises(DataError, match=r"slide b is of class tumour.*masks/b\.png"):
        lesions.find(config, workdir, table, CLASSES, LOW)


def save_drawn(folder, slide_id, name="Tumor"):
    """The same lesion as `LESION`'s, drawn in QuPath."""
    ring = [[400, 200], [800, 200], [800, 600], [400, 600], [400, 200]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    properties = {"objectType": "annotation", "classification": {"name": name}}
    feature = {"type": "Feature", "geometry": geometry, "properties": properties}
    files.write_json(folder / "masks" / f"{slide_id}.geojson", [feature])


def test_lesion_drawn_in_qupath_is_that_of_a_picture(cohort):
    config, workdir, table = cohort
    config.data.mask_classes = ("Tumor",)
    save_drawn(workdir, "n", "Stroma")
    save_drawn(workdir, "a")
    save_mask(workdir, "b")
    found = lesions.find(config, workdir, table, CLASSES, LOW)
    assert list(found) == [1, 2]
    np.testing.assert_array_equal(found[1].share, found[2].share)
    save_drawn(workdir, "b", "Tumour")
    with pytest.raises(DataError, match=r"slide b has two lesion masks, .*b\.png and .*; keep one"):
        lesions.find(config, workdir, table, CLASSES, LOW)
    (workdir / "masks/b.png").unlink()
    with pytest.raises(DataError, match=r"class tumour, but .*b\.geojson has no region of class T"):
        lesions.find(config, workdir, table, CLASSES, LOW)
    (workdir / "masks/b.geojson").write_text("[]")
    with pytest.raises(DataError, match="has no annotation with an area"):
        lesions.find(config, workdir, table, CLASSES, LOW)


def test_masks_are_checked_before_anything_is_made(cohort):
    config, workdir, table = cohort
    config.data.mask_classes = ("Tumor",)
    (workdir / "masks/a.geojson").write_text("[]")
    known = {"dimensions": [1600, 800], "bounds": None, "mpp": 0.5}
    nobody = workdir / "no status here"
    wrong = lesion_masks.problems(config, nobody, table, CLASSES, dict.fromkeys("nab", known))
    assert ["a.geojson has no annotation" in wrong[0], "slide b is of class" in wrong[1]] == [1, 1]
    save_drawn(workdir, "a")
    assert lesion_masks.problems(config, nobody, table, CLASSES, {"n": known, "a": known}) == []
    config.data.masks = None
    assert lesion_masks.problems(config, nobody, table, CLASSES, {"b": known}) == []


def test_where_masks_lie(cohort):
    config, workdir, table = cohort
    assert lesion_masks.masks_folder(config, workdir) == workdir / "masks"
    config.data.masks = str(workdir / "nowhere")
    with pytest.raises(DataError, match="nowhere, which is no folder"):
        lesion_masks.masks_folder(config, workdir)
    config.data.masks = None
    assert lesion_masks.masks_folder(config, workdir) is None
    assert lesions.find(config, workdir, table, CLASSES, LOW) == {}
    config.data.labels = None
    assert lesion_masks.masks_folder(config, workdir) == workdir / "synthetic/masks"


def test_the_threshold_is_the_validation_slides_own(cohort, caplog):
    """Slide 0 chooses it, slide 1 is tested; two models do not touch each other."""
    config, _, table = cohort
    xy = LOW.places(0)["xy"]
    share = np.array([[1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0.5, 0.05, 0, 0, 0]])
    found = {place: lesions.Lesion(share[place], xy) for place in (0, 1)}
    sharp = {0: np.array([8, 2, 1, 1, 1, 1, 1, 1]) / 16, 1: np.array([1, 1, 1, 9, 1, 1, 1, 1]) / 16}
    flat = {0: np.full(8, 1 / 8), 1: np.full(8, 1 / 8)}
    val = np.array([True, False, False])
    frame, thresholds = lesions.attention_table(
        config, table, found, {"lrmil": sharp, "teacher": flat}, val
    )
    assert thresholds == {"lrmil": 4.0, "teacher": 1.0}
    assert frame.split.tolist() == ["val", "test"] * 2
    assert frame.slide_id.tolist() == ["n", "a"] * 2
    tested = frame[frame.split == "test"].set_index("model")
    assert tested.auc.to_dict() == {"lrmil": 1.0, "teacher": 0.5}
    assert tested.dice["lrmil"] == pytest.approx(2 * 0.5 / 1.55)
    assert tested.dice["teacher"] == pytest.approx(2 * 0.55 / 8.55)
    assert tested.lesion_patches.tolist() == [1, 1]  # 0.05 is less than evaluate.lesion_share
    assert not caplog.records
    frame, thresholds = lesions.attention_table(config, table, found, {"lrmil": sharp}, ~val)
    assert thresholds["lrmil"] == 4.5
    frame, thresholds = lesions.attention_table(config, table, {1: found[1]}, {"lrmil": sharp}, val)
    assert thresholds == {"lrmil": None}
    assert frame.dice.isna().all()
    assert "no validation slide has lesion" in caplog.text


def test_attention_is_summed_within_each_lr_patch():
    scores = np.log(np.array([1, 2, 3, 3, 1], np.float32))
    got = lesions.lr_attention(scores, Store(parent=[0, 0, 2, 2, 2]), 0, 4)
    np.testing.assert_allclose(got, [0.3, 0.0, 0.7, 0.0], rtol=1e-6)
    got = lesions.lr_attention(scores, Store(parent=range(5)), 0, 5)
    np.testing.assert_allclose(got, np.array([1, 2, 3, 3, 1]) / 10, rtol=1e-6)
