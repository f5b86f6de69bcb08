"""The model's card, as the hub reads it."""

import dataclasses

import pytest
import yaml

from lrmil_jax.report import model_card

CARD = model_card.ModelCard(
    title="LRMIL", method="lrmil", task="classification", classes=("benign", "tumour"),
    encoder="uni", licence="CC-BY-NC-ND-4.0", dataset="labels.csv", slides=100, patients=80,
    row={"auc": 0.91234, "auc_interval": (0.85, 0.95), "accuracy": None},
    metric_titles={"auc": "AUC", "accuracy": "accuracy"},
    geometry={"hr_mpp": 0.5, "lr_mpp": 2.0, "patch_px": 256}, thresholds={"youden": 0.4321},
    cautions=["Only 4 test patients."], folds=5, hashes={"final/head.safetensors": "ab" * 32},
    identity="cd" * 32, version="0.1.0",
)  # fmt: skip


def test_front_matter_has_licence_tags_and_metrics_with_intervals():
    text = model_card.text(CARD)
    _, front, body = text.split("---\n", 2)
    head = yaml.safe_load(front)
    assert head["license"] == "cc-by-nc-nd-4.0"
    assert head["library_name"] == "lrmil_jax"
    (model,) = head["model-index"]
    (metric,) = model["results"][0]["metrics"]  # an undefined one is not there
    assert (metric["type"], metric["value"]) == ("auc", 0.9123)
    assert metric["args"]["interval_95"] == [0.85, 0.95]
    for part in ("Only 4 test patients.", "youden 0.432", "ab" * 32, "cd" * 32, "no medical device",
                 "tested on nobody", "| AUC | 0.912 [0.850, 0.950] |"):  # fmt: skip
        assert part in body


def test_a_licence_that_is_not_on_record():
    head = model_card.front_matter(dataclasses.replace(CARD, licence="Kaiko Licence 1"))
    assert (head["license"], head["license_name"]) == ("other", "Kaiko Licence 1")
    assert model_card.front_matter(dataclasses.replace(CARD, licence=""))["license"] == "other"


def test_the_hub_reads_it(tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    (tmp_path / "README.md").write_text(model_card.text(CARD), encoding="utf-8")
    data = hub.ModelCard.load(tmp_path / "README.md").data
    (result,) = data.eval_results
    assert result.metric_value == 0.9123
    assert result.metric_args == {"interval_95": [0.85, 0.95]}
