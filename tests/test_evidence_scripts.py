"""Scripts that ask what a model or an encoder is worth: the figures that they print."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lrmil_jax.interchange import registry
from lrmil_jax.slides import mosaic

SCRIPTS = Path(__file__).parents[1] / "scripts"


def load(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_what_a_shift_costs_is_measured_within_each_run():
    """Two runs, .9 and .7 as they are; shifted they lose .2 and .1: .15 with an SD of .0707."""
    rows = [
        ("a", "lrmil", "none", 0, 0.9), ("a", "lrmil", "blur", 2, 0.7),
        ("b", "lrmil", "none", 0, 0.7), ("b", "lrmil", "blur", 2, 0.6),
    ]  # fmt: skip
    measured = pd.DataFrame(rows, columns=["run", "model", "shift", "strength", "auc"])
    lines = load("bench_shifts").table(measured).splitlines()
    assert lines[2] == "| none | 0 | lrmil | 0.800 | +0.000 (0.000) |"
    assert lines[3] == "| blur | 2 | lrmil | 0.650 | +0.150 (0.071) |"


def test_a_probe_is_asked_of_fields_whose_neighbours_it_has_not_seen():
    """What tells the runs apart but not the classes gives nothing; what tells the classes does."""
    probe, rng = load("probe_tiles"), np.random.default_rng(0)
    run = np.repeat(np.arange(20), 6)
    label = run % 2
    field = np.repeat(np.arange(len(run)), 4)  # four patches of each
    of_runs = np.eye(20)[run][field] + 0.1 * rng.normal(size=(len(field), 20))
    of_classes = label[field][:, None] + 2.0 * rng.normal(size=(len(field), 1))
    by_field = probe.held_out(of_classes, label, run, field, by_field=True)
    by_patch = probe.held_out(of_classes, label, run, field, by_field=False)
    assert np.mean(by_field) > np.mean(by_patch) + 0.05 > 0.65
    assert np.mean(probe.held_out(of_runs, label, run, field, by_field=True)) < 0.65


def test_colours_are_their_means_and_spreads():
    fields = np.zeros((1, 2, 2, 3), np.uint8)
    fields[0, 0] = 10
    np.testing.assert_allclose(load("probe_tiles").moments(fields), [[5, 5, 5, 5, 5, 5]])


def test_a_folder_that_is_no_run_is_said(tmp_path):
    with pytest.raises(Exception, match=r"has no config\.json"):
        load("bench_shifts").config_of(tmp_path)


@pytest.fixture
def composed(tmp_path):
    """Slides of 2 x 2 fields, whose grey values are their numbers."""
    for name in ("normal", "tumour"):
        (tmp_path / "fields" / name).mkdir(parents=True)
        for number in range(20):
            grey = np.arange(16, dtype=np.uint8).reshape(4, 4).repeat(16, 0).repeat(16, 1)
            grey = grey + np.uint8(2 * number + (name == "tumour"))
            picture = grey[..., None].repeat(3, 2)
            Image.fromarray(picture).save(tmp_path / "fields" / name / f"{number}.png")
    recipe = mosaic.MosaicRecipe(fields=2, field_px=64, seed=3)
    mosaic.write_cohort(tmp_path / "fields", tmp_path / "cohort", positive="tumour",
                        slides=(2, 2, 2), recipe=recipe)  # fmt: skip
    return tmp_path


def test_features_of_fields_are_those_of_the_slides_pixels(composed, monkeypatch):
    """With the mean grey value of a patch for its features, as they are read off the picture."""
    script = load("field_features")
    monkeypatch.setattr(script.loading, "load_encoder", lambda *args, **options: None)
    monkeypatch.setattr(script, "BatchEncoder", lambda encoder, batch: mean_grey)
    args = ["--tiles", composed / "fields", "--cohorts", composed / "cohort", "--encoder", "grey"]
    weights = composed / "cohort" / "recipe.json"  # any file: nothing is loaded
    monkeypatch.setattr(sys, "argv", ["", *map(str, args), "--weights", str(weights)])
    assert script.main() == 0
    recipe, table = script.read_cohort(composed / "cohort")
    for level, side in (("hr", 16), ("lr", 64)):
        layout = registry.of_folder(composed / "cohort" / f"features_{level}")
        files = layout.files(composed / "cohort" / f"features_{level}")
        assert sorted(files) == sorted(table.slide_id.unique())
        for slide_id, fields in table.groupby("slide_id"):
            rows = fields.drop(columns="slide_id").to_dict("records")
            placed = [
                mosaic.PlacedField(**row | {"path": composed / "fields" / row["path"]})
                for row in rows
            ]
            image = mosaic.compose(placed, recipe)[0].astype(float)
            bag = layout.open(files[slide_id], None)
            assert (bag.side, bag.dimensions) == (side, (128, 128))
            assert len({tuple(corner) for corner in bag.xy.tolist()}) == (128 // side) ** 2
            for (x, y), row in zip(bag.xy, bag.features(), strict=True):
                assert row[0] == pytest.approx(image[y : y + side, x : x + side].mean(), abs=0.5)


def mean_grey(parts):
    return {"embedding": np.concatenate([part.mean((1, 2)) for part in parts])}


def test_a_cohort_that_was_not_composed_of_fields_is_said(tmp_path):
    with pytest.raises(Exception, match="give folders that compose_slides made of fields"):
        load("field_features").read_cohort(tmp_path)
