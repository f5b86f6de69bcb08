"""What `check` tells of each slide: promises that tiling keeps, pictures, and what to look at."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lrmil_jax.data import failures, inspection, regions, schema
from lrmil_jax.data.slide_jobs import SlideJob, TilingSettings
from lrmil_jax.report import remarks
from lrmil_jax.slides import synthetic
from tests.slides.files import write_tiff

SETTINGS = TilingSettings(schema.Geometry(hr_mpp=0.5, lr_mpp=2.0, patch_px=64))


@pytest.fixture(scope="module")
def image():
    return synthetic.tissue_image(
        np.random.default_rng(0), size_px=1024, positive=True, background=0.4
    )[0]


@pytest.fixture
def inspect(tmp_path):
    def inspect(image, *, levels=(1, 4), mirrored=()):
        small = [synthetic.reduced(image, n) for n in levels]
        small = [
            one[:, ::-1] if n in mirrored else one for n, one in zip(levels, small, strict=True)
        ]
        path = write_tiff(tmp_path / "s.tif", [np.ascontiguousarray(one) for one in small])
        job = SlideJob("s", path, None, tmp_path / "regions", SETTINGS)
        return inspection.inspect_slide(job, tmp_path / "check"), job

    return inspect


def test_inspection_promises_what_tiling_then_finds(inspect, image):
    told, job = inspect(image)
    assert told["remarks"] == []
    status = regions.tile_slide(job)
    for name in ("mpp", "mpp_source", "dimensions", "lr_patches", "hr_patches", "picture"):
        assert told[name] == status[name]
    # ArrayRecord fills its last blocks of 64 KiB.
    assert abs(told["bytes"] - job.shard.stat().st_size) < 0.4 * told["bytes"] + 3 * 65536
    job.path.write_bytes(b"")
    assert inspection.inspect_slide(job)["status"] == "failed"


def test_a_picture_shows_tissue_lattice_and_ink(inspect, tmp_path, image):
    marked = image.copy()
    marked[:, :200] = (40, 80, 190)
    told, _ = inspect(marked)
    assert [one.why for one in told["remarks"] if "taken for ink" in one.why]
    assert "prepare.ink=False" in told["remarks"][0].advice
    pixels = np.asarray(Image.open(tmp_path / "check/s.jpg")).astype(int)
    assert pixels.shape == (64, 64, 3)
    violet = (pixels[:, 3:9] - pixels[:, 3:9, 1:2])[..., (0, 2)]
    assert (violet > 20).mean() > 0.9


def test_a_slide_without_tissue_is_drawn_too(inspect, tmp_path):
    told, _ = inspect(np.full((1024, 1024, 3), 240, np.uint8))
    assert told["status"] == "failed"
    assert "no tissue found" in told["reason"]
    assert (tmp_path / "check/s.jpg").is_file()


def test_what_is_unusual_is_told_with_advice(inspect, tmp_path, image, caplog):
    told, _ = inspect(image, mirrored=(4,))
    assert told["remarks"][0].why == "level 1 is mirrored left to right (against level 0)"
    tinted = np.rint(image * (np.array([243, 236, 200]) / 245)).astype(np.uint8)
    (remark,) = inspect(tinted)[0]["remarks"]
    assert remark.why.startswith("its glass is coloured, RGB (24")
    failed, _ = inspect(np.full((1024, 1024, 3), 240, np.uint8))
    with caplog.at_level("INFO"):
        assert remarks.save(tmp_path / "check", [told | {"slide_id": "a"}, failed]) == 2
    assert "2 slides to look at" in caplog.text
    table = pd.read_csv(tmp_path / "check/slides_to_look_at.csv")
    assert table.slide_id.tolist() == ["a", "s"]
    assert "vips tiffsave" in table.what_to_do[0]


def test_slides_that_fail_alike_are_one_problem(tmp_path, caplog):
    """160 slides without their reader are one sentence and one line of the table, not 160."""
    slides = [
        {
            "slide_id": f"z{i:03d}",
            "reason": f"/slides/z{i:03d}.czi: a Zeiss CZI, which no reader opens",
        }
        for i in range(160)
    ]
    slides += [{"slide_id": "a", "reason": "/slides/a: b/a.tif: truncated"}]
    told = failures.sentences(slides)
    assert told == [
        "slide z000: /slides/z000.czi: a Zeiss CZI, which no reader opens (and 159 more for the "
        "same reason: z001, z002, z003, z004, z005 ...)",
        "slide a: /slides/a: b/a.tif: truncated",
    ]
    with caplog.at_level("INFO"):
        assert remarks.save(tmp_path, slides) == 161
    (table,) = (record.getMessage() for record in caplog.records)
    assert "z000 and 159 more" in table
    assert "z001" not in table
    assert len(pd.read_csv(tmp_path / "slides_to_look_at.csv")) == 161
