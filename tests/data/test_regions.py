"""A slide into regions: the very pixels that `predict` reads, children in their places, damage."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tifffile
from PIL import Image

from lrmil_jax.data import regions, schema, slide_jobs, source, writer
from lrmil_jax.data.schema import Geometry
from lrmil_jax.errors import WorkdirError
from lrmil_jax.slides import Annotations, open_slide, synthetic
from lrmil_jax.slides.slide import Slide
from tests.slides.files import damage_tile, write_tiff

GEOMETRY = Geometry(hr_mpp=0.5, lr_mpp=2.0, patch_px=64)  # an LR patch is 256 level-0 px wide
SIZE = 1000  # no multiple of 256: the last row and column hang over the edge


@pytest.fixture(scope="module")
def image():
    """Tissue with empty glass at its left and top."""
    pixels, _ = synthetic.tissue_image(np.random.default_rng(5), size_px=SIZE, positive=True)
    pixels = pixels.copy()
    pixels[:, :128] = pixels[:128] = 244
    return pixels


@pytest.fixture
def tile(tmp_path):
    """Tiles a slide file and gives its status and its job."""

    def run(path, *, slide_id="TCGA-1.2", mpp=None, annotations=None, **settings):
        job = slide_jobs.SlideJob(
            slide_id=slide_id,
            path=path,
            mpp=mpp,
            folder=tmp_path / "regions",
            settings=slide_jobs.TilingSettings(**{"geometry": GEOMETRY, **settings}),
            annotations=annotations,
        )
        return regions.tile_slide(job), job

    return run


@pytest.fixture
def slide_file(tmp_path, image):
    synthetic.write_slide(tmp_path / "slide.tif", image, mpp=0.5)
    return tmp_path / "slide.tif"


def records(job):
    """Tiles of a slide, with the mosaics beside them where these are stored."""
    parser = schema.RecordParser(schema.region_features(GEOMETRY))
    tiles = source.RecordSource([job.shard], parser)
    found = [tiles[i] for i in range(len(tiles))]
    if job.mosaics.is_file():
        parser = schema.RecordParser(schema.mosaic_features(GEOMETRY))
        mosaics = source.RecordSource([job.mosaics], parser)
        assert len(mosaics) == len(tiles)
        for place, record in enumerate(found):
            mosaic = mosaics[place]
            assert mosaic["index"] == record["index"]
            record["hr"] = mosaic["hr"]
    return found


def draw(path, x, y, width, height, name="Tumor"):
    ring = [[x, y], [x + width, y], [x + width, y + height], [x, y + height], [x, y]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]},
               "properties": {"classification": {"name": name}}}  # fmt: skip
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))


def test_patches_inside_of_what_was_drawn(tile, slide_file, tmp_path):
    whole, plain = tile(slide_file)
    path = tmp_path / "drawn.geojson"
    draw(path, 250, 200, 520, 320)
    status, job = tile(slide_file, annotations=Annotations(path, ("Tumor",)))
    assert status["status"] == "ok"
    assert 0 < status["lr_patches"] < whole["lr_patches"]
    for record in records(job):  # each child has tissue, and tissue lies inside alone
        held = record["lr_xy"] + 64 * np.argwhere(record["child_mask"])[:, ::-1]
        assert np.all((held + 64 > [250, 200]) & (held < [770, 520]))
    assert job.is_complete(status)
    assert not job.is_complete(whole)
    assert not plain.is_complete(status)
    draw(path, 250, 200, 520, 300)
    assert not job.is_complete(status)


@pytest.mark.parametrize(
    ("x", "name", "sentence"),
    [
        (250, "Stroma", "has no region of class Tumor, but of Stroma; name the class"),
        (5000, "Tumor", "lies outside the slide of 1000 x 1000 px"),
        (0, "Tumor", "no tissue lies in the regions of"),
    ],
)
def test_drawings_that_cannot_be_used(tile, slide_file, tmp_path, x, name, sentence):
    draw(tmp_path / "drawn.geojson", x, 0, 64, 64, name)
    drawn = Annotations(tmp_path / "drawn.geojson", ("Tumor",))
    status, _ = tile(slide_file, annotations=drawn)
    assert status["status"] == "failed"
    assert sentence in status["reason"]


@pytest.mark.parametrize("levels", [(1, 4), (1,), (1, 2, 8)])
def test_lr_tiles_are_the_pixels_that_predict_reads(tile, tmp_path, image, levels):
    """From pyramids and one-level files alike, whether or not the HR block was read just before."""
    path = tmp_path / "slide.tif"
    synthetic.write_slide(path, image, mpp=0.5, levels=levels)
    status, job = tile(path)
    assert status["status"] == "ok"
    with open_slide(path) as slide:
        for record in records(job):
            expected = slide.read(record["lr_xy"], 64, 256)
            np.testing.assert_array_equal(source.decode_lr(record), expected)
    # A training run without HR sees the same pixels.
    status, other = tile(path, slide_id="lr", with_hr=False)
    assert status["hr"] is False
    assert not other.mosaics.exists()
    for left, right in zip(records(job), records(other), strict=True):
        assert left["lr"] == right["lr"]


def test_children_lie_where_child_xy_says(tile, slide_file, image):
    _, job = tile(slide_file, jpeg_quality=98)
    plan = regions.plan_slide(job)
    found = records(job)
    cells = plan.lattice
    with plan.slide as slide:
        assert [record["lr_xy"].tolist() for record in found] == cells.lr_xy.tolist()
        for record, children_xy in zip(found, cells.child_xy, strict=True):
            children = source.decode_hr(record, 4).astype(int)
            for row, column in np.argwhere(record["child_mask"]):
                expected = slide.read(children_xy[row, column], 64, 64)
                errors = np.abs(children - expected).mean(axis=(2, 3, 4))
                assert errors[row, column] < 6  # JPEG
                assert errors[row, column] < 0.7 * np.delete(errors.ravel(), 4 * row + column).min()


def test_masks_counts_and_edges(tile, slide_file):
    status, job = tile(slide_file)
    found = records(job)
    assert [int(record["index"]) for record in found] == list(range(len(found)))
    assert status["lr_patches"] == len(found) == 16
    assert status["hr_patches"] == sum(int(record["child_mask"].sum()) for record in found)
    assert all(int(record["lr_side"]) == 256 for record in found)
    for record in found:
        x, y = record["lr_xy"]
        centre = np.arange(4) * 64 + 32
        inside = ((y + centre) < SIZE)[:, None] & ((x + centre) < SIZE)[None]
        glass = ((y + centre) < 128)[:, None] | ((x + centre) < 128)[None]
        np.testing.assert_array_equal(record["child_mask"], inside & ~glass)
    last = source.decode_lr(found[-1])
    assert (last[60:] == 255).all()  # 1000 of 1024 px: the rest is padded white
    assert last[:56, :56].mean() < 240


def test_the_status_tells_what_was_found(tile, slide_file):
    status, job = tile(slide_file)
    assert json.loads(job.status_path.read_text()) == status
    assert (status["mpp"], status["mpp_source"]) == (0.5, "file")
    assert status["dimensions"] == [SIZE, SIZE]
    assert status["reader"].startswith("tifffile")
    assert set(status["seconds"]) == {"open_tissue", "read_write"}
    assert status["unreadable"] == []
    assert status["source"] == {
        "size": slide_file.stat().st_size,
        "sample": slide_jobs.file_identity(slide_file)["sample"],
        "mpp": None,
    }
    for name in ("mask", "overlay"):
        with Image.open(job.folder / "tissue" / f"TCGA-1.2-{name}.png") as picture:
            assert picture.size == (63, 63)  # 8 um/px
    again, _ = tile(slide_file, slide_id="again")
    assert again["lr_patches"] == status["lr_patches"]
    assert job.shard.with_name("again.array_record").exists()


def test_the_same_slide_gives_the_same_bytes(tile, slide_file):
    _, job = tile(slide_file)
    first = job.shard.read_bytes()
    tile(slide_file)
    assert job.shard.read_bytes() == first


def test_um_per_px_given_by_the_user_changes_the_patches(tile, slide_file):
    status, job = tile(slide_file, mpp=0.25)
    assert (status["mpp"], status["mpp_source"]) == (0.25, "override")
    assert {int(record["lr_side"]) for record in records(job)} == {512}
    assert status["lr_patches"] == 4


def test_regions_open_as_tfds(tile, slide_file):
    status, job = tile(slide_file)
    view = writer.write_tfds_view(
        job.folder,
        schema.region_features(GEOMETRY),
        {job.shard: status["lr_patches"]},
    )
    examples = tfds.builder_from_directory(view).as_data_source("slides")
    assert len(examples) == status["lr_patches"]
    np.testing.assert_array_equal(examples[5]["lr"], source.decode_lr(records(job)[5]))
    assert examples[5]["slide_id"] == b"TCGA-1.2"
    kinds = schema.mosaic_features(GEOMETRY)
    view = writer.write_tfds_view(job.mosaics.parent, kinds, {job.mosaics: status["lr_patches"]})
    examples = tfds.builder_from_directory(view).as_data_source("slides")
    assert examples[5]["hr"].shape == (256, 256, 3)


def test_a_corrupt_hr_tile_is_masked_and_listed(tile, slide_file):
    """256 px TIFF tiles of level 0: tile 5 is the LR patch at (256, 256)."""
    whole, job = tile(slide_file, slide_id="whole")
    before = {tuple(record["lr_xy"]): record for record in records(job)}
    damage_tile(slide_file, level=0, index=5, how="zeros")
    status, job = tile(slide_file)
    assert status["status"] == "ok"
    after = {tuple(record["lr_xy"]): record for record in records(job)}
    assert after.keys() == before.keys()  # its LR tile comes from another level
    for place, record in after.items():
        assert record["lr"] == before[place]["lr"]
        if place == (256, 256):
            assert not record["child_mask"].any()
        else:
            np.testing.assert_array_equal(record["child_mask"], before[place]["child_mask"])
            np.testing.assert_array_equal(
                source.decode_hr(record, 4), source.decode_hr(before[place], 4)
            )
    lost = [item for item in status["unreadable"] if item["what"] == "hr"]
    masked = int(before[256, 256]["child_mask"].sum())
    assert len(lost) == masked
    assert {tuple(item["xy"]) for item in lost} <= {
        (256 + 64 * u, 256 + 64 * v) for v in range(4) for u in range(4)
    }
    assert {item["side"] for item in lost} == {64}
    assert status["hr_patches"] == whole["hr_patches"] - masked


def test_a_child_is_lost_alone_where_tiles_are_small(tile, tmp_path, image):
    path = tmp_path / "small.tif"
    synthetic.write_slide(path, image, mpp=0.5, tile=64)
    # Row 6, column 9 of 16 columns of 64 px tiles: child (2, 1) of the LR patch at (512, 256).
    damage_tile(path, level=0, index=6 * 16 + 9, how="zeros")
    status, job = tile(path)
    (record,) = [r for r in records(job) if tuple(r["lr_xy"]) == (512, 256)]
    assert np.argwhere(~record["child_mask"]).tolist() == [[2, 1]]
    assert status["unreadable"] == [{"what": "hr", "xy": [576, 384], "side": 64}]
    assert (source.decode_hr(record, 4)[2, 1] > 240).all()


def test_a_corrupt_lr_tile_loses_its_patches_alone(tile, slide_file):
    damage_tile(slide_file, level=1, index=0, how="zeros")  # one tile holds the whole level
    status, _ = tile(slide_file)
    assert status["status"] == "failed"
    damaged = slide_file.with_name("second.tif")
    pixels, _ = synthetic.tissue_image(np.random.default_rng(6), size_px=1024, positive=False)
    # Three levels: tissue is found in the third, LR patches come from the second.
    synthetic.write_slide(damaged, pixels, mpp=0.5, levels=(1, 4, 16), tile=64)
    damage_tile(damaged, level=1, index=6, how="zeros")  # row 1, column 2
    status, job = tile(damaged)
    assert status["status"] == "ok"
    kept = {tuple(record["lr_xy"].tolist()) for record in records(job)}
    assert (512, 256) not in kept
    assert len(kept) == status["lr_patches"] == 15
    assert {"what": "lr", "xy": [512, 256], "side": 256} in status["unreadable"]


def test_slides_that_cannot_be_used_fail_with_their_reason(tile, tmp_path, image):
    def said(path, **options):
        status, job = tile(path, slide_id=path.stem, **options)
        assert status["status"] == "failed"
        assert json.loads(job.status_path.read_text()) == status
        assert not job.shard.exists()
        assert "\n" not in status["reason"]
        return status["reason"]

    synthetic.write_slide(tmp_path / "small.tif", image[300:555, 300:555], mpp=0.5)
    assert "smaller than one low-resolution patch" in said(tmp_path / "small.tif")
    assert said(tmp_path / "small.tif", mpp=20.0).count("um/px")
    write_tiff(tmp_path / "glass.tif", [np.full((1024, 1024, 3), 244, np.uint8)])
    assert "no tissue" in said(tmp_path / "glass.tif")
    write_tiff(tmp_path / "unknown.tif", [image], mpp=None)
    assert "um/px" in said(tmp_path / "unknown.tif")
    synthetic.write_slide(tmp_path / "coarse.tif", image, mpp=4.0)
    assert "4 um/px" in said(tmp_path / "coarse.tif")
    assert "no such slide file" in said(tmp_path / "nothing.tif")
    (tmp_path / "empty.tif").touch()
    assert "empty" in said(tmp_path / "empty.tif")
    (tmp_path / "text.tif").write_text("not a slide")
    said(tmp_path / "text.tif")
    synthetic.write_slide(tmp_path / "cut.tif", image, mpp=0.5)
    data = (tmp_path / "cut.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(data[: len(data) // 3])
    said(tmp_path / "cut.tif")


def test_a_slide_that_fails_now_takes_its_old_regions_with_it(tile, slide_file):
    _, job = tile(slide_file)
    assert job.shard.exists()
    slide_file.write_bytes(b"")
    status, _ = tile(slide_file)
    assert status["status"] == "failed"
    assert not job.shard.exists()


def test_a_surprise_is_one_slides_failure(tile, slide_file, monkeypatch):
    def surprise(*args, **kwargs):
        raise ZeroDivisionError("of a codec")

    monkeypatch.setattr(regions.tissue, "detect", surprise)
    status, _ = tile(slide_file)
    assert status["reason"] == "ZeroDivisionError: of a codec"


def test_a_full_disk_is_every_slides_failure(tile, slide_file, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(regions.files.os, "replace", full)
    with pytest.raises(WorkdirError, match="the disk is full"):
        tile(slide_file)


def test_every_handle_is_closed_after_a_failure(tile, tmp_path, image, monkeypatch):
    opened = []
    real = slide_jobs.open_slide
    monkeypatch.setattr(
        slide_jobs, "open_slide", lambda *a, **k: opened.append(real(*a, **k)) or opened[-1]
    )
    closed = []
    synthetic.write_slide(tmp_path / "small.tif", image[300:555, 300:555], mpp=0.5)
    close = Slide.close
    monkeypatch.setattr(Slide, "close", lambda self: closed.append(self) or close(self))
    tile(tmp_path / "small.tif")
    assert closed == opened != []


def test_memory_holds_one_region_and_not_the_slide(tile, tmp_path, image, monkeypatch):
    """No read of the file is larger than one LR patch, whatever the size of the slide."""
    path = tmp_path / "one_level.tif"
    big = np.tile(image, (3, 3, 1))
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(big, tile=(256, 256), compression="jpeg", resolution=(20000, 20000),
                   resolutionunit="CENTIMETER", metadata=None)  # fmt: skip
    sizes = []
    real = regions.lattice.build

    def start_counting(slide, **options):
        cells = real(slide, **options)
        read = slide._reader.read_region
        monkeypatch.setattr(
            slide._reader, "read_region",
            lambda level, x, y, w, h: sizes.append(w * h) or read(level, x, y, w, h),
        )  # fmt: skip
        return cells

    monkeypatch.setattr(regions.lattice, "build", start_counting)
    status, _ = tile(path)
    assert status["lr_patches"] > 80
    assert max(sizes) <= 256 * 256
    # One level: the LR tile is cut from the block that was decoded for the children.
    assert len(sizes) == status["lr_patches"]


def test_a_copy_of_a_slide_is_the_same_slide_and_a_changed_one_is_not(slide_file, tmp_path):
    copy = tmp_path / "copy.tif"
    copy.write_bytes(slide_file.read_bytes())
    assert slide_jobs.file_identity(copy) == slide_jobs.file_identity(slide_file)
    content = bytearray(copy.read_bytes())
    content[len(content) // 2 + 10] ^= 255
    copy.write_bytes(content)
    assert slide_jobs.file_identity(copy) != slide_jobs.file_identity(slide_file)


def test_a_coarse_slide_is_enlarged_only_if_asked(tile, tmp_path, image):
    synthetic.write_slide(tmp_path / "coarse.tif", image, mpp=1.0)
    status, job = tile(tmp_path / "coarse.tif")
    assert status["status"] == "failed"
    assert "1 um/px is too coarse for HR patches at 0.5 um/px" in status["reason"]
    assert "prepare.upsample=True" in status["reason"]
    status, enlarged = tile(tmp_path / "coarse.tif", upsample=True)
    assert status["status"] == "ok"
    assert enlarged.is_complete(status)
    assert job.was_enlarged(status)  # no longer asked for: the next run refuses it
    assert not enlarged.was_enlarged(status)
    assert not job.was_enlarged(status | {"source": None})  # of another file
    with regions.open_at(job, high_resolution=False) as slide:  # LR patches need no more
        assert slide.mpp == 1.0
