"""Two and eight devices give what one gives: the run on one is `finished`, here are more."""

import json
import shutil

import jax
import numpy as np
import pandas as pd
import pytest
import safetensors.numpy

from lrmil_jax import graph
from lrmil_jax.data import param_files
from lrmil_jax.data.schema import FEATURE_DTYPES
from lrmil_jax.models import trained
from lrmil_jax.stages import baseline, distill, encode_lr, student, teacher
from lrmil_jax.train import make_mesh, sharding
from lrmil_jax.train.encode import BatchEncoder
from lrmil_jax.workspace import feature_sets, layout, stage_files
from tests.integration import runs
from tests.integration import test_wise_fuse as wise_fuse
from tests.integration.test_end_to_end import go, tiny

TRAININGS = [
    (teacher, "teacher", "training", "model.safetensors"),
    (distill, "distill", "training", "encoder.safetensors"),
    (student, "student", "training", "model.safetensors"),
    (baseline, "baseline", "training", "model.safetensors"),
]


def rows(folder):
    """What a training measured, row by row."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("stage", "name", "training", "file"),
    [pytest.param(*one, id=one[1], marks=() if one[1] in ("distill", "student") else
                  pytest.mark.slow) for one in TRAININGS],
)  # fmt: skip
def test_trainings(finished, tmp_path, stage, name, training, file):
    """Losses, validation and parameters of a whole stage; bags and patches do not divide by 8."""
    assert len(jax.devices()) == 8
    workdir = finished.copy(tmp_path / "run")
    one, eight = (layout.stage_folder(root, name, 1) for root in (finished.workdir, workdir))
    for path in [*eight.rglob("*.safetensors"), *eight.rglob("result.json")]:
        path.unlink()
    before = runs.files(eight)
    stage.run(tiny(), workdir, 1)
    expected, found = rows(one / training), rows(eight / training)
    assert f"{training}/metrics.jsonl" in runs.changed(before, runs.files(eight))
    for row, other in zip(expected, found, strict=True):
        assert other == pytest.approx(row, rel=1e-3, abs=1e-5)
    trees = [param_files.load_params(folder / file)[0] for folder in (one, eight)]
    leaves = [jax.tree_util.tree_leaves_with_path(tree) for tree in trees]
    for (path, leaf), (_, other) in zip(*leaves, strict=True):
        # Adam divides by the gradient's own size, so rounding shows where that is near 0.
        np.testing.assert_allclose(other, leaf, rtol=1e-3, atol=3e-5, err_msg=str(path))


def test_encoding(finished, tmp_path):
    """Stored features agree to the rounding of their type."""
    workdir = finished.copy(tmp_path / "run")
    shards = list(stage_files.distilled_folder(workdir, 1).glob("*.array_record"))
    for shard in shards:
        shard.unlink()
    encode_lr.run(tiny(), workdir, 1)
    ids = sorted(shard.stem for shard in shards)
    stores = [
        feature_sets.open_store(tiny(), root, stage_files.distilled_folder(root, 1), ids)
        for root in (finished.workdir, workdir)
    ]
    step = float(np.finfo(FEATURE_DTYPES["float16"]).eps)
    for slide in range(len(ids)):
        one, eight = (store.embedding(slide).astype(np.float32) for store in stores)
        np.testing.assert_allclose(eight, one, rtol=2 * step, atol=2e-4)


@pytest.mark.parametrize("batch", [5, 16])
def test_batches_that_do_not_divide(finished, batch):
    encoder = trained.hr_encoder(tiny(), finished.workdir)
    images = np.random.default_rng(0).integers(0, 256, (23, 64, 64, 3), np.uint8)
    groups = [images[:7], images[7:8], images[8:8], images[8:]]
    one, eight = (
        BatchEncoder(encoder, batch=batch, blocks=(0, 1), mesh=make_mesh(devices))(groups)
        for devices in (jax.devices()[:1], jax.devices())
    )
    assert one["embedding"].shape == (23, 64)
    assert one["cls"].shape == (23, 2, 64)
    for name, values in one.items():
        np.testing.assert_allclose(eight[name], values, rtol=1e-4, atol=1e-5)


def assert_close(one, other, name):
    """Parameters, features, choices, predictions and losses in two files of that name."""
    if name.endswith(".csv"):
        one, other = (pd.read_csv(path) for path in (one, other))
        pd.testing.assert_frame_equal(other, one, rtol=1e-3, atol=1e-4, obj=name)
    elif name.endswith(".jsonl"):
        one, other = (pd.read_json(path, lines=True) for path in (one, other))
        pd.testing.assert_frame_equal(other, one, rtol=1e-3, atol=1e-4, obj=name)
    else:
        one, other = (safetensors.numpy.load_file(path) for path in (one, other))
        assert other.keys() == one.keys(), name
        for key, values in one.items():
            whole = values.dtype.kind not in "fV"
            tolerance = {} if whole else {"rtol": 2e-3, "atol": 1e-4 * max(1, np.abs(values).max())}
            values, found = (steered(each, key) for each in (values, other[key]))
            np.testing.assert_allclose(found, values, err_msg=f"{name} {key}", **tolerance)


def steered(values, key):
    """Less the bias of the keys: attention does not change with it, so Adam follows rounding."""
    return np.delete(values.reshape(3, -1), 1, axis=0) if key.endswith("qkv/bias") else values


@pytest.mark.slow
@pytest.mark.parametrize("config", [tiny(), wise_fuse.config()], ids=["lrmil", "wise_fuse"])
def test_every_stage_of_a_run(config, tmp_path, monkeypatch):
    """Each stage from what one device left before it, on one, two and eight."""
    compared = {}
    for stage in graph.stage_names(config):
        before = runs.files(tmp_path / "1")
        for devices in (2, 8, 1):
            workdir = tmp_path / str(devices)
            if devices > 1:
                shutil.rmtree(workdir, ignore_errors=True)
                if before:
                    shutil.copytree(tmp_path / "1", workdir, symlinks=True)
            few = jax.devices()[:devices]
            monkeypatch.setattr(sharding, "make_mesh", lambda _=None, few=few: make_mesh(few))
            assert go(config, workdir, stage) == 0
        changed = runs.changed(before, runs.files(tmp_path / "1"))
        names = [name for name in sorted(changed) if name.endswith(
            (".safetensors", "predictions.csv", "validation.csv", "metrics.jsonl"))]  # fmt: skip
        for name in names:
            for devices in (2, 8):
                assert_close(tmp_path / "1" / name, tmp_path / str(devices) / name, name)
        compared[stage] = len(names)
    trained = ("pretrain", "distill", "student") if config.method == "lrmil" else ("align", "mil")
    assert all(compared[stage] for stage in (*trained, "evaluate")), compared
