"""The one reader of patches: from shards or from the slide, LR or HR, all or some."""

import contextlib
import dataclasses

import numpy as np
import pytest

from lrmil_jax import processes
from lrmil_jax.data import regions, schema, slide_jobs
from lrmil_jax.errors import DataError, SlideError
from lrmil_jax.patches import PatchSource, beside
from lrmil_jax.patches.open_slides import SlideFiles
from lrmil_jax.patches.origins import Places
from lrmil_jax.patches.shards import Shards, stored_places
from lrmil_jax.slides import synthetic
from tests.data import records
from tests.patches.dying import DyingFiles
from tests.slides.files import damage_tile

GEOMETRY = schema.Geometry(hr_mpp=0.5, lr_mpp=2.0, patch_px=64)
MASKS = [np.ones((2, 2), bool), np.array([[False, True], [True, False]]), np.ones((2, 2), bool)]


@pytest.fixture
def shard(tmp_path):
    path = records.write_regions(tmp_path / "s.array_record", MASKS)
    records.write_mosaics(path, MASKS)
    return path


@pytest.fixture
def job(tmp_path):
    """A prepared slide."""
    image, _ = synthetic.tissue_image(np.random.default_rng(5), size_px=1024, positive=True)
    synthetic.write_slide(tmp_path / "slide.tif", image, mpp=0.5, levels=(1, 4, 16), tile=64)
    found = slide_jobs.SlideJob(
        slide_id="a", path=tmp_path / "slide.tif", mpp=None, folder=tmp_path / "regions",
        settings=slide_jobs.TilingSettings(geometry=GEOMETRY),
    )  # fmt: skip
    assert regions.tile_slide(found)["status"] == "ok"
    return found


def stored(shard, **options):
    return PatchSource("s", Shards(shard, records.GEOMETRY, threads=2), **options)


def test_tiles_come_in_order_and_know_their_places(shard):
    source = stored(shard, high=False)
    images = [image for group in source for image in group]
    assert [int(image[0, 0, 0]) for image in images] == [0, 1, 2]
    places = source.places()
    assert places["parent"].tolist() == [0, 1, 2]
    assert places["child"].tolist() == [-1, -1, -1]
    assert places["xy"].tolist() == [[0, 32], [16, 32], [32, 32]]
    np.testing.assert_array_equal(places["child_mask"], MASKS)
    assert source.seconds > 0
    assert not source.levels
    assert not source.damage


def test_children_are_those_that_are_there(shard):
    source = stored(shard, high=True, chosen=[1, 2])
    images = [image for group in source for image in group]
    # Child (v, u) is grey 20 + 50 v + 100 u.
    assert [round(float(image.mean())) for image in images] == [120, 70, 20, 120, 70, 170]
    places = source.places()
    assert places["parent"].tolist() == [1, 1, 2, 2, 2, 2]
    assert places["child"].tolist() == [1, 2, 0, 1, 2, 3]
    assert places["xy"].tolist()[:2] == [[16 + 8, 32], [16, 32 + 8]]
    assert source.regions_read.tolist() == [1, 2]


def test_a_reader_of_tiles_does_not_need_the_file_of_the_children(shard):
    slide_jobs.mosaics_path(shard).unlink()
    assert len(list(stored(shard, high=False))) == 3
    with pytest.raises(DataError, match=r"hr/s\.array_record cannot be read"):
        list(stored(shard, high=True))


def test_nothing_chosen_reads_nothing(shard):
    source = stored(shard, high=True, chosen=[])
    assert not list(source)
    with pytest.raises(SlideError, match="none of its HR patches could be decoded"):
        source.places()


@pytest.mark.parametrize("high", [False, True])
def test_the_slide_itself_gives_what_its_shards_give(job, high):
    kept = PatchSource("a", Shards(job.shard, GEOMETRY, threads=2), high=high)
    from_shards = np.stack([image for group in kept for image in group]).astype(int)
    with beside.slide_readers(1) as here:
        read = PatchSource("a", beside.FromSlide(job, here), high=high)
        from_slide = np.stack([image for group in read for image in group]).astype(int)
        assert read.levels
    for name, values in kept.places().items():
        np.testing.assert_array_equal(read.places()[name], values)
    if high:  # JPEG
        assert np.abs(from_shards - from_slide).mean() < 6
    else:
        np.testing.assert_array_equal(from_shards, from_slide)


