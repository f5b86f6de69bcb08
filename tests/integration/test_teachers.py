"""A run that learns from the teachers of other runs too, from slides to a student."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrmil_jax import encoders
from lrmil_jax.data import param_files
from lrmil_jax.encoders import pretrained
from lrmil_jax.errors import DataError
from lrmil_jax.train import pairs
from lrmil_jax.workspace import feature_sets, layout, stage_files, teaching
from tests.integration import random_model, runs
from tests.integration.test_end_to_end import go, tiny

pytestmark = [pytest.mark.usefixtures("one_device"), pytest.mark.slow]
TO_TEACHER = ("pretrain", "prepare", "encode_hr", "teacher")
CHANGES = {
    "student__no_distillation": False, "evaluate__timed_slides": 0, "report__heatmaps": 0,
    "distill__steps": 4, "distill__eval_every": 2, "teacher__epochs": 1, "student__epochs": 1,
    "distill__checkpoint_seconds": 0.0,
}  # fmt: skip
# A second encoder, narrower than the first.
NARROW = "vit:px=64,patch=8,width=32,depth=2,heads=2"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A finished teacher of one encoder, and the changes of a config for its slides."""
    folder = tmp_path_factory.mktemp("teachers")
    weights = random_model.write_weights(folder / "vit.safetensors")
    changes = {**CHANGES, "encoder__weights": str(weights)}
    drawn = folder / "drawn/synthetic"
    assert go(tiny(**changes, synthetic__slides=12), drawn.parent, "pretrain", "prepare") == 0
    changes |= {"data__labels": str(drawn / "labels.csv"), "data__slides": str(drawn / "slides")}
    changes["synthetic__slides"] = 0
    assert go(tiny(**changes), folder / "run", *TO_TEACHER) == 0
    return folder / "run", changes


@pytest.fixture(scope="module")
def other(base, tmp_path_factory):
    """A finished teacher of another encoder on the same slides."""
    folder = tmp_path_factory.mktemp("other")
    module = encoders.create(NARROW)
    params = jax.jit(module.init)(jax.random.key(3), jnp.zeros((1, 64, 64, 3)))["params"]
    pretrained.save(folder / "narrow.safetensors", NARROW, {}, params, {})
    changes = {**base[1], "encoder__weights": str(folder / "narrow.safetensors"),
               "encoder__name": NARROW, "distill__layers": ()}  # fmt: skip
    assert go(tiny(**changes), folder / "run", *TO_TEACHER) == 0
    return folder / "run"


def config(base, *teachers, **changes):
    pairs = tuple((str(folder), weight) for folder, weight in teachers)
    return tiny(**base[1], **{"distill__teachers": pairs, **changes})


def distilled(workdir):
    tree, _ = param_files.load_params(workdir / "folds/1/distill/encoder.safetensors")
    return jax.tree.leaves(tree)


def copied(base, folder):
    return shutil.copytree(base[0], folder, symlinks=True)


def test_a_run_of_the_same_encoder_adds_its_weight(base, tmp_path):
    """Bit for bit what twice the weight of the own term gives."""
    same, alone = copied(base, tmp_path / "same"), copied(base, tmp_path / "alone")
    assert go(config(base, (base[0], 1.0), distill__lambda_attn=0.5), same) == 0
    assert go(config(base, distill__lambda_attn=1.0), alone) == 0
    for one, two in zip(distilled(same), distilled(alone), strict=True):
        np.testing.assert_array_equal(one, two)
    assert (same / "model/model.json").is_file()


def test_another_encoder_teaches_both_stages_and_goes_on_after_a_stop(
    base, other, tmp_path, caplog
):
    whole, alone = copied(base, tmp_path / "whole"), copied(base, tmp_path / "alone")
    taught = config(base, (other, 0.5))
    assert go(taught, whole, "distill", "encode_lr", "student") == 0
    assert go(config(base), alone, "distill", "encode_lr", "student") == 0
    assert any((a != b).any() for a, b in zip(distilled(whole), distilled(alone), strict=True))
    # Stage 2: the weighted mean of both teachers' probabilities.
    ids = sorted(path.stem for path in (base[0] / "folds/1/teacher/outputs").iterdir())
    store = feature_sets.student_store(taught, whole, 1, ids)
    said = teaching.outputs(taught, whole, 1, store, ("mass",))
    logits = [np.stack([stage_files.read_teacher(run, 1, name)["logits"] for name in ids])
              for run in (whole, other)]  # fmt: skip
    wanted = (jax.nn.softmax(logits[0]) + 0.5 * jax.nn.softmax(logits[1])) / 1.5
    np.testing.assert_allclose(jax.nn.softmax(said["per_bag"]["teacher_logits"]), wanted, atol=1e-6)
    own = teaching.outputs(config(base), whole, 1, store, ("mass",))
    np.testing.assert_array_equal(said["per_instance"]["guide"], own["per_instance"]["guide"])
    # Done again it is skipped, also where the other run was moved to; not if its teacher changed.
    moved = shutil.copytree(other, tmp_path / "moved", symlinks=True)
    before = runs.files(whole / "folds")
    assert go(config(base, (moved, 0.5)), whole, "distill", "student") == 0
    assert runs.files(whole / "folds") == before
    mark = moved / "folds/1/teacher/stage.json"
    mark.write_text(mark.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    with caplog.at_level("INFO"):
        assert go(config(base, (moved, 0.5)), whole, "distill") == 0
    assert "other distill.teachers, or other outputs of theirs" in caplog.text
    assert runs.files(whole / "folds") != before


def test_a_stopped_stage_1_with_another_encoder_goes_on_bit_for_bit(
    base, other, tmp_path, monkeypatch
):
    whole, stopped = copied(base, tmp_path / "whole"), copied(base, tmp_path / "stopped")
    taught = config(base, (other, 0.5), distill__rank=2)  # as adapters, the maps beside them
    assert go(taught, whole, "distill") == 0
    fit = pairs.fit

    def until_the_checkpoint(**options):
        validate, calls = options["validate"], []

        def stopping(params):
            calls.append(None)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return validate(params)

        return fit(**{**options, "validate": stopping})

    with monkeypatch.context() as patch:
        patch.setattr(pairs, "fit", until_the_checkpoint)
        with pytest.raises(KeyboardInterrupt):
            go(taught, stopped, "distill")
    assert any((stopped / "folds/1/distill/training/checkpoints").iterdir())
    assert go(taught, stopped, "distill") == 0
    for one, two in zip(distilled(whole), distilled(stopped), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_leak_is_refused_before_anything_is_done(base, other, tmp_path):
    leaking = shutil.copytree(other, tmp_path / "leaking", symlinks=True)
    table = (leaking / "folds.csv").read_text().replace(",test,", ",train,")
    (leaking / "folds.csv").write_text(table)
    own = copied(base, tmp_path / "own")
    with pytest.raises(DataError, match="would leak"):
        go(config(base, (leaking, 1.0)), own, "distill")
    assert not layout.stage_folder(own, "distill", 1).exists()
