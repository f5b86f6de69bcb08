"""A model written as functions says what it says itself, and is read without this package."""

import json
import subprocess
import sys

import numpy as np
import pytest
from scipy.special import softmax

from lrmil_jax.errors import ConfigError
from lrmil_jax.models import exported, model_folder
from tests.integration import random_model

PX = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    home = tmp_path_factory.mktemp("model")
    weights = random_model.write_weights(home / "vit.safetensors")
    return model_folder.load(random_model.write_model(home / "model", weights))


@pytest.fixture(scope="module")
def tiles():
    return np.random.default_rng(0).integers(0, 256, (5, PX, PX, 3), np.uint8)


def expected(model, tiles):
    """As the model predicts from tiles."""
    ((encoder, head),) = model.members
    features = encoder([tiles])["embedding"].astype(np.float16)
    logits, attention = head.predict(features)
    return model.task.link(logits), softmax(attention)


def test_the_reader_needs_neither_flax_nor_this_package(model, tiles, tmp_path):
    exported.write(model, tmp_path)
    np.save(tmp_path / "tiles.npy", tiles)
    code = (
        "import sys, json, numpy as np, read_exported\n"
        "values, attention = read_exported.predict('.', np.load('tiles.npy'), batch=2)\n"
        "assert not {'flax', 'lrmil_jax'} & {*sys.modules}\n"
        "print(json.dumps([values, attention.tolist()]))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    values, attention = json.loads(run.stdout)
    wanted, looked = expected(model, tiles)
    assert list(values) == ["benign", "tumour"]
    np.testing.assert_allclose(list(values.values()), wanted, atol=1e-4)
    np.testing.assert_allclose(attention, looked, atol=1e-4)


def test_onnx(model, tiles, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("jax2onnx")
    exported.write(model, tmp_path, format="onnx")

    def run(name, given):
        session = onnxruntime.InferenceSession(tmp_path / f"{name}.onnx")
        (first,) = session.get_inputs()
        return session.run(None, {first.name: given})

    (features,) = run("encoder_0", tiles)
    values, attention = run("head_0", features)
    wanted, looked = expected(model, tiles)
    np.testing.assert_allclose(values, wanted, atol=1e-4)
    np.testing.assert_allclose(attention, looked, atol=1e-4)


def test_mistakes_in_one_sentence(model, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="no format 'pickle' of models"):
        exported.write(model, tmp_path, format="pickle")
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ConfigError, match=r"pip install 'lrmil_jax\[onnx\]'"):
        exported.write(model, tmp_path, format="onnx")
    assert list(tmp_path.iterdir()) == []
