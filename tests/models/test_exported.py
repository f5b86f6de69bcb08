"""A model written as functions says what it says itself, and is read without this package."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from scipy.special import softmax

from lrmil_jax import heads
from lrmil_jax.errors import ConfigError
from lrmil_jax.models import exported, model_folder
from lrmil_jax.train.bag_model import BagModel
from tests.integration import random_model

PX, WIDTH = 64, 6
REFUSED = {"transmil", "transformer"}


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
    for name in ("encoder_1.stablehlo", "head_0.onnx", "notes.txt"):
        (tmp_path / name).touch()
    exported.write(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("encoder_0.stablehlo", "exported.json", "head_0.stablehlo", "notes.txt"),
        "read_exported.py",
    ]  # of an earlier export nothing is left
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


def a_head(name):
    module = heads.create(name, num_classes=2)
    bag = {"xy": jnp.zeros((1, 40, 2))} if module.needs_xy else {}
    zeros = jnp.zeros((1, 40, WIDTH))
    params = jax.jit(module.init)(jax.random.key(0), zeros, jnp.ones((1, 40), bool), **bag)
    scale = np.zeros(WIDTH, np.float32), np.ones(WIDTH, np.float32)
    return BagModel(name, {}, random_model.TASK, params["params"], *scale)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "clam_sb" else pytest.mark.slow)
     for name in sorted(set(heads.HEADS) - REFUSED)],
)  # fmt: skip
def test_every_head_takes_any_number_of_patches(name):
    head = a_head(name)
    call = export.deserialize(bytearray(exported.of_head(head, exported._stablehlo))).call
    for count in (1, 7, 300):
        features = np.random.default_rng(count).normal(size=(count, WIDTH)).astype(np.float32)
        values, attention = call(features)
        logits, scores = head.predict(features)
        np.testing.assert_allclose(values, head.task.link(logits), atol=1e-4)
        np.testing.assert_allclose(attention, softmax(scores), atol=1e-4)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_heads_that_cannot_are_named(name):
    with pytest.raises(ConfigError, match=f"the head {name} cannot be exported"):
        exported.of_head(a_head(name), exported._stablehlo)


def test_onnx(model, tiles, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("jax2onnx")
    exported.write(model, tmp_path, format="onnx")
    assert json.loads((tmp_path / "exported.json").read_text())["format"] == "onnx"

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
