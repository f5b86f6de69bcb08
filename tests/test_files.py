"""Whole files or none; parameters there and back; disk trouble in one sentence."""

import errno
import os
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lrmil_jax.data.param_files import load_params, save_params
from lrmil_jax.errors import WeightsError, WorkdirError
from lrmil_jax.files import (
    atomic_folder,
    atomic_path,
    disk_errors,
    remove_leftovers,
    write_json,
)
from lrmil_jax.train import checkpoint, make_mesh
from tests.train import toy

TREE = {
    "block": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3).T, "bias": np.zeros(2)},
    "half": jnp.ones((2, 2), jnp.bfloat16),
    "scalar": np.float32(3.5),
    "count": np.array([1, 2], np.int32),
}


def test_params_come_back_bit_identical(tmp_path):
    metadata = {"step": 3, "metrics": {"auc": None, "loss": 0.1}}
    save_params(tmp_path / "new" / "p.safetensors", TREE, metadata)
    tree, read = load_params(tmp_path / "new" / "p.safetensors")
    assert read == metadata
    assert tree["half"].dtype == ml_dtypes.bfloat16
    assert tree["scalar"].shape == ()
    np.testing.assert_array_equal(tree["block"]["kernel"], TREE["block"]["kernel"])
    assert tree["block"]["bias"].dtype == np.float64
    np.testing.assert_array_equal(tree["count"], [1, 2])


def test_same_params_give_the_same_bytes(tmp_path):
    for name in "ab":
        save_params(tmp_path / name, TREE, {"z": 1, "a": 2})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_slash_in_a_key_is_refused(tmp_path):
    with pytest.raises(ValueError, match="contains '/'"):
        save_params(tmp_path / "p", {"a/b": np.zeros(1)})


@pytest.mark.parametrize("content", [None, b"", b"version https://git-lfs", "truncated"])
def test_broken_weights_are_one_sentence(tmp_path, content):
    path = tmp_path / "p.safetensors"
    if content == "truncated":
        save_params(path, TREE)
        content = path.read_bytes()[:-3]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"p\.safetensors"):
        load_params(path)


def test_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})

    def interrupted():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "x"), "the disk is full"),
        (OSError(errno.EROFS, "x"), "read-only"),
        (PermissionError(errno.EACCES, "x"), "permission is denied"),
        (ValueError(f"tensorstore: {os.strerror(errno.ENOSPC)} [errno 28]"), "the disk is full"),
    ],
)
def test_disk_errors_are_one_sentence(error, sentence):
    with (
        pytest.raises(WorkdirError, match=f"cannot write under out: .*{sentence}"),
        disk_errors("out"),
    ):
        raise error


@pytest.mark.parametrize("error", [ValueError("x"), FileNotFoundError(errno.ENOENT, "x")])
def test_other_errors_pass(error):
    with pytest.raises(type(error)), disk_errors("out"):
        raise error


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_really_full_device_is_told():
    with pytest.raises(WorkdirError, match="the disk is full"), disk_errors("/dev"):
        pathlib.Path("/dev/full").write_text("x")


def test_full_disk_during_a_checkpoint(tmp_path, monkeypatch):
    """The sentence, and the checkpoint before it is still good."""
    mesh = make_mesh(jax.devices()[:1])
    save, calls = checkpoint.ocp.CheckpointManager.save, []

    def full(self, step, **kwargs):
        calls.append(step)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(self, step, **kwargs)

    monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "save", full)
    with pytest.raises(WorkdirError, match="the disk is full"):
        toy.train(tmp_path, mesh=mesh)
    assert (tmp_path / "checkpoints" / "8").is_dir()
    assert toy.train(tmp_path, mesh=mesh).step > 0
    assert calls[3] == 12


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "a.zarr"
    for name in ("old", "new"):
        with atomic_folder(folder) as temporary:
            temporary.mkdir()
            (temporary / name).touch()
    with pytest.raises(FileNotFoundError), atomic_folder(folder) as temporary:
        (temporary / "in a folder that is not there").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]
    assert [path.name for path in folder.iterdir()] == ["new"]
    killed = tmp_path / ".a.zarr.0123abcd.tmp"
    killed.mkdir()
    (killed / "part").touch()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]