def test_some_children_from_the_slide_at_the_places_of_its_shard(job):
    slide_jobs.mosaics_path(job.shard).unlink()
    with beside.slide_readers(1) as here:
        source = PatchSource("a", beside.FromSlide(job, here), high=True, chosen=[3])
        images = [image for group in source for image in group]
    assert set(source.places()["parent"].tolist()) == {3}
    assert len(images) == len(source.places()["xy"])
    assert source.levels[0] <= 300 * 300  # one parent-sized block of 256 px, no more


def test_damage_is_told_and_the_rest_goes_on(job):
    places = stored_places(job.shard, GEOMETRY)
    damage_tile(job.path, level=0, index=0, how="zeros")  # 64 px: one child of the first patch
    if not places.child_mask[0, 0, 0]:
        places = Places(places.xy, places.side, np.ones_like(places.child_mask))
    with beside.slide_readers(1) as here:
        origin = beside.FromSlide(job, here, places)
        source = PatchSource("a", origin, high=True, chosen=[0])
        count = sum(len(group) for group in source)
    assert source.damage == [{"what": "hr", "xy": places.xy[0].tolist(), "side": 64}]
    assert count == places.child_mask[0].sum() - 1
    assert not source.places()["child_mask"][:, 0, 0].any()


@pytest.fixture(scope="module")
def readers():
    """Two processes that read."""
    with beside.slide_readers(2) as readers:
        yield readers


def read(job, readers, chosen):
    source = PatchSource("a", beside.FromSlide(job, readers), high=True, chosen=chosen)
    source.begin()
    return source, [image for group in source for image in group]


@pytest.mark.parametrize("chosen", [None, [], [1], [0, 2, 3, 5, 6, 7, 9, 10, 11]])
def test_processes_read_the_same(job, readers, chosen):
    """Images, places, damage and what was read of each level, in the same order."""
    damage_tile(job.path, level=0, index=0, how="zeros")
    with beside.slide_readers(1) as this_process:
        here, wanted = read(job, this_process, chosen)
    source, images = read(job, readers, chosen)
    np.testing.assert_array_equal(images, wanted)
    assert source.damage == here.damage
    assert source.levels == here.levels
    if chosen != []:
        for name, values in here.places().items():
            np.testing.assert_array_equal(source.places()[name], values)
    _, again = read(job, readers, chosen)  # the slide is still open there
    np.testing.assert_array_equal(again, wanted)


def test_slides_of_two_threads_stay_open_and_the_oldest_is_closed(job, monkeypatch):
    """A slide that is being read is not closed by others, and no more than two are kept."""
    jobs = [dataclasses.replace(job, mpp=mpp) for mpp in (0.5, 0.5001, 0.5002)]
    opened = []
    open_job = slide_jobs.SlideJob.open

    def count(self, **options):
        opened.append(self.mpp)
        return open_job(self, **options)

    monkeypatch.setattr(slide_jobs.SlideJob, "open", count)
    places = stored_places(job.shard, GEOMETRY)
    with contextlib.closing(SlideFiles()) as files:
        for one in (*jobs[:2], *jobs[:2], jobs[2], *jobs[1:], jobs[0]):
            regions_read, damage, _ = files.read(one, [2], places.take([2]), False)
            assert (len(regions_read), damage) == (1, [])
    assert opened == [0.5, 0.5001, 0.5002, 0.5]


def test_a_reader_that_dies_loses_its_slide_alone(job):
    deadly = dataclasses.replace(job, slide_id="deadly")
    deadly.shard.write_bytes(job.shard.read_bytes())
    with processes.Workers(2, label="reading", held=DyingFiles()) as readers:
        good = PatchSource("a", beside.FromSlide(job, readers), high=True, chosen=[0, 1, 2])
        bad = PatchSource("b", beside.FromSlide(deadly, readers), high=True, chosen=[0, 1, 2])
        bad.begin()
        good.begin()
        with pytest.raises(SlideError, match=r"slide\.tif: the process that read it was ended"):
            list(bad)
        assert len(list(good)) == 3


def test_what_a_reader_finds_is_told_here(job, readers):
    """A slide that is gone, and a shard cut short: the sentence of reading here."""
    source = PatchSource("a", beside.FromSlide(job, readers), high=True, chosen=[0])
    job.path.rename(job.path.with_name("elsewhere.tif"))
    with pytest.raises(SlideError, match=r"slide\.tif"):
        list(source)
    job.path.with_name("elsewhere.tif").rename(job.path)
    job.shard.write_bytes(job.shard.read_bytes()[:100])
    with pytest.raises(DataError, match="cannot be read"):
        list(PatchSource("a", beside.FromSlide(job, readers), high=True, chosen=[0]))
