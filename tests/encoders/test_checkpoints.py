"""Checkpoints of one's own training: the backbone loads, whatever wraps it and lies beside it."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from lrmil_jax.encoders import checkpoints, pretrained, registry
from lrmil_jax.encoders.spec import EncoderSpec
from lrmil_jax.errors import WeightsError

GOLDEN = Path(__file__).parent / "goldens" / "uni.safetensors"


@pytest.fixture(scope="module")
def backbone():
    loaded = safetensors.numpy.load_file(GOLDEN)
    return {name: value for name, value in loaded.items() if not name.startswith("golden.")}


@pytest.fixture
def load(tmp_path, monkeypatch):
    with safetensors.safe_open(GOLDEN, framework="numpy") as file:
        about = json.loads(file.metadata()["about"])
    entry = EncoderSpec(kwargs=about["kwargs"], layout=about["layout"])
    monkeypatch.setattr(registry, "ENCODERS", {"mine": entry})

    def load(tensors):
        path = tmp_path / "checkpoint.safetensors"
        path.write_bytes(safetensors.numpy.save(tensors))
        return pretrained.load("mine", path)[1]

    return load


def wrapped(backbone, prefix):
    return {prefix + name: value for name, value in backbone.items()}


HEAD = {"mlp.0.weight": np.ones((2, 2), np.float32), "last_layer.weight": np.ones(3, np.float32)}


@pytest.mark.parametrize(
    ("prefix", "heads"),
    [
        ("teacher.backbone.", ("teacher.dino_head.", "teacher.ibot_head.", "dino_loss.")),
        ("model.teacher.backbone.", ("model.teacher.dino_head.", "optimizer.state.")),
        ("state_dict.model._orig_mod.", ("state_dict.criterion.",)),
        ("module._orig_mod.backbone.", ("module._orig_mod.head.",)),
        ("student.", ("optimizer.",)),
        ("backbone.", ("dino_head.", "ibot_head.")),
        ("", ("dino_head.", "decoder_blocks.0.", "predictor.", "head.")),
    ],
)
def test_heads_are_left_out_and_told(load, backbone, caplog, prefix, heads):
    beside = {head + name: value for head in heads for name, value in HEAD.items()}
    params, plain = load(wrapped(backbone, prefix) | beside), load(backbone)
    jax.tree.map(np.testing.assert_array_equal, params, plain)
    assert "are not of the backbone and are left out: " in caplog.text
    assert heads[0].strip(".") in caplog.text


def test_the_teacher_goes_before_the_student(load, backbone, caplog):
    worse = {name: value + 1 for name, value in backbone.items()}
    both = wrapped(worse, "student.backbone.") | wrapped(backbone, "teacher.backbone.")
    params = load(both)
    np.testing.assert_array_equal(params["norm"]["bias"], backbone["norm.bias"])
    assert "the backbone is teacher.backbone.*" in caplog.text
    assert "student.backbone" in caplog.text.partition("left out:")[2]


def test_blocks_in_chunks(load, backbone):
    chunked = {
        name.replace("blocks.0.", "teacher.backbone.blocks.0.0.").replace(
            "blocks.1.", "teacher.backbone.blocks.1.1."
        )
        if name.startswith("blocks.")
        else f"teacher.backbone.{name}": value
        for name, value in backbone.items()
    }
    jax.tree.map(np.testing.assert_array_equal, load(chunked), load(backbone))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_of_a_diverged_training_are_refused_by_name(load, backbone, value):
    wrong = backbone["blocks.1.mlp.fc1.weight"].copy()
    wrong[1, 2] = value
    said = rf"1 of the {wrong.size} numbers of blocks\.1\.mlp\.fc1\.weight are NaN or infinite"
    with pytest.raises(WeightsError, match=said):
        load({**backbone, "blocks.1.mlp.fc1.weight": wrong})
    # What is left out may be anything.
    load({**backbone, "dino_head.weight": wrong})


def test_what_is_nested_gets_dotted_names():
    content = {
        "teacher": {"backbone": {"norm.bias": 1}},
        "epoch": 3,
        "optimizer": {"state": {0: 2}},
    }
    flat = checkpoints.flatten(content)
    assert flat == {"teacher.backbone.norm.bias": 1, "epoch": 3, "optimizer.state.0": 2}
