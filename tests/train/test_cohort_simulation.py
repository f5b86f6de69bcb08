"""The cohort benchmark's pieces at a miniature size, so that they keep up with the product."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from lrmil_jax import config as configuration
from lrmil_jax.data.folds import make as make_folds
from lrmil_jax.slides import open_slide

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def scripts():
    """The benchmark's modules, imported as a script imports them."""
    sys.path.insert(0, str(SCRIPTS))
    names = ("cohort_simulation", "cohort_product", "cohort_parts", "bench_cohort")
    yield {name: importlib.import_module(name) for name in names}
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def cohort(scripts):
    return scripts["cohort_simulation"].make_cohort()


@pytest.fixture(scope="module")
def options(scripts):
    """Fifty patients and bags of two sizes, so that little is compiled."""

    class Miniature(scripts["cohort_parts"].Options):
        def cohort(self, **changes):
            cohort = super().cohort(**changes)
            count = np.arange(len(cohort.table))
            return dataclasses.replace(
                cohort, lr_sizes=np.where(count % 2, 16, 64), coverage=np.ones(len(count))
            )

    return Miniature(
        width=4, hidden=4, epochs=1, noise_epochs=1, probe_epochs=1, sample=1, simulations=3,
        slides=60, patients=50,
    )  # fmt: skip


def test_the_cohort_has_the_size_that_is_asked_for(cohort):
    assert len(cohort.table) == 1000
    assert cohort.table.patient_id.nunique() == 800
    assert cohort.table.groupby("patient_id").label.first().mean() == 0.2
    for level, median, percentile in (("lr", 700, 2500), ("hr", 9500, 30_000)):
        sizes = cohort.sizes[level]
        np.testing.assert_allclose(np.median(sizes), median, rtol=0.01)
        np.testing.assert_allclose(np.quantile(sizes, 0.95), percentile, rtol=0.02)
    ratio = cohort.sizes["hr"] / cohort.sizes["lr"]
    assert ratio.max() <= 16
    assert np.corrcoef(np.log(cohort.sizes["hr"]), np.log(cohort.sizes["lr"]))[0, 1] > 0.99


def test_features_are_the_same_whenever_they_are_drawn_and_belong_to_their_places(scripts, cohort):
    simulation = scripts["cohort_simulation"]
    positive = np.flatnonzero(cohort.labels == 1)
    slide = next(slide for slide in positive if cohort.shifted(slide).any())
    store = simulation.SimulatedStore(cohort, "hr", np.array([slide]), width=8)
    again = simulation.SimulatedStore(cohort, "hr", np.array([slide, 0]), width=8)
    rows, places = store.embedding(0), store.places(0)
    np.testing.assert_array_equal(rows, again.embedding(0))
    assert len(rows) == store.sizes[0] == len(places["parent"])
    np.testing.assert_array_equal(np.bincount(places["parent"]), cohort.children(slide))
    assert (places["child"] >= 0).all()
    assert places["child"].max() < 16
    along = rows.astype(np.float32) @ simulation.direction(8)
    carries = cohort.shifted(slide)[places["parent"]]
    np.testing.assert_allclose(along[carries].mean(), cohort.signal.shift, atol=0.5)
    np.testing.assert_allclose(along[~carries].mean(), 0, atol=0.05)


def test_the_oracle_misses_silent_slides_alone(scripts, cohort):
    simulation = scripts["cohort_simulation"]
    slides = np.arange(300)
    store = simulation.SimulatedStore(cohort, "lr", slides, width=8)
    scores = np.array([store.oracle(place) for place in range(len(slides))])
    labels = cohort.labels[slides]
    telling = np.array([cohort.shifted(slide).any() for slide in slides])
    told = (labels == 0) | telling
    assert roc_auc_score(labels[told], scores[told]) > 0.995
    assert roc_auc_score(labels[~telling | (labels == 0)], scores[~telling | (labels == 0)]) < 0.9


def test_weights_of_bags_are_those_of_the_gradient(scripts, options):
    product, parts = scripts["cohort_product"], scripts["cohort_parts"]
    data = options.cohort().bags("lr", width=2)
    weights = product.bag_weights(data, configuration.default().student, epochs=1)
    assert not weights[data.val].any()
    shares = parts.gradient_shares(
        weights[data.train], data.targets[data.train, 0].astype(int), data.store.sizes[data.train]
    )
    np.testing.assert_allclose(*shares["class"], rtol=1e-4)
    np.testing.assert_allclose(shares["length"], 1, rtol=1e-4)


def test_gradient_shares_by_hand(scripts):
    weights = np.array([4.0, *range(1, 11)])
    labels = np.array([1] + [0] * 10)
    shares = scripts["cohort_parts"].gradient_shares(weights, labels, np.arange(11))
    assert shares == {"class": [pytest.approx(4 / 5.5), 10.0], "length": 10.0}


@pytest.mark.parametrize(
    "name",
    [
        "gradients",
        "intervals",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("student", "guided")),
    ],
)
def test_parts_run_and_are_reported(scripts, options, name):
    part = json.loads(json.dumps(scripts["cohort_parts"].PARTS[name](options)))
    bench = scripts["bench_cohort"]
    lines = bench.report({"parts": {name: part}})
    assert len(lines) > 2
    wanted = {"gradients": {"gradient_share_class", "gradient_share_length"},
              "intervals": {"interval_coverage"}}  # fmt: skip
    assert set(bench.headline({name: part})) == wanted.get(name, set())
    for row in part.get("rows", ()):
        assert row["wall_s"] > 0
        assert row["slides"] > 0
    if name == "student":
        assert 0 < part["rows"][1]["waits"] < 1
        assert part["validations_per_epoch"] > 0


def test_slides_differ_in_size_and_five_folds_can_be_made(scripts, tmp_path):
    path = scripts["cohort_simulation"].write_slides(tmp_path / "cohort", count=15, largest=512)
    table = pd.read_csv(path)
    sizes = set()
    for slide_id in table.slide_id:
        with open_slide(path.parent / "slides" / f"{slide_id}.tif") as slide:
            sizes.add(slide.dimensions)
    assert len(sizes) > 10
    numbered = table.assign(label=(table.label == "tumour").astype(int))
    groups = numbered.label.to_numpy()
    assert len(make_folds(numbered, groups, folds=5, seed=0, source="slides")) == 5
