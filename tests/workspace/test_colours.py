"""Colour statistics beside the regions: made once, kept, and made anew with the slide."""

import imagecodecs
import numpy as np
import pandas as pd
import pytest

from lrmil_jax import config as configuration
from lrmil_jax import files
from lrmil_jax.data import schema, source, writer
from lrmil_jax.data.labels import Cohort
from lrmil_jax.evals import colour
from lrmil_jax.tasks.classification import Classification
from lrmil_jax.workspace import colours, layout, statuses

PX = 16


def prepare(workdir, slide_id, tiles, sample="first"):
    """Writes a slide's regions and status as `prepare` does."""
    geometry = schema.Geometry(hr_mpp=0.5, lr_mpp=1.0, patch_px=PX)
    records = (
        {
            "slide_id": slide_id,
            "index": index,
            "lr": imagecodecs.png_encode(tile),
            "lr_xy": np.array([32 * index, 0], np.int32),
            "lr_side": 32,
            "child_mask": np.ones((2, 2), bool),
        }
        for index, tile in enumerate(tiles)
    )
    shard = layout.shard(layout.regions_folder(workdir), slide_id)
    kinds = schema.region_features(geometry)
    status = {"slide_id": slide_id, "lr_patches": writer.write_records(shard, kinds, records),
              "hr": False, "source": {"size": 1, "sample": sample, "mpp": None}}  # fmt: skip
    files.write_json(shard.with_name(f"{slide_id}.json"), status)
    statuses.forget()


def shades(level, seed):
    """Three tiles around a grey level."""
    rng = np.random.default_rng(seed)
    return (level + rng.integers(0, 9, (3, PX, PX, 3))).astype(np.uint8)


@pytest.fixture
def run(tmp_path):
    """Config, working directory and cohort of twelve slides, the positive ones a little darker."""
    config = configuration.default()
    config.geometry.update(hr_mpp=0.5, lr_mpp=1.0, patch_px=PX)
    names, labels = [f"s{n}" for n in range(12)], np.arange(12) % 2
    table = pd.DataFrame({"slide_id": names, "patient_id": names, "case_id": names,
                          "label": labels, "path": [f"{name}.tif" for name in names],
                          "mpp": np.nan,
                          "fold_1": ["test", "val", "train"] * 4})  # fmt: skip
    for number, name in enumerate(names):
        prepare(tmp_path, name, shades(200 - 30 * (number % 2), number))
    return config, tmp_path, Cohort(table, Classification(("benign", "tumour")))


def count_reads(monkeypatch):
    """Every shard that is opened from now on."""
    opened = []

    class Counting(source.RecordSource):
        def __init__(self, paths, parser):
            opened.extend(path.name.split(".")[0] for path in paths)
            super().__init__(paths, parser)

    monkeypatch.setattr(source, "RecordSource", Counting)
    return opened


def test_statistics_are_those_of_the_lr_tiles(run):
    config, workdir, cohort = run
    got = colours.statistics(config, workdir, cohort.table.iloc[[3, 0]])
    pixels = [shades(170, 3).reshape(-1, 3), shades(200, 0).reshape(-1, 3)]
    expected = [np.concatenate([values.mean(0), values.std(0)]) for values in pixels]
    np.testing.assert_allclose(got, expected, rtol=1e-10)


def test_they_are_kept_and_only_what_is_missing_or_stale_is_made(run, monkeypatch):
    config, workdir, cohort = run
    first = colours.statistics(config, workdir, cohort.table)
    opened = count_reads(monkeypatch)
    np.testing.assert_array_equal(colours.statistics(config, workdir, cohort.table), first)
    assert opened == []
    # As if killed before s5 was written, and with s7 prepared anew from another file.
    (workdir / "regions/colour/s5.json").unlink()
    prepare(workdir, "s7", shades(90, 0), sample="second")
    again = colours.statistics(config, workdir, cohort.table)
    assert opened == ["s5", "s7"]
    same = np.ones(12, bool)
    same[7] = False
    np.testing.assert_array_equal(again[same], first[same])
    assert (again[7, :3] < 100).all()
    # And with a patch fewer, because a tile could not be decoded this time.
    prepare(workdir, "s2", shades(200, 2)[:2])
    colours.statistics(config, workdir, cohort.table)
    assert opened[2:] == ["s2"]


def test_predictions_are_of_validation_and_test_slides_in_order(run):
    config, workdir, cohort = run
    said, facts = colours.predictions(config, workdir, 1, cohort)
    rows = cohort.slides(1, "val", "test")
    assert said.shape == (8, 2)
    np.testing.assert_array_equal(said.argmax(1), rows.label)
    assert facts["patches"] == 3.0
    assert facts["strength"] in colour.STRENGTHS


def test_test_slides_have_no_say(run):
    config, workdir, cohort = run
    before, _ = colours.predictions(config, workdir, 1, cohort)
    flipped = cohort.table.assign(
        label=cohort.table.label.where(cohort.table.fold_1 != "test", 1 - cohort.table.label)
    )
    after, _ = colours.predictions(config, workdir, 1, Cohort(flipped, cohort.task))
    np.testing.assert_array_equal(before, after)
