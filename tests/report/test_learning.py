"""Learning curves by term, and what slides cost."""

import json

import pytest

from lrmil_jax.report import costs, learning, table


def log(folder, *lines):
    folder.mkdir(parents=True)
    text = "\n".join(json.dumps(line) for line in lines)
    (folder / "metrics.jsonl").write_text(text + "\n")


def test_terms_have_axes_of_their_own(tmp_path):
    for fold in ("1", "final"):
        log(
            tmp_path / f"folds/{fold}/student/training",
            {"step": 1, "train/ce": 0.7, "train/loss": 0.9, "train/grad_norm": 3.0},
            {"step": 1, "validation/loss": 0.8, "validation/auc": None, "validation/brier": 0.2},
            {"step": 2, "train/ce": 0.5, "train/loss": 0.6, "validation/auc": 0.75},
        )
    log(tmp_path / "folds/1/sweep/training/block_0", {"step": 1, "train/loss": 1.0})
    stages = learning.read(tmp_path)
    assert list(stages) == ["student"]
    assert list(stages["student"]) == ["loss", "ce", "auc"]
    assert stages["student"]["loss"] == [
        (True, [1, 2], [0.9, 0.6]), (False, [1], [0.8]),
        (True, [1, 2], [0.9, 0.6]), (False, [1], [0.8]),
    ]  # fmt: skip
    assert stages["student"]["auc"][0] == (False, [2], [0.75])
    ((name, caption),) = learning.save(tmp_path, tmp_path)
    assert (tmp_path / name).is_file()
    assert "own axis" in caption
    assert learning.save(tmp_path, tmp_path / "nothing") == []


def test_operations_of_each_model_beside_all_hr_patches(tmp_path):
    rows = [
        {"model": "teacher", "title": "HR", "patches": 1000.0, "seconds_encode": 2.0},
        {"model": "lrmil", "title": "LRMIL", "patches": 60.0},
        {"model": "wise_fuse", "title": "WISE-FUSE", "patches": 310.0, "patches_lr": 60.0},
        {"model": "colour", "title": "colour only", "patches": 60.0},
    ]
    high = {"teacher": True, "lrmil": False, "wise_fuse": True}
    flops = costs.encoding_flops(rows, high, {"hr": 10.0, "lr": 11.0}, hr_patches=990.0)
    expected = {"HR": 10_000, "LRMIL": 660, "WISE-FUSE": 660 + 2500, table.EXHAUSTIVE: 9900}
    assert flops == pytest.approx(expected)
    assert "counted by XLA" in costs.save(tmp_path / "c.png", rows, flops)
    assert costs.save(tmp_path / "none.png", rows[1:], {}) == ""
    assert not (tmp_path / "none.png").exists()
