"""A study of two seeds: what its runs share, what it writes, and that nothing is done twice."""

import json

import numpy as np
import pandas as pd
import pytest

from lrmil_jax.studies import study
from lrmil_jax.workspace import layout
from tests.integration import runs
from tests.integration.test_end_to_end import tiny

pytestmark = pytest.mark.usefixtures("one_device", "figures_not_drawn")
VARIANTS = ("no bag: student.lambda_bag=0", "LR alone: method=mil_lr")
# What is learned does not matter here.
FEW = {
    "synthetic__slides": 12, "distill__steps": 2, "distill__eval_every": 2, "teacher__epochs": 1,
    "student__epochs": 1,
}  # fmt: skip
POINTS = ["student.lambda_bag=0", "student.lambda_bag=2"]
MODELS = ["HR teacher", "LR without distillation", "LRMIL", *POINTS, "no bag", "LR alone"]


def config(finished, *variants):
    weights = str(finished.workdir / "pretrain/encoder.safetensors")
    made = tiny(encoder__weights=weights, evaluate__timed_slides=0, report__heatmaps=0, **FEW)
    made.study.update(seeds=(3, 4), variants=variants)
    made.sweep.each = ("student.lambda_bag: 0 1 2",)  # 1 is the config as it is
    return made


def go(made, workdir):
    with layout.locked(workdir):
        return study.run(made, workdir)


@pytest.fixture(scope="module")
def studied(finished, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("study")
    assert go(config(finished, *VARIANTS), workdir) == 0
    return workdir


def test_runs_share_what_does_not_differ(studied):
    base, variant, alone = (studied / "runs/seed_3" / n for n in ("base", "no_bag", "LR_alone"))
    for name in ("regions", "features", "folds/1/teacher", "folds/1/distill", "folds/1/encode_lr"):
        assert (variant / name).is_symlink()
        assert (variant / name).resolve() == (base / name).resolve()
        assert not (variant / name).readlink().is_absolute()
    assert not (variant / "folds/1/student").is_symlink()
    assert not (variant / "folds/1/baseline").exists()
    assert (alone / "folds/1/baseline").is_symlink()
    assert not (studied / "runs/seed_4/base/regions").is_symlink()  # synthetic: slides of its own


def test_tidy_rows_and_table(studied):
    results = pd.read_csv(studied / "study/results.csv")
    assert results.groupby("seed").model.apply(list).to_dict() == {3: MODELS, 4: MODELS}
    table = pd.read_csv(studied / "study/table.csv").set_index("model")
    assert table.index.tolist() == MODELS
    for model, rows in results.groupby("model"):
        assert table.figure_mean[model] == pytest.approx(rows.auc.mean())
        assert table.figure_sd[model] == pytest.approx(rows.auc.std())
        assert table.figure_low[model] <= rows.auc.mean() <= table.figure_high[model]
    auc = results.pivot_table(index="seed", columns="model", values="auc")
    for model in set(MODELS) - {"LRMIL"}:
        gain = auc["LRMIL"] - auc[model]
        assert table.gain_mean[model] == pytest.approx(gain.mean(), abs=1e-9)
        assert table.gain_above_zero[model] == (gain > 0).sum()
    # The same head on the same features: a variant that asks for the same gets the same.
    assert (auc["LR alone"] == auc["LR without distillation"]).all()
    for name in ("table.md", "table.txt", "comparison.png", "effects.png", "summary.json"):
        assert (studied / "study" / name).is_file()
    assert "gap_closed" in json.loads((studied / "study/summary.json").read_text())


def test_points_of_a_sweep_are_what_a_run_of_their_own_gives(studied):
    for seed in (3, 4):
        runs_of_seed = studied / f"runs/seed_{seed}"
        alone = pd.read_csv(runs_of_seed / "no_bag/folds/1/evaluate/predictions.csv")
        swept = pd.read_csv(runs_of_seed / "base/folds/1/sweep/predictions.csv")
        assert swept.model.unique().tolist() == POINTS
        point = swept[swept.model == POINTS[0]].reset_index(drop=True)
        alone = alone[alone.model == "lrmil"].reset_index(drop=True)
        assert point.slide_id.equals(alone.slide_id)
        values = [name for name in alone if name.startswith("p_")]
        np.testing.assert_allclose(point[values], alone[values], atol=1e-5)
    results = pd.read_csv(studied / "study/results.csv").set_index(["seed", "model"])
    for column in ("auc", "val_figure"):
        one, other = (results.xs(name, level="model")[column] for name in (POINTS[0], "no bag"))
        assert one.tolist() == other.tolist()
    best = json.loads((studied / "study/summary.json").read_text())["winner"]
    chosen = results[results.name == "lrmil"].val_figure.groupby("model").mean()
    assert best["val_figure"] == pytest.approx(chosen.max())
    assert chosen[best["model"]] == chosen.max()
    assert "settings on validation patients" in (studied / "study/table.md").read_text()


@pytest.mark.slow
def test_again_does_nothing_and_a_new_variant_only_itself(finished, studied):
    before = runs.files(studied / "runs")
    assert go(config(finished, *VARIANTS), studied) == 0
    assert runs.changed(before, runs.files(studied / "runs")) == set()
    assert go(config(finished, *VARIANTS, "top 1: student.topk=1"), studied) == 0
    changed = runs.changed(before, runs.files(studied / "runs"))
    assert changed
    assert {name.split("/")[1] for name in changed} == {"top_1"}
    assert "top 1" in (studied / "study/table.txt").read_text()


@pytest.mark.slow
def test_seeds_side_by_side_make_what_they_make_one_after_another(finished, studied, tmp_path):
    beside = config(finished, *VARIANTS)
    beside.study.workers = 2
    assert go(beside, tmp_path) == 0
    before = runs.files(tmp_path / "runs")
    assert go(beside, tmp_path) == 0  # processes of their own find all of it done
    assert runs.changed(before, runs.files(tmp_path / "runs")) == set()
    tables = [pd.read_csv(root / "study/results.csv") for root in (studied, tmp_path)]
    columns = ["seed", "variant", "model"]
    wanted = tables[0][tables[0].variant.isin(set(tables[1].variant))]
    pd.testing.assert_frame_equal(
        wanted[columns].reset_index(drop=True), tables[1][columns].reset_index(drop=True)
    )
    for name in ("table.md", "table.txt", "comparison.png", "effects.png", "summary.json"):
        assert (tmp_path / "study" / name).is_file()
