"""What several processes cannot do is told before any of them works."""

import pytest

from lrmil_jax import config as configuration
from lrmil_jax import files, pipeline
from lrmil_jax.errors import ConfigError


class OneOfThree:
    """Of three processes that say the same."""

    index, count = 1, 3

    def exchange(self, name, value):
        return [value] * 3


@pytest.fixture(autouse=True)
def three(monkeypatch):
    monkeypatch.setattr("lrmil_jax.cluster.membership._members", [OneOfThree()])


def of(method, **batches):
    config = configuration.default().unlock()
    config.update(method=method, folds=2, deliver="ensemble")
    for block in ("pretrain", "distill", "align"):
        config[block].batch = batches.get(block, 66)
    return config.lock()


@pytest.mark.parametrize(
    ("method", "block"), [("lrmil", "pretrain"), ("lrmil", "distill"), ("wise_fuse", "align")]
)
def test_batches_of_each_training_are_looked_at_before_anything_runs(tmp_path, method, block):
    with pytest.raises(ConfigError, match=rf"^config\.{block}: batches of 64 .* among 3 processes"):
        pipeline.run(of(method, **{block: 64}), tmp_path / "run", [])
    assert not (tmp_path / "run").exists()


def refuse(config, workdir, *names):
    pipeline._refuse_uneven_batches(config, workdir, pipeline.choose_stages(config, list(names)))


def test_what_is_not_trained_may_have_any_batch(tmp_path):
    refuse(of("lrmil"), tmp_path)
    refuse(of("lrmil", align=64, pretrain=64), tmp_path, "distill")
    config = of("wise_fuse", align=64, pretrain=64)
    config.align.how, config.encoder.weights = "none", "vit.safetensors"
    refuse(config, tmp_path)


def test_what_is_done_may_have_had_any_batch(tmp_path):
    config = of("lrmil", distill=64)
    for fold, complete in ((1, True), (2, False)):
        mark = {"complete": complete}
        files.write_json(tmp_path / f"folds/{fold}/distill/stage.json", mark)
    with pytest.raises(ConfigError, match="distill"):
        refuse(config, tmp_path, "distill")
    files.write_json(tmp_path / "folds/2/distill/stage.json", {"complete": True})
    refuse(config, tmp_path, "distill")
