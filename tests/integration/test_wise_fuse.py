"""WISE-FUSE from slides to a prediction: what each stage writes, reads and does again."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from flax import traverse_util

from lrmil_jax import load_model
from lrmil_jax.data import param_files
from lrmil_jax.encoders import pretrained
from lrmil_jax.errors import ConfigError, DataError
from lrmil_jax.methods import delivery
from lrmil_jax.models import loading
from lrmil_jax.selection import score, shared_space
from lrmil_jax.stages import encode_selected, predict
from lrmil_jax.train.encode import BatchEncoder
from lrmil_jax.workspace import feature_sets, layout, stage_files
from tests.integration import runs
from tests.integration.test_end_to_end import go, tiny

pytestmark = pytest.mark.usefixtures("one_device", "optimised_encoders", "figures_not_drawn")
CHANGES = {
    "method": "wise_fuse",
    "text.descriptions": "shipped:procedural",
    "encoder.weights": "shipped:procedural",
    "synthetic.size_px": 1024,
    "synthetic.slides": 10,
    "prepare.hr": "skip",
    "select.rho": 0.25,
    "evaluate.timed_slides": 1,
}


def config(**changes):
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return tiny(**CHANGES | changes)


@pytest.fixture(scope="module")
def fused(cache, tmp_path_factory):
    del cache
    workdir = tmp_path_factory.mktemp("wise_fuse")
    assert go(config(), workdir) == 0
    return workdir


def slide_ids(workdir):
    return pd.read_csv(workdir / "slides.csv").slide_id.tolist()


def test_only_the_children_of_chosen_patches_are_read(fused):
    features = stage_files.selected_folder(fused, 1)
    for slide_id in slide_ids(fused):
        scores, chosen = stage_files.read_chosen(fused, 1, slide_id)
        assert len(chosen) == score.budget(len(scores), rho=0.25)
        assert (np.sort(scores.max(1))[-len(chosen) :] == np.sort(scores[chosen].max(1))).all()
        read = json.loads((features / f"{slide_id}.read.json").read_text())
        # A parent is 256 px of level 0 wide here, and nothing else of the slide is read.
        assert read == {"0": len(chosen) * 256**2}
        store = feature_sets.fused_store(config(), fused, 1, [slide_id])
        assert set(store.places(0)["parent"]) == set(chosen)
        assert store.embedding(0).shape == (16 * len(chosen), 64 + 64)


def test_prompts_and_the_tower_with_its_adapters_merged_are_kept(fused):
    trained = fused / "folds/1/align"
    assert (trained / "prompts.safetensors").stat().st_size < 20_000
    _, before = pretrained.load("vit-tiny", pretrained.locate("shipped:procedural"))
    _, after = pretrained.load("vit-tiny", trained / "encoder.safetensors")
    before, after = (traverse_util.flatten_dict(tree, sep="/") for tree in (before, after))
    changed = {name for name, value in before.items() if (after[name] != value).any()}
    assert changed == {name for name in before if name.startswith("block_") and "kernel" in name}
    aligned = pd.read_json(trained / "training/metrics.jsonl", lines=True)
    assert {"train/cosine", "train/agreement", "train/layer"} <= set(aligned)


@pytest.mark.slow
def test_as_published_the_prompts_alone_are_kept(fused, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(fused, workdir, symlinks=True)
    shutil.rmtree(workdir / "folds")
    published = {"align__how": "prompts", "align__lambda_layer": 0.0, "select__score": "patch"}
    assert go(config(**published), workdir) == 0
    trained = workdir / "folds/1/align"
    assert (trained / "prompts.safetensors").stat().st_size < 20_000
    assert not list(trained.rglob("encoder*"))
    aligned = pd.read_json(trained / "training/metrics.jsonl", lines=True)
    assert "train/layer" not in aligned
    assert load_model(workdir).predict(workdir / "synthetic/slides/slide_0003.tif").guidance


def test_what_the_test_slides_say(fused):
    measured = json.loads((fused / "folds/1/evaluate/metrics.json").read_text())["wise_fuse"]
    assert 0 <= measured["selection"]["lesion_recall"] <= 1
    assert measured["selection"]["chosen"] == 4
    timing = json.loads((fused / "report/timing.json").read_text())["wise_fuse"]
    assert {"read", "encode", "select", "read_hr", "encode_hr", "mil"} <= timing.keys()
    assert "WISE-FUSE" in (fused / "report/table.txt").read_text()
    page = (fused / "report/index.html").read_text()
    for folder in ("heatmaps", "regions"):  # attention within the regions, and why these
        drawn = list((fused / "report" / folder).glob("*.png"))
        assert len(drawn) == 1
        assert f"{folder}/{drawn[0].name}" in page


def test_predict_says_what_evaluate_said(fused, tmp_path):
    frame = pd.read_csv(fused / "folds/1/evaluate/predictions.csv")
    row = frame.iloc[0]
    model = tmp_path / "model"
    shutil.copytree(fused / "model", model)  # it must not need anything else of the run
    slide = fused / "synthetic/slides" / f"{row.slide_id}.tif"
    assert predict.run(model, tmp_path, slide=slide, slides=None) == 0
    folder = tmp_path / "predictions" / row.slide_id
    said = json.loads((folder / "prediction.json").read_text())
    assert said["probabilities"]["tumour"] == pytest.approx(row.prob_tumour, abs=2e-3)
    assert said["lr_patches"] == 16
    assert said["patches_encoded"] == 16 + 4 * 16
    regions = pd.read_csv(folder / "regions.csv")
    _, chosen = stage_files.read_chosen(fused, 1, row.slide_id)
    assert regions.chosen.sum() == len(chosen)
    assert np.flatnonzero(regions.chosen).tolist() == chosen.tolist()
    assert regions.sentence[regions.chosen].str.len().min() > 10
    assert (folder / "regions.png").is_file()


def test_folds_are_averaged_and_what_both_chose_is_read_once(fused):
    both = load_model(fused)
    (own, head), *_ = both.members
    tower = loading.load_encoder("vit-tiny", fused / "model/encoder.safetensors", dtype="float32")
    geometry = both.settings.geometry
    reader = both.guide.scoring_encoder(
        loading.low_resolution(tower, geometry), ratio=geometry.ratio
    )
    plain = BatchEncoder(reader, batch=own.batch), head  # the tower as it is chooses otherwise
    both = dataclasses.replace(both, members=[*both.members, plain])
    slide = fused / "synthetic/slides/slide_0003.tif"
    alone = [dataclasses.replace(both, members=[member]).predict(slide) for member in both.members]
    result = both.predict(slide)
    chosen = [set(one.guidance.chosen.tolist()) for one in alone]
    assert set(result.guidance.chosen.tolist()) == chosen[0] | chosen[1]
    assert result.encoded == 2 * 16 + 16 * len(chosen[0] | chosen[1])
    # Cosines of other batches differ in rounding.
    attention = np.mean([one.attention for one in alone], axis=0)
    np.testing.assert_allclose(result.attention, attention, atol=1e-4)
    for name, probability in result.probabilities.items():
        mean = np.mean([one.probabilities[name] for one in alone])
        assert probability == pytest.approx(mean, abs=1e-4)


def test_what_folds_chose_alike_is_encoded_once(fused, tmp_path, monkeypatch):
    """A second fold that chose one region otherwise reads and encodes that one alone."""
    workdir = tmp_path / "run"
    shutil.copytree(fused, workdir, symlinks=True)
    slide_id, seen = "slide_0003", {}
    for path in (workdir / "folds/1/select/slides").iterdir():
        scores, chosen = stage_files.read_chosen(workdir, 1, path.stem)
        other = np.setdiff1d(np.arange(len(scores)), chosen)[:1]
        tree = {"scores": scores, "chosen": np.union1d(chosen[1:], other).astype(np.int32)}
        param_files.save_params(stage_files.chosen_path(workdir, 2, path.stem), tree)
    folder = stage_files.selected_folder(workdir, 2)
    for name, folds in {"shared": (1, 2), "alone": (2,)}.items():
        monkeypatch.setattr(delivery, "trainings", lambda _, folds=folds: folds)
        shutil.rmtree(folder, ignore_errors=True)
        encode_selected.run(config(), workdir, 2)
        read = json.loads((folder / f"{slide_id}.read.json").read_text())
        rows = feature_sets.open_store(config(), workdir, folder, [slide_id]).rows(0)
        seen[name] = rows, sum(read.values())
    (shared, few), (alone, many) = seen["shared"], seen["alone"]
    for field in ("embedding", "xy", "parent", "child", "child_mask"):
        np.testing.assert_array_equal(getattr(shared, field), getattr(alone, field))
    assert len(np.unique(alone.parent)) == 4
    assert few <= many / 3


@pytest.mark.slow
def test_a_smaller_budget_redoes_the_choice_and_what_follows(fused, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(fused, workdir, symlinks=True)
    before = runs.files(workdir)
    assert go(config(), workdir) == 0
    # The copy's slides lie elsewhere, and the table says so.
    assert runs.changed(before, runs.files(workdir)) == {"slides.csv"}
    assert go(config(select__rho=0.125), workdir) == 0
    changed = {name.split("/")[2] for name in runs.changed(before, runs.files(workdir))
               if name.startswith("folds/")}  # fmt: skip
    assert changed == {"select", "encode_selected", "fuse", "mil", "evaluate"}
    assert len(stage_files.read_chosen(workdir, 1, "slide_0000")[1]) == 2


def test_an_edited_description_redoes_the_texts(fused, tmp_path):
    workdir, own = tmp_path / "run", tmp_path / "own.toml"
    shutil.copytree(fused, workdir, symlinks=True)
    own.write_text('[benign]\nlow = ["Even nuclei."]\n[tumour]\nlow = ["Large nucleoli."]\n')
    changed = config(text__descriptions=str(own), text__power="low")
    assert go(changed, workdir, "text") == 0
    first = shared_space.SharedSpace(stage_files.texts_path(workdir)).texts.embedding
    own.write_text(own.read_text().replace("Even", "Uneven"))
    assert go(changed, workdir, "text") == 0
    assert (
        shared_space.SharedSpace(stage_files.texts_path(workdir)).texts.embedding != first
    ).any()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["none", "full", "lora"])
def test_other_ways_to_read_low_resolution(fused, tmp_path, how):
    workdir = tmp_path / "run"
    shutil.copytree(fused, workdir, symlinks=True)
    changes = {"align__how": how, "fuse__how": "cross_attention", "select__classes": ("tumour",)}
    assert go(config(**changes, report__heatmaps=0, evaluate__timed_slides=0), workdir) == 0
    assert (workdir / "folds/1/align/encoder.safetensors").is_file() == (how != "none")
    scores, chosen = stage_files.read_chosen(workdir, 1, "slide_0000")
    tumour = np.sort(scores[:, 1])  # benign, tumour
    assert (np.sort(scores[chosen, 1]) == tumour[-len(chosen) :]).all()


def test_a_choice_by_one_class_and_one_at_random_by_the_tower_as_it_is(fused, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(fused, workdir, symlinks=True)
    named = config(align__how="none", select__classes=("tumour",))
    assert go(named, workdir, "align", "select") == 0
    scores, chosen = stage_files.read_chosen(workdir, 1, "slide_0000")
    tumour = np.sort(scores[:, 1])  # benign, tumour
    assert (np.sort(scores[chosen, 1]) == tumour[-len(chosen) :]).all()
    assert go(config(select__rule="random", align__how="none"), workdir, "align", "select") == 0
    for slide_id in slide_ids(fused):
        scores, chosen = stage_files.read_chosen(workdir, 1, slide_id)
        again = score.select_random(len(scores), len(chosen), seed=0, slide_id=slide_id)
        assert chosen.tolist() == again.tolist()


def test_mistakes_in_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="descriptions is not set"):
        go(config(text__descriptions=None, synthetic__size_px=512), tmp_path / "a")
    with pytest.raises(ConfigError, match="'tumor', which is no class"):
        go(config(select__classes=("tumor",), synthetic__size_px=512), tmp_path / "a")
    own = tmp_path / "own.toml"
    own.write_text('[benign]\nlow = ["Even nuclei."]\n[other]\nlow = ["Large nucleoli."]\n')
    with pytest.raises(DataError, match="does not describe the class tumour"):
        go(config(text__descriptions=str(own), synthetic__size_px=512), tmp_path / "b")
    assert not (layout.stage_folder(tmp_path / "b", "align", 1)).exists()
