"""Files of a model whose bytes are damaged: one sentence with the file's name, whatever they hold.

What is inlined here is what `scripts/fuzz.py` found to end in a traceback.
"""

import json

import numpy as np
import pytest
import safetensors.numpy

from lrmil_jax.data import param_files
from lrmil_jax.encoders import pretrained
from lrmil_jax.errors import WeightsError
from lrmil_jax.models import model_folder
from lrmil_jax.selection.shared_space import SharedSpace
from lrmil_jax.train.bag_model import BagModel

FACTS = {
    "schema": 4,
    "members": ["1"],
    "sha256": {},
    "geometry": {"lr_mpp": 2.0, "hr_mpp": 0.5, "patch_px": 256},
    "prepare": {},
    "encoder": {"name": "vit_s16", "batch": 8, "dtype": "float32"},
    "features_dtype": "float16",
}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[1, 2]",
        b'"text"',
        b"null",
        b"[" * 100_000,
        b"9" * 5000,
        json.dumps(FACTS | {"members": []}).encode(),
        json.dumps(FACTS | {"members": [1]}).encode(),
        json.dumps(FACTS | {"members": "1"}).encode(),
        json.dumps(FACTS | {"sha256": "text"}).encode(),
        json.dumps(FACTS | {"sha256": {"a\0": "b"}}).encode(),
        json.dumps(FACTS | {"sha256": {"a": 1}}).encode(),
        json.dumps(FACTS | {"geometry": [2.0, 0.5, 256]}).encode(),
        json.dumps(FACTS | {"geometry": FACTS["geometry"] | {"hr_mpp": None}}).encode(),
        json.dumps(FACTS | {"geometry": FACTS["geometry"] | {"hr_mpp": 0}}).encode(),
        json.dumps(FACTS | {"prepare": {"colour": "red"}}).encode(),
        json.dumps(FACTS | {"encoder": {"name": "vit_s16"}}).encode(),
        json.dumps(FACTS | {"encoder": FACTS["encoder"] | {"batch": "8"}}).encode(),
        json.dumps(FACTS | {"encoder": FACTS["encoder"] | {"dtype": "flo+t32"}}).encode(),
        json.dumps(FACTS | {"features_dtype": "float17"}).encode(),
        json.dumps(FACTS | {"thresholds": [0.5]}).encode(),
    ],
    ids=lambda content: content[:30].decode("latin-1"),
)
def test_model_json(tmp_path, content):
    (tmp_path / "model.json").write_bytes(content)
    with pytest.raises(
        WeightsError, match=r"model\.json (is broken|says|names) .*copy the model folder"
    ) as error:
        model_folder.load(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def weights(path, about, **arrays):
    arrays = arrays or {"head/kernel": np.zeros(2, np.float32)}
    header = {param_files._METADATA_KEY: about} if about is not None else None
    path.write_bytes(safetensors.numpy.save(arrays, header))
    return path


@pytest.mark.parametrize("about", ["{", "[]", "3", "[" * 100_000])
@pytest.mark.parametrize("read", [param_files.load_params, pretrained.read_tensors])
def test_metadata_of_weights(tmp_path, about, read):
    path = weights(tmp_path / "w.safetensors", about)
    with pytest.raises(WeightsError, match=r"w\.safetensors"):
        read(path)


@pytest.mark.parametrize("about", [None, "{}", '{"head": "abmil", "options": {}, "task": []}'])
@pytest.mark.parametrize("read", [BagModel.load, SharedSpace])
def test_weights_of_something_else(tmp_path, about, read):
    path = weights(tmp_path / "w.safetensors", about)
    with pytest.raises(WeightsError, match=r"w\.safetensors holds no"):
        read(path)


def test_a_parameter_that_is_also_a_folder_of_others(tmp_path):
    values = {"a": np.zeros(1, np.float32), "a/b": np.zeros(1, np.float32)}
    path = weights(tmp_path / "w.safetensors", "{}", **values)
    with pytest.raises(WeightsError, match=r"w\.safetensors"):
        param_files.load_params(path)
