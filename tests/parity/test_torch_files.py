"""PyTorch's files: read without running their code, or refused in one sentence."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from lrmil_jax.encoders import pretrained, registry
from lrmil_jax.encoders.spec import EncoderSpec
from lrmil_jax.errors import WeightsError

pytestmark = pytest.mark.parity
GOLDEN = Path(__file__).parents[1] / "encoders" / "goldens" / "uni.safetensors"


@pytest.fixture
def state(monkeypatch):
    entry = EncoderSpec(
        kwargs={"px": 32, "patch": 8, "width": 16, "depth": 2, "heads": 2, "layer_scale": True},
        layout="timm",
    )
    monkeypatch.setattr(registry, "ENCODERS", {"published": entry})
    loaded = safetensors.numpy.load_file(GOLDEN)
    return {k: torch.from_numpy(v) for k, v in loaded.items() if not k.startswith("golden.")}


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "teacher"])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_a_state_dict_however_it_is_wrapped(state, tmp_path, wrapper, prefix):
    named = {prefix + name: value for name, value in state.items()}
    path = tmp_path / "pytorch_model.bin"
    torch.save(named if wrapper is None else {"epoch": 3, wrapper: named}, path)
    _, params = pretrained.load("published", path)
    np.testing.assert_array_equal(params["norm"]["bias"], state["norm.bias"].numpy())


def test_a_checkpoint_of_dinov2(state, tmp_path):
    """Teacher and student with heads, an optimizer and counters around them."""
    sides = {
        side: {f"backbone.{name}": value + shift for name, value in state.items()}
        | {"dino_head.mlp.0.weight": torch.ones(2, 2)}
        for side, shift in (("student", 1), ("teacher", 0))
    }
    flat = {f"{side}.{name}": value for side, one in sides.items() for name, value in one.items()}
    optimizer = {"state": {0: {"exp_avg": torch.ones(3), "step": 7}}, "param_groups": [{"lr": 1}]}
    for content in (
        {**sides, "iteration": 9, "optimizer": optimizer},
        {"model": flat, "iteration": 9, "optimizer": optimizer},
        {"teacher": sides["teacher"]},
    ):
        torch.save(content, tmp_path / "checkpoint.pth")
        _, params = pretrained.load("published", tmp_path / "checkpoint.pth")
        np.testing.assert_array_equal(params["norm"]["bias"], state["norm.bias"].numpy())


def test_half_precision_and_the_old_format(state, tmp_path):
    path = tmp_path / "old.pth"
    half = {name: value.to(torch.bfloat16) for name, value in state.items()}
    torch.save(half, path, _use_new_zipfile_serialization=False)
    _, params = pretrained.load("published", path)
    assert params["norm"]["bias"].dtype == np.float32
    np.testing.assert_allclose(params["norm"]["bias"], state["norm.bias"].numpy(), rtol=1e-2)


class Evil:
    """What a pickle can do when it is loaded."""

    def __reduce__(self):
        return Path.touch, (Path("was_run"),)


def test_no_code_of_a_file_is_run(state, tmp_path, monkeypatch):
    del state
    monkeypatch.chdir(tmp_path)
    for save in (torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))):
        save({"evil": Evil()}, tmp_path / "evil.pt")
        with pytest.raises(WeightsError, match="without running its code"):
            pretrained.load("published", tmp_path / "evil.pt")
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([torch.zeros(2)], "no state dict .it holds a list"),
        ({}, "no state dict .it holds a dict"),
        ({"epoch": 3, "loss": 0.5}, "'epoch' is a int"),
    ],
)
def test_what_is_no_state_dict_is_refused(state, tmp_path, content, said):
    del state
    torch.save(content, tmp_path / "odd.bin")
    with pytest.raises(WeightsError, match=said):
        pretrained.load("published", tmp_path / "odd.bin")


def test_truncated_files_and_archives_of_code_are_refused(state, tmp_path):
    path = tmp_path / "model.bin"
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(WeightsError, match="copy or download it again"):
        pretrained.load("published", path)
    archive = tmp_path / "archive.pt"
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(archive))
    with pytest.raises(WeightsError, match="TorchScript archive, or use the publisher's safetens"):
        pretrained.load("published", archive)
